package proxy

import (
	"syscall"

	"github.com/cloud-cup/cloud-cup/loop"
)

// acceptsMax is the number of accepts in flight per listener: one turn takes
// as many connections.
const acceptsMax = 16

// acceptPause is how long accepting rests when the process is out of
// descriptors or memory: long enough not to spin, short enough to be of use
// when one is freed.
const acceptPause = int64(100e6)

// listener is an inherited listening socket.
type listener struct {
	fd     int32
	port   []byte // of the address, as text
	ops    [acceptsMax]loop.Op
	closed bool
}

// Listen begins to accept from an inherited, listening, non-blocking
// descriptor, which the Proxy owns from now on. address is as configured, with the
// port in use. On the loop's thread.
func (p *Proxy) Listen(fd int32, address string) error {
	if err := p.engine.Attach(fd); err != nil {
		return err
	}
	l := &listener{fd: fd, port: portOf(address)}
	for i := range l.ops {
		l.ops[i] = loop.Op{Code: loop.Accept, Tag: tagAccept, FD: fd, User: loop.Token{Index: uint32(len(p.listeners))}}
	}
	p.listeners = append(p.listeners, l)
	p.armAccepts()
	return nil
}

// mayAccept reports whether another connection may be taken, counting those
// that accepts in flight may bring.
func (p *Proxy) mayAccept() bool {
	return p.clients+p.acceptsArmed < p.snap.Limits.Connections && !p.acceptPaused &&
		!p.pressed(emergencyShare)
}

// armAccepts submits the accepts that rest.
func (p *Proxy) armAccepts() {
	if p.snap == nil || p.stopAccept {
		return
	}
	for _, l := range p.listeners {
		for i := range l.ops {
			op := &l.ops[i]
			if op.InFlight() {
				continue
			}
			if !p.mayAccept() {
				p.throttled = true
				return
			}
			p.engine.Submit(op)
			p.acceptsArmed++
		}
	}
	p.throttled = false
}

// acceptDone takes the result of an accept.
func (p *Proxy) acceptDone(op *loop.Op) {
	p.acceptsArmed--
	switch op.Err {
	case 0:
		p.acceptedNow = true
		p.accepted(p.listeners[op.User.Index], op)
	case syscall.ECANCELED, syscall.ECONNABORTED, syscall.EINTR:
	default:
		// Descriptors or memory are short, or the listener is of no use:
		// trying again at once would only spin.
		p.pauseAccepts(op.Err)
	}
	if p.stopAccept {
		return
	}
	if p.mayAccept() {
		p.engine.Submit(op)
		p.acceptsArmed++
	} else {
		p.throttled = true
	}
}

// pauseAccepts lets accepting rest for acceptPause.
func (p *Proxy) pauseAccepts(why syscall.Errno) {
	if p.acceptPaused {
		return
	}
	p.acceptPaused = true
	p.counters.AcceptPaused++
	if p.now-p.acceptWarned > int64(10e9) || p.acceptWarned == 0 {
		p.acceptWarned = p.now
		p.log.Warn("accepting pauses", "slot", p.slot, "error", why.Error(), "clients", p.clients)
	}
	p.wheel.Schedule(&p.acceptTimer, p.now+acceptPause)
}

// stopAccepting ends accepting once the accept queue is empty: connections
// that were established before Drain are served.
func (p *Proxy) stopAccepting() {
	if p.acceptedNow && p.mayAccept() {
		p.acceptedNow = false // there may be more: one more turn
		return
	}
	if !p.stopAccept {
		p.stopAccept = true
		for _, l := range p.listeners {
			for i := range l.ops {
				if l.ops[i].InFlight() {
					p.engine.Cancel(&l.ops[i])
				}
			}
		}
	}
	for _, l := range p.listeners {
		if !l.closed && !l.busy() {
			l.closed = true
			p.engine.CloseFD(l.fd)
		}
	}
}

func (l *listener) busy() bool {
	for i := range l.ops {
		if l.ops[i].InFlight() {
			return true
		}
	}
	return false
}
