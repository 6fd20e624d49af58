package proxy

import (
	"fmt"
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
	p.shake()
	return nil
}

// Open is the number of connections that are open.
func (p *Proxy) Open() (clients, streams int) { return p.clients, p.streams }

// Holding is the number of conns that have memory for their queues, and that of
// spare ones. On the loop.
func (p *Proxy) Holding() (conns, spares int) {
	for c := range p.adopted() {
		if c.isClient && (c.in.pieces != nil || c.out.segs != nil) {
			conns++
		}
	}
	return conns, len(p.spares)
}

// Dump tells what every open connection waits for. On the loop.
func (p *Proxy) Dump() string {
	var b strings.Builder
	for c := range p.adopted() {
		if c.fd < 0 {
			continue
		}
		fmt.Fprintf(&b, "%d fd %d recv %v send %v in %d out %d held %d eof %v fault %d %d waits %d closing %v ",
			c.self.Index, c.fd, c.recv.InFlight(), c.sending(), len(c.in.pieces), len(c.out.segs)-c.out.head,
			c.out.held, c.eof, c.fault, c.sendFault, c.waits, c.closing)
		var x *exchange
		if cl, ok := c.owner.(*client); ok {
			x = cl.x
			fmt.Fprintf(&b, "client state %d\n", cl.state)
		} else {
			st := c.owner.(*stream)
			x = st.x
			fmt.Fprintf(&b, "stream state %d connect %v answered %v written %d\n", st.state, st.connect.InFlight(), st.answered, st.written)
		}
		if x != nil {
			fmt.Fprintf(&b, "  exchange state %d method %d request %+v response %+v stream %v\n", x.state, x.method, x.reqBody, x.respBody, x.stream != nil)
		}
	}
	return b.String()
}

// OnStorm has f told of storms, as Config.Storm is. On the loop.
func (p *Proxy) OnStorm(f func(bool)) { p.storm = f }
