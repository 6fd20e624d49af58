package proxy

import (
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// Credit: what may wait for a slow side is counted in the memory of the
// buffers that hold it, not in bytes of payload, so that a peer that sends
// byte by byte has no more of it than another.

// creditBytes may wait in one direction of an exchange before receiving for
// it stops; a receive that has begun may add one more buffer.
const creditBytes = loop.BodyBytes

// Shares of the memory limit, in percent, beyond which less may wait, and
// beyond which accepting pauses and stalled connections end.
const (
	pressureShare  = 75
	emergencyShare = 95
)

// reserveShare of the memory limit, the 32nd part, is kept for heads and for
// the framing of chunks.
const reserveShare = 32

// hotBytes of free buffers of each class keep their pages while there is
// traffic.
const hotBytes = 2 << 20

// pressed reports whether more than share percent of the memory is lent.
func (p *Proxy) pressed(share int) bool {
	return p.pool.Lent() > p.pool.Limit()/100*share
}

// allowance is the memory that may wait in one direction before receiving
// stops.
func (p *Proxy) allowance() int {
	if p.pressed(pressureShare) {
		return 1 // one buffer, whatever its size
	}
	return creditBytes
}

// pipeMin is the length of body from which on pipes pay. They save us the
// copies, but a backend's pages then stay in use until the client has read them:
// it writes into colder ones, which at 128 and 192 KiB costs it more than we save.
const pipeMin = 256 << 10

// recvClass is the class of buffer to receive the rest of b into. What nobody
// has to look at, because neither side has TLS (plain), does not leave the kernel.
func (c *conn) recvClass(b *body, plain bool) loop.Class {
	switch {
	case c.p.pressed(pressureShare), b.framing == message.FramingLength && b.left <= loop.HeadBytes:
		return loop.ClassHead
	case b.framing == message.FramingLength && b.moved+b.left >= pipeMin && plain:
		c.recv.Max = int32(min(b.left, loop.PipeBytes))
		return loop.ClassPipe
	}
	return loop.ClassBody
}

// Retries are bounded, so that a route of dying backends does not multiply
// its load: each request earns a fifth of one, up to a burst.
const (
	retryCost  = 5
	retryBurst = 2048 * retryCost
)

// mayRetry takes one retry out of the budget.
func (p *Proxy) mayRetry() bool {
	p.retryBudget = min(retryBurst, p.retryBudget+int(p.counters.Requests-p.retrySeen))
	p.retrySeen = p.counters.Requests
	if p.retryBudget < retryCost {
		return false
	}
	p.retryBudget -= retryCost
	return true
}

// spareRetry gives back what mayRetry took for a retry that was not made.
func (p *Proxy) spareRetry() { p.retryBudget += retryCost }

// relieve ends what is stalled the longest while memory is nearly used up:
// clients that do not take their response, or what comes through a tunnel, or do
// not finish their request's head, and requests that their backend does not take.
func (p *Proxy) relieve() {
	excess := p.pool.Lent() - p.pool.Limit()/100*emergencyShare
	for n := 0; n < relieveMax && excess > 0; n++ {
		var worst *conn
		for c := range p.adopted() {
			if c.stalled() && c.memory() > 0 && (worst == nil || c.since < worst.since) {
				worst = c
			}
		}
		if worst == nil {
			return
		}
		excess -= worst.memory() // comes back when the kernel has returned it
		switch o := worst.owner().(type) {
		case *client:
			o.because(message.ReasonMemory)
			o.cut()
		case *stream:
			if o.x == nil {
				o.become(streamClosing)
			} else {
				o.x.fail(message.ReasonMemory)
			}
		}
	}
}

// stalled reports whether nothing has moved for long on c, whose peer is to take
// bytes, or to send the rest of a head.
func (c *conn) stalled() bool {
	switch c.waits {
	case waitSend, waitHead, waitTunnel:
		return !c.closing && c.p.now-c.since >= stalledAfter
	}
	return false
}

// memory is the size of the buffers that c holds.
func (c *conn) memory() int {
	n := c.out.held
	if s := c.tls; s != nil {
		n += s.out.held
		for i := range s.in.pieces {
			n += s.in.pieces[i].buf.Class().Bytes()
		}
	}
	for i := range c.in.pieces {
		n += c.in.pieces[i].buf.Class().Bytes()
	}
	return n
}

// stalledAfter is how long nothing must have moved to count as stalled.
const stalledAfter = int64(2e9)

// relieveMax bounds the connections that one call of relieve ends.
const relieveMax = 16
