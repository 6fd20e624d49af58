package http1

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// decoded is what a chunked body turned out to be.
type decoded struct {
	payload, trailers string
	n                 int
	done              bool
	err               string // "reason: message"
}

// decode reads text in pieces of step bytes, each at another place in memory
// that is overwritten when it was used.
func decode(t testing.TB, c *Chunked, text string, step int) (d decoded) {
	var payload []byte
	defer func() { d.payload = string(payload) }()
	for d.n < len(text) && !c.Done() {
		piece := []byte(text[d.n:min(d.n+step, len(text))])
		for rest := piece; len(rest) > 0 && !c.Done(); {
			data, n, err := c.Next(rest)
			require.Equal(t, string(rest[n-len(data):n]), string(data))
			payload = append(payload, data...)
			d.n += n
			if err != nil {
				e := err.(*SyntaxError)
				require.True(t, n <= e.At && e.At <= len(rest), "error at %d of %q", e.At, rest)
				d.err = e.Reason.String() + ": " + e.Msg
				return d
			}
			if n == 0 || n > len(rest) {
				t.Fatalf("consumed %d of %q", n, rest)
			}
			rest = rest[n:]
		}
		for i := range piece {
			piece[i] = 0xDB
		}
	}
	d.done, d.trailers = c.Done(), string(c.Trailers())
	return d
}

// decodeAll decodes text whole, and checks that pieces give the same.
func decodeAll(t testing.TB, text string) decoded {
	whole := decode(t, new(Chunked), text, len(text))
	for _, step := range []int{1, 2, 5} {
		d := decode(t, new(Chunked), text, step)
		if whole.err != "" {
			whole.n, d.n = 0, 0 // where an error was seen may lie in an earlier piece
		}
		require.Equal(t, whole, d, "%d at a time: %q", step, text)
	}
	return whole
}

var goodChunked = []struct{ text, payload, trailers string }{
	{"0\r\n\r\n", "", ""},
	{"0000000000000000\r\n\r\n", "", ""},
	{"5\r\nhello\r\n0\r\n\r\n", "hello", ""},
	{"1\r\na\r\n00000000000000a\r\n0123456789\r\nA\r\n\r\n\x00\r\n34567\r\n0\r\n\r\n", "a0123456789\r\n\x00\r\n34567", ""},
	{"1;x\r\na\r\n1 \t;x=\"a\xc3\xa9;\tb\";;\r\nb\r\n0;\r\n\r\n", "ab", ""},
	{"1\r\na\r\n0\r\nGrpc-Status: 0\r\nDate:x\r\nEmpty:\r\n\r\n", "a", "Grpc-Status: 0\r\nDate:x\r\nEmpty:\r\n"},
	// As long as they may be; the CR counts as part of an extension.
	{"0;" + strings.Repeat("x", 4<<10-1) + "\r\n\r\n", "", ""},
	{"0\r\nA: " + strings.Repeat("b", 8<<10-7) + "\r\n\r\n", "", "A: " + strings.Repeat("b", 8<<10-7) + "\r\n"},
}

func TestChunkedGood(t *testing.T) {
	for _, c := range goodChunked {
		d := decodeAll(t, c.text+following)
		require.Equal(t, decoded{payload: c.payload, trailers: c.trailers, n: len(c.text), done: true}, d, "%.80q", c.text)
		for i := range min(len(c.text), 200) {
			d := decode(t, new(Chunked), c.text[:i], max(i, 1))
			require.Equal(t, "", d.err, "prefix %.80q", c.text[:i])
			require.False(t, d.done, "prefix %.80q", c.text[:i])
			require.Equal(t, i, d.n, "prefix %.80q", c.text[:i])
		}
	}
}

