package tidy

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// layer is a package with the packages of ours that it may import.
type layer struct {
	dir     string
	imports []string
}

// layers is the order of the tree, lowest first: policy. Changing a line is a
// design decision, and its commit says why. A package imports of our own only
// what its line lists, and that stands in lines above it.
var layers = []layer{
	{"internal/sys", nil},
	{"internal/shm", []string{"internal/sys"}},
	{"config", nil},
	{"route", nil},
	{"message", nil},
	{"http1", []string{"message"}},
	{"balance", []string{"internal/shm"}},
	{"metrics", nil},
	{"accesslog", []string{"message"}},
	{"loop", nil},
	{"tlsconn", nil},
	// A Channel is made of the packet sockets of internal/sys.
	{"control", []string{"config", "internal/sys"}},
	{"ring", []string{"loop", "internal/sys"}},
	{"epollfallback", []string{"loop", "internal/sys"}},
	{"proxy", []string{"loop", "message", "http1", "route", "balance", "accesslog", "tlsconn", "internal/shm"}},
	{"worker", []string{
		"internal/sys", "internal/shm", "config", "route", "message", "http1", "balance", "loop", "tlsconn", "control",
		"ring", "epollfallback", "accesslog", "proxy",
	}},
	// It answers which route takes a URL by the workers' own table: another
	// matcher would be another opinion.
	{"supervisor", []string{"config", "route", "control", "balance", "metrics", "internal/shm", "internal/sys"}},
	{"internal/demo", []string{"config"}},
	{"cmd/cloud-cup", []string{"config", "control", "supervisor", "worker", "internal/demo"}},
	// It explains reasons by the words of their table.
	{"cmd/cupctl", []string{"config", "message", "control", "supervisor", "worker", "internal/demo"}},
	// It draws what perf saw, and knows nothing of us.
	{"bench/flame", nil},
	// Its floors and its backend stand on our own engine and system calls.
	{"bench", []string{"config", "control", "loop", "ring", "internal/sys", "bench/flame"}},
	{"integration", []string{"config", "control"}},
	{"internal/looptest", []string{"loop", "internal/sys"}},
	{"internal/tidy", nil},
}

// testsMayImport is what a package's tests may import beyond its own line.
var testsMayImport = map[string][]string{
	"ring":          {"internal/looptest"},
	"epollfallback": {"internal/looptest"},
	// proxy is tested over both engines.
	"proxy": {"ring", "epollfallback", "internal/looptest"},
	// A pattern that one accepts the other must accept.
	"route": {"config"},
	// A program under a seccomp filter, which is made there alone.
	"integration": {"internal/sys"},
	// The documentation's table of reasons.
	"internal/tidy": {"message"},
}

// theirs are packages of others that only the listed folders may import.
var theirs = map[string][]string{
	"unsafe": {"internal/sys", "ring/abi.go"},
	// Its root package neither links nor is fast enough.
	"github.com/iceber/iouring-go":         {},
	"github.com/iceber/iouring-go/syscall": {"ring"},
	"github.com/tailscale/hujson":          {"config"},
	"github.com/spf13/cobra":               {"cmd/cupctl"},
	// Prometheus' own parser tells whether our metrics are valid; the programs
	// do without it.
	"github.com/prometheus/common/expfmt":   {"metrics/metrics_test.go", "integration/metrics_test.go"},
	"github.com/prometheus/common/model":    {"metrics/metrics_test.go", "integration/metrics_test.go"},
	"github.com/prometheus/client_model/go": {"metrics/metrics_test.go", "integration/metrics_test.go"},
	// What the suite draws and counts with is in no program.
	"gonum.org/v1/plot":                       {"bench"},
	"gonum.org/v1/plot/font":                  {"bench"},
	"gonum.org/v1/plot/plotter":               {"bench"},
	"gonum.org/v1/plot/vg":                    {"bench"},
	"gonum.org/v1/plot/vg/draw":               {"bench"},
	"github.com/HdrHistogram/hdrhistogram-go": {"bench"},
	"golang.org/x/sys/unix": {
		"internal/sys", "internal/shm", "loop", "control", "ring", "epollfallback", "proxy", "worker", "supervisor",
		"cmd/cloud-cup", "cmd/cupctl", "bench", "integration", "internal/looptest", "internal/demo",
	},
	"C": {},
}

