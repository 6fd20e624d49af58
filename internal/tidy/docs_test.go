package tidy

import (
	"fmt"
	"go/ast"
	"go/token"
	"iter"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// lengthMax is the length of a function in lines that fits on a screen.
const lengthMax = 70

// longer are functions that were longer when the rule was made, with their
// length. It is a ratchet: numbers only go down and lines only go away.
var longer = map[string]int{
	"internal/looptest/limits.go testGreedy":       79,
	"loop/wheel_test.go TestWheelAgainstReference": 72,
	"proxy/stress_test.go stressClient":            78,
	"supervisor/rig_test.go testWorker":            71,
}

// selectors yields what the file selects from names: a.B as (a, B).
func (f *goFile) selectors() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		more := true
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && more {
				if x, ok := s.X.(*ast.Ident); ok {
					more = yield(x.Name, s.Sel.Name)
				}
			}
			return more
		})
	}
}

// receiver is the name of a method's type, "" for a function.
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	e := fn.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// funcName is Type.Method or the function's name.
func funcName(fn *ast.FuncDecl) string {
	if r := receiver(fn); r != "" {
		return r + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// checkPackageDocs complains about packages without a comment, or with two.
func checkPackageDocs(files []*goFile) []string {
	docs := map[string][]string{}
	for _, f := range files {
		if f.isTest() {
			continue
		}
		have := docs[f.dir()]
		if f.ast.Doc != nil {
			have = append(have, f.path)
		}
		docs[f.dir()] = have
	}
	var out []string
	for dir, have := range docs {
		switch len(have) {
		case 1:
		case 0:
			out = append(out, fmt.Sprintf("%s: no package comment: say in one file what the package is for and what it leaves to others", dir))
		default:
			out = append(out, fmt.Sprintf("%s: package comments in %v: keep one", dir, have))
		}
	}
	return out
}

// checkDocs complains about exported names without a comment, and about files
// that do not begin by saying what they hold.
func checkDocs(f *goFile) []string {
	if f.isTest() {
		return nil
	}
	var out []string
	complain := func(pos token.Pos, name string) {
		out = append(out, fmt.Sprintf("%s:%d: %s has no doc comment: say what a caller cannot guess (units, zero, owner, goroutine, errors)", f.path, f.line(pos), name))
	}
	first := true
	for _, d := range f.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			r := receiver(d)
			if d.Doc == nil && d.Name.IsExported() && (r == "" || ast.IsExported(r)) {
				complain(d.Pos(), funcName(d))
			}
			if first && d.Doc == nil && f.ast.Doc == nil {
				out = append(out, opening(f))
			}
			first = false
		case *ast.GenDecl:
			if d.Tok == token.IMPORT {
				continue
			}
			for _, s := range d.Specs {
				for _, name := range undocumented(d, s) {
					complain(name.Pos(), name.Name)
				}
			}
			if first && d.Doc == nil && f.ast.Doc == nil && !documented(d) {
				out = append(out, opening(f))
			}
			first = false
		}
	}
	return out
}

func opening(f *goFile) string {
	return fmt.Sprintf("%s: a file begins by saying what it holds: give its first declaration a comment", f.path)
}

// documented reports whether the first line of a group has a comment.
func documented(d *ast.GenDecl) bool {
	if len(d.Specs) == 0 {
		return false
	}
	switch s := d.Specs[0].(type) {
	case *ast.TypeSpec:
		return s.Doc != nil || s.Comment != nil
	case *ast.ValueSpec:
		return s.Doc != nil || s.Comment != nil
	}
	return false
}

// undocumented returns the exported names of a line of d that no comment
// covers: its own, before or behind it, or the group's.
func undocumented(d *ast.GenDecl, s ast.Spec) []*ast.Ident {
	if d.Doc != nil {
		return nil
	}
	var names []*ast.Ident
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Doc == nil && s.Comment == nil {
			names = []*ast.Ident{s.Name}
		}
	case *ast.ValueSpec:
		if s.Doc == nil && s.Comment == nil {
			names = s.Names
		}
	}
	var exported []*ast.Ident
	for _, n := range names {
		if n.IsExported() {
			exported = append(exported, n)
		}
	}
	return exported
}

