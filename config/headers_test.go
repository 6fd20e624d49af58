package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// route is a configuration whose route of a pattern has more keys.
func route(pattern, keys string) string {
	const backends = `"backends": [{"host": "127.0.0.1:1"}]`
	return fmt.Sprintf(`{"root": ":80", "routes": {"*": {%s}, %q: {%s, %s}}}`, backends, pattern, backends, keys)
}

// Names and values stay as they are written, in the order of the file.
func TestHeaderRules(t *testing.T) {
	c := parse(t, route("/x", `"headers": {
		"response": {"remove": ["server", "X-Powered-By"], "add": {"Link": ["<b>", "<a>"], "Vary": "Origin"}},
		"request": {
			"remove": ["Cookie"],
			"set": {"x-B": "$1 {a}\tb", "X-Forwarded-Prefix": "/x", "X-A": "\u00E9\"\\"},
			"add": {"X-C": ["1"]},
		},
	}`))
	require.Zero(t, c.Routes[0].Headers)
	require.Equal(t, Headers{
		Request: HeaderRules{
			Set:    []HeaderField{{"x-B", "$1 {a}\tb"}, {"X-Forwarded-Prefix", "/x"}, {"X-A", `é"\`}},
			Add:    []HeaderField{{"X-C", "1"}},
			Remove: []string{"Cookie"},
		},
		Response: HeaderRules{
			Add:    []HeaderField{{"Link", "<b>"}, {"Link", "<a>"}, {"Vary", "Origin"}},
			Remove: []string{"server", "X-Powered-By"},
		},
	}, c.Routes[1].Headers)
}

// What is the proxy's own in requests may be changed in responses, and
// X-Request-Id in requests when the proxy leaves it alone.
func TestOwnedHeaders(t *testing.T) {
	for _, name := range []string{"Host", "Expect", "Forwarded", "X-Client-Cert-Subject", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Request-Id"} {
		rules := fmt.Sprintf(`{"set": {%q: "a"}}`, name)
		_, err := Parse("cup.json", []byte(route("/x", `"headers": {"request": `+rules+`}`)), "")
		require.ErrorContains(t, err, fmt.Sprintf("headers.request.set %q: ", name))
		c := parse(t, route("/x", `"headers": {"response": `+rules+`}`))
		require.Equal(t, []HeaderField{{name, "a"}}, c.Routes[1].Headers.Response.Set)
	}
	c := parse(t, route("/x", `"headers": {"request": {"remove": ["X-Request-Id"]}}, "request_id": false`))
	require.Equal(t, []string{"X-Request-Id"}, c.Routes[1].Headers.Request.Remove)
}

func TestHeaderBounds(t *testing.T) {
	list := func(n int, value string) string { return strings.Repeat(fmt.Sprintf("%q,", value), n) }
	add := func(values string) string {
		return route("/x", `"headers": {"response": {"add": {"X-A": [`+values+`]}}, "request": {"remove": ["X-B"]}}`)
	}
	parse(t, add(list(rulesMax, "a")))
	_, err := Parse("cup.json", []byte(add(list(rulesMax+1, "a"))), "")
	require.ErrorContains(t, err, "headers.response has 101 rules, at most 100 are possible")

	half := RuleBytesMax/2 - len("X-A: \r\n")
	parse(t, add(list(2, strings.Repeat("a", half))))
	_, err = Parse("cup.json", []byte(add(list(2, strings.Repeat("a", half))+`"b"`)), "")
	require.ErrorContains(t, err, "headers.response sets and adds 16392 bytes, at most 16KiB are possible")

	remove := func(n int) string {
		return route("/x", fmt.Sprintf(`"headers": {"request": {"remove": [%q]}}`, strings.Repeat("a", n)))
	}
	parse(t, remove(fieldNameBytesMax))
	_, err = Parse("cup.json", []byte(remove(fieldNameBytesMax+1)), "")
	require.ErrorContains(t, err, "the name has 257 bytes, at most 256 are possible")
}

func TestStripPrefix(t *testing.T) {
	for _, c := range [][2]string{
		{"/game/*", "/game"}, {"/a/b/*", "/a"}, {"/a/b/*", "/a/b"}, {"/a/b", "/a"}, {"/a", "/a"},
		{"a.b/c/*", "/c"}, {"a.b:1/c/d", "/c"}, {"/caf%C3%A9/*", "/caf%C3%A9"},
	} {
		cfg := parse(t, route(c[0], fmt.Sprintf(`"strip_prefix": %q`, c[1])))
		require.Equal(t, c[1], cfg.Routes[1].StripPrefix)
		require.Empty(t, cfg.Routes[0].StripPrefix)
	}
}

// checkRules checks what the proxy relies on.
func checkRules(t *testing.T, rules *HeaderRules) {
	seen := map[string]bool{}
	once := func(name string) {
		lower := strings.ToLower(name)
		require.Regexp(t, "^[!#$%&'*+.^_`|~0-9a-z-]+$", lower)
		require.False(t, seen[lower])
		require.NotContains(t, []string{"content-length", "transfer-encoding", "connection", "upgrade"}, lower)
		seen[lower] = true
	}
	size := 0
	line := func(f HeaderField) {
		require.Regexp(t, "^[^\x00-\x20\x7F]([^\x00-\x08\x0A-\x1F\x7F]*[^\x00-\x20\x7F])?$", f.Value)
		size += len(f.Name) + len(f.Value) + len(": \r\n")
	}
	for _, f := range rules.Set {
		once(f.Name)
		line(f)
	}
	last := ""
	for _, f := range rules.Add {
		if f.Name != last {
			once(f.Name)
		}
		last = f.Name
		line(f)
	}
	for _, name := range rules.Remove {
		once(name)
	}
	require.LessOrEqual(t, size, RuleBytesMax)
}

// checkStripped checks that every path of the route begins with the prefix.
func checkStripped(t *testing.T, r *Route) {
	if r.StripPrefix == "" {
		return
	}
	_, path, _ := strings.Cut(r.Pattern, "/")
	rest, begins := strings.CutPrefix("/"+path, r.StripPrefix)
	require.True(t, begins)
	require.True(t, rest == "" || rest[0] == '/', rest)
	require.Equal(t, byte('/'), r.StripPrefix[0])
	require.False(t, strings.HasSuffix(r.StripPrefix, "/"))
	require.NotEqual(t, "*", r.Pattern)
}
