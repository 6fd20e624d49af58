package tidy

import (
	"flag"
	"fmt"
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/cloud-cup/cloud-cup/message"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the generated documents")

// A word that is not ours, the places that may have it, and what to do. The
// words are put together from pieces, so that this file does not hold them.
type banned struct {
	pattern *regexp.Regexp
	allowed *regexp.Regexp // a line with this may have the word; nil: none may
	places  []string       // files that may have it
	fix     string
}

var bannedWords = []banned{
	{
		pattern: regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`),
		fix:     "do it, or write down in the documentation what is not there yet",
	},
	{
		pattern: regexp.MustCompile(`(?i)up` + `stream`),
		allowed: regexp.MustCompile(`(?i)nginx|haproxy|envoy|caddy|traefik`),
		// The configurations of other programs use those programs' words.
		places: []string{"bench/programs.go", "BENCHMARKS.md"},
		fix:    `a server in the config is a "backend"; the other word belongs to other programs`,
	},
	{
		pattern: regexp.MustCompile(`(^|[\s"'(=` + "`" + `])/(work|home|root|Users|build)/`),
		fix:     "a path of one machine: make it relative, or take it from a variable",
	},
	{
		pattern: regexp.MustCompile(`\b(DES` + `IGN|FA` + `CTS|ST` + `YLE)\.md\b|\.\./sha` + `red\b|\biss` + `ue #?[0-9]`),
		fix:     "name a document or section that is in this tree",
	},
}

// checkWords complains about banned words.
func checkWords(f textFile, words []banned) []string {
	var out []string
	for i, line := range strings.Split(f.text, "\n") {
		for _, w := range words {
			found := w.pattern.FindString(line)
			if found == "" || w.allowed != nil && w.allowed.MatchString(line) {
				continue
			}
			if contains(w.places, f.path) {
				continue
			}
			out = append(out, fmt.Sprintf("%s:%d: %q: %s", f.path, i+1, strings.TrimSpace(found), w.fix))
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// checkOpening complains about texts that do not say at their beginning what
// they are: Go files have rules of their own.
func checkOpening(f textFile) []string {
	first, rest, _ := strings.Cut(f.text, "\n")
	if strings.HasPrefix(first, "#!") {
		first, _, _ = strings.Cut(rest, "\n")
	}
	var want string
	switch {
	case path.Ext(f.path) == ".md":
		want = "# "
	case path.Base(f.path) == "Makefile", path.Base(f.path) == "run", path.Ext(f.path) == ".sh", path.Ext(f.path) == ".conf":
		want = "# "
	case path.Ext(f.path) == ".json" && path.Dir(f.path) == "examples", path.Ext(f.path) == ".c":
		want = "/"
	}
	if strings.HasPrefix(first, want) {
		return nil
	}
	return []string{fmt.Sprintf("%s: a file begins by saying what it holds: the first line is to begin with %q", f.path, want)}
}

// mdLink is an inline link of Markdown: [text](target).
var mdLink = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// checkLinks complains about links of a Markdown file to files and headings
// that are not there. read returns a file of the tree, false if there is none.
func checkLinks(f textFile, read func(string) (string, bool)) []string {
	var out []string
	for _, m := range mdLink.FindAllStringSubmatch(withoutCode(f.text), -1) {
		target := m[1]
		if strings.Contains(target, "://") {
			continue
		}
		name, anchor, _ := strings.Cut(target, "#")
		where := f.path
		if name != "" {
			where = path.Join(path.Dir(f.path), name)
		}
		text, there := read(where)
		if !there {
			out = append(out, fmt.Sprintf("%s links to %s, which is not there: correct the path", f.path, where))
			continue
		}
		if anchor != "" && !contains(anchors(text), anchor) {
			out = append(out, fmt.Sprintf("%s links to #%s of %s, which has no such heading: correct it", f.path, anchor, where))
		}
	}
	return out
}

// withoutCode leaves the fenced blocks of a Markdown text out.
func withoutCode(text string) string {
	var out strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inside = !inside
		} else if !inside {
			out.WriteString(line)
		}
	}
	return out.String()
}

// anchors are those that GitHub gives to the headings of a Markdown text.
func anchors(text string) []string {
	var list []string
	for line := range strings.Lines(withoutCode(text)) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		heading := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		list = append(list, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return r
			}
			return -1
		}, heading))
	}
	return list
}