// noNetHTTP are the packages on the path of traffic: what they know of HTTP is
// ours. (Their tests compare with net/http.)
var noNetHTTP = []string{
	"message", "http1", "route", "balance", "loop", "ring", "epollfallback", "proxy", "internal/sys", "internal/shm", "config",
}

// harmlessHTTP are the names of net/http that are only texts; proxy may use
// them.
var harmlessHTTP = []string{"StatusText", "TimeFormat"}

// rawCalls are the functions that make system calls by number; unix and
// syscall have both them and harmless things.
var rawCalls = []string{"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "RawVforkSyscall", "SyscallNoError", "RawSyscallNoError"}

// imports returns what the file imports.
func (f *goFile) imports() []string {
	var list []string
	for _, spec := range f.ast.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			name = spec.Path.Value
		}
		list = append(list, name)
	}
	return list
}

// checkImports complains about imports of our own packages against layers.
func checkImports(files []*goFile) []string {
	may := map[string][]string{}
	for _, l := range layers {
		may[l.dir] = l.imports
	}
	var out []string
	for _, f := range files {
		allowed, known := may[f.dir()]
		if !known {
			out = append(out, fmt.Sprintf("%s: the package %q has no line in layers: decide where it stands and add one (internal/tidy/imports_test.go)", f.path, f.dir()))
			continue
		}
		if f.isTest() {
			allowed = append(slices.Clone(allowed), f.dir())
			allowed = append(allowed, testsMayImport[f.dir()]...)
		}
		for _, name := range f.imports() {
			ours, ok := strings.CutPrefix(name, module+"/")
			if ok && !slices.Contains(allowed, ours) {
				out = append(out, fmt.Sprintf("%s imports %s, which its line in layers does not list: move the code, or argue the new line in a commit", f.path, ours))
			}
		}
	}
	return out
}

// checkOrder complains about lines of layers that name what is not above them.
func checkOrder(layers []layer) []string {
	var out []string
	above := map[string]bool{}
	for _, l := range layers {
		for _, name := range l.imports {
			if !above[name] {
				out = append(out, fmt.Sprintf("layers: %s may import %s, which does not stand above it", l.dir, name))
			}
		}
		above[l.dir] = true
	}
	return out
}

// in reports whether the file is in one of places: folders or files.
func (f *goFile) in(places []string) bool {
	return slices.Contains(places, f.dir()) || slices.Contains(places, f.path)
}

// onlyTexts reports whether the file belongs to proxy and uses nothing of
// net/http but harmlessHTTP.
func (f *goFile) onlyTexts() bool {
	for pkg, name := range f.selectors() {
		if pkg == "http" && !slices.Contains(harmlessHTTP, name) {
			return false
		}
	}
	return f.dir() == "proxy"
}

// checkFence complains about imports of others and about raw system calls.
func checkFence(files []*goFile) []string {
	var out []string
	for _, f := range files {
		for _, name := range f.imports() {
			if places, fenced := theirs[name]; fenced && !f.in(places) {
				out = append(out, fmt.Sprintf("%s imports %q, which only %v may: put what needs it there and call that", f.path, name, places))
			}
			if name == "net/http" && !f.isTest() && f.in(noNetHTTP) && !f.onlyTexts() {
				out = append(out, fmt.Sprintf("%s imports net/http: proxied traffic never meets it; write the few words needed in http1 or message", f.path))
			}
		}
		if f.in(theirs["unsafe"]) {
			continue
		}
		for pkg, call := range f.selectors() {
			if (pkg == "unix" || pkg == "syscall") && slices.Contains(rawCalls, call) {
				out = append(out, fmt.Sprintf("%s calls %s.%s: raw system calls live in internal/sys and ring/abi.go", f.path, pkg, call))
			}
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "//go:linkname") {
					out = append(out, fmt.Sprintf("%s:%d: go:linkname reaches behind other packages' backs: do without it", f.path, f.line(c.Pos())))
				}
			}
		}
	}
	return out
}

