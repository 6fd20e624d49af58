package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the module's path.
const module = "github.com/cloud-cup/cloud-cup"

// textFile is any file of ours that people read.
type textFile struct {
	path string // slash-separated, from the tree's root
	text string
}

// goFile is a parsed Go file.
type goFile struct {
	textFile
	fset *token.FileSet
	ast  *ast.File
}

// dir is the package's folder; "" at the root.
func (f *goFile) dir() string {
	if d := path.Dir(f.path); d != "." {
		return d
	}
	return ""
}

// isTest reports whether the file is compiled for tests only.
func (f *goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// line is the line of p in the file.
func (f *goFile) line(p token.Pos) int { return f.fset.Position(p).Line }

// parse parses a source.
func parse(t *testing.T, name, source string) *goFile {
	t.Helper()
	f := &goFile{textFile: textFile{name, source}, fset: token.NewFileSet()}
	parsed, err := parser.ParseFile(f.fset, name, source, parser.ParseComments)
	require.NoError(t, err)
	f.ast = parsed
	return f
}

// root finds the tree above the tests' working directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	require.NoError(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		require.NotEqual(t, parent, dir, "go.mod was not found above the working directory")
		dir = parent
	}
}

// notOurs are folders with things that are built, kept by git, or data.
var notOurs = []string{".git", "bin", "testdata", "results", "node_modules"}

// texts reads every text file of the tree.
func texts(t *testing.T) []textFile {
	t.Helper()
	top := root(t)
	var list []textFile
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains(notOurs, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !isText(d.Name()) {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		list = append(list, textFile{filepath.ToSlash(relative), string(text)})
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, list)
	return list
}

// isText tells by its name whether people read a file.
func isText(name string) bool {
	switch path.Ext(name) {
	case ".go", ".md", ".json", ".yaml", ".yml", ".sh", ".c", ".conf", ".lua", ".html", ".mod":
		return true
	}
	return name == "Makefile" || name == "run" || name == ".gitignore"
}

// sources parses every Go file of the tree.
func sources(t *testing.T) []*goFile {
	t.Helper()
	var list []*goFile
	for _, f := range texts(t) {
		if strings.HasSuffix(f.path, ".go") {
			list = append(list, parse(t, f.path, f.text))
		}
	}
	require.Greater(t, len(list), 50, "the tree's Go files were not found")
	return list
}

// file returns the text of one file of the tree.
func file(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(name)))
	require.NoError(t, err)
	return string(text)
}

// none fails with all complaints.
func none(t *testing.T, complaints []string) {
	t.Helper()
	for _, c := range complaints {
		t.Error(c)
	}
}
