package route

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// build makes a table whose values are the patterns.
func build(t testing.TB, patterns ...string) *Table[string] {
	var entries []Entry[string]
	for _, p := range patterns {
		entries = append(entries, Entry[string]{p, p})
	}
	table, err := Build(entries)
	require.NoError(t, err)
	return table
}

func TestLookup(t *testing.T) {
	table := build(t,
		"*", "/", "/about.html", "/game/*", "/game/dev", "/game/dev/*", "/a/b/c/*", "/a//*",
		"example.com/*", "example.com/about.html", "api.example.com/v1/*",
		"example.com:8080/x", "localhost/only", "[::1]/six", "[::1]:81/*", "up.example/*",
	)
	for _, c := range []struct{ host, path, want string }{
		{"", "/", "/"},
		{"", "", "/"},
		{"", "*", "*"},
		{"", "/other", "*"},
		{"", "/about.html", "/about.html"},
		{"", "/About.html", "*"},
		{"", "/about.html/", "*"},
		{"", "/about.html/x", "*"},
		{"", "/game", "*"},
		{"", "/gamex", "*"},
		{"", "/game/", "/game/*"},
		{"", "/game/x", "/game/*"},
		{"", "/game/x/y/z", "/game/*"},
		{"", "/game//", "/game/*"},
		{"", "/game/dev", "/game/dev"},
		{"", "/game/devx", "/game/*"},
		{"", "/game/dev/", "/game/dev/*"},
		{"", "/game/dev/x", "/game/dev/*"},
		{"", "/game%2Fdev", "*"},
		{"", "//game/x", "*"},
		{"", "/a/b/c", "*"},
		{"", "/a/b/c/", "/a/b/c/*"},
		{"", "/a/b", "*"},
		{"", "/a//x", "/a//*"},
		{"other.org", "/about.html", "/about.html"},
		{"example.com", "/about.html", "example.com/about.html"},
		{"EXAMPLE.com", "/game/dev", "example.com/*"},
		{"example.com.", "/", "example.com/*"},
		{"example.com", "*", "*"},
		{"example.com:9", "/y", "example.com/*"},
		{"example.com:", "/y", "example.com/*"},
		{"example.com:8080", "/x", "example.com:8080/x"},
		{"example.com.:8080", "/x", "example.com:8080/x"},
		{"example.com:8080", "/y", "example.com/*"},
		{"example.com:80", "/x", "example.com/*"},
		{"api.example.com", "/v1/x", "api.example.com/v1/*"},
		{"api.example.com", "/v1", "*"},
		{"api.example.com", "/game/x", "/game/*"},
		{"localhost", "/only", "localhost/only"},
		{"localhost:8080", "/only", "localhost/only"},
		{"localhost", "/game/", "/game/*"},
		{"[::1]", "/six", "[::1]/six"},
		{"[::1]:80", "/six", "[::1]/six"},
		{"[::1]:81", "/six", "[::1]:81/*"},
		{"[::1]", "/other", "*"},
		{"UP.Example", "/", "up.example/*"},
		{strings.Repeat("x", 5000), "/game/x", "/game/*"},
		{":", "/game/x", "/game/*"},
		{".", "/game/x", "/game/*"},
	} {
		got, ok := table.Lookup([]byte(c.host), []byte(c.path))
		require.True(t, ok)
		require.Equal(t, c.want, got, "host %q, path %q", c.host, c.path)
	}
}

func TestLookupWithoutStar(t *testing.T) {
	table := build(t, "/a")
	_, ok := table.Lookup(nil, []byte("/b"))
	require.False(t, ok)
	_, ok = build(t).Lookup([]byte("x.y"), []byte("/"))
	require.False(t, ok)
}

func TestBuildRefuses(t *testing.T) {
	for _, patterns := range [][]string{
		{"*", "*"},
		{"/a", "/a"},
		{"/a/*", "/a/*"},
		{"example.com/a", "Example.COM/a"},
		{"/a/"}, {"/a*"}, {"/*/a"}, {"*/a"}, {"a"}, {""}, {"example.com"}, {"example.com/" + "x/"},
		{strings.Repeat("a", 300) + ".b/x"},
	} {
		var entries []Entry[int]
		for i, p := range patterns {
			entries = append(entries, Entry[int]{p, i})
		}
		_, err := Build(entries)
		require.ErrorContains(t, err, fmt.Sprintf("route %q: ", patterns[len(patterns)-1]))
	}
}

// The file is also read by the test of package config, which must agree.
func TestPatternsFile(t *testing.T) {
	text, err := os.ReadFile("testdata/patterns.txt")
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(text)) {
		if pattern, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "good "); ok {
			_, err := ParsePattern(pattern)
			require.NoError(t, err)
			n++
		}
	}
	require.NotZero(t, n)
}

// reference matches by the rules as the documentation says them, one pattern
// after the other.
func reference(patterns []string, host, path string) string {
	host = strings.ToLower(host)
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i+1:]
	}
	name = strings.TrimSuffix(name, ".")
	if path == "" {
		path = "/"
	}
	best, bestRank, bestLength := "", -1, -1
	for _, p := range patterns {
		if p == "*" {
			if bestRank < 0 {
				best, bestRank = p, 0
			}
			continue
		}
		i := strings.IndexByte(p, '/')
		rank := 1
		switch h := strings.ToLower(p[:i]); {
		case h == "":
		case h == name:
			rank = 2
		case port != "" && h == name+":"+port:
			rank = 3
		default:
			continue
		}
		length := 0
		switch stem, prefix := strings.CutSuffix(p[i:], "*"); {
		case !prefix && stem == path:
			length = 1 << 20
		case prefix && strings.HasPrefix(path, stem):
			length = len(stem)
		default:
			continue
		}
		if rank > bestRank || rank == bestRank && length > bestLength {
			best, bestRank, bestLength = p, rank, length
		}
	}
	return best
}

