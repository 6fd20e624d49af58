package proxy

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// AsksUpgrade tells of a request whether it asks for a tunnel.
var AsksUpgrade = asksUpgrade

// Turn is what Run does again and again.
func (p *Proxy) Turn(wait time.Duration) error {
	if err := p.engine.Poll(wait, p.deliverOp); err != nil {
		return err
	}
	p.turn()
	return nil
}

// Open is the number of connections that are open.
func (p *Proxy) Open() (clients, streams int) { return p.clients, p.streams }

// Ticking reports whether housekeeping is to be done. On the loop.
func (p *Proxy) Ticking() bool { return p.ticking }

// StopRenewing leaves accepts as they are from now on. On the loop.
func (p *Proxy) StopRenewing() { p.wheel.Stop(&p.renewTimer) }

// Works is the number of conns that have a work of their own, and that of free
// ones. On the loop.
func (p *Proxy) Works() (conns, free int) {
	for c := range p.adopted() {
		if c.work != &p.nothing {
			conns++
		}
	}
	return conns, len(p.freeWorks)
}

// RetryBudget is what is left of it. On the loop.
func (p *Proxy) RetryBudget() int { return p.retryBudget }

// Strayed reports whether something was put into the queues that all conns at
// rest share. On the loop, or after it.
func (p *Proxy) Strayed() bool {
	w := &p.nothing
	return w.in.pieces != nil || w.out.segs != nil || w.out.held != 0 || w.pad != nil || w.send.Code != 0
}

// ClientBytes is the memory of a client connection that rests.
var ClientBytes = reflect.TypeFor[client]().Size()

// Dump tells what every open connection waits for. On the loop.
func (p *Proxy) Dump() string {
	var b strings.Builder
	for c := range p.adopted() {
		if c.fd < 0 {
			continue
		}
		fmt.Fprintf(&b, "%d fd %d recv %v send %v in %d out %d held %d eof %v fault %d %d waits %d closing %v ",
			c.self().Index, c.fd, c.recv.InFlight(), c.sending(), len(c.in.pieces), len(c.out.segs)-c.out.head,
			c.out.held, c.eof, c.fault, c.sendFault, c.waits, c.closing)
		var x *exchange
		if cl, ok := c.owner().(*client); ok {
			x = cl.x
			fmt.Fprintf(&b, "client state %d\n", cl.state)
		} else {
			st := c.owner().(*stream)
			x = st.x
			fmt.Fprintf(&b, "stream state %d connect %v answered %v written %d\n", st.state, st.connect.InFlight(), st.answered, st.written)
		}
		if x != nil {
			fmt.Fprintf(&b, "  exchange state %d method %d request %+v response %+v stream %v\n", x.state, x.method, x.reqBody, x.respBody, x.stream != nil)
		}
	}
	return b.String()
}

// StopTicking puts an end to the housekeeping. On the loop.
func (p *Proxy) StopTicking() {
	p.ticking = true
	p.wheel.Stop(&p.tick)
}

// OnStorm has f told of storms, as Config.Storm is. On the loop.
func (p *Proxy) OnStorm(f func(bool)) { p.storm = f }