// makeTargets are the targets that a Makefile defines.
func makeTargets(makefile string) map[string]bool {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*):(?:[^=]|$)`).FindAllStringSubmatch(makefile, -1) {
		for _, name := range strings.Fields(m[1]) {
			targets[name] = true
		}
	}
	return targets
}

// madeTargets are the targets that the commands of a text make: in a console
// block, between backquotes, or in a line of a script.
func madeTargets(text string) map[string]bool {
	made := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)(?:^\\$ |`|^\t(?:tests )?(?:env [A-Z_]+=[a-z0-9]+ )?)make ([a-z][a-z0-9-]*)").FindAllStringSubmatch(text, -1) {
		made[m[1]] = true
	}
	return made
}

// checkTargets complains about targets that a text makes and the Makefile does
// not have.
func checkTargets(f textFile, makefile string) []string {
	targets := makeTargets(makefile)
	var out []string
	for name := range madeTargets(f.text) {
		if !targets[name] {
			out = append(out, fmt.Sprintf("%s says \"make %s\", which the Makefile does not have: correct one of them", f.path, name))
		}
	}
	return out
}

// reasonTable is the documentation's table of the reasons, as it must stand.
func reasonTable() string {
	var b strings.Builder
	b.WriteString("| reason | status | what the response says |\n|---|---|---|\n")
	for _, r := range message.Reasons() {
		info := r.Info()
		status := "none"
		if info.Status != 0 {
			status = fmt.Sprint(info.Status)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", info.Word, status, info.Text)
	}
	return b.String()
}

// reader reads files of the tree; folders are there and empty.
func reader(t *testing.T) func(string) (string, bool) {
	top := root(t)
	return func(name string) (string, bool) {
		full := filepath.Join(top, filepath.FromSlash(name))
		info, err := os.Stat(full)
		if err != nil {
			return "", false
		}
		if info.IsDir() {
			return "", true
		}
		text, err := os.ReadFile(full)
		return string(text), err == nil
	}
}

func TestWords(t *testing.T) {
	for _, f := range texts(t) {
		none(t, checkWords(f, bannedWords))
	}
}

func TestOpenings(t *testing.T) {
	for _, f := range texts(t) {
		none(t, checkOpening(f))
	}
}

func TestLinks(t *testing.T) {
	for _, f := range texts(t) {
		if path.Ext(f.path) == ".md" {
			none(t, checkLinks(f, reader(t)))
		}
	}
}

func TestMakeTargets(t *testing.T) {
	makefile := file(t, "Makefile")
	for _, f := range texts(t) {
		if path.Ext(f.path) == ".md" || path.Base(f.path) == "run" {
			none(t, checkTargets(f, makefile))
		}
	}
	for name := range makeTargets(makefile) {
		require.Truef(t, madeTargets(file(t, "README.md"))[name], "README.md does not tell what `make %s` does: add it to the list of targets", name)
		require.Truef(t, madeTargets(file(t, ".ci/run"))[name], ".ci/run does not make %s: add it to a stage", name)
	}
}

// reasonPage is docs/reasons.md, as it must be.
func reasonPage() string {
	var b strings.Builder
	b.WriteString("# Reasons\n\nWhen Cloud Cup answers by itself or cuts something, one word says why: in the body of the answer, in the access\n" +
		"log, in the metrics and in `cupctl errors`. `cupctl explain REASON` prints what stands here.\n")
	list := func(title string, items []string) {
		fmt.Fprintf(&b, "\n%s\n\n", title)
		for _, item := range items {
			fmt.Fprintf(&b, "- %s\n", item)
		}
	}
	for _, r := range message.Reasons() {
		info, e := r.Info(), r.Explain()
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", info.Word, e.Meaning)
		list("Likely causes, the likeliest first:", e.Causes)
		list("What to do:", e.Advice)
	}
	return b.String()
}

func TestReasonPage(t *testing.T) {
	if *update {
		require.NoError(t, os.WriteFile(filepath.Join(root(t), "docs", "reasons.md"), []byte(reasonPage()), 0o644))
	}
	require.Equal(t, reasonPage(), file(t, "docs/reasons.md"),
		"docs/reasons.md says something else than message/explain.go: write it anew with go test ./internal/tidy -run TestReasonPage -update")
}

func TestReasonTable(t *testing.T) {
	require.Contains(t, file(t, "README.md"), reasonTable(),
		"README.md has another table of reasons than message/reason.go: put this one there")
}

// The commands of README.md with their output are replayed by CI; what a
// reader is told to type has been typed there.
func TestCommandsAreReplayed(t *testing.T) {
	require.Contains(t, file(t, ".ci/run"), "replay README.md", "let .ci/run replay the console blocks of README.md")
	require.Empty(t, checkBlocks(textFile{"README.md", file(t, "README.md")}))
	require.NotEmpty(t, regexp.MustCompile(`(?m)^\$ `).FindString(file(t, "README.md")))
}

// A configuration that README.md shows is one that a test of config loads.
func TestShownConfigurations(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```jsonc\n(.*?)```").FindAllStringSubmatch(file(t, "README.md"), -1)
	require.NotEmpty(t, blocks)
	examples := map[string]bool{}
	for _, f := range texts(t) {
		if path.Dir(f.path) == "examples" {
			examples[f.text] = true
		}
	}
	for _, b := range blocks {
		require.True(t, examples[b[1]], "README.md shows a configuration that is no file of examples: copy one\n%s", b[1])
	}
}

// checkBlocks complains about commands that stand outside of console blocks,
// where the replay does not see them.
func checkBlocks(f textFile) []string {
	var out []string
	block := ""
	for i, line := range strings.Split(f.text, "\n") {
		if info, ok := strings.CutPrefix(line, "```"); ok {
			if block != "" {
				block = ""
				continue
			}
			block = "text"
			if info != "" {
				block = info
			}
			if block == "sh" || block == "bash" || block == "shell" {
				out = append(out, fmt.Sprintf("%s:%d: a block of %s is not replayed: make it a console block with \"$ \" before each command", f.path, i+1, info))
			}
			continue
		}
		if strings.HasPrefix(line, "$ ") && block != "console" {
			out = append(out, fmt.Sprintf("%s:%d: a command outside of a console block is not replayed: put it into one", f.path, i+1))
		}
	}
	return out
}

// Words of other programs are no names of ours, whatever the line says.
func checkNames(f *goFile) []string {
	var out []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if ok && strings.Contains(strings.ToLower(id.Name), "up"+"stream") {
			out = append(out, fmt.Sprintf("%s:%d: %s: name it after a backend", f.path, f.line(id.Pos()), id.Name))
		}
		return true
	})
	return out
}

