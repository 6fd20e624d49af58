package http1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// following stands behind every head: it must not be looked at.
const following = "\x00\r\r\n GET / HTTP/9.9"

// describe writes down everything a head says, so that heads compare as text.
func describe(h *message.Head) string {
	var s strings.Builder
	fmt.Fprintf(&s, "status=%d method=%d %q target=%q path=%q query=%q host=%q minor=%d\n",
		h.Status, h.Method, h.Text(h.MethodName), h.Text(h.Target), h.Text(h.Path), h.Text(h.Query), h.Text(h.Host), h.Minor)
	fmt.Fprintf(&s, "persistent=%t framing=%d length=%d/%t upgrade=%t expect=%t first=%d bytes=%q\n",
		h.Persistent, h.Framing, h.Length, h.HasLength, h.UpgradeAsked, h.Expect100, h.FirstLineEnd, h.Bytes)
	for i := range h.Fields {
		f := &h.Fields[i]
		fmt.Fprintf(&s, "%d hop=%t end=%d %q: %q\n", f.ID, f.Hop, f.End, h.Text(f.Name), h.Text(f.Value))
	}
	return s.String()
}

// grow feeds text in steps, each time at another place in memory, until parse
// answers something else than ErrPartial.
func grow(text string, step int, parse func(b []byte) (int, error)) (n int, err error) {
	for end := step; ; end += step {
		end = min(end, len(text))
		n, err = parse([]byte(text[:end]))
		if err != ErrPartial || end == len(text) {
			return n, err
		}
	}
}

// parseRequest parses text whole, and checks that pieces give the same.
func parseRequest(t testing.TB, text string, lim *Limits) (h *message.Head, n int, err error) {
	h = &message.Head{}
	var p RequestParser
	n, err = p.Parse(h, []byte(text), lim)
	for _, step := range []int{1, 7} {
		var (
			h2 message.Head
			p2 RequestParser
		)
		n2, err2 := grow(text, step, func(b []byte) (int, error) { return p2.Parse(&h2, b, lim) })
		require.Equal(t, err, err2, "%d at a time: %q", step, text)
		require.Equal(t, n, n2, "%d at a time: %q", step, text)
		if err == nil {
			require.Equal(t, describe(h), describe(&h2), "%d at a time: %q", step, text)
		}
	}
	return h, n, err
}

// hops lists the names of the fields that end here.
func hops(h *message.Head) (names []string) {
	for i := range h.Fields {
		if h.Fields[i].Hop {
			names = append(names, string(h.Text(h.Fields[i].Name)))
		}
	}
	return names
}

// wantRequest is what a good head says. Method GET, target and path "/", host
// "a", HTTP/1.1, persistent and no body go without saying.
type wantRequest struct {
	method                      message.Method
	name, target, path, query   string
	backend                     string // AppendTarget, where it is not the target
	host                        string
	http10, close, upgrade, exp bool
	framing                     message.Framing
	length                      int64
	hops                        []string
	skipped                     int // bytes before the head
}