// checkLength complains about functions longer than lengthMax, and about lines
// of longer that are out of date.
func checkLength(files []*goFile, longer map[string]int) []string {
	var out []string
	seen := map[string]bool{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			key := f.path + " " + funcName(fn)
			lines := f.line(fn.End()) - f.line(fn.Pos()) + 1
			listed, isListed := longer[key]
			seen[key] = isListed
			switch {
			case isListed && lines <= lengthMax:
				out = append(out, fmt.Sprintf("%s has %d lines now: remove it from longer", key, lines))
			case isListed && lines < listed:
				out = append(out, fmt.Sprintf("%s shrank to %d lines: lower its number in longer", key, lines))
			case isListed && lines > listed:
				out = append(out, fmt.Sprintf("%s grew from %d to %d lines: move straight work into functions of its own", key, listed, lines))
			case !isListed && lines > lengthMax:
				out = append(out, fmt.Sprintf("%s has %d lines, more than %d: move straight work into functions of its own", key, lines, lengthMax))
			}
		}
	}
	for key := range longer {
		if !seen[key] {
			out = append(out, fmt.Sprintf("%s is not there any more: remove it from longer", key))
		}
	}
	return out
}

func TestDocComments(t *testing.T) {
	files := sources(t)
	none(t, checkPackageDocs(files))
	for _, f := range files {
		none(t, checkDocs(f))
	}
}

func TestFunctionLength(t *testing.T) {
	none(t, checkLength(sources(t), longer))
}

func TestDocRulesCanFail(t *testing.T) {
	lone := func(source string) []string {
		return checkDocs(parse(t, "x/x.go", "// Package x is a test.\npackage x\n"+source))
	}
	require.Len(t, lone("func Exported() {}"), 1)
	require.Empty(t, lone("// Exported does.\nfunc Exported() {}"))
	require.Empty(t, lone("func unexported() {}"))
	require.Len(t, lone("type T struct{}"), 1)
	require.Len(t, lone("// T is.\ntype T struct{}\nfunc (*T) M() {}"), 1)
	require.Len(t, lone("// T is.\ntype T[V any] struct{}\nfunc (t *T[V]) M() {}"), 1)
	require.Empty(t, lone("type t struct{}\nfunc (t) M() {}"))
	require.Len(t, lone("const (\n\tA = 1\n\tB = 2 // is explained\n)"), 1)
	require.Empty(t, lone("// Letters.\nconst (\n\tA = 1\n\tB = 2\n)"))
	require.Len(t, lone("var A, B int"), 2)

	require.Len(t, checkDocs(parse(t, "x/x.go", "package x\nfunc f() {}")), 1, "no opening comment")
	require.Empty(t, checkDocs(parse(t, "x/x.go", "package x\n// f does.\nfunc f() {}")))
	require.Len(t, checkDocs(parse(t, "x/x.go", "package x\nconst a = 1")), 1)
	require.Empty(t, checkDocs(parse(t, "x/x.go", "package x\nconst a = 1 // metre")))
	require.Empty(t, checkDocs(parse(t, "x/x_test.go", "package x\nfunc F() {}")))

	plain := parse(t, "x/a.go", "package x")
	doc := parse(t, "x/b.go", "// Package x is.\npackage x")
	require.Len(t, checkPackageDocs([]*goFile{plain}), 1)
	require.Empty(t, checkPackageDocs([]*goFile{plain, doc}))
	require.Len(t, checkPackageDocs([]*goFile{doc, doc}), 1)
}

func TestLengthRuleCanFail(t *testing.T) {
	of := func(lines int) []*goFile {
		return []*goFile{parse(t, "x/x.go", "package x\nfunc (t *T) f() {"+strings.Repeat("\n", lines-1)+"}")}
	}
	const key = "x/x.go T.f"
	require.Empty(t, checkLength(of(lengthMax), nil))
	require.Len(t, checkLength(of(lengthMax+1), nil), 1)
	require.Empty(t, checkLength(of(80), map[string]int{key: 80}))
	require.Len(t, checkLength(of(81), map[string]int{key: 80}), 1)
	require.Len(t, checkLength(of(79), map[string]int{key: 80}), 1)
	require.Len(t, checkLength(of(10), map[string]int{key: 80}), 1)
	require.Len(t, checkLength(nil, map[string]int{key: 80}), 1)
}
