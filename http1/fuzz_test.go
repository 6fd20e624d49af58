package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// fuzzLimits are small, so that inputs meet them.
var fuzzLimits = Limits{HeadBytes: 512, Fields: 12, TargetBytes: 64}

// endToEndLines rewrites the fields that are forwarded.
func endToEndLines(h *message.Head) (s string) {
	for i := range h.Fields {
		if f := &h.Fields[i]; !f.Hop {
			s += string(h.Text(f.Name)) + ": " + string(h.Text(f.Value)) + "\r\n"
		}
	}
	return s
}

func framingLine(h *message.Head) string {
	switch {
	case h.Framing == message.FramingChunked:
		return "Transfer-Encoding: chunked\r\n"
	case h.HasLength:
		return "Content-Length: " + strconv.FormatInt(h.Length, 10) + "\r\n"
	}
	return ""
}

// FuzzRequest: pieces give what the whole gives; what we would forward parses
// back to what we understood; and net/http, where it accepts a head too,
// understands the same.
func FuzzRequest(f *testing.F) {
	for _, c := range goodRequests {
		f.Add([]byte(c.head))
	}
	for _, c := range badRequests {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, n, err := parseRequest(t, string(text), &fuzzLimits)
		if err != nil {
			require.Zero(t, n)
			return
		}
		checkLines(t, h)
		forwardRequest(t, h)
		netRequest(t, h)
	})
}

// forwardRequest checks that h, rewritten for a backend, parses back.
func forwardRequest(t *testing.T, h *message.Head) {
	version := "HTTP/1.1"
	if h.Host.Len == 0 {
		version = "HTTP/1.0" // a proxy would make up a Host
	}
	text := string(h.Text(h.MethodName)) + " " + string(h.AppendTarget(nil)) + " " + version + "\r\n"
	lines := endToEndLines(h)
	if h.Host.Len > 0 && h.Find(message.FieldHost) == nil {
		lines += "Host: " + string(h.Text(h.Host)) + "\r\n"
	}
	text += lines + framingLine(h) + "\r\n"

	back, n, err := parseRequest(t, text, nil)
	require.NoError(t, err, "%q", text)
	require.Equal(t, len(text), n)
	require.Equal(t, h.Method, back.Method)
	require.Equal(t, h.Text(h.MethodName), back.Text(back.MethodName))
	require.Equal(t, string(h.AppendTarget(nil)), string(back.Text(back.Target)))
	if string(back.Text(back.Target)) != "*" {
		require.Equal(t, string(h.Text(h.Path)), string(back.Text(back.Path)))
	}
	require.Equal(t, string(h.Text(h.Query)), string(back.Text(back.Query)))
	require.True(t, strings.EqualFold(string(h.Text(h.Host)), string(back.Text(back.Host))))
	require.Equal(t, h.Framing, back.Framing)
	require.Equal(t, h.Length, back.Length)
	require.Equal(t, lines, endToEndLines(back))
}

// netRequest compares with net/http, which is laxer and stricter in places:
// what it refuses it need not understand.
func netRequest(t *testing.T, h *message.Head) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(h.Bytes)))
	if err != nil {
		return
	}
	require.Equal(t, string(h.Text(h.MethodName)), r.Method)
	require.Equal(t, string(h.Text(h.Target)), r.RequestURI)
	require.True(t, strings.EqualFold(string(h.Text(h.Host)), r.Host), "%q, net/http %q", h.Text(h.Host), r.Host)
	require.Equal(t, int(min(h.Minor, 1)), min(r.ProtoMinor, 1))
	require.Equal(t, h.Persistent, !r.Close)
	switch h.Framing {
	case message.FramingChunked:
		require.Equal(t, []string{"chunked"}, r.TransferEncoding)
	default:
		require.Empty(t, r.TransferEncoding)
		require.Equal(t, h.Length, r.ContentLength)
	}
	netFields(t, h, r.Header)
}

