package proxy

import (
	"bytes"

	"github.com/cloud-cup/cloud-cup/message"
	"golang.org/x/sys/unix"
)

// A tunnel is an exchange with two open-ended bodies (RFC 9110 7.8): it begins
// when the backend has answered 101, and not a byte of either side is taken
// for more than bytes from then on. What a client sends before that waits.

// asksUpgrade reports whether a request asks for a protocol that is passed on.
// HTTP/2 in clear text is not: what follows could not be looked at. Requests
// with a body are served as they are.
func asksUpgrade(req *message.Head) bool {
	if !req.UpgradeAsked || req.Framing != message.FramingNone && req.Length > 0 || req.Framing == message.FramingChunked {
		return false
	}
	fields := 0
	for i := range req.Fields {
		f := &req.Fields[i]
		if f.ID != message.FieldUpgrade {
			continue
		}
		fields++
		if v := req.Text(f.Value); bytes.IndexByte(v, ',') >= 0 || len(v) >= 2 && (v[0]|0x20) == 'h' && v[1] == '2' {
			return false
		}
	}
	return fields == 1
}

// switched reports whether a 101 is the answer to what was asked: the backend
// may switch to no other protocol.
func (x *exchange) switched() bool {
	f := x.resp.Find(message.FieldUpgrade)
	return x.upgrade != nil && x.resp.UpgradeAsked && f != nil && bytes.EqualFold(x.resp.Text(f.Value), x.upgrade)
}

// openTunnel forwards the 101 whose head is the first n bytes of what the
// stream's connection holds.
func (x *exchange) openTunnel(n int) {
	x.succeeded(101)
	if !x.writeSwitchHead() {
		x.fail(message.ReasonMemory)
		return
	}
	st := x.stream
	st.in.consume(n)
	x.resp.Bytes = nil
	x.keep = false
	x.reqBody.start(message.FramingClose, 0, false, -1)
	x.respBody.start(message.FramingClose, 0, false, -1)
	x.become(exchangeTunnel)
	st.become(streamTunnel)
	x.client.mark()
	st.mark()
}

// moveTunnel moves what has come from either side, and ends the tunnel when
// both have ended.
func (x *exchange) moveTunnel() {
	c, st := x.client, x.stream
	if st.fault != 0 || st.sendFault != 0 {
		c.abort = true // as the backend's connection ended, so does the client's
		x.abandon()
		x.end()
		return
	}
	moved := x.pump(&x.reqBody, &c.conn, &st.conn)
	if x.pump(&x.respBody, &st.conn, &c.conn) || moved {
		c.progress = true
	}
	if x.reqBody.done && x.respBody.done {
		x.abandon()
		x.end()
	}
}

// pump moves bytes in one direction, and passes its end on.
func (x *exchange) pump(b *body, from, to *conn) (moved bool) {
	if !from.in.empty() && to.out.held < x.p.allowance() {
		for !from.in.empty() {
			b.forward(&from.in, to, len(from.in.front()))
		}
		to.mark()
		moved = true
	}
	if from.eof && !b.done && from.in.empty() && to.endSession() {
		b.done = true
		x.p.engine.Shutdown(to.fd, unix.SHUT_WR)
	}
	return moved
}

// wantsTunnel is wantRecv of either side of a tunnel.
func (x *exchange) wantsTunnel(from, to *conn) bool {
	return from.in.empty() && to.out.held < x.p.allowance()
}