func TestImportOrder(t *testing.T) {
	none(t, checkOrder(layers))
	none(t, checkImports(sources(t)))
}

func TestFence(t *testing.T) {
	none(t, checkFence(sources(t)))
}

// Every line of a table is used: a package that is gone leaves none behind.
func TestPolicyNamesWhatIsThere(t *testing.T) {
	dirs := map[string]bool{}
	for _, f := range sources(t) {
		dirs[f.dir()] = true
		dirs[f.path] = true
	}
	var named []string
	for _, l := range layers {
		named = append(named, l.dir)
	}
	named = append(named, slices.Collect(maps.Keys(testsMayImport))...)
	for _, places := range theirs {
		named = append(named, places...)
	}
	for _, name := range append(named, noNetHTTP...) {
		if !dirs[name] {
			t.Errorf("imports_test.go names %s, which is not there: remove the name", name)
		}
	}
}

func TestImportRulesCanFail(t *testing.T) {
	source := func(name string, imports ...string) *goFile {
		text := "package " + path.Base(path.Dir(name)) + "\n"
		for _, i := range imports {
			text += "import _ \"" + i + "\"\n"
		}
		return parse(t, name, text)
	}
	one := func(f *goFile) []*goFile { return []*goFile{f} }
	require.Len(t, checkImports(one(source("loop/x.go", module+"/ring"))), 1)
	require.Len(t, checkImports(one(source("loop/x_test.go", module+"/ring"))), 1)
	require.Len(t, checkImports(one(source("newpackage/x.go"))), 1)
	require.Empty(t, checkImports(one(source("ring/x.go", module+"/loop"))))
	require.Empty(t, checkImports(one(source("ring/x_test.go", module+"/ring", module+"/internal/looptest"))))
	require.Len(t, checkImports(one(source("ring/x.go", module+"/internal/looptest"))), 1)

	require.Len(t, checkOrder([]layer{{"a", []string{"b"}}, {"b", nil}}), 1)
	require.Empty(t, checkOrder([]layer{{"b", nil}, {"a", []string{"b"}}}))

	require.Len(t, checkFence(one(source("ring/ring.go", "unsafe"))), 1)
	require.Empty(t, checkFence(one(source("ring/abi.go", "unsafe"))))
	require.Len(t, checkFence(one(source("ring/open.go", "github.com/iceber/iouring-go"))), 1)
	require.Len(t, checkFence(one(source("proxy/x.go", "github.com/iceber/iouring-go/syscall"))), 1)
	require.Len(t, checkFence(one(source("http1/x.go", "net/http"))), 1)
	require.Empty(t, checkFence(one(source("http1/x_test.go", "net/http"))))
	require.Empty(t, checkFence(one(source("supervisor/x.go", "net/http"))))
	require.Empty(t, checkFence(one(parse(t, "proxy/x.go", "package proxy\nimport \"net/http\"\nvar s = http.StatusText(200)"))))
	require.Len(t, checkFence(one(parse(t, "proxy/x.go", "package proxy\nimport \"net/http\"\nvar s = http.Client{}"))), 1)
	require.Len(t, checkFence(one(parse(t, "proxy/x.go", "package proxy\nvar f = unix.RawSyscall6"))), 1)
	require.Empty(t, checkFence(one(parse(t, "proxy/x.go", "package proxy\nvar f = unix.Close"))))
	require.Len(t, checkFence(one(parse(t, "proxy/x.go", "package proxy\n\n//go:linkname a b\nfunc a()"))), 1)
}
