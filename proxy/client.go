package proxy

import (
	"net/netip"

	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/tlsconn"
	"golang.org/x/sys/unix"
)

// clientState is what a client connection waits for.
type clientState uint8

const (
	clientFree     clientState = iota // in the free list
	clientIdle                        // waiting for the first byte of a request
	clientHead                        // waiting for the rest of a request's head
	clientExchange                    // an exchange is under way
	clientFlush                       // the last response is queued: waiting until it is sent
	clientLinger                      // our FIN is sent: discarding what still comes
	clientClosing                     // waiting for the kernel to return our operations
	clientStates
)

// clientMoves lists the legal moves.
var clientMoves = [clientStates][clientStates]bool{
	clientFree:     {clientIdle: true},
	clientIdle:     {clientHead: true, clientFlush: true, clientClosing: true},
	clientHead:     {clientExchange: true, clientFlush: true, clientClosing: true},
	clientExchange: {clientIdle: true, clientFlush: true, clientClosing: true},
	clientFlush:    {clientLinger: true, clientClosing: true},
	clientLinger:   {clientClosing: true},
	clientClosing:  {clientFree: true},
}

// client is a connection from a client. It reads requests one after another;
// each becomes an exchange.
type client struct {
	conn
	state     clientState
	last      bool // the request said that no other follows it, and has no body
	requests  int32
	discarded int32    // bytes thrown away while lingering
	unsent    int32    // what Unsent said at the last deadline of a stalled send
	addr      [16]byte // see peer
	listener  *listener
	x         *exchange // from a head's first byte to its exchange's end
}

// peer is the address of c's client, without the port; invalid for unix sockets.
func (c *client) peer() netip.Addr {
	if c.addr == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(c.addr).Unmap()
}

// lingerBytes and lingerTime bound what is discarded after the last response,
// so that the client reads it and our FIN, and not a RST that overtakes them
// (RFC 9112 9.6). A client that has said that it sends no more is not waited
// for.
const (
	lingerBytes = 1 << 20
	lingerTime  = int64(2e9)
)

// become moves c to another state. A move that the table does not list is a
// mistake of ours: it ends this connection and no other.
func (c *client) become(next clientState) {
	if !clientMoves[c.state][next] {
		c.p.quarantine("client", int(c.state), int(next))
		next = clientClosing
	}
	c.state = next
	if next == clientClosing {
		c.conn.close()
	}
}

// accepted starts a connection.
func (p *Proxy) accepted(l *listener, op *loop.Op) {
	c := p.takeClient()
	c.fd = int32(op.N)
	c.listener = l
	c.addr = op.Peer.AddrPort.Addr().As16()
	c.become(clientIdle)
	if policy := p.snap.TLS[l.root]; policy != nil {
		c.secure(tlsconn.Server, policy.Config).policy = policy
	}
	p.counters.Accepted++
	c.mark()
}

func (c *client) advance() {
	if c.fault != 0 || c.sendFault != 0 {
		c.gone()
		return
	}
	for {
		switch c.state {
		case clientIdle, clientHead:
			if c.in.empty() {
				if !c.eof {
					return
				}
				c.goodbye() // it may still be reading the last response
				continue
			}
			if c.out.held > 0 && c.out.held >= c.p.allowance() {
				return // it does not read its responses: no further request
			}
			if !c.readHead() {
				return
			}
		case clientExchange:
			if c.x.state == exchangeTunnel {
				c.x.moveTunnel()
			} else {
				c.x.moveRequest()
			}
			if c.state == clientExchange {
				return
			}
		case clientFlush:
			if c.abort && !c.pending() {
				c.become(clientClosing) // without a close_notify
				return
			}
			if !c.endSession() {
				return
			}
			if c.last && c.in.empty() && c.tls == nil || c.p.engine.Shutdown(c.fd, unix.SHUT_WR) != 0 || c.eof {
				c.become(clientClosing)
				return
			}
			c.become(clientLinger)
		case clientLinger:
			for !c.in.empty() {
				n := c.in.size()
				c.discarded += int32(n)
				c.in.consume(n)
			}
			if c.eof || c.discarded > lingerBytes {
				c.become(clientClosing)
			}
			return
		default:
			return
		}
	}
}

// readHead parses what has come of a head. It reports whether the state
// changed.
func (c *client) readHead() bool {
	if c.x == nil {
		c.x = c.p.takeExchange(c)
		c.become(clientHead)
	}
	x := c.x
	for {
		n, err := x.reqParser.Parse(&x.req, c.in.front(), &c.p.snap.heads)
		if err == nil {
			c.become(clientExchange)
			x.begin(n)
			return true
		}
		if err != http1.ErrPartial {
			c.p.counters.Requests++
			reason := message.ReasonBadRequest
			if e, ok := err.(*http1.SyntaxError); ok {
				reason = e.Reason
			}
			c.refuse(reason)
			return true
		}
		if len(c.in.pieces) > 1 || c.in.full() {
			if reason := c.in.join(c.p.pool); reason != message.ReasonNone {
				c.refuse(reason)
				return true
			}
			continue
		}
		if c.eof {
			c.goodbye()
			return true
		}
		c.in.shrink(c.p.pool)
		return false
	}
}

// refuse answers what is no request, and ends the connection.
func (c *client) refuse(reason message.Reason) {
	c.answer(reason, false, true)
	c.endExchange()
	c.become(clientFlush)
}