func TestNames(t *testing.T) {
	for _, f := range sources(t) {
		none(t, checkNames(f))
	}
}

func TestTextRulesCanFail(t *testing.T) {
	words := func(line string) int { return len(checkWords(textFile{"x.go", line}, bannedWords)) }
	require.Equal(t, 1, words("// TO"+"DO: later"))
	require.Equal(t, 1, words("// an up"+"stream server"))
	require.Equal(t, 0, words("// nginx keeps up"+"stream connections"))
	require.Equal(t, 1, words("see /ho"+"me/me/x"))
	require.Equal(t, 0, words("https://example.com/ho"+"me/x"))
	require.Equal(t, 1, words("see DES"+"IGN.md"))
	require.Equal(t, 0, words("a backend"))

	require.Len(t, checkOpening(textFile{"a.md", "text"}), 1)
	require.Empty(t, checkOpening(textFile{"a.md", "# Title"}))
	require.Len(t, checkOpening(textFile{"Makefile", "all:"}), 1)
	require.Len(t, checkOpening(textFile{".ci/run", "#!/bin/bash\nset -e"}), 1)
	require.Empty(t, checkOpening(textFile{".ci/run", "#!/bin/bash\n# Runs it."}))
	require.Len(t, checkOpening(textFile{"examples/a.json", "{}"}), 1)

	read := func(name string) (string, bool) {
		if name == "docs/b.md" {
			return "# A Heading, really\n", true
		}
		return "", false
	}
	links := func(text string) int { return len(checkLinks(textFile{"docs/a.md", text}, read)) }
	require.Equal(t, 0, links("[b](b.md), [h](b.md#a-heading-really), [w](https://example.com/x)"))
	require.Equal(t, 1, links("[b](c.md)"))
	require.Equal(t, 1, links("[b](b.md#other)"))
	require.Equal(t, 0, links("```\n[b](c.md)\n```"))

	makefile := "build test:\n\tgo build\nVERSION := 1\nrun: build\n"
	targets := func(text string) int { return len(checkTargets(textFile{"README.md", text}, makefile)) }
	require.Equal(t, 0, targets("`make build`, `make test` and `make run`"))
	require.Equal(t, 1, targets("$ make nothing"))
	require.Equal(t, 1, targets("\tmake nothing X=1"))
	require.Equal(t, 1, targets("\ttests env CUP_IO=x make nothing"))
	require.Equal(t, 0, targets("we make nothing of it"))
	require.False(t, makeTargets(makefile)["VERSION"])

	blocks := func(text string) int { return len(checkBlocks(textFile{"README.md", text})) }
	require.Equal(t, 0, blocks("```console\n$ make\n```\n```text\nx\n```"))
	require.Equal(t, 1, blocks("```text\n$ make\n```"))
	require.Equal(t, 1, blocks("```sh\nmake\n```"))
	require.Equal(t, 1, blocks("$ make"))

	require.Len(t, checkNames(parse(t, "x.go", "package x\nvar up"+"streams int // nginx")), 1)
	require.Contains(t, reasonTable(), "| `no_backend` | 503 |")
}
