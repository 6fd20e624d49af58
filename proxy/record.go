package proxy

import (
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/message"
)

// overheadEvery is the number of requests of which one has our own work
// measured, which reads the clock.
const overheadEvery = 64

// record is what is to be told of an exchange when it has ended. Times are
// those of the turns, in nanoseconds of CLOCK_MONOTONIC; 0 is never.
type record struct {
	began     int64    // the request's head was whole
	asked     int64    // the last attempt began
	connected int64    // its connection was made; 0 if it took an idle one
	answered  int64    // the head of its response was whole
	body      int64    // bytes of the body of our own answer
	overhead  int64    // nanoseconds of our own work
	backend   *backend // that was asked last

	status   uint16         // that the client got; 0: none
	attempts uint8          // backends that were asked, no more than attemptsMax
	reason   message.Reason // of our own answer, or why the exchange was cut
	sampled  bool           // overhead is measured
}

// opened begins the record of an exchange whose route is known.
func (x *exchange) opened() {
	x.rec.began = x.p.now
	x.rec.sampled = x.p.counters.Requests%overheadEvery == 0
	x.route.stats.InFlight++
	x.route.snap.exchanges++
}

// measure adds the time since this turn began to a sampled exchange's overhead:
// what it waited for in this turn is done.
func (x *exchange) measure() {
	if x.rec.sampled {
		x.rec.overhead += x.p.clock() - x.p.now
	}
}

// asking notes that a backend is given the request.
func (x *exchange) asking(b *backend) {
	b.stats.InFlight++
	x.rec.backend = b
	x.rec.attempts++
	x.rec.asked, x.rec.connected = x.p.now, 0
}

// responding notes a final response of the backend, which the client gets.
func (x *exchange) responding(status int) {
	x.rec.status = uint16(status)
	x.rec.answered = x.p.now
	x.rec.backend.stats.ObserveLatency(x.p.now - x.rec.asked)
}

// leave ends the exchange's stay at its backend: the attempt has failed, or the
// response is whole or cut.
func (x *exchange) leave() {
	b := x.rec.backend
	b.stats.InFlight--
	b.stats.Requests[class(x.rec.status)]++
	x.route.balancer.Leave(x.member)
}

// recorded tells of an exchange, once, when it has ended. One whose route is
// not known, because its head was refused or never whole, is in the worker's
// totals alone.
func (x *exchange) recorded() {
	x.writeLog()
	r := x.route
	if r == nil {
		return
	}
	s := r.stats
	s.InFlight--
	s.Requests[class(x.rec.status)]++
	s.BytesIn += uint64(x.reqBody.moved)
	s.BytesOut += uint64(x.respBody.moved)
	s.ObserveLatency(x.p.now - x.rec.began)
	if x.rec.reason != message.ReasonNone {
		s.Reasons[x.rec.reason]++
	}
	if x.rec.sampled {
		s.ObserveOverhead(x.rec.overhead)
	}
	r.snap.exchanges--
	x.p.release(r.snap)
}

// class is the place of a status in the counts by class.
func class(status uint16) int {
	if c := int(status / 100); c < shm.Classes {
		return c
	}
	return 0 // 600 and above are valid in syntax, and of no class
}

// because counts a reason, and notes it for the exchange under way if there is
// one.
func (c *client) because(reason message.Reason) {
	c.p.counters.Reasons[reason]++
	if c.x == nil || c.x.route == nil {
		c.p.counters.Unrouted[reason]++
	}
	if c.x != nil {
		c.x.rec.reason = reason
	}
}
