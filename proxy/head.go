package proxy

import (
	"net/http"
	"strconv"

	"github.com/cloud-cup/cloud-cup/message"
)

// Heads are made anew for the other side: the fields that end here go, the
// framing is stated by us, and what the next hop should know is added. Runs of
// lines that stay are copied at once, as they came.

// via is what both directions carry (RFC 9110 7.6.3).
const via = "Via: 1.1 cloud-cup\r\n"

// requestHeadRoom is what a request's head grows by at most, its Host aside.
const requestHeadRoom = 256

// writeRequestHead writes the request's head as backends get it into a buffer
// of its own, so that it can be sent again. It reports false if there is no
// memory.
func (x *exchange) writeRequestHead() bool {
	req, c := &x.req, x.client
	host := req.Text(req.Host)
	// The target and the Host may stand twice in what we write.
	if !c.room(2*len(req.Bytes) + requestHeadRoom) {
		return false
	}
	b := c.scratch()
	b = append(b, req.Text(req.MethodName)...)
	b = append(b, ' ')
	b = req.AppendTarget(b)
	b = append(b, " HTTP/1.1\r\n"...)
	if len(host) == 0 {
		// An HTTP/1.0 request without Host; RFC 9112 3.2 wants one.
		host = append(host, x.route.host...)
	}
	b = append(b, "Host: "...)
	b = append(b, host...)
	b = append(b, '\r', '\n')
	b = appendFields(b, req, dropFromRequest)
	if asksUpgrade(req) {
		v := req.Text(req.Find(message.FieldUpgrade).Value)
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		x.upgrade = b[len(b) : len(b)+len(v)]
		b = append(b, v...)
		b = append(b, '\r', '\n')
	}
	switch req.Framing {
	case message.FramingLength:
		b = appendLength(b, req.Length)
	case message.FramingChunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	b = append(b, "X-Forwarded-For: "...)
	if c.addr.IsValid() {
		b = c.addr.AppendTo(b)
	} else {
		b = append(b, "unix:"...)
	}
	b = append(b, "\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: "...)
	b = append(b, host...)
	b = append(b, "\r\n"+via+"\r\n"...)
	x.head = b
	x.headBuf = c.pad
	c.pad.Retain()
	c.padEnd += len(b)
	return true
}

// responseHeadRoom is what a response's head grows by at most.
const responseHeadRoom = 256

// writeResponseHead queues the final head of the response for the client.
func (x *exchange) writeResponseHead(resp *message.Head, toChunked bool) bool {
	c := x.client
	if !c.room(len(resp.Bytes) + responseHeadRoom + smallBody) {
		return false
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil)
	switch {
	case toChunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case resp.Framing == message.FramingLength, resp.HasLength && resp.Status != 204:
		b = appendLength(b, resp.Length)
	}
	if resp.Find(message.FieldDate) == nil {
		// RFC 9110 6.6.1: a recipient with a clock adds it.
		b = append(b, "Date: "...)
		b = append(b, x.p.date()...)
		b = append(b, '\r', '\n')
	}
	if !x.keep {
		b = append(b, "Connection: close\r\n"...)
	} else if x.minor == 0 {
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	c.write(append(b, via+"\r\n"...))
	return true
}

// writeSwitchHead queues the 101 that opens a tunnel.
func (x *exchange) writeSwitchHead() bool {
	c, resp := x.client, &x.resp
	if !c.room(len(resp.Bytes) + responseHeadRoom) {
		return false
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil)
	b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
	b = append(b, resp.Text(resp.Find(message.FieldUpgrade).Value)...)
	c.write(append(b, "\r\n"+via+"\r\n"...))
	return true
}

// interim forwards a 1xx head to clients that know of such.
func (x *exchange) interim() {
	c, resp := x.client, &x.resp
	if x.minor == 0 || !c.room(len(resp.Bytes)+responseHeadRoom) {
		return
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil)
	c.write(append(b, via+"\r\n"...))
	c.mark()
}

func appendStatusLine(b []byte, resp *message.Head) []byte {
	b = append(b, "HTTP/1.1"...)
	return append(b, resp.Bytes[len("HTTP/1.x"):resp.FirstLineEnd]...)
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '\r', '\n')
}

// dropFromRequest are the fields that we state ourselves: a client's own
// values are not trusted.
var dropFromRequest = &[256]bool{
	message.FieldHost:            true,
	message.FieldForwarded:       true,
	message.FieldXForwardedFor:   true,
	message.FieldXForwardedHost:  true,
	message.FieldXForwardedPort:  true,
	message.FieldXForwardedProto: true,
}

// appendFields copies the field lines of h that go on to the next hop.
func appendFields(b []byte, h *message.Head, drop *[256]bool) []byte {
	run := h.FirstLineEnd // begin of the lines to copy
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Hop || drop != nil && drop[f.ID] {
			b = append(b, h.Bytes[run:f.Name.Off]...)
			run = f.End
		}
	}
	return append(b, h.Bytes[run:len(h.Bytes)-len("\r\n")]...)
}

// answer queues a response of our own: for the person who reads it, with the
// reason's word for the one who searches the log. It reports whether the
// connection may go on.
func (c *client) answer(reason message.Reason, head, last bool) (keep bool) {
	c.p.count(reason)
	info := reason.Info()
	status := http.StatusText(info.Status)
	if !c.room(answerRoom) {
		return false // the connection ends without an answer
	}
	length := len("NNN ") + len(status) + len(": ") + len(info.Word) + len("\n") + len(info.Text) + len("\n")
	b := append(c.scratch(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(info.Status), 10)
	b = append(b, ' ')
	b = append(b, status...)
	b = append(b, "\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nDate: "...)
	b = append(b, c.p.date()...)
	b = append(b, '\r', '\n')
	b = appendLength(b, int64(length))
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, '\r', '\n')
	if !head {
		b = strconv.AppendInt(b, int64(info.Status), 10)
		b = append(b, ' ')
		b = append(b, status...)
		b = append(b, ": "...)
		b = append(b, info.Word...)
		b = append(b, '\n')
		b = append(b, info.Text...)
		b = append(b, '\n')
	}
	c.write(b)
	c.mark()
	return !last
}

// answerRoom is more than any response of our own is long.
const answerRoom = 1 << 10
