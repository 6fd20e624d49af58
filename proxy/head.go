package proxy

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// Heads are made anew for the other side: the fields that end here go, the
// framing is stated by us, and what the next hop should know is added. Runs of
// lines that stay are copied at once, as they came.

// viaEnd is the end of a head: it tells where the message came through, by the
// version that it came with (RFC 9110 7.6.3).
var viaEnd = [2]string{"Via: 1.0 cloud-cup\r\n\r\n", "Via: 1.1 cloud-cup\r\n\r\n"}

// requestHeadRoom is what a request's head grows by at most, its Host, the
// route's own fields and forwarded ones aside.
const requestHeadRoom = 512

// writeRequestHead writes the request's head as backends get it into a buffer
// of its own, so that it can be sent again. It returns the reason if it cannot.
func (x *exchange) writeRequestHead() message.Reason {
	req, c, r := &x.req, x.client, x.route
	forwards := takeMaxForwards(req)
	if forwards == 0 {
		return message.ReasonMaxForwards
	}
	host := req.Text(req.Host)
	// The Host stands at most three times in what we write.
	room := len(req.Bytes) + 3*max(len(host), len(r.host)) + len(r.request.lines) + requestHeadRoom
	if c.tls != nil {
		room += len(c.tls.subject)
	}
	switch {
	case room > loop.BodyBytes:
		return message.ReasonHeadTooLarge
	case !c.room(room):
		return message.ReasonMemory
	}
	b := x.appendRequestLine(c.scratch())
	split := len(b)
	if !r.spec.HostBackend {
		b = append(b, "Host: "...)
		if len(host) == 0 {
			// An HTTP/1.0 request without Host; RFC 9112 3.2 wants one.
			b = append(b, r.host...)
		} else {
			b = append(b, host...)
		}
		b = append(b, '\r', '\n')
	}
	trusted := x.trusted()
	b = appendFields(b, req, x.dropped(trusted), r.request.drop)
	b = x.appendHopFields(b)
	switch req.Framing {
	case message.FramingLength:
		b = appendLength(b, req.Length)
	case message.FramingChunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if forwards > 0 {
		b = append(b, "Max-Forwards: "...)
		b = strconv.AppendInt(b, forwards-1, 10)
		b = append(b, '\r', '\n')
	}
	b = x.appendForwarded(b, trusted)
	if r.spec.RequestID && req.Find(message.FieldXRequestID) == nil {
		b = append(b, "X-Request-Id: "...)
		from := len(b)
		b = x.p.appendID(b)
		if r.log.log != nil {
			x.kept.id = b[from:]
		}
		b = append(b, '\r', '\n')
	}
	b = append(b, r.request.lines...)
	b = append(b, viaEnd[req.Minor]...)
	x.head = b
	if r.spec.HostBackend {
		x.head, x.headRest = b[:split], b[split:]
	}
	x.headBuf = c.pad
	c.pad.Retain()
	c.padEnd += len(b)
	return message.ReasonNone
}

// appendHopFields appends what this request asks of the next hop alone: the
// switch to another protocol, or that trailers are welcome (RFC 9110 10.1.4).
func (x *exchange) appendHopFields(b []byte) []byte {
	req := &x.req
	if asksUpgrade(req) {
		v := req.Text(req.Find(message.FieldUpgrade).Value)
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		x.upgrade = b[len(b) : len(b)+len(v)]
		b = append(b, v...)
		return append(b, '\r', '\n')
	}
	if te := req.Find(message.FieldTE); te != nil && hasToken(req.Text(te.Value), "trailers") {
		b = append(b, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	return b
}

// takeMaxForwards returns the number of times that an OPTIONS or TRACE request
// may still be forwarded, and marks the field as ours to write; -1 if the
// request does not say (RFC 9110 7.6.2).
func takeMaxForwards(req *message.Head) int64 {
	if req.Method != message.MethodOptions && req.Method != message.MethodTrace {
		return -1
	}
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.ID != message.FieldOther || !named(req.Text(f.Name), maxForwards) {
			continue
		}
		n, err := strconv.ParseInt(string(req.Text(f.Value)), 10, 64)
		if err != nil || n < 0 {
			return -1 // it says nothing, and is passed on as it is
		}
		f.Hop = true
		return n
	}
	return -1
}

var maxForwards = []string{"max-forwards"}

// appendRequestLine appends the request line as backends get it.
func (x *exchange) appendRequestLine(b []byte) []byte {
	req := &x.req
	prefix := len(x.route.spec.StripPrefix)
	if prefix == 0 && req.Path.Off == req.Target.Off { // as it came, all at once
		b = append(b, req.Bytes[:req.Target.Off+req.Target.Len]...)
		return append(b, " HTTP/1.1\r\n"...)
	}
	b = append(b, req.Text(req.MethodName)...)
	b = append(b, ' ')
	if prefix == 0 {
		b = req.AppendTarget(b)
	} else {
		path := req.Text(req.Path)[prefix:]
		if len(path) == 0 || path[0] != '/' {
			b = append(b, '/')
		}
		b = append(b, path...)
		b = append(b, req.Text(req.Query)...)
	}
	return append(b, " HTTP/1.1\r\n"...)
}

// hasToken reports whether a list has an element that is the token, with or
// without parameters.
func hasToken(list []byte, token string) bool {
	for len(list) > 0 {
		element := list
		if i := bytes.IndexByte(list, ','); i >= 0 {
			element, list = list[:i], list[i+1:]
		} else {
			list = nil
		}
		if i := bytes.IndexByte(element, ';'); i >= 0 {
			element = element[:i]
		}
		if bytes.EqualFold(bytes.TrimSpace(element), []byte(token)) {
			return true
		}
	}
	return false
}

// responseHeadRoom is what a response's head grows by at most.
const responseHeadRoom = 256

// writeResponseHead queues the final head of the response for the client.
func (x *exchange) writeResponseHead(resp *message.Head, toChunked bool) bool {
	c := x.client
	rules := &x.route.response
	if !c.room(len(resp.Bytes) + len(rules.lines) + responseHeadRoom + smallPiece) {
		return false
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil, rules.drop)
	b = append(b, rules.lines...)
	switch {
	case toChunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case resp.Framing == message.FramingLength, resp.HasLength && resp.Status != 204:
		b = appendLength(b, resp.Length)
	}
	if resp.Find(message.FieldDate) == nil && !rules.date {
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
	c.write(append(b, viaEnd[resp.Minor]...))
	return true
}

// writeSwitchHead queues the 101 that opens a tunnel.
func (x *exchange) writeSwitchHead() bool {
	c, resp := x.client, &x.resp
	if !c.room(len(resp.Bytes) + responseHeadRoom) {
		return false
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil, nil)
	b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
	b = append(b, resp.Text(resp.Find(message.FieldUpgrade).Value)...)
	b = append(b, '\r', '\n')
	c.write(append(b, viaEnd[resp.Minor]...))
	return true
}

// interim forwards a 1xx head to clients that know of such.
func (x *exchange) interim() {
	c, resp := x.client, &x.resp
	if x.minor == 0 || !c.room(len(resp.Bytes)+responseHeadRoom) {
		return
	}
	b := appendStatusLine(c.scratch(), resp)
	b = appendFields(b, resp, nil, nil)
	c.write(append(b, viaEnd[resp.Minor]...))
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

// appendFields copies the field lines of h that go on to the next hop: not
// those that end here, nor those that drop lists by ID, nor those that names
// lists in lower case.
func appendFields(b []byte, h *message.Head, drop *[256]bool, names []string) []byte {
	run := h.FirstLineEnd // begin of the lines to copy
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Hop || drop != nil && drop[f.ID] || len(names) > 0 && named(h.Text(f.Name), names) {
			b = append(b, h.Bytes[run:f.Name.Off]...)
			run = f.End
		}
	}
	return append(b, h.Bytes[run:len(h.Bytes)-len("\r\n")]...)
}

// named reports whether a field's name is one of names, which are in lower
// case.
func named(name []byte, names []string) bool {
	for _, n := range names {
		if len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return true
		}
	}
	return false
}

// answer queues a response of our own: for the person who reads it, with the
// reason's word for the one who searches the log. It reports whether the
// connection may go on.
func (c *client) answer(reason message.Reason, head, last bool) (keep bool) {
	c.because(reason)
	info := reason.Info()
	var location []byte
	if c.x != nil {
		location = c.x.location
	}
	if !c.room(answerRoom + len(location)) {
		return false // the connection ends without an answer
	}
	if c.x != nil {
		c.x.rec.status = uint16(info.Status)
	}
	length := len("NNN ") + len(info.Phrase) + len(": ") + len(info.Word) + len("\n") + len(info.Text) + len("\n")
	b := append(c.scratch(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(info.Status), 10)
	b = append(b, ' ')
	b = append(b, info.Phrase...)
	b = append(b, "\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nDate: "...)
	b = append(b, c.p.date()...)
	b = append(b, '\r', '\n')
	if reason == message.ReasonRedirect {
		b = append(b, "Location: "...)
		b = append(b, location...)
		b = append(b, '\r', '\n')
	}
	b = appendLength(b, int64(length))
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, '\r', '\n')
	if !head {
		if c.x != nil {
			c.x.rec.body = int64(length)
		}
		b = strconv.AppendInt(b, int64(info.Status), 10)
		b = append(b, ' ')
		b = append(b, info.Phrase...)
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
