package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// defaults are what a configuration has that sets neither.
var (
	defaultTimeouts = Timeouts{
		ClientHead: 10 * time.Second, ClientBody: 30 * time.Second, ClientIdle: time.Minute,
		Connect: 2 * time.Second, Response: time.Minute, BackendIdle: 55 * time.Second,
		TunnelIdle: time.Hour, Drain: 30 * time.Second,
	}
	defaultForwarding = Forwarding{Forwarded: ForwardedX, HostHeader: HostPreserve, RequestID: true}
	defaultLimits     = Limits{
		HeadBytes: 32 << 10, Headers: 100, TargetBytes: 8 << 10, BodyBytes: -1,
		Connections: 50_000, Memory: 512 << 20,
	}
)

// parse returns the configuration of a text that must be valid.
func parse(t testing.TB, text string) *Config {
	c, err := Parse("cup.json", []byte(text), "/etc/cup")
	require.NoError(t, err)
	return c
}

// withHosts is a configuration with the backends of one route.
func withHosts(hosts ...string) string {
	for i, h := range hosts {
		hosts[i] = fmt.Sprintf(`{"host": %q}`, h)
	}
	return fmt.Sprintf(`{"root": ":80", "routes": {"*": {"backends": [%s]}}}`, strings.Join(hosts, ","))
}

// with is a configuration with more top-level keys.
func with(keys string) string {
	return fmt.Sprintf(`{"root": ":80", %s, "routes": {"*": {"backends": [{"host": "127.0.0.1:1"}]}}}`, keys)
}

func TestParseFillsDefaults(t *testing.T) {
	c := parse(t, `{
		"root": "127.0.0.1:8080", // comment
		"routes": {"*": {"backends": [{"host": "127.0.0.1:8081"}]}},
	} // no line feed at the end`)
	require.Equal(t, &Config{
		Root:     []string{"127.0.0.1:8080"},
		Policies: []Policy{{}},
		Routes: []Route{{
			Pattern:    "*",
			Strategy:   "round-robin",
			Backends:   []Backend{{Host: "127.0.0.1:8081", Weight: 1, MaxFailure: 5, Cooldown: 2 * time.Second}},
			Timeouts:   defaultTimeouts,
			Limits:     defaultLimits,
			Forwarding: defaultForwarding,
			AccessLog:  AccessLog{Format: LogCombined},
		}},
		Timeouts:   defaultTimeouts,
		Limits:     defaultLimits,
		Forwarding: defaultForwarding,
		AccessLog:  AccessLog{Format: LogCombined},
		Files:      Files{},
	}, c)
}

// Routes inherit what the file sets globally, also further down.
func TestRoutesInherit(t *testing.T) {
	c := parse(t, `{
		"root": ":80",
		"routes": {
			"*": {"backends": [{"host": "a.b:1"}], "timeouts": {"response": "1m30s"}, "limits": {"body_bytes": "none"}},
			"/x": {"backends": [{"host": "a.b:1"}], "limits": {"body_bytes": 0}},
		},
		"timeouts": {"response": "3s", "connect": "250ms"},
		"limits": {"body_bytes": "64KB", "head_bytes": 4096},
	}`)
	require.Equal(t, 3*time.Second, c.Timeouts.Response)
	require.Equal(t, 90*time.Second, c.Routes[0].Timeouts.Response)
	require.Equal(t, 250*time.Millisecond, c.Routes[0].Timeouts.Connect)
	require.Equal(t, 3*time.Second, c.Routes[1].Timeouts.Response)
	require.EqualValues(t, 64_000, c.Limits.BodyBytes)
	require.EqualValues(t, -1, c.Routes[0].Limits.BodyBytes)
	require.EqualValues(t, 0, c.Routes[1].Limits.BodyBytes)
	require.EqualValues(t, 4096, c.Limits.TargetBytes, "the default must not exceed head_bytes")
	require.EqualValues(t, 4096, c.Routes[1].Limits.TargetBytes)
}

func TestRoots(t *testing.T) {
	for in, want := range map[string][]string{
		`"127.0.0.1:80"`:                       {"127.0.0.1:80"},
		`":80"`:                                {":80"},
		`"localhost:0"`:                        {"127.0.0.1:0"},
		`"[0::1]:80"`:                          {"[::1]:80"},
		`["127.0.0.1:1", "127.0.0.1:2", ":3"]`: {"127.0.0.1:1", "127.0.0.1:2", ":3"},
		`["0.0.0.0:80", "[::]:80"]`:            {"0.0.0.0:80", "[::]:80"},
		`[":80", "127.0.0.1:80"]`:              {":80", "127.0.0.1:80"},
		`["unix:a.sock", "unix:@a:80", ":80"]`: {"unix:/etc/cup/a.sock", "unix:@a:80", ":80"},
	} {
		c := parse(t, strings.Replace(withHosts("a.b:1"), `":80"`, in, 1))
		require.Equal(t, want, c.Root)
	}
}

