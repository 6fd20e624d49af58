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
	if !p.renewTimer.Scheduled() {
		p.wheel.Schedule(&p.renewTimer, p.now+renewAfter[0])
	}
	return nil
}

// renewAfter is when the accepts of a new worker are submitted anew. A killed
// predecessor's io_uring is torn down some 20 to 40 ms after its death, and
// until then its accepts stand first in the listener's queue of waiters, of
// which the kernel wakes only one: a connection that comes in that time wakes a
// dead one. An accept that is submitted anew finds it.
var renewAfter = []int64{20e6, 100e6, 500e6, 2e9, 10e9}

// renewAccepts ends the accepts in flight; acceptDone then arms them again.
func (p *Proxy) renewAccepts() {
	for _, l := range p.listeners {
		for i := range l.ops {
			if l.ops[i].InFlight() {
				p.engine.Cancel(&l.ops[i])
			}
		}
	}
	if p.renewed++; p.renewed < len(renewAfter) && !p.stopAccept {
		p.wheel.Schedule(&p.renewTimer, p.now+renewAfter[p.renewed])
	}
}

// mayAccept reports whether another accept may be armed on a listener that has
// armed some already: then all that are in flight count as connections. The
// first one of each listener counts only once it has brought one, so that a
// busy listener leaves others theirs.
func (p *Proxy) mayAccept(armed int) bool {
	if p.acceptPaused || p.pressed(emergencyShare) {
		return false
	}
	if armed == 0 {
		return p.clients < p.snap.Limits.Connections
	}
	return p.clients+p.acceptsArmed < p.snap.Limits.Connections
}

// armAccepts submits the accepts that rest: one of each listener, then the
// next of each.
func (p *Proxy) armAccepts() {
	if p.snap == nil || p.stopAccept {
		return
	}
	p.throttled = false
	for i := range acceptsMax {
		for _, l := range p.listeners {
			op := &l.ops[i]
			if op.InFlight() {
				continue
			}
			if !p.mayAccept(i) {
				p.throttled = true
				continue
			}
			p.engine.Submit(op)
			p.acceptsArmed++
		}
	}
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
	p.armAccepts()
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
		p.log.Warn("accepting pauses", "error", why.Error(), "clients", p.clients)
	}
	p.wheel.Schedule(&p.acceptTimer, p.now+acceptPause)
}

// stopAccepting ends accepting once the accept queue is empty: connections
// that were established before Drain are served.
func (p *Proxy) stopAccepting() {
	if p.acceptedNow && p.mayAccept(0) {
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
