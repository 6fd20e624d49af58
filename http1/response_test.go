package http1

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// parseResponse parses text whole, and checks that pieces give the same.
func parseResponse(t testing.TB, text string, lim *Limits, request message.Method) (h *message.Head, n int, err error) {
	h = &message.Head{}
	var p ResponseParser
	n, err = p.Parse(h, []byte(text), lim, request)
	for _, step := range []int{1, 7} {
		var (
			h2 message.Head
			p2 ResponseParser
		)
		n2, err2 := grow(text, step, func(b []byte) (int, error) { return p2.Parse(&h2, b, lim, request) })
		require.Equal(t, err, err2, "%d at a time: %q", step, text)
		require.Equal(t, n, n2, "%d at a time: %q", step, text)
		if err == nil {
			require.Equal(t, describe(h), describe(&h2), "%d at a time: %q", step, text)
		}
	}
	return h, n, err
}

// wantResponse is what a good head says. Status 200 and HTTP/1.1 go without
// saying.
type wantResponse struct {
	status                 int
	http10, close, upgrade bool
	framing                message.Framing
	length                 int64
	hasLength              bool
	hops                   []string
}

var goodResponses = []struct {
	head    string
	request message.Method
	want    wantResponse
}{
	{nginxHead, message.MethodGet, wantResponse{framing: message.FramingLength, length: 100, hasLength: true, hops: []string{"Content-Length", "Connection"}}},
	{nginxHead, message.MethodHead, wantResponse{length: 100, hasLength: true, hops: []string{"Content-Length", "Connection"}}},

	// Status lines.
	{"HTTP/1.1 200\r\n\r\n", 0, wantResponse{close: true, framing: message.FramingClose}},
	{"HTTP/1.1 200 \r\n\r\n", 0, wantResponse{close: true, framing: message.FramingClose}},
	{"HTTP/1.1 200 \t\xc3\xa9 \x80 fine: yes\r\n\r\n", 0, wantResponse{close: true, framing: message.FramingClose}},
	{"HTTP/1.3 999 x\r\n\r\n", 0, wantResponse{status: 999, close: true, framing: message.FramingClose}},
	{"HTTP/1.0 200 OK\r\n\r\n", 0, wantResponse{http10: true, close: true, framing: message.FramingClose}},

	// No body.
	{"HTTP/1.1 100 Continue\r\n\r\n", 0, wantResponse{status: 100}},
	{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 0, wantResponse{status: 103}},
	{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", 0, wantResponse{status: 101, upgrade: true, hasLength: true, hops: []string{"Connection", "Upgrade", "Content-Length"}}},
	{"HTTP/1.1 204 No Content\r\n\r\n", 0, wantResponse{status: 204}},
	{"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 0, wantResponse{status: 204, hasLength: true, hops: []string{"Content-Length"}}},
	{"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 0, wantResponse{status: 204, close: true, length: 5, hasLength: true, hops: []string{"Content-Length"}}},
	{"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 0, wantResponse{status: 204, close: true, hops: []string{"Transfer-Encoding"}}},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 0, wantResponse{status: 304, length: 7, hasLength: true, hops: []string{"Content-Length"}}},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", message.MethodHead, wantResponse{hops: []string{"Transfer-Encoding"}}},
	{"HTTP/1.1 200 OK\r\n\r\n", message.MethodHead, wantResponse{}},

	// Bodies.
	{"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n", 0, wantResponse{status: 500, framing: message.FramingLength, hasLength: true, hops: []string{"Content-Length"}}},
	{"HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n", 0, wantResponse{framing: message.FramingChunked, hops: []string{"transfer-encoding"}}},
	{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n", 0, wantResponse{close: true, framing: message.FramingLength, length: 3, hasLength: true, hops: []string{"Content-Length", "Connection"}}},
	{"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n", 0, wantResponse{http10: true, framing: message.FramingLength, length: 3, hasLength: true, hops: []string{"Content-Length", "Connection"}}},
	{"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n", 0, wantResponse{close: true, framing: message.FramingClose, hops: []string{"Connection"}}},

	// Fields mean less in a response.
	{"HTTP/1.1 200 OK\r\nHost: ,\r\nHost:\r\nExpect: 100-continue\r\nX-A: 1\r\nConnection: x-a, set-cookie\r\nSet-Cookie: x\r\nSet-Cookie: y\r\n\r\n", 0, wantResponse{close: true, framing: message.FramingClose, hops: []string{"X-A", "Connection"}}},
}

func TestResponseGood(t *testing.T) {
	for _, c := range goodResponses {
		h, n, err := parseResponse(t, c.head+following, nil, c.request)
		require.NoError(t, err, "%q", c.head)
		require.Equal(t, len(c.head), n, "%q", c.head)
		require.Equal(t, c.head, string(h.Bytes))
		if c.want.status == 0 {
			c.want.status = 200
		}
		got := wantResponse{
			status: h.Status, http10: h.Minor == 0, close: !h.Persistent, upgrade: h.UpgradeAsked,
			framing: h.Framing, length: h.Length, hasLength: h.HasLength, hops: hops(h),
		}
		require.Equal(t, c.want, got, "%q", c.head)
		require.False(t, h.Expect100)
		checkLines(t, h)
	}
}

func TestResponsePrefixes(t *testing.T) {
	for _, c := range goodResponses {
		for i := range len(c.head) {
			var (
				p ResponseParser
				h message.Head
			)
			_, err := p.Parse(&h, []byte(c.head[:i]), nil, c.request)
			require.Equal(t, ErrPartial, err, "prefix %q", c.head[:i])
		}
	}
}

// ok makes a response whose fields are lines.
func ok(lines string) string { return "HTTP/1.1 200 OK\r\n" + lines + "\r\n" }

var badResponses = []struct{ text, msg string }{
	{"\r\nHTTP/1.1 200 OK\r\n\r\n", "no HTTP version where one belongs"},
	{"HTTP/2.0 200 OK\r\n\r\n", "version other than HTTP/1"},
	{"HTTP/1.1200 OK\r\n\r\n", "no status of three digits where one belongs"},
	{"HTTP/1.1  200 OK\r\n\r\n", "no status of three digits where one belongs"},
	{"HTTP/1.1 20 OK\r\n\r\n", "no status of three digits where one belongs"},
	{"HTTP/1.1 2000 OK\r\n\r\n", "no space or line end behind the status"},
	{"HTTP/1.1 099 OK\r\n\r\n", "no status of three digits where one belongs"},
	{"HTTP/1.1 -20 OK\r\n\r\n", "no status of three digits where one belongs"},
	{"HTTP/1.1 200\tOK\r\n\r\n", "no space or line end behind the status"},
	{"HTTP/1.1 200\nA: b\r\n\r\n", "bare LF"},
	{"HTTP/1.1 200 OK\nA: b\r\n\r\n", "bare LF"},
	{"HTTP/1.1 200 OK\rA: b\r\n\r\n", "bare CR"},
	{"HTTP/1.1 200\rA: b\r\n\r\n", "bare CR"},
	{"HTTP/1.1 200 O\x00K\r\n\r\n", "NUL byte"},
	{"HTTP/1.1 200 O\x1bK\r\n\r\n", "control byte in the status line"},
	{"HTTP/1.1\r\n\r\n", "no status of three digits where one belongs"},
	{"http/1.1 200 OK\r\n\r\n", "no HTTP version where one belongs"},
	{"ICY 200 OK\r\n\r\n", "no HTTP version where one belongs"},
	{"<html>", "no HTTP version where one belongs"},

	{ok("A: b\r\n c\r\n"), "folded line, or white space before a field"},
	{ok("A : b\r\n"), "white space before the colon"},
	{ok(": b\r\n"), "empty field name"},
	{ok("A: b\nC: d\r\n"), "bare LF"},
	{ok("A: \x00\r\n"), "NUL byte"},
	{ok("Content-Length: 1\r\nContent-Length: 1\r\n"), "more than one Content-Length"},
	{ok("Content-Length: 1, 1\r\n"), "invalid Content-Length"},
	{ok("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), "Transfer-Encoding beside Content-Length"},
	{ok("Transfer-Encoding: gzip\r\n"), "transfer coding other than chunked"},
	{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding in HTTP/1.0"},
	{"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", "interim response with a body"},
	{"HTTP/1.1 101 x\r\nTransfer-Encoding: chunked\r\n\r\n", "interim response with a body"},
	{ok(strings.Repeat("A: b\r\n", 101)), "too many fields"},
	{ok("A: " + strings.Repeat("b", 32<<10) + "\r\n"), "head too large"},
	{"HTTP/1.1 200 " + strings.Repeat("b", 32<<10), "head too large"},
}

func TestResponseBad(t *testing.T) {
	for _, c := range badResponses {
		_, n, err := parseResponse(t, c.text+following, nil, message.MethodGet)
		require.Zero(t, n, "%.60q", c.text)
		var e *SyntaxError
		require.ErrorAs(t, err, &e, "%.60q", c.text)
		require.Equal(t, message.ReasonBackendMalformed, e.Reason, "%.60q", c.text)
		require.Equal(t, c.msg, e.Msg, "%.60q", c.text)
	}
}

// An interim response and the final one behind it, by the same parser.
func TestResponseInterimThenFinal(t *testing.T) {
	var (
		p ResponseParser
		h message.Head
	)
	const interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
	text := []byte(interim + nginxHead)
	n, err := p.Parse(&h, text, nil, message.MethodGet)
	require.NoError(t, err)
	require.Equal(t, len(interim), n)
	require.Equal(t, 103, h.Status)
	n, err = p.Parse(&h, text[n:], nil, message.MethodGet)
	require.NoError(t, err)
	require.Equal(t, len(nginxHead), n)

	fresh, _, err := parseResponse(t, nginxHead, nil, message.MethodGet)
	require.NoError(t, err)
	require.Equal(t, describe(fresh), describe(&h))

	_, err = p.Parse(&h, text[:20], nil, message.MethodGet)
	require.Equal(t, ErrPartial, err)
	p.Reset()
	_, err = p.Parse(&h, []byte(nginxHead), nil, message.MethodGet)
	require.NoError(t, err)
	require.Equal(t, describe(fresh), describe(&h))
}

func TestResponseAllocates(t *testing.T) {
	var (
		p    ResponseParser
		h    message.Head
		lim  Limits
		text = []byte(nginxHead)
	)
	allocs := testing.AllocsPerRun(1000, func() {
		if _, err := p.Parse(&h, text[:100], &lim, message.MethodGet); err != ErrPartial {
			t.Fatal(err)
		}
		if _, err := p.Parse(&h, text, &lim, message.MethodGet); err != nil {
			t.Fatal(err)
		}
	})
	require.Zero(t, allocs)
}
