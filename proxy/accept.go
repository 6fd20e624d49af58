package proxy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/cloud-cup/cloud-cup/loop"
	"golang.org/x/sys/unix"
)

// acceptsMax is the number of accepts in flight per listener: one turn takes
// as many connections.
const acceptsMax = 16

// acceptPause is how long accepting rests when the process is out of
// descriptors or memory: long enough not to spin, short enough to be of use
// when one is freed.
const acceptPause = int64(100e6)

// listener is a listening socket that other processes have too: the master at
// least.
type listener struct {
	id     uint32 // the caller's
	index  uint32 // in Proxy.listeners, where its place is used again
	fd     int32
	root   string // of the configuration: what Snapshot calls it
	port   []byte // of the address, as backends are told
	shared bool   // other workers accept from it, too
	told   told   // why TLS with a client failed
	ops    [acceptsMax]loop.Op
	msgs   [acceptsMax]loop.Msg  // of ops
	peers  [acceptsMax]loop.Addr // of msgs

	leaving leaving
	took    bool   // an accept succeeded since the last look: there may be more
	taken   int    // accepts that succeeded since it began to leave
	left    func() // called once our descriptor is closed; may be nil
}

// queueMax is more than an accept queue holds, so that new connections cannot
// keep a listener that leaves: who came before is served by then.
const queueMax = 8 << 10

// leaving is how far a listener is on its way out.
type leaving uint8

const (
	leavingNot   leaving = iota
	leavingEmpty         // goes on until its accept queue is empty
	leavingNow           // its accepts are cancelled; what they still bring is served
	leavingLast          // its descriptor will be closed when the next turn ends
)

// Listen begins to accept from a listening, non-blocking descriptor, which the
// Proxy owns from now on, also after an error. id names it in Unlisten and is no other
// listener's. address is as configured, with the port in use. shared says that
// other workers accept from the same socket: see tooMany. On the loop's thread.
func (p *Proxy) Listen(id uint32, fd int32, address, root string, shared bool) error {
	if err := p.attachListener(id, fd); err != nil {
		return errors.Join(err, os.NewSyscallError("close", unix.Close(int(fd))))
	}
	index := slices.Index(p.listeners, nil)
	if index < 0 {
		index = len(p.listeners)
		p.listeners = append(p.listeners, nil)
	}
	l := &listener{id: id, index: uint32(index), fd: fd, root: root, port: portLine(address), shared: shared}
	for i := range l.ops {
		l.msgs[i].Peer = &l.peers[i]
		l.ops[i] = loop.Op{Code: loop.Accept, Tag: tagAccept, FD: fd, User: loop.Token{Index: l.index}, Msg: &l.msgs[i]}
	}
	p.listeners[index] = l
	p.armAccepts()
	p.RenewAccepts()
	return nil
}

func (p *Proxy) attachListener(id uint32, fd int32) error {
	if p.draining {
		return errors.New("draining")
	}
	if p.listenerOf(id) != nil {
		return fmt.Errorf("listener %d is known already", id)
	}
	return p.engine.Attach(fd)
}

// listenerOf returns the listener with the id, or nil.
func (p *Proxy) listenerOf(id uint32) *listener {
	for _, l := range p.listeners {
		if l != nil && l.id == id {
			return l
		}
	}
	return nil
}

// Unlisten stops accepting from a listener and closes the Proxy's descriptor
// of it, then calls left. With empty, it first takes all connections that wait
// in the accept queue; without, they are left to who else has the socket.
// Connections that were accepted stay. It reports whether there is such a
// listener. On the loop's thread.
func (p *Proxy) Unlisten(id uint32, empty bool, left func()) bool {
	l := p.listenerOf(id)
	if l == nil {
		return false
	}
	l.left = left
	if empty {
		l.leaveWhenEmpty()
	} else if l.leaving < leavingNow {
		p.leaveNow(l)
	}
	return true
}

// RenewAccepts makes sure that no connection waits unseen: see renewAfter. On
// the loop's thread.
func (p *Proxy) RenewAccepts() {
	p.renewed = 0
	p.wheel.Schedule(&p.renewTimer, p.now+renewAfter[0])
}