func TestHosts(t *testing.T) {
	c := parse(t, withHosts("127.0.0.1:1", "[2001:DB8::1]:2", "API.internal:3", "localhost:4", "a_b.c.:5",
		"unix:/run/x.sock", "unix:game/../x.sock", "unix:@abstract"))
	var hosts []string
	for _, b := range c.Routes[0].Backends {
		hosts = append(hosts, b.Host)
	}
	require.Equal(t, []string{"127.0.0.1:1", "[2001:db8::1]:2", "api.internal:3", "localhost:4", "a_b.c.:5",
		"unix:/run/x.sock", "unix:/etc/cup/x.sock", "unix:@abstract"}, hosts)
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{
		`"20MiB"`: 20 << 20, `"1GiB"`: 1 << 30, `"1TiB"`: 1 << 40, `"20MB"`: 20e6, `"1GB"`: 1e9, `"1TB"`: 1e12,
		`"20000KB"`: 20e6, `"20000KiB"`: 20000 << 10, `"20000000B"`: 20e6, `20000000`: 20e6,
	} {
		require.Equal(t, want, parse(t, with(`"limits": {"memory": `+in+`}`)).Limits.Memory, in)
	}
}

func TestAdminSocket(t *testing.T) {
	for in, want := range map[string]string{
		"/run/a.sock": "/run/a.sock", "a.sock": "/etc/cup/a.sock", "unix:/run/a.sock": "/run/a.sock",
	} {
		require.Equal(t, want, parse(t, with(fmt.Sprintf(`"admin": {"socket": %q}`, in))).Admin.Socket)
	}
	for in, want := range map[string]string{
		"off": "cannot be switched off", "@a": "abstract", "": "empty", strings.Repeat("a", 110): "bytes", "a\n": "control character",
	} {
		_, err := Parse("cup.json", []byte(with(fmt.Sprintf(`"admin": {"socket": %q}`, in))), "/etc/cup")
		require.ErrorContains(t, err, want)
	}
}

// The file is also read by the test of package route, which must agree.
func TestPatternsFile(t *testing.T) {
	text, err := os.ReadFile("../route/testdata/patterns.txt")
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(text)) {
		verdict, pattern, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if verdict == "#" {
			continue
		}
		canonical, msg, _ := checkPattern(pattern)
		if verdict == "good" {
			require.Empty(t, msg, pattern)
			require.True(t, strings.EqualFold(pattern, canonical))
		} else {
			require.NotEmpty(t, msg, pattern)
		}
		n++
	}
	require.Greater(t, n, 50)
}

// The files of the first Cloud Cup. Their certificate is made by the test.
func TestOriginalFiles(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))

	text, err := os.ReadFile("testdata/main_config.json")
	require.NoError(t, err)
	c, err := Parse("main_config.json", text, dir)
	require.NoError(t, err)
	require.Len(t, c.Routes, 5)
	require.Equal(t, "/game/*", c.Routes[3].Pattern)
	require.Equal(t, Backend{Host: "127.0.0.1:8085", Weight: 1, MaxFailure: 3, Cooldown: 2 * time.Second}, c.Routes[3].Backends[2])
	pair := KeyPair{filepath.Join(dir, "ssl_key/certificate.crt"), filepath.Join(dir, "ssl_key/private.key")}
	require.Equal(t, &SSL{Certificates: []KeyPair{pair}, MinVersion: SSLVersion12, Client: ClientCerts{Mode: ClientOff}}, c.SSL)
	require.Len(t, c.Files, 2)
	require.Contains(t, string(c.Files[pair.Key]), "PRIVATE KEY")

	text, err = os.ReadFile("testdata/new_config.json")
	require.NoError(t, err)
	c, err = Parse("new_config.json", text, dir)
	require.NoError(t, err)
	require.Equal(t, []string{"127.0.0.1:8088"}, c.Root)
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	dir := t.TempDir()
	writePair(t, dir, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	require.NoError(t, os.Rename(filepath.Join(dir, "ssl_key/certificate.crt"), filepath.Join(dir, "cert.pem")))
	require.NoError(t, os.Rename(filepath.Join(dir, "ssl_key/private.key"), filepath.Join(dir, "key.pem")))
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		c, err := Parse(file, text, dir)
		require.NoError(t, err)
		if filepath.Base(file) != "complete.json" {
			continue
		}
		for _, k := range Keys() {
			require.Contains(t, string(text), fmt.Sprintf("%q", k.Name[strings.LastIndexByte(k.Name, '.')+1:]))
		}
		require.Equal(t, defaultTimeouts, c.Timeouts)
		require.Equal(t, defaultLimits, c.Limits)
		require.Equal(t, defaultForwarding, c.Forwarding)
		require.Equal(t, defaultTimeouts, c.Routes[0].Timeouts)
		require.Equal(t, defaultLimits, c.Routes[0].Limits)
		require.Equal(t, parse(t, withHosts("127.0.0.1:8081")).Routes, c.Routes)
	}
}