// endExchange gives the exchange back.
func (c *client) endExchange() {
	if x := c.x; x != nil {
		x.recorded()
		c.x = nil
		c.p.putExchange(x)
	}
}

// goodbye ends a connection between requests politely: what is queued is sent,
// then our FIN.
func (c *client) goodbye() {
	c.endExchange()
	c.become(clientFlush)
	c.mark()
}

// gone ends the connection because the client is no longer there, or of no
// more use.
func (c *client) gone() {
	if c.state == clientExchange {
		c.because(message.ReasonClientGone)
	}
	c.cut()
}

// broken ends the connection of a client that has closed its side in the middle
// of a request's body. Responses to requests before that are still sent.
func (c *client) broken() {
	x := c.x
	c.because(message.ReasonClientGone)
	c.abort = x.state == exchangeRespond && x.respBody.toClose()
	x.abandon()
	x.become(exchangeDone)
	c.endExchange()
	c.become(clientFlush)
	c.mark()
}

// violated ends the connection of a client that broke the rules of TLS, by which
// nothing more can be said to it. It still gets the alert.
func (c *client) violated() {
	switch c.state {
	case clientExchange:
		c.broken()
	case clientIdle, clientHead:
		c.goodbye()
	}
}

// cut ends the connection at once.
func (c *client) cut() {
	if c.x != nil {
		c.x.abandon()
		c.x.become(exchangeDone)
		c.endExchange()
	}
	if c.state != clientClosing {
		c.become(clientClosing)
	}
}

func (c *client) wantSend() bool { return true }

func (c *client) wrote(n int) bool {
	c.p.counters.BytesOut += uint64(n)
	c.unsent = 0
	if c.x != nil && c.x.stream != nil && c.x.stream.stopped() {
		c.x.stream.mark() // there may be room for more of its response
	}
	return c.state == clientFlush
}

func (c *client) wantRecv() (loop.Code, loop.Class) {
	switch c.state {
	case clientIdle, clientHead:
		if c.in.empty() || c.state == clientHead && (c.out.held == 0 || c.out.held < c.p.allowance()) {
			return loop.RecvMulti, loop.ClassHead
		}
	case clientExchange:
		if x := c.x; x.state == exchangeTunnel {
			if x.wantsTunnel(&c.conn, &x.stream.conn) {
				return loop.RecvMulti, loop.ClassHead
			}
		} else if !x.reqBody.done {
			if x.wantsRequestBody() && c.in.empty() {
				return loop.Recv, c.recvClass(&x.reqBody, c.tls == nil && x.route.plain)
			}
		} else if c.in.empty() {
			return loop.RecvMulti, loop.ClassHead // the next request, or the end
		}
	case clientLinger:
		return loop.Recv, loop.ClassHead
	}
	return 0, 0
}

func (c *client) waitsFor() (wait, int64) {
	t := &c.p.snap.Timeouts
	if c.state == clientExchange && c.x.state == exchangeTunnel {
		return waitTunnel, int64(c.x.route.spec.Timeouts.TunnelIdle)
	}
	if c.state == clientIdle && c.shaking() {
		c.progress = false // the whole handshake within one deadline
		return waitHandshake, int64(t.ClientHead)
	}
	if c.queued() && c.state != clientClosing {
		return waitSend, int64(t.ClientIdle)
	}
	switch c.state {
	case clientIdle:
		if c.p.draining {
			return waitDrain, min(c.p.drainGrace, int64(t.ClientIdle))
		}
		return waitIdle, int64(t.ClientIdle)
	case clientHead:
		c.progress = false // the whole head within one deadline
		return waitHead, int64(t.ClientHead)
	case clientExchange:
		if !c.x.reqBody.done && (c.recv.InFlight() || !c.in.empty() && c.x.wantsRequestBody()) {
			c.progress = false // what counts is how much came: see slowBody
			return waitBody, int64(c.x.route.spec.Timeouts.ClientBody)
		}
	case clientLinger:
		c.progress = false
		return waitLinger, lingerTime
	}
	return waitNothing, 0
}

func (c *client) timeout() {
	switch c.state {
	case clientIdle:
		if c.shaking() {
			c.because(message.ReasonTLSHandshake)
			c.cut()
			return
		}
		if c.p.draining && c.tls == nil && c.p.engine.Unsent(c.fd) == 0 {
			// It has every response, and no request has come in its grace:
			// nothing is there that a RST could overtake.
			c.become(clientClosing)
			return
		}
		c.goodbye()
	case clientHead:
		c.refuse(message.ReasonClientTimeout)
	case clientExchange:
		if c.x.state == exchangeTunnel {
			c.because(message.ReasonTunnelIdle)
			c.cut()
			return
		}
		if c.queued() {
			c.stalled()
			return
		}
		if c.x.slowBody() {
			c.x.fail(message.ReasonClientTimeout)
		}
	case clientFlush:
		c.stalled()
	case clientLinger:
		c.become(clientClosing)
	}
}

// stalled decides on a client that took no part of a send for a whole
// deadline. The send buffer is large: what the client's kernel has
// acknowledged meanwhile is progress, too.
func (c *client) stalled() {
	left := int32(c.p.engine.Unsent(c.fd)) // the kernel has an int for it, too
	if left >= 0 && (c.unsent == 0 || left < c.unsent) {
		c.unsent = left
		return // the deadline starts anew
	}
	c.because(message.ReasonClientTimeout)
	c.cut()
}

func (c *client) free() {
	c.become(clientFree)
	c.p.putClient(c)
}