// renewAfter is when accepts are submitted anew after a listener came from
// another worker. A killed worker's io_uring is torn down some 20 to 40 ms after
// its death, and until then its accepts stand first in the listener's queue of
// waiters, of which the kernel wakes only one: a connection that comes in that
// time wakes a dead one, as it may wake one that is just being cancelled. An
// accept that is submitted anew finds it.
var renewAfter = []int64{20e6, 100e6, 500e6, 2e9, 10e9}

// renewAccepts ends the accepts in flight; acceptDone then arms them again.
func (p *Proxy) renewAccepts() {
	for _, l := range p.listeners {
		if l != nil {
			p.cancelAccepts(l)
		}
	}
	if p.renewed++; p.renewed < len(renewAfter) {
		p.wheel.Schedule(&p.renewTimer, p.now+renewAfter[p.renewed])
	}
}

// mayAccept reports whether another accept may be armed on a listener that has
// armed some already: then all that are in flight count as connections. The
// first one of each listener counts only once it has brought one, so that a
// busy listener leaves others theirs.
func (p *Proxy) mayAccept(armed int) bool {
	if p.acceptPaused {
		return false
	}
	if p.pressed(emergencyShare) {
		p.lacking = true
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
	if p.snap == nil {
		return
	}
	p.throttled, p.lacking = false, false
	for i := range acceptsMax {
		for _, l := range p.listeners {
			if l == nil || l.leaving >= leavingNow || l.ops[i].InFlight() || l.shared && p.sharedPaused {
				continue
			}
			if !p.mayAccept(i) {
				p.throttled = true
				continue
			}
			p.engine.Submit(&l.ops[i])
			p.acceptsArmed++
		}
	}
}

// acceptDone takes the result of an accept.
func (p *Proxy) acceptDone(op *loop.Op) {
	p.acceptsArmed--
	switch op.Err {
	case 0:
		l := p.listeners[op.User.Index]
		l.took = true
		l.taken++
		p.accepted(l, op)
		if l.shared && p.tooMany() {
			p.sharedPaused = true
			p.wheel.Schedule(&p.sharedTimer, p.now+sharedPause)
		}
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

// Sockets that workers share are given to whoever asks, and an idle worker asks
// sooner. A worker with more than its share of the clients waits sharedPause
// before it asks again, so that the others come first; it takes what they leave.
const (
	sharedPause = int64(100e6)
	sharedSlack = 16 // connections that are no imbalance
)

// tooMany reports whether this worker has over a quarter more clients than the
// mean of all.
func (p *Proxy) tooMany() bool {
	load := &p.rows.Load
	workers := load.Workers.Load()
	return workers > 1 && (int64(p.clients)-sharedSlack)*workers*4 > load.Clients.Load()*5
}

// leaveWhenEmpty makes l leave after a turn in which none of its accepts
// succeeded: connections that were established before are served.
func (l *listener) leaveWhenEmpty() {
	if l.leaving == leavingNot {
		l.leaving, l.took, l.taken = leavingEmpty, true, 0
	}
}

// leaveNow ends l's accepts. Those that succeed nevertheless are served.
func (p *Proxy) leaveNow(l *listener) {
	l.leaving = leavingNow
	p.cancelAccepts(l)
}

// leaveListeners moves the leaving listeners on. It reports whether the next
// turn must not wait, because something is known after it.
func (p *Proxy) leaveListeners() (hurry bool) {
	for _, l := range p.listeners {
		if l != nil && l.leaving != leavingNot && p.leave(l) {
			hurry = true
		}
	}
	return hurry
}

// leave moves a leaving listener on; see leaveListeners.
func (p *Proxy) leave(l *listener) (hurry bool) {
	if l.leaving == leavingLast {
		p.listeners[l.index] = nil
		if l.left != nil {
			l.left()
		}
		return false
	}
	if l.leaving == leavingEmpty {
		if l.took && l.taken < queueMax && p.mayAccept(0) {
			l.took = false // there may be more: one more turn
			return true
		}
		p.leaveNow(l)
	}
	if l.busy() {
		return false // the last result comes back here
	}
	p.engine.CloseFD(l.fd)
	l.leaving = leavingLast
	return true
}

// listening reports whether there is a listener.
func (p *Proxy) listening() bool {
	return slices.ContainsFunc(p.listeners, func(l *listener) bool { return l != nil })
}

func (p *Proxy) cancelAccepts(l *listener) {
	for i := range l.ops {
		if l.ops[i].InFlight() {
			p.engine.Cancel(&l.ops[i])
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