func TestAdminMetrics(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:9100": "127.0.0.1:9100", "localhost:9100": "127.0.0.1:9100", ":9100": ":9100", "[0::1]:81": "[::1]:81", "127.0.0.1:0": "127.0.0.1:0",
	} {
		require.Equal(t, want, parse(t, with(fmt.Sprintf(`"admin": {"metrics": %q}`, in))).Admin.Metrics)
	}
	for in, want := range map[string]string{
		"": "it is empty", "9100": "behind a colon", "cup.test:9100": "must be an IP address", "127.0.0.1": "port is missing",
		"unix:/run/m.sock": "must be a TCP address; admin.socket serves /metrics too", "http://127.0.0.1:9100/metrics": "no scheme",
		":80": "root", "127.0.0.1:80": "root", "[::1]:80": "root",
	} {
		_, err := Parse("cup.json", []byte(with(fmt.Sprintf(`"admin": {"metrics": %q}`, in))), "/etc/cup")
		require.ErrorContains(t, err, "admin.metrics", in)
		require.ErrorContains(t, err, want, in)
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true}, {"127.0.0.1:1", "127.0.0.2:1", false}, {"127.0.0.1:1", "127.0.0.1:2", false},
		{"0.0.0.0:1", "127.0.0.1:1", true}, {"0.0.0.0:1", "[::1]:1", false}, {"[::]:1", "[::1]:1", true}, {"[::]:1", "0.0.0.0:1", false},
		{":1", "[::]:1", true}, {":1", ":1", true}, {":0", ":0", false}, {":1", "unix:/run/a:1", false},
	} {
		require.Equal(t, c.want, collide(c.a, c.b), "%s %s", c.a, c.b)
		require.Equal(t, c.want, collide(c.b, c.a), "%s %s", c.b, c.a)
	}
}