// netFields checks that net/http knows the forwarded fields with their values.
func netFields(t *testing.T, h *message.Head, header http.Header) {
	want := map[string][]string{}
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Hop || f.ID == message.FieldHost || f.ID == message.FieldTrailer {
			continue
		}
		key := http.CanonicalHeaderKey(string(h.Text(f.Name)))
		want[key] = append(want[key], string(h.Text(f.Value)))
	}
	for key, values := range want {
		if strings.EqualFold(key, "Pragma") || strings.EqualFold(key, "Cache-Control") {
			continue // net/http makes the one out of the other
		}
		for _, v := range values {
			require.Contains(t, header[key], v)
		}
	}
}

// FuzzResponse is FuzzRequest for responses.
func FuzzResponse(f *testing.F) {
	for _, c := range goodResponses {
		f.Add([]byte(c.head), c.request == message.MethodHead)
	}
	for _, c := range badResponses {
		f.Add([]byte(c.text), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, toHead bool) {
		request, name := message.MethodGet, "GET"
		if toHead {
			request, name = message.MethodHead, "HEAD"
		}
		h, n, err := parseResponse(t, string(text), &fuzzLimits, request)
		if err != nil {
			require.Zero(t, n)
			return
		}
		checkLines(t, h)

		lines := endToEndLines(h)
		forward := fmt.Sprintf("HTTP/1.1 %d\r\n", h.Status) + lines
		if h.Status >= 200 && h.Status != 204 {
			forward += framingLine(h)
		}
		forward += "\r\n"
		back, n, err := parseResponse(t, forward, nil, request)
		require.NoError(t, err, "%q", forward)
		require.Equal(t, len(forward), n)
		require.Equal(t, h.Status, back.Status)
		require.Equal(t, h.Framing, back.Framing)
		if back.HasLength {
			require.Equal(t, h.Length, back.Length)
		}
		require.Equal(t, lines, endToEndLines(back))

		netResponse(t, h, name)
	})
}

func netResponse(t *testing.T, h *message.Head, request string) {
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(h.Bytes)), &http.Request{Method: request})
	if err != nil {
		return
	}
	require.Equal(t, h.Status, r.StatusCode)
	switch h.Framing {
	case message.FramingChunked:
		require.Equal(t, []string{"chunked"}, r.TransferEncoding)
	case message.FramingLength:
		require.Empty(t, r.TransferEncoding)
		require.Equal(t, h.Length, r.ContentLength)
	case message.FramingClose:
		require.Empty(t, r.TransferEncoding)
		require.Equal(t, int64(-1), r.ContentLength)
	case message.FramingNone:
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Empty(t, body)
	}
	netFields(t, h, r.Header)
}

// FuzzChunked: pieces give what the whole gives; a body written again from its
// payload and trailers is the same; and net/http reads the same payload.
func FuzzChunked(f *testing.F) {
	for _, c := range goodChunked {
		f.Add([]byte(c.text), uint8(3))
	}
	for _, c := range badChunked {
		f.Add([]byte(c.text), uint8(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, step uint8) {
		d := decodeAll(t, string(text))
		if d.err != "" || !d.done {
			return
		}
		piece := decode(t, new(Chunked), string(text), int(step)+1)
		require.Equal(t, d, piece)

		var again []byte
		for rest := d.payload; rest != ""; {
			n := min(len(rest), int(step)+1)
			again = append(AppendChunkHead(again, n), rest[:n]...)
			again = append(again, "\r\n"...)
			rest = rest[n:]
		}
		again = append(AppendChunkHead(again, 0), d.trailers+"\r\n"...)
		back := decodeAll(t, string(again))
		require.Equal(t, decoded{payload: d.payload, trailers: d.trailers, n: len(again), done: true}, back)

		const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + string(text[:d.n]))))
		require.NoError(t, err)
		payload, err := io.ReadAll(r.Body)
		if err == nil {
			require.Equal(t, d.payload, string(payload))
		}
	})
}
