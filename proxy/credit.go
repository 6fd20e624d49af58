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

// recvClass is the class of buffer to receive the rest of b into.
func (p *Proxy) recvClass(b *body) loop.Class {
	if p.pressed(pressureShare) || b.framing == message.FramingLength && b.left <= loop.HeadBytes {
		return loop.ClassHead
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

// relieve ends the connections that are stalled the longest while memory is
// nearly used up: those whose clients take no response bytes.
func (p *Proxy) relieve() {
	excess := p.pool.Lent() - p.pool.Limit()/100*emergencyShare
	for n := 0; n < relieveMax && excess > 0; n++ {
		var worst *client
		for _, c := range p.conns {
			cl, ok := c.owner.(*client)
			if !ok || cl.closing || cl.out.empty() || cl.waits != waitSend {
				continue
			}
			if since := cl.deadline - int64(p.snap.Timeouts.ClientIdle); p.now-since < stalledAfter {
				continue
			}
			if worst == nil || cl.deadline < worst.deadline {
				worst = cl
			}
		}
		if worst == nil {
			return
		}
		excess -= worst.out.held // comes back when the kernel has returned it
		p.count(message.ReasonMemory)
		worst.cut()
	}
}

// stalledAfter is how long a client must have taken nothing to count as stalled.
const stalledAfter = int64(2e9)

// relieveMax bounds the connections that one call of relieve ends.
const relieveMax = 16