// The tables of the documentation list the keys that the decoder knows, with
// their defaults and scopes, and no others.
func TestDocumentationListsEveryKey(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	var documented []Key
	row := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| ([^|]+) \\| ([^|]+) \\|")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		k := Key{Name: m[1], Default: strings.ReplaceAll(m[2], "`", ""), Scope: m[3]}
		if k.Default == "required" {
			k.Default = ""
		}
		documented = append(documented, k)
	}
	require.ElementsMatch(t, Keys(), documented)

	for _, later := range slices.Concat(configKeys.later, routeKeys.later, backendKeys.later, timeoutKeys.later, adminKeys.later, laterStrategies) {
		require.Contains(t, string(text), "`"+later+"`")
	}
}

// The example of an error in the documentation is what Parse says.
func TestDocumentationShowsRealErrors(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	m := regexp.MustCompile("(?s)```jsonc\n([^`]*)```\n\n[^`]*`cup.json`[^`]*```text\n([^`]*)```").FindStringSubmatch(string(text))
	require.NotNil(t, m)
	_, err = Parse("cup.json", []byte(m[1]), "/etc/cup")
	require.EqualError(t, err, strings.TrimSuffix(m[2], "\n"))
}

var update = flag.Bool("update", false, "write the expected errors of testdata/errors anew")

// TestErrors compares the errors of each testdata/errors/X.json with X.txt.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		_, err = Parse(filepath.Base(file), text, "/etc/cup")
		require.Error(t, err, file)
		got := err.Error() + "\n"
		golden := strings.TrimSuffix(file, ".json") + ".txt"
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), got, file)
	}
}

// Every key of every table is refused when its value has another type.
func TestNoKeyIsIgnored(t *testing.T) {
	for _, k := range Keys() {
		groups := strings.Split(k.Name, ".")
		name := groups[len(groups)-1]
		member := fmt.Sprintf(`%q: [[]]`, name)
		for _, group := range slices.Backward(groups[:len(groups)-1]) {
			member = fmt.Sprintf(`%q: {%s}`, group, member)
		}
		text := ""
		switch {
		case k.Scope == "global, route", k.Scope == "global" && len(groups) > 1:
			text = with(member)
		case k.Scope == "global":
			text = fmt.Sprintf(`{%s}`, member)
		case k.Scope == "route":
			text = fmt.Sprintf(`{"root": ":80", "routes": {"*": {%s}}}`, member)
		default:
			text = fmt.Sprintf(`{"root": ":80", "routes": {"*": {"backends": [{%s}]}}}`, member)
		}
		_, err := Parse("cup.json", []byte(text), "")
		var list Errors
		require.ErrorAs(t, err, &list, text)
		require.True(t, slices.ContainsFunc(list, func(e *Error) bool {
			return strings.Contains(e.Msg, name) && strings.Contains(e.Msg, "must be") ||
				strings.Contains(e.Msg, "must be a") && strings.HasPrefix(text[e.Col-1:], "[")
		}), "%s: %v", text, err)
	}
}

func TestErrorsAreSingleErrors(t *testing.T) {
	_, err := Parse("cup.json", []byte(`{"root": 1, "x": 2}`), "")
	var one *Error
	require.True(t, errors.As(err, &one))
	require.Equal(t, &Error{
		File: "cup.json", Line: 1, Col: 1, Msg: "routes is missing in the configuration",
		Source: `{"root": 1, "x": 2}`, Caret: "^",
	}, one)
	require.Len(t, err.(Errors), 3)
}

func TestTextOfManyErrorsIsBounded(t *testing.T) {
	text := `{` + strings.Repeat(`"x": 1,`, 100_000) + `}`
	start := time.Now()
	_, err := Parse("cup.json", []byte(text), "")
	require.Len(t, err.(Errors), 100_002)
	require.Less(t, len(err.Error()), 100_000)
	require.True(t, strings.HasSuffix(err.Error(), "\nand 99902 more"))
	require.Less(t, time.Since(start), time.Minute, "quadratic")
}

// huge is a configuration of 5 MiB.
func huge() []byte {
	var b strings.Builder
	b.WriteString("{\n\"root\": \":8080\",\n\"routes\": {\n\"*\": {\"backends\": [{\"host\": \"127.0.0.1:1\"}]},\n")
	n := 0
	for ; b.Len() < 5<<20; n++ {
		fmt.Fprintf(&b, "\"site%d.example/app/%d/*\": {\"backends\": [{\"host\": \"10.0.%d.%d:80\"}], \"timeouts\": {\"response\": \"5s\"}},\n", n%100, n, n>>8&255, n&255)
	}
	b.WriteString("}}\n")
	return []byte(b.String())
}

func TestHugeConfiguration(t *testing.T) {
	text := huge()
	start := time.Now()
	c, err := Parse("cup.json", text, "")
	require.NoError(t, err)
	require.Greater(t, len(c.Routes), 40_000)
	require.Less(t, time.Since(start), time.Minute, "quadratic")
	t.Logf("%d routes in %v", len(c.Routes), time.Since(start))
}

func TestTextBound(t *testing.T) {
	_, err := Parse("cup.json", make([]byte, textBytesMax+1), "")
	require.ErrorContains(t, err, "cup.json:1:1: the configuration is larger than 16 MiB")
}

func BenchmarkParse(b *testing.B) {
	text := huge()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("cup.json", text, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.json", "testdata/errors/*.json", "../examples/*.json"} {
		files, err := filepath.Glob(pattern)
		require.NoError(f, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(f, err)
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := slices.Clone(text)
		c, err := Parse("cup.json", text, "/nowhere")
		require.Equal(t, before, text)
		if err != nil {
			checkErrors(t, text, err.(Errors))
			return
		}
		checkConfig(t, c)
	})
}

// Canonical forms are accepted and are their own canonical forms.
func FuzzWords(f *testing.F) {
	for _, s := range []string{
		"*", "/game/*", "Example.com:80/x", "[::1]/*", "a.b:80", "[2001:DB8::1]:80", "unix:a/../b", "unix:@x",
		":80", "localhost:0", "http://a", "32KiB", "1.5MB", "::1", "[", "a]:", "..:1",
		"10.0.0.0/8", "10.0.0.1/8", "2001:db8::/32", "::ffff:1.2.3.4", "fe80::1%a/64", "X-Name", "a:b", "v ${x}",
	} {
		f.Add(s)
	}
	d := &decoder{dir: "/nowhere"}
	f.Fuzz(func(t *testing.T, s string) {
		if p, msg, _ := checkPattern(s); msg == "" {
			again, msg, _ := checkPattern(p)
			require.Empty(t, msg)
			require.Equal(t, p, again)
		}
		if h, msg, _ := d.checkHost(s); msg == "" {
			again, msg, _ := d.checkHost(h)
			require.Empty(t, msg)
			require.Equal(t, h, again)
		}
		if a, msg, _ := d.checkRoot(s); msg == "" {
			again, msg, _ := d.checkRoot(a)
			require.Empty(t, msg)
			require.Equal(t, a, again)
		}
		if p, msg, _ := checkTrusted(s); msg == "" {
			again, msg, _ := checkTrusted(p.String())
			require.Empty(t, msg)
			require.Equal(t, p, again)
			require.Equal(t, p.Masked(), p)
		}
		if msg, _ := checkStrip(s, "a.b/x/y/*"); msg == "" {
			require.Contains(t, []string{"/x", "/x/y"}, s)
		}
		if n, _, ok := bytesOf(s); ok {
			require.GreaterOrEqual(t, n, int64(0))
			again, _, ok := bytesOf(sizeText(n))
			require.True(t, ok)
			require.Equal(t, n, again)
		}
	})
}

// checkErrors checks that errors are sorted and lie inside of the text.
func checkErrors(t *testing.T, text []byte, list Errors) {
	lines := strings.Split(string(text), "\n")
	require.NotEmpty(t, list)
	for i, e := range list {
		require.NotEmpty(t, e.Msg)
		require.LessOrEqual(t, e.Line, len(lines))
		require.LessOrEqual(t, e.Col, len([]rune(lines[e.Line-1]))+1)
		require.GreaterOrEqual(t, e.Col, 1)
		require.NotContains(t, e.Source, "\n")
		if i > 0 {
			last := list[i-1]
			require.True(t, last.Line < e.Line || last.Line == e.Line && last.Col <= e.Col)
		}
	}
}

// checkConfig checks what the rest of the program relies on.
func checkConfig(t *testing.T, c *Config) {
	require.NotEmpty(t, c.Root)
	star := false
	for _, r := range c.Routes {
		star = star || r.Pattern == "*"
		canonical, msg, _ := checkPattern(r.Pattern)
		require.Empty(t, msg)
		require.Equal(t, r.Pattern, canonical)
		require.Equal(t, "round-robin", r.Strategy)
		require.NotEmpty(t, r.Backends)
		checkForwarding(t, &r)
		checkRules(t, &r.Headers.Request)
		checkRules(t, &r.Headers.Response)
		checkStripped(t, &r)
		for _, b := range r.Backends {
			host, msg, _ := (&decoder{dir: "/nowhere"}).checkHost(b.Host)
			require.Empty(t, msg)
			require.Equal(t, b.Host, host)
			require.GreaterOrEqual(t, b.MaxFailure, 0)
			require.Positive(t, b.Weight)
			require.Positive(t, b.Cooldown)
		}
		require.Positive(t, min(r.Timeouts.ClientHead, r.Timeouts.ClientBody, r.Timeouts.ClientIdle, r.Timeouts.Connect, r.Timeouts.Response, r.Timeouts.BackendIdle, r.Timeouts.TunnelIdle))
	}
	require.True(t, star)
	require.LessOrEqual(t, c.Limits.TargetBytes, c.Limits.HeadBytes)
	require.GreaterOrEqual(t, c.Limits.Memory, int64(memoryMin))
	require.Positive(t, min(c.Limits.Headers, c.Limits.Connections))
}

func TestAdminGroup(t *testing.T) {
	for in, want := range map[string]string{`"adm"`: "adm", `"1000"`: "1000", `"domain users"`: "", `""`: "", `1000`: "", `"4294967295"`: "",
		`"99999999999"`: "", `"a:b"`: "", `"DOM\\users"`: `DOM\users`} {
		c, err := Parse("cup.json", []byte(with(`"admin": {"group": `+in+`}`)), "/etc/cup")
		if want != "" {
			require.NoError(t, err, in)
			require.Equal(t, want, c.Admin.Group)
			continue
		}
		require.ErrorContains(t, err, "admin.group", in)
	}
}