var goodRequests = []struct {
	head string
	want wantRequest
}{
	{wrkGet, wantRequest{host: "127.0.0.1:8080"}},
	{browserGet, wantRequest{target: "/static/app/main.7f3c1d.js?v=20261122", path: "/static/app/main.7f3c1d.js", query: "?v=20261122", host: "www.example.com", hops: []string{"Connection"}}},
	{"GET / HTTP/1.0\r\n\r\n", wantRequest{http10: true, close: true, host: "-"}},
	{"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", wantRequest{http10: true, hops: []string{"Connection"}}},
	{"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", wantRequest{http10: true, close: true, hops: []string{"Connection"}}},
	{"GET / HTTP/1.7\r\nHost: a\r\n\r\n", wantRequest{}},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: CLOSE\r\n\r\n", wantRequest{close: true, hops: []string{"Connection"}}},
	{"GET / HTTP/1.1\r\nHOST:a\t \t\r\n\r\n", wantRequest{}},
	{"\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{skipped: 8}},

	// Methods.
	{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodHead, name: "HEAD"}},
	{"PUT / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodPut, name: "PUT"}},
	{"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodDelete, name: "DELETE"}},
	{"PATCH / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodPatch, name: "PATCH"}},
	{"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodTrace, name: "TRACE"}},
	{"get / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodOther, name: "get"}},
	{"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodOther, name: "M-SEARCH!#$%&'*+.^_`|~"}},

	// Targets.
	{"GET /a%20b;c=d/é?x=|[]{}\"<>\\^`?y HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{target: "/a%20b;c=d/é?x=|[]{}\"<>\\^`?y", path: "/a%20b;c=d/é", query: "?x=|[]{}\"<>\\^`?y"}},
	{"GET //b/../c? HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{target: "//b/../c?", path: "//b/../c", query: "?"}},
	{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodOptions, name: "OPTIONS", target: "*", path: "*"}},
	{"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodOptions, name: "OPTIONS", target: "http://a", backend: "*"}},
	{"OPTIONS http://a? HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{method: message.MethodOptions, name: "OPTIONS", target: "http://a?", query: "?", backend: "/?"}},
	{"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{target: "http://a", backend: "/"}},
	{"GET http://a?/b HTTP/1.1\r\nHost: a\r\n\r\n", wantRequest{target: "http://a?/b", query: "?/b", backend: "/?/b"}},
	{"GET HTTPS://A.b:81/c/d?e/f HTTP/1.1\r\nHost: a.B:81\r\n\r\n", wantRequest{target: "HTTPS://A.b:81/c/d?e/f", path: "/c/d", query: "?e/f", backend: "/c/d?e/f", host: "A.b:81"}},
	{"GET http://a/ HTTP/1.0\r\n\r\n", wantRequest{target: "http://a/", backend: "/", http10: true, close: true}},

	// Hosts.
	{"GET / HTTP/1.1\r\nHost: [2001:db8::1.2.3.4]:8080\r\n\r\n", wantRequest{host: "[2001:db8::1.2.3.4]:8080"}},
	{"GET / HTTP/1.1\r\nHost: [::]\r\n\r\n", wantRequest{host: "[::]"}},
	{"GET / HTTP/1.1\r\nHost: a_b.c-d~!$&'()*+;=%2f:65535\r\n\r\n", wantRequest{host: "a_b.c-d~!$&'()*+;=%2f:65535"}},
	{"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", wantRequest{host: "a:"}},

	// Framing.
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", wantRequest{method: message.MethodPost, name: "POST", framing: message.FramingLength, hops: []string{"Content-Length"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\ncontent-length: 0009223372036854775807\r\n\r\n", wantRequest{framing: message.FramingLength, length: 1<<63 - 1, hops: []string{"content-length"}}},
	{"GET / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\n", wantRequest{http10: true, close: true, framing: message.FramingLength, length: 5, hops: []string{"Content-Length"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\t ChunKed \t\r\n\r\n", wantRequest{framing: message.FramingChunked, hops: []string{"Transfer-Encoding"}}},

	// Connection.
	{"GET / HTTP/1.1\r\nX-One: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHost: a\r\nConnection: , upgrade ,x-ONE,\r\nConnection: HTTP2-Settings\r\nHTTP2-Settings: x\r\nX-one: 2\r\nX-On: 3\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nTrailer: x\r\n\r\n",
		wantRequest{upgrade: true, hops: []string{"X-One", "TE", "Upgrade", "Connection", "Connection", "HTTP2-Settings", "X-one", "Keep-Alive", "Proxy-Connection"}}},
	{"GET / HTTP/1.1\r\nConnection: Host, Content-Length, Content-Type, Authorization, Cookie, X-Forwarded-For, Via, Date, Trailer, Expect, Range, cache-control\r\nHost: a\r\nContent-Length: 1\r\nContent-Type: t\r\nAuthorization: x\r\nCookie: x\r\nX-Forwarded-For: x\r\nVia: x\r\nDate: x\r\nTrailer: x\r\nRange: x\r\nCache-Control: x\r\n\r\n",
		wantRequest{framing: message.FramingLength, length: 1, hops: []string{"Connection", "Content-Length", "Trailer"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n", wantRequest{framing: message.FramingChunked, hops: []string{"Connection", "Transfer-Encoding"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n", wantRequest{hops: []string{"Upgrade"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", wantRequest{hops: []string{"Connection"}}},
	{"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", wantRequest{http10: true, close: true, hops: []string{"Connection", "Upgrade"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: x close\r\n\r\n", wantRequest{hops: []string{"Connection"}}},

	// Expectations and values.
	{"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n", wantRequest{exp: true}},
	{"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", wantRequest{}},
	{"GET / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", wantRequest{http10: true, close: true, hops: []string{"Expect"}}},
	{"GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB: \t \r\nC: \x80\xff \t\"\t,\xc3\xa9 \r\nd!#$%&'*+-.^_`|~9: x\r\n\r\n", wantRequest{}},
}

func TestRequestGood(t *testing.T) {
	for _, c := range goodRequests {
		h, n, err := parseRequest(t, c.head+following, nil)
		require.NoError(t, err, "%q", c.head)
		require.Equal(t, len(c.head), n, "%q", c.head)
		require.Equal(t, c.head[c.want.skipped:], string(h.Bytes))

		w := c.want
		if w.name == "" {
			w.method, w.name = message.MethodGet, "GET"
		}
		if w.target == "" {
			w.target = "/"
		}
		if w.path == "" {
			w.path = "/"
		}
		if w.backend == "" {
			w.backend = w.target
		}
		switch w.host {
		case "":
			w.host = "a"
		case "-":
			w.host = ""
		}
		got := wantRequest{
			method: h.Method, name: string(h.Text(h.MethodName)), target: string(h.Text(h.Target)),
			path: string(h.Text(h.Path)), query: string(h.Text(h.Query)), backend: string(h.AppendTarget(nil)),
			host: string(h.Text(h.Host)), http10: h.Minor == 0, close: !h.Persistent, upgrade: h.UpgradeAsked,
			exp: h.Expect100, framing: h.Framing, length: h.Length, hops: hops(h), skipped: w.skipped,
		}
		require.Equal(t, w, got, "%q", c.head)
		checkLines(t, h)
	}
}

// checkLines checks that the fields' positions cover the head without a gap.
func checkLines(t testing.TB, h *message.Head) {
	at := h.FirstLineEnd
	for i := range h.Fields {
		f := &h.Fields[i]
		require.Equal(t, at, f.Name.Off)
		at = f.End
		line := string(h.Bytes[f.Name.Off:f.End])
		name, value, found := strings.Cut(line, ":")
		require.True(t, found && strings.HasSuffix(value, "\r\n"), "%q", line)
		require.Equal(t, name, string(h.Text(f.Name)))
		require.Equal(t, strings.Trim(value[:len(value)-2], " \t"), string(h.Text(f.Value)))
	}
	require.Equal(t, "\r\n", string(h.Bytes[at:]))
}

func TestRequestPrefixes(t *testing.T) {
	for _, c := range goodRequests {
		for i := range len(c.head) {
			var (
				p RequestParser
				h message.Head
			)
			_, err := p.Parse(&h, []byte(c.head[:i]), nil)
			require.Equal(t, ErrPartial, err, "prefix %q", c.head[:i])
		}
	}
}

// in makes a request whose fields are lines, behind a Host.
func in(lines string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + lines + "\r\n" }

var badRequests = []struct {
	text   string
	reason message.Reason // ReasonNone means ReasonBadRequest
	msg    string
}{
	// Request lines.
	{"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, "too many empty lines before the request"},
	{"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, "bare LF"},
	{"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, "bare CR"},
	{" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, "no method and space at the beginning of the request"},
	{"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, "no method and space at the beginning of the request"},
	{"GET\r\n\r\n", 0, "no method and space at the beginning of the request"},
	{"\x16\x03\x01\x02\x00\x01\x00\x01", 0, "no method and space at the beginning of the request"},
	{"G\x00T / HTTP/1.1\r\n", 0, "NUL byte"},
	{strings.Repeat("G", 65) + " / HTTP/1.1\r\n", 0, "method too long"},
	{"GET  / HTTP/1.1\r\n", 0, "empty target"},
	{"GET /  HTTP/1.1\r\n", 0, "no HTTP version where one belongs"},
	{"GET /a b HTTP/1.1\r\n", 0, "no HTTP version where one belongs"},
	{"GET /\tHTTP/1.1\r\n", 0, "byte in the target that does not belong there"},
	{"GET /\x7f HTTP/1.1\r\n", 0, "byte in the target that does not belong there"},
	{"GET /\x00 HTTP/1.1\r\n", 0, "NUL byte"},
	{"GET /?\x00 HTTP/1.1\r\n", 0, "NUL byte"},
	{"GET /\r HTTP/1.1\r\n", 0, "request line without a version"},
	{"GET /\r\n", 0, "request line without a version"},
	{"GET /\n", 0, "bare LF"},
	{"GET /#f HTTP/1.1\r\n", 0, "fragment in the target"},
	{"GET /?a#f HTTP/1.1\r\n", 0, "fragment in the target"},
	{"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"OPTIONS *? HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", 0, "target that is neither a path nor an http URI"},
	{"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "invalid authority in the target"},
	{"GET http://?a HTTP/1.1\r\nHost: a\r\n\r\n", 0, "invalid authority in the target"},
	{"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, "invalid authority in the target"},
	{"GET http://a:x/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, "invalid authority in the target"},
	{"GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, "invalid authority in the target"},
	{"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 0, "Host differs from the target's"},
	{"GET http://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n", 0, "Host differs from the target's"},
	{"GET http://a/ HTTP/1.0\r\nHost: ab\r\n\r\n", 0, "Host differs from the target's"},
	{"GET http://a/ HTTP/1.1\r\n\r\n", 0, "no Host"},
	{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", message.ReasonMethod, "CONNECT"},
	{"GET / HTTP/2.0\r\nHost: a\r\n\r\n", message.ReasonVersion, "version other than HTTP/1"},
	{"GET / HTTP/0.9\r\nHost: a\r\n\r\n", message.ReasonVersion, "version other than HTTP/1"},
	{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", message.ReasonVersion, "version other than HTTP/1"},
	{"GET / http/1.1\r\nHost: a\r\n\r\n", 0, "no HTTP version where one belongs"},
	{"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 0, "no line end behind the version"},
	{"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 0, "no line end behind the version"},
	{"GET / HTTP/1.1\nHost: a\r\n\r\n", 0, "bare LF"},
	{"GET / HTTP/1.1\rHost: a\r\n\r\n", 0, "bare CR"},
	{"GET / HTTP/11\r\nHost: a\r\n\r\n", 0, "no HTTP version where one belongs"},
	{"GET / HTTP/1\r\nHost: a\r\n\r\n", 0, "no HTTP version where one belongs"},
	{"GET / HTTP/+1.1\r\n", 0, "no HTTP version where one belongs"},
	{"GET / XTTP/1.1\r\n", 0, "no HTTP version where one belongs"},

	// Hosts.
	{"GET / HTTP/1.1\r\n\r\n", 0, "no Host"},
	{"GET / HTTP/1.1\r\nHost: \r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.0\r\nHost:\r\n\r\n", 0, "invalid Host"},
	{in("Host: a\r\n"), 0, "more than one Host"},
	{in("host: b\r\n"), 0, "more than one Host"},
	{"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 0, "more than one Host"},
	{"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 0, "more than one Host"},
	{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a%2\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a%g2\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a:000080\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: [::1%25eth0]\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 0, "invalid Host"},
	{"GET / HTTP/1.1\r\nHost: [:]\r\n\r\n", 0, "invalid Host"},

	// Framing.
	{in("Content-Length: 1\r\nContent-Length: 1\r\n"), 0, "more than one Content-Length"},
	{in("Content-Length: 1\r\nContent-Length: 2\r\n"), 0, "more than one Content-Length"},
	{in("Content-Length: 1,1\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length:\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: +1\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: -1\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 0x1\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 1_0\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 1 0\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 1.0\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: \xb2\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 9223372036854775808\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 18446744073709551617\r\n"), 0, "invalid Content-Length"},
	{in("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 0, "Transfer-Encoding beside Content-Length"},
	{in("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), 0, "Content-Length beside Transfer-Encoding"},
	{in("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 0, "more than one Transfer-Encoding"},
	{in("Transfer-Encoding: chunked, chunked\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: gzip, chunked\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: chunked, identity\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: identity\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding:\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: \"chunked\"\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: chunked;\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: xchunked\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: \xa0chunked\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: chunked,\r\n"), 0, "transfer coding other than chunked"},
	{in("Transfer-Encoding: \x0bchunked\r\n"), 0, "control byte in a field's value"},
	{"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 0, "Transfer-Encoding in HTTP/1.0"},

	// Field lines.
	{"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 0, "folded line, or white space before a field"},
	{"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", 0, "folded line, or white space before a field"},
	{in("A: b\r\n c\r\n"), 0, "folded line, or white space before a field"},
	{in("A: b\r\n\tc\r\n"), 0, "folded line, or white space before a field"},
	{in("A: b\r\n \r\n"), 0, "folded line, or white space before a field"},
	{in("A : b\r\n"), 0, "white space before the colon"},
	{in("A\t: b\r\n"), 0, "white space before the colon"},
	{in("Content-Length : 1\r\n"), 0, "white space before the colon"},
	{in(": b\r\n"), 0, "empty field name"},
	{in("A\r\n"), 0, "line without a colon"},
	{in("A"), 0, "line without a colon"},
	{in("A(: b\r\n"), 0, "byte in a field's name that does not belong there"},
	{in("A\xc3\xa9: b\r\n"), 0, "byte in a field's name that does not belong there"},
	{in("A\x00: b\r\n"), 0, "NUL byte"},
	{in("\x00A: b\r\n"), 0, "NUL byte"},
	{in("A\n: b\r\n"), 0, "bare LF"},
	{in("A: b\nC: d\r\n"), 0, "bare LF"},
	{in("A: b\rC: d\r\n"), 0, "bare CR"},
	{in("A: b\r\r\n"), 0, "bare CR"},
	{in("\rA: b\r\n"), 0, "bare CR"},
	{in("\nA: b\r\n"), 0, "bare LF"},
	{in("A: \x00\r\n"), 0, "NUL byte"},
	{in("A: bcdefghijklmno\x00\r\n"), 0, "NUL byte"},
	{in("A: \x1b[0m\r\n"), 0, "control byte in a field's value"},
	{in("A: b\x7f\r\n"), 0, "control byte in a field's value"},
	{in("A: bcdefgh\x7f\x01\r\n"), 0, "control byte in a field's value"},
	{"GET / HTTP/1.1\r\nHost: a\r\n\n", 0, "bare LF"},
	{"GET / HTTP/1.1\r\nHost: a\n\n", 0, "bare LF"},
	{in("Connection: " + strings.Repeat(",", 100) + "\r\nConnection: a\r\n"), 0, "too many members in Connection"},
}

func TestRequestBad(t *testing.T) {
	for _, c := range badRequests {
		_, n, err := parseRequest(t, c.text+following, nil)
		require.Zero(t, n, "%q", c.text)
		var e *SyntaxError
		require.ErrorAs(t, err, &e, "%q", c.text)
		if c.reason == message.ReasonNone {
			c.reason = message.ReasonBadRequest
		}
		require.Equal(t, c.reason, e.Reason, "%q: %v", c.text, err)
		require.Equal(t, c.msg, e.Msg, "%q", c.text)
		require.Less(t, e.At, len(c.text), "%q", c.text)
	}
}

// Every byte in every kind of place: what the grammar says, nothing else.
func TestRequestEveryByte(t *testing.T) {
	accepted := func(format string) (set string) {
		for c := range 256 {
			var (
				p RequestParser
				h message.Head
			)
			text := strings.ReplaceAll(format, "@", string([]byte{byte(c)}))
			if _, err := p.Parse(&h, []byte(text), nil); err == nil && len(h.Bytes) == len(text) {
				set += string([]byte{byte(c)})
			}
		}
		return set
	}
	const (
		digits  = "0123456789"
		upper   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
		letters = "abcdefghijklmnopqrstuvwxyz"
	)
	high := ""
	for c := 0x80; c < 0x100; c++ {
		high += string([]byte{byte(c)})
	}
	token := "!#$%&'*+-." + digits + upper + "^_`" + letters + "|~"
	require.Equal(t, token, accepted("G@T / HTTP/1.1\r\nHost: a\r\n\r\n"))
	names := accepted("GET / HTTP/1.1\r\nHost: a\r\nN@e: v\r\n\r\n")
	require.Equal(t, token, strings.Replace(names, ":", "", 1)) // "N:e: v" has a short name
	visible := "!\"#$%&'()*+,-./" + digits + ":;<=>?@" + upper + "[\\]^_`" + letters + "{|}~" + high
	require.Equal(t, "\t "+visible, accepted("GET / HTTP/1.1\r\nHost: a\r\nName: v@v\r\n\r\n"))
	require.Equal(t, "\t "+visible, accepted("GET / HTTP/1.1\r\nHost: a\r\nName: 1234567@1234567890\r\n\r\n"))
	target := strings.Replace(visible, "#", "", 1)
	require.Equal(t, target, accepted("GET /a@b HTTP/1.1\r\nHost: a\r\n\r\n"))
	require.Equal(t, target, accepted("GET /a?@b HTTP/1.1\r\nHost: a\r\n\r\n"))
	require.Equal(t, "!$&'()*+-."+digits+";="+upper+"_"+letters+"~", accepted("GET / HTTP/1.1\r\nHost: a@a\r\n\r\n"))
	require.Equal(t, digits, accepted("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1@1\r\n\r\n"))
}

func TestRequestLimits(t *testing.T) {
	for _, c := range []struct {
		text   string
		lim    Limits
		reason message.Reason // ReasonNone: accepted
		at     int
	}{
		{wrkGet, Limits{HeadBytes: len(wrkGet)}, message.ReasonNone, 0},
		{"\r\n" + wrkGet, Limits{HeadBytes: len(wrkGet)}, message.ReasonNone, 0},
		{wrkGet, Limits{HeadBytes: len(wrkGet) - 1}, message.ReasonHeadTooLarge, len(wrkGet) - 1},
		{wrkGet[:30], Limits{HeadBytes: 30}, message.ReasonHeadTooLarge, 30},
		{wrkGet, Limits{HeadBytes: 2}, message.ReasonHeadTooLarge, 2},
		{"GET /abcdef", Limits{HeadBytes: 8}, message.ReasonTargetTooLong, 8},
		{in("A: b\r\nC: d\r\n"), Limits{Fields: 3}, message.ReasonNone, 0},
		{in("A: b\r\nC: d\r\n"), Limits{Fields: 2}, message.ReasonHeadTooLarge, 31},
		{in("A: b\r\nC"), Limits{Fields: 2}, message.ReasonHeadTooLarge, 31},
		{"GET /abc HTTP/1.1\r\nHost: a\r\n\r\n", Limits{TargetBytes: 4}, message.ReasonNone, 0},
		{"GET /a?c HTTP/1.1\r\nHost: a\r\n\r\n", Limits{TargetBytes: 4}, message.ReasonNone, 0},
		{"GET /abcd", Limits{TargetBytes: 4}, message.ReasonTargetTooLong, 8},
		{"GET /a?cd", Limits{TargetBytes: 4}, message.ReasonTargetTooLong, 8},
		{"\r\nGET /abcd", Limits{TargetBytes: 4}, message.ReasonTargetTooLong, 10},
		{"GET /" + strings.Repeat("a", 8<<10-1) + " HTTP/1.1\r\nHost: a\r\n\r\n", Limits{}, message.ReasonNone, 0},
		{"GET /" + strings.Repeat("a", 8<<10), Limits{}, message.ReasonTargetTooLong, 4 + 8<<10},
		{in(strings.Repeat("A: b\r\n", 99)), Limits{}, message.ReasonNone, 0},
		{in(strings.Repeat("A: b\r\n", 100)), Limits{}, message.ReasonHeadTooLarge, 25 + 99*6},
		{in("A: " + strings.Repeat("b", 32<<10)), Limits{}, message.ReasonHeadTooLarge, 32 << 10},
		{in(strings.Repeat("A", 32<<10)), Limits{}, message.ReasonHeadTooLarge, 32 << 10},
	} {
		_, n, err := parseRequest(t, c.text, &c.lim)
		if c.reason == message.ReasonNone {
			require.NoError(t, err, "%.40q", c.text)
			require.Equal(t, len(c.text), n)
			continue
		}
		var e *SyntaxError
		require.ErrorAs(t, err, &e, "%.40q", c.text)
		require.Equal(t, c.reason, e.Reason, "%.40q", c.text)
		require.Equal(t, c.at, e.At, "%.40q", c.text)
	}
}

// A head that comes byte by byte costs no more than one that comes whole: what
// was read is not read again, but for the few bytes of a version.
func TestHeadsAreReadOnce(t *testing.T) {
	long := strings.Repeat("x", 4000)
	request := "\r\nGET /" + long + "?" + long + " HTTP/1.1\r\nHost: a\r\n" + long + ": " + long + "\r\n\r\n"
	response := "HTTP/1.1 200 " + long + "\r\n" + long + ": " + long + "\r\n\r\n"
	var (
		req RequestParser
		res ResponseParser
		h   message.Head
		lim = Limits{TargetBytes: 10000}
	)
	for i := 3; i < len(request); i++ {
		_, err := req.Parse(&h, []byte(request[:i]), &lim)
		require.Equal(t, ErrPartial, err)
		require.GreaterOrEqual(t, req.start+req.at, i-len("HTTP/1.1\r"))
	}
	for i := range len(response) {
		_, err := res.Parse(&h, []byte(response[:i]), nil, message.MethodGet)
		require.Equal(t, ErrPartial, err)
		require.GreaterOrEqual(t, res.at, i-len("HTTP/1.1 200"))
	}
}

// After a head, an error or Reset the parser begins anew, and so does the head.
func TestRequestParserIsReused(t *testing.T) {
	var (
		p RequestParser
		h message.Head
	)
	full := []byte(in("Connection: close, x\r\nX: y\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n"))
	_, err := p.Parse(&h, full, nil)
	require.NoError(t, err)
	_, err = p.Parse(&h, []byte("\r\n"+in("Content-Length: 1\r\nA: \x00")), nil)
	require.Error(t, err)
	_, err = p.Parse(&h, full[:len(full)-1], nil)
	require.Equal(t, ErrPartial, err)
	p.Reset()
	_, err = p.Parse(&h, []byte(wrkGet), nil)
	require.NoError(t, err)

	fresh, _, err := parseRequest(t, wrkGet, nil)
	require.NoError(t, err)
	require.Equal(t, describe(fresh), describe(&h))
}

func TestRequestAllocates(t *testing.T) {
	var (
		p    RequestParser
		h    message.Head
		lim  Limits
		text = []byte(browserGet)
	)
	allocs := testing.AllocsPerRun(1000, func() {
		if _, err := p.Parse(&h, text[:300], &lim); err != ErrPartial {
			t.Fatal(err)
		}
		if _, err := p.Parse(&h, text, &lim); err != nil {
			t.Fatal(err)
		}
	})
	require.Zero(t, allocs)
}