// random makes one of few hosts and paths, so that they often meet.
type random struct{ *rand.Rand }

func (r random) of(list ...string) string { return list[r.IntN(len(list))] }

func (r random) path() string {
	var b strings.Builder
	for range 1 + r.IntN(4) {
		b.WriteString("/" + r.of("a", "b", "ab", "", "A", "%2F"))
	}
	return b.String()
}

func (r random) pattern() string {
	p := r.path()
	if r.IntN(2) == 0 {
		p += "/*"
	} else if p = strings.TrimRight(p, "/"); p == "" {
		p = "/"
	}
	return r.of("", "", "a.b", "A.b", "a.b:80", "a.b:81", "[::1]", "[::1]:80", "localhost") + p
}

func TestLookupEqualsReference(t *testing.T) {
	seed := rand.Uint64()
	r := random{rand.New(rand.NewPCG(seed, 0))}
	for range 300 {
		patterns := []string{"*"}
		seen := map[string]bool{}
		for range r.IntN(30) {
			if p := r.pattern(); !seen[strings.ToLower(p)] {
				// Comparing in lower case drops too many, which does not matter.
				seen[strings.ToLower(p)] = true
				patterns = append(patterns, p)
			}
		}
		table := build(t, patterns...)
		for range 100 {
			host := r.of("", "a.b", "A.B", "a.b.", "a.b:80", "a.b:82", "a.b:", "[::1]", "[::1]:80", "[::1]:", "b.c", "localhost:1")
			path := r.of("", "*", "/", r.path(), r.path(), r.path())
			got, _ := table.Lookup([]byte(host), []byte(path))
			require.Equal(t, reference(patterns, host, path), got, "seed %d: host %q, path %q, patterns %q", seed, host, path, patterns)
		}
	}
}

func FuzzLookup(f *testing.F) {
	f.Add("/a/*\n/a/b\nx.y/a/*\nx.y:80/*", "X.y:80", "/a/b")
	f.Add("/*\n[::1]/a", "[::1]", "/a")
	f.Fuzz(func(t *testing.T, list, host, path string) {
		patterns := []string{"*"}
		seen := map[Pattern]bool{{}: true}
		for _, s := range strings.Split(list, "\n") {
			if p, err := ParsePattern(s); err == nil && !seen[p] && ascii(s) && !strings.HasSuffix(p.Host, ":") {
				seen[p] = true
				patterns = append(patterns, s)
			}
		}
		if !ascii(host) || len(host) > hostBytesMax || path != "" && path[0] != '/' {
			return
		}
		got, ok := build(t, patterns...).Lookup([]byte(host), []byte(path))
		require.True(t, ok)
		require.Equal(t, reference(patterns, host, path), got)
	})
}

// ascii tells whether lower case means the same to strings and to Lookup.
func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}

// large is a table with n routes beside "*".
func large(t testing.TB, n int) *Table[string] {
	patterns := []string{"*"}
	for i := range n {
		switch i % 4 {
		case 0:
			patterns = append(patterns, fmt.Sprintf("/exact/%d.html", i))
		case 1:
			patterns = append(patterns, fmt.Sprintf("/prefix/%d/*", i))
		case 2:
			patterns = append(patterns, fmt.Sprintf("host%d.example/*", i))
		case 3:
			patterns = append(patterns, fmt.Sprintf("example.com/deep/%d/x/*", i))
		}
	}
	return build(t, patterns...)
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table := large(t, 1000)
	for _, c := range []struct{ host, path, want string }{
		{"Example.com:8080", "/deep/3/x/y", "example.com/deep/3/x/*"},
		{"example.com", "/exact/4.html", "/exact/4.html"},
		{"HOST2.example", "/anything", "host2.example/*"},
		{"other.example:80", "/nothing/at/all", "*"},
	} {
		host, path := []byte(c.host), []byte(c.path)
		var got string
		n := testing.AllocsPerRun(100, func() { got, _ = table.Lookup(host, path) })
		require.Zero(t, n)
		require.Equal(t, c.want, got)
	}
}

// A path of nothing but slashes, in a table that follows it all the way, is
// hashed once.
func BenchmarkLookup(b *testing.B) {
	slashes := strings.Repeat("/", 4000)
	few := build(b, "*", "/", "/about.html", "/game/*", "/game/dev")
	many := large(b, 50_000)
	deep := build(b, "*", slashes+"*")
	for _, c := range []struct {
		name, host, path string
		table            *Table[string]
	}{
		{"few", "127.0.0.1:8080", "/game/dev", few},
		{"few-star", "127.0.0.1:8080", "/other/path/x.html", few},
		{"many-exact", "127.0.0.1:8080", "/exact/4000.html", many},
		{"many-host", "example.com:8080", "/deep/4003/x/y/z", many},
		{"many-star", "example.com:8080", "/none", many},
		{"slashes-many", "example.com", slashes, many},
		{"slashes-deep", "example.com", slashes, deep},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			host, path := []byte(c.host), []byte(c.path)
			for b.Loop() {
				if _, ok := c.table.Lookup(host, path); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}