var badChunked = []struct{ text, err string }{
	// Sizes.
	{"\r\n", "no chunk size where one belongs"},
	{"\n", "bare LF"},
	{";x\r\n", "no chunk size where one belongs"},
	{"+1\r\na\r\n", "no chunk size where one belongs"},
	{"-1\r\na\r\n", "no chunk size where one belongs"},
	{" 1\r\na\r\n", "no chunk size where one belongs"},
	{"g\r\n", "no chunk size where one belongs"},
	{"@\r\n", "no chunk size where one belongs"},
	{"`\r\n", "no chunk size where one belongs"},
	{"\x00\r\n", "NUL byte"},
	{"0x1\r\na\r\n", "byte in a chunk size that does not belong there"},
	{"1_0\r\na\r\n", "byte in a chunk size that does not belong there"},
	{"1,\r\na\r\n", "byte in a chunk size that does not belong there"},
	{"1\x00\r\na\r\n", "NUL byte"},
	{"1\x0b\r\na\r\n", "byte in a chunk size that does not belong there"},
	{"1\na\r\n", "bare LF"},
	{"1\ra\r\n", "bare CR"},
	{"1\r\r\na\r\n", "bare CR"},
	{"1 \r\na\r\n", "white space behind a chunk size"},
	{"1 a\r\n", "white space behind a chunk size"},
	{"00000000000000001\r\na\r\n", "chunk size too large"},
	{"8000000000000000\r\n", "chunk size too large"},
	{"ffffffffffffffff\r\n", "chunk size too large"},
	{"10000000000000000\r\n", "chunk size too large"},

	// Extensions.
	{"1;a\nb\r\n", "bare LF"},
	{"1;\"\n\"\r\n", "bare LF"},
	{"1;a\rb\r\n", "bare CR"},
	{"1;\x00\r\n", "NUL byte"},
	{"1;\x7f\r\n", "control byte in a chunk extension"},
	{"0;" + strings.Repeat("x", 4<<10) + "\r\n\r\n", "chunk extensions too long"},
	{strings.Repeat("1;"+strings.Repeat("x", 100)+"\r\na\r\n", 50), "chunk extensions too long"},

	// Ends of chunks.
	{"1\r\nab\r\n", "chunk not followed by a line end"},
	{"1\r\na\n0\r\n\r\n", "chunk not followed by a line end"},
	{"1\r\na\r0\r\n\r\n", "chunk not followed by a line end"},
	{"1\r\na0\r\n\r\n", "chunk not followed by a line end"},

	// Trailers.
	{"0\r\n\n", "bare LF"},
	{"0\r\n\rX", "bare CR"},
	{"0\r\nA: b\n\r\n", "bare LF"},
	{"0\r\nA: b\r\n\n", "bare LF"},
	{"0\r\nA: b\r\n c\r\n\r\n", "folded line, or white space before a field"},
	{"0\r\n A: b\r\n\r\n", "folded line, or white space before a field"},
	{"0\r\nA : b\r\n\r\n", "white space before the colon"},
	{"0\r\n: b\r\n\r\n", "empty field name"},
	{"0\r\nA\r\n\r\n", "line without a colon"},
	{"0\r\nA: \x00\r\n\r\n", "NUL byte"},
	{"0\r\nGET / HTTP/1.1\r\n\r\n", "white space before the colon"},
	{"0\r\nContent-Length: 1\r\n\r\n", "field that must not be a trailer"},
	{"0\r\ntransfer-encoding: chunked\r\n\r\n", "field that must not be a trailer"},
	{"0\r\nHost: a\r\n\r\n", "field that must not be a trailer"},
	{"0\r\nA: b\r\nConnection: close\r\n\r\n", "field that must not be a trailer"},
	{"0\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n", "field that must not be a trailer"},
	{"0\r\nTE: trailers\r\n\r\n", "field that must not be a trailer"},
}

func TestChunkedBad(t *testing.T) {
	for _, c := range badChunked {
		d := decodeAll(t, c.text+following)
		require.Equal(t, "bad_request: "+c.err, d.err, "%.80q", c.text)
	}
	for _, c := range []struct{ text, err string }{
		{"0\r\nA: " + strings.Repeat("b", 8<<10-6) + "\r\n\r\n", "trailer section too large"},
		{"0\r\n" + strings.Repeat("A: b\r\n", 65) + "\r\n", "too many fields"},
	} {
		d := decodeAll(t, c.text+following)
		require.Equal(t, "head_too_large: "+c.err, d.err, "%.80q", c.text)
	}
}

func TestChunkedOfResponse(t *testing.T) {
	for _, text := range []string{"x", "0\r\nHost: a\r\n\r\n", "0\r\n" + strings.Repeat("A", 9<<10)} {
		_, _, err := (&Chunked{Response: true}).Next([]byte(text))
		var e *SyntaxError
		require.ErrorAs(t, err, &e)
		require.Equal(t, message.ReasonBackendMalformed, e.Reason)
	}
}

// The largest chunk is counted down without wrapping.
func TestChunkedLargest(t *testing.T) {
	var c Chunked
	_, n, err := c.Next([]byte("7fffffffffffffff\r\n"))
	require.NoError(t, err)
	require.Equal(t, 18, n)
	piece := make([]byte, 1000)
	for range 3 {
		data, n, err := c.Next(piece)
		require.NoError(t, err)
		require.Equal(t, len(piece), n)
		require.Len(t, data, len(piece))
	}
	require.Equal(t, int64(1<<63-1-3000), c.size)
}

func TestChunkedPayloadIsNotCopied(t *testing.T) {
	var c Chunked
	text := []byte("5\r\nhello\r\n0\r\n\r\nnext")
	data, n, err := c.Next(text)
	require.NoError(t, err)
	require.Equal(t, "hello", string(data))
	require.Same(t, &text[3], &data[0])
	data, m, err := c.Next(text[n:])
	require.NoError(t, err)
	require.Empty(t, data)
	require.Equal(t, "next", string(text[n+m:]))
	require.True(t, c.Done())
	_, n, err = c.Next(text)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestChunkedAllocates(t *testing.T) {
	text := []byte("5;x\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
	allocs := testing.AllocsPerRun(1000, func() {
		var c Chunked
		for i := 0; !c.Done(); {
			_, n, err := c.Next(text[i:])
			if err != nil {
				t.Fatal(err)
			}
			i += n
		}
	})
	require.Zero(t, allocs)
}

func TestAppendChunkHead(t *testing.T) {
	require.Equal(t, "x0\r\n", string(AppendChunkHead([]byte("x"), 0)))
	require.Equal(t, "1f0a\r\n", string(AppendChunkHead(nil, 0x1f0a)))
	buf := make([]byte, 0, 32)
	require.Zero(t, testing.AllocsPerRun(100, func() { buf = AppendChunkHead(buf[:0], 1<<40) }))
}
