// Package ring drives sockets through io_uring: it implements loop.Engine and
// leaves everything else to its user. It needs Linux 5.19, is at its best from
// 6.6 on (multishot receives with a byte total from 6.18), and refuses with
// loop.ErrNotSupported where the kernel lacks or forbids io_uring.
//
// One turn of the loop is one system call: it hands over what was submitted,
// waits, and finds results in memory. What has calls of its own is large sends,
// and bytes that go by pipes. Open tries its tiers in order, each by
// doing the real thing:
//
//	best  single issuer, deferred task run, no SQ array   Linux 6.6
//	A     single issuer, deferred task run                Linux 6.1
//	B     cooperative task run, single-shot receives      Linux 5.19
//
// The ring is restricted to the operations used here before it is enabled, so
// that nobody who gets hold of it can do more. Memory that the kernel writes or
// reads later lies outside the Go heap. A result names its descriptor by
// number and age, never by an address.
package ring

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	abi "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// What a result is of: the upper 8 bits of its user_data. Below are 24 bits of
// age and 32 bits of descriptor or accept slot.
const (
	kindRecv uint64 = iota // + the number of the group
	kindRecvBody
	kindSend
	kindConnect
	kindAccept
	kindWake
	kindReadable
	kindWritable
	kindIgnored // a close: only a failure gives a result, which means nothing
	kindProbe
	kindCancel = 1 << 7 // + what is to be cancelled; only a failure gives a result
)

const ageMask = 1<<24 - 1

// sendNowBytes is the length from which on Submit makes a send itself, and has
// it wait in the ring only if there is no room. Its bytes were written a moment
// ago, records of TLS above all, and are in the cache: until the queue is handed
// over, those of other connections push them out. Bodies of 1 MiB over TLS cost
// 2 to 4 % less so; sends of 16 KiB cost 2 % more.
const sendNowBytes = 32 << 10

// readyRounds bounds how often a Poll delivers, after each receive, what the
// submissions made from deliver finished at once: enough for a received body to
// be sealed, sent and given back while it is in the cache.
const readyRounds = 8

// userData names the operation of the kind on the descriptor or accept slot.
func userData(kind uint64, age uint32, index int32) uint64 {
	return kind<<56 | uint64(age&ageMask)<<32 | uint64(uint32(index))
}

// submitTries bounds the attempts to hand over a full queue while the kernel
// has no memory for requests.
const submitTries = 1000

// closeWait bounds the time in which the kernel gives everything back at Close.
const closeWait = time.Second

// inFlight marks an Op in loop.Op.Engine. Accepts have their slot + inFlight.
const inFlight = 1

// desc is what the engine knows of a descriptor.
type desc struct {
	age      uint32
	attached bool
	drained  bool // the last receive, or accept, took all there was
	starved  bool // recv waits in a group for buffers
	unsure   bool // counted in engine.unsure
	ended    bool // receiving was shut down: recv ends, whatever the kernel says
	renew    bool // recv was cancelled to be started anew
	// The Op waits for readiness to move bytes by a pipe.
	polledIn, polledOut bool
	sendKnown           bool // the result of send is in engine.ready
	// The Op is to be cancelled, so do not start it anew.
	recvCancel, sendCancel, connectCancel bool

	recv, send, connect *loop.Op

	// Accepts in submission order: slot + 1 of the first and last, 0 if none.
	acceptFirst, acceptLast int32
}

// acceptSlot is one accept in the kernel.
type acceptSlot struct {
	op         *loop.Op // nil if the slot is free
	area       *acceptArea
	age        uint32
	fd         int32
	prev, next int32 // slot + 1; next also chains free slots
	cancel     bool
}

// acceptsMapped is the number of accept slots mapped at a time.
const acceptsMapped = 56

// engine implements loop.Engine.
type engine struct {
	u     *uring
	pool  *loop.Pool
	tier  tier
	multi bool // receives end by themselves after MultiBytes
	// Accepts can be told to wait before they look.
	pollAccept bool
	groups     [2]group
	err        error // final

	descs      loop.Table[desc] // by descriptor
	slots      []acceptSlot
	slotFree   int32      // slot + 1
	ready      []*loop.Op // results known without the kernel
	delivering []*loop.Op
	unsure     int   // descriptors that are
	unsureAt   int64 // when to look at them, if there are any
	polled     []unix.PollFd
	held       int // operations the kernel has
	closing    bool
	spill      sqEntry // taken when the queue cannot be handed over

	now   int64
	stats loop.Stats

	woken  atomic.Bool
	wakeMu sync.Mutex
	wakeFD int32 // -1 after Close; guarded by wakeMu outside the loop
}

func (e *engine) Name() string { return "uring" }

func (e *engine) Detail() string {
	receives := "single-shot receives"
	if e.multi {
		receives = "multishot receives"
	}
	return fmt.Sprintf("tier %s, %s, %d entries", e.tier.text, receives, e.u.sqEntries)
}

func (e *engine) Now() int64 { return e.now }

func (e *engine) Stats() loop.Stats {
	s := e.stats
	for i := range e.groups {
		s.BuffersOut += e.groups[i].out * e.groups[i].class.Bytes()
	}
	return s
}

// at returns what is known of a descriptor.
func (e *engine) at(fd int32) *desc {
	if uint(fd) < uint(e.descs.Len()) {
		if d := e.descs.At(int(fd)); d.attached {
			return d
		}
	}
	panic(fmt.Sprintf("ring: descriptor %d is not attached", fd))
}

func (e *engine) attach(fd int32) *desc {
	e.descs.Grow(int(fd) + 1)
	d := e.descs.At(int(fd))
	if d.attached {
		panic(fmt.Sprintf("ring: descriptor %d is attached twice: closed without CloseFD?", fd))
	}
	*d = desc{age: d.age, attached: true}
	e.stats.Attached++
	return d
}

func (e *engine) Attach(fd int32) error {
	if fd < 0 {
		return fmt.Errorf("attach descriptor %d: %w", fd, syscall.EBADF)
	}
	e.attach(fd)
	return nil
}

// entry returns an empty entry of the submission queue and its slot's memory,
// handing over the queue first if it is full.
func (e *engine) entry() (*sqEntry, *sqeArea) {
	s, slot := e.u.next()
	for tries := 0; s == nil; s, slot = e.u.next() {
		e.stats.Calls++
		errno := e.u.submit()
		retry := errno == 0 || errno == syscall.EINTR || errno == syscall.EAGAIN || errno == syscall.EBUSY
		if tries++; !retry || tries == submitTries {
			e.fail(fmt.Errorf("io_uring_enter: submission: %w", errno))
			e.spill.Reset()
			return &e.spill, &e.u.areas[e.u.sqEntries]
		}
	}
	return s, &e.u.areas[slot]
}

// fail makes the next Poll report the error; the first one stays.
func (e *engine) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

func (e *engine) Submit(op *loop.Op) {
	if op.Engine != 0 {
		panic("ring: an Op in flight is submitted")
	}
	op.N, op.Err, op.More, op.Buf = 0, 0, false, nil
	op.Engine = inFlight
	e.stats.InFlight++
	switch op.Code {
	case loop.Recv, loop.RecvMulti:
		d := e.at(op.FD)
		if d.recv != nil {
			panic(fmt.Sprintf("ring: second receive on descriptor %d", op.FD))
		}
		d.recv, d.recvCancel, d.ended, d.renew = op, false, false, false
		if op.Code == loop.Recv && op.Size == loop.ClassPipe {
			e.awaitReadable(op.FD, d)
			return
		}
		e.armRecv(op.FD, d)
	case loop.Send:
		d := e.at(op.FD)
		if d.send != nil {
			panic(fmt.Sprintf("ring: second send on descriptor %d", op.FD))
		}
		if len(op.Vecs) > loop.VecsMax {
			panic(fmt.Sprintf("ring: send of %d pieces", len(op.Vecs)))
		}
		d.send, d.sendCancel, d.sendKnown = op, false, false
		switch {
		case op.Pipe != nil:
			e.sendPipe(op, d)
		case length(op.Vecs) >= sendNowBytes:
			e.sendNow(op, d)
		default:
			e.armSend(op, d)
		}
	case loop.Accept:
		e.armAccept(op, e.at(op.FD))
	case loop.Connect:
		e.connect(op)
	default:
		panic(fmt.Sprintf("ring: Op with code %d", op.Code))
	}
}

// groupOf returns the buffers that op receives into.
func (e *engine) groupOf(op *loop.Op) *group {
	if op.Code == loop.Recv && op.Size != loop.ClassHead {
		return &e.groups[1]
	}
	return &e.groups[0]
}

// armRecv hands over d.recv. The kernel takes a buffer of the group when there
// is data. If the last receive emptied the socket, a single-shot is told to
// wait before it looks (IORING_RECVSEND_POLL_FIRST).
func (e *engine) armRecv(fd int32, d *desc) {
	op := d.recv
	g := e.groupOf(op)
	s, _ := e.entry()
	s.PrepOperation(abi.IORING_OP_RECV, fd, 0, 0, 0)
	s.SetFlags(sqeBufferSelect)
	s.SetBufGroup(g.id)
	var how uint16
	switch {
	case e.multishot(op):
		how = recvMultishot              // never with POLL_FIRST: see lookAtUnsure
		s.SetSpliceFdIn(loop.MultiBytes) // optlen: the total that ends the series, Linux 6.18
	case d.drained:
		how = recvPollFirst
	}
	s.SetIoprio(how)
	s.SetUserData(userData(kindRecv+uint64(g.id), d.age, fd))
	g.armed++
	e.held++
}

// length is the number of bytes in vecs.
func length(vecs [][]byte) int {
	n := 0
	for _, v := range vecs {
		n += len(v)
	}
	return n
}

// sendNow sends what there is room for at once, or all of it later.
func (e *engine) sendNow(op *loop.Op, d *desc) {
	e.stats.Calls++
	n, errno := sys.SendVecs(op.FD, op.Vecs, 0)
	if errno == syscall.EAGAIN {
		e.armSend(op, d)
		return
	}
	e.knowSent(op, d, n, errno)
}

// knowSent sets the result of a send for Poll to deliver.
func (e *engine) knowSent(op *loop.Op, d *desc, n int, errno syscall.Errno) {
	op.N, op.Err = n, errno
	d.sendKnown = true
	e.ready = append(e.ready, op)
}

func (e *engine) armSend(op *loop.Op, d *desc) {
	s, area := e.entry()
	if len(op.Vecs) == 1 {
		v := op.Vecs[0]
		s.PrepOperation(abi.IORING_OP_SEND, op.FD, addressOf(v), uint32(len(v)), 0)
	} else {
		area.setVecs(op.Vecs)
		s.PrepOperation(abi.IORING_OP_SENDMSG, op.FD, area.msgAddress(), 1, 0)
	}
	s.SetOpFlags(unix.MSG_NOSIGNAL | unix.MSG_WAITALL)
	s.SetUserData(userData(kindSend, d.age, op.FD))
	e.held++
}

// connect makes the socket and starts to connect it. Without a socket the
// result is known at once.
func (e *engine) connect(op *loop.Op) {
	op.FD = -1
	var addr sys.Sockaddr
	var errno syscall.Errno
	var length uint32
	family := unix.AF_UNIX
	if op.Peer.Path != "" {
		length, errno = addr.SetUnix(op.Peer.Path)
	} else {
		family, length, errno = addr.SetAddrPort(op.Peer.AddrPort)
	}
	if errno == 0 {
		e.stats.Calls += 2 // socket, setsockopt
		op.FD, errno = sys.Socket(family, op.Peer.AddrPort.Addr().IsLoopback())
	}
	if errno != 0 {
		op.Err = errno
		e.ready = append(e.ready, op)
		return
	}
	d := e.attach(op.FD)
	d.connect = op
	s, area := e.entry()
	area.addr = addr
	s.PrepOperation(abi.IORING_OP_CONNECT, op.FD, area.addrAddress(), 0, uint64(length))
	s.SetUserData(userData(kindConnect, d.age, op.FD))
	e.held++
}

// armAccept starts one accept with a slot of its own, because the kernel
// writes the peer's address there.
func (e *engine) armAccept(op *loop.Op, d *desc) {
	if e.slotFree == 0 {
		if errno := e.mapSlots(); errno != 0 {
			op.Err = errno
			e.ready = append(e.ready, op)
			return
		}
	}
	i := e.slotFree
	slot := &e.slots[i-1]
	e.slotFree = slot.next
	slot.op, slot.fd, slot.cancel = op, op.FD, false
	slot.prev, slot.next = d.acceptLast, 0
	if d.acceptLast != 0 {
		e.slots[d.acceptLast-1].next = i
	} else {
		d.acceptFirst = i
	}
	d.acceptLast = i
	op.Engine = inFlight + uint32(i)
	e.startAccept(slot, i)
}

// startAccept hands over the accept of slot number i - 1. The kernel makes the
// new socket and its file before it looks whether there is a connection, and
// throws them away if there is none. So if the last accept emptied the queue, it
// is told to wait first (IORING_ACCEPT_POLL_FIRST).
func (e *engine) startAccept(slot *acceptSlot, i int32) {
	s, _ := e.entry()
	if e.pollAccept && e.descs.At(int(slot.fd)).drained {
		s.SetIoprio(acceptPollFirst)
	}
	slot.area.length = sys.SockaddrBytes
	s.PrepOperation(abi.IORING_OP_ACCEPT, slot.fd, slot.area.addrAddress(), 0, slot.area.lengthAddress())
	s.SetOpFlags(unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC)
	s.SetUserData(userData(kindAccept, slot.age, i-1))
	e.held++
}

func (e *engine) mapSlots() syscall.Errno {
	areas, errno := mapArray[acceptArea](e.u, acceptsMapped)
	if errno != 0 {
		return errno
	}
	for i := range areas {
		e.slots = append(e.slots, acceptSlot{area: &areas[i], next: e.slotFree})
		e.slotFree = int32(len(e.slots))
	}
	return 0
}

func (e *engine) Cancel(op *loop.Op) {
	if op.Engine == 0 || op.FD < 0 {
		return
	}
	d := e.at(op.FD)
	var target uint64
	switch {
	case op.Code == loop.Accept:
		if op.Engine == inFlight {
			return // its result is known
		}
		i := int32(op.Engine - inFlight)
		slot := &e.slots[i-1]
		if slot.cancel {
			return
		}
		slot.cancel = true
		target = userData(kindAccept, slot.age, i-1)
	case op == d.recv && !d.recvCancel:
		d.recvCancel = true
		if d.starved {
			d.starved = false
			op.Err = syscall.ECANCELED
			e.ready = append(e.ready, op)
			return
		}
		target = userData(kindRecv+uint64(e.groupOf(op).id), d.age, op.FD)
		if d.polledIn {
			target = userData(kindReadable, d.age, op.FD)
		}
	case op == d.send && d.sendKnown:
		return
	case op == d.send && !d.sendCancel:
		d.sendCancel = true
		target = userData(kindSend, d.age, op.FD)
		if d.polledOut {
			target = userData(kindWritable, d.age, op.FD)
		}
	case op == d.connect && !d.connectCancel:
		d.connectCancel = true
		target = userData(kindConnect, d.age, op.FD)
	default:
		return
	}
	e.cancel(target)
}

// cancel asks the kernel to end the operation of that user_data.
func (e *engine) cancel(target uint64) {
	s, _ := e.entry()
	s.PrepOperation(abi.IORING_OP_ASYNC_CANCEL, -1, target, 0, 0)
	s.SetFlags(sqeSkipSuccess)
	s.SetUserData(kindCancel<<56 | target)
}

// notCancelled handles that the kernel did not find the operation. Mostly it
// is complete. But it may also have been about to be tried once more, and wait
// again since: then it is cancelled again. Entries are taken in order, so that
// this cannot hit an operation submitted later.
func (e *engine) notCancelled(kind uint64, index int32, age uint32) {
	var waits bool
	if kind == kindAccept {
		slot := &e.slots[index]
		waits = slot.op != nil && slot.cancel && slot.age&ageMask == age
	} else if d := e.descs.At(int(index)); d.age&ageMask == age {
		switch kind {
		case kindRecv, kindRecvBody:
			waits = d.recv != nil && (d.recvCancel || d.ended || d.renew)
		case kindReadable:
			waits = d.polledIn && d.recvCancel
		case kindSend:
			waits = d.send != nil && d.sendCancel
		case kindWritable:
			waits = d.polledOut && d.sendCancel
		case kindConnect:
			waits = d.connect != nil && d.connectCancel
		}
	}
	if waits {
		e.cancel(userData(kind, age, index))
	}
}

// Shutdown calls shutdown(2) itself: the ring would hand it to a kernel thread.
// A receive in flight ends whether or not there is a buffer for it, and a
// multishot is cancelled, because it may miss its end (see lookAtUnsure).
func (e *engine) Shutdown(fd int32, how int) syscall.Errno {
	d := e.at(fd)
	e.stats.Calls++
	errno := sys.Shutdown(fd, how)
	if d.recv == nil || d.recvCancel || how == unix.SHUT_WR {
		return errno
	}
	switch {
	case errno == 0 && d.starved:
		d.starved = false
		e.ready = append(e.ready, d.recv)
	case errno == 0:
		d.ended = true
		if e.multishot(d.recv) {
			e.cancel(userData(kindRecv, d.age, fd))
		}
	case errno == syscall.ENOTCONN && e.multishot(d.recv):
		e.renew(fd, d)
	}
	return errno
}

// multishot tells whether op is received by a multishot.
func (e *engine) multishot(op *loop.Op) bool { return e.multi && op.Code == loop.RecvMulti }

// renew makes the kernel start d.recv once more, which looks at the state of
// the socket.
func (e *engine) renew(fd int32, d *desc) {
	if !d.renew && !d.starved && !d.recvCancel {
		d.renew = true
		e.cancel(userData(kindRecv, d.age, fd))
	}
}

// unsureWait is how late a reset may be noticed that came with the last data.
const unsureWait = int64(time.Second)

// pollsMax is how many descriptors one poll(2) asks for.
const pollsMax = 256

// doubt notes a multishot that took all that there was.
func (e *engine) doubt(d *desc) {
	if d.unsure {
		return
	}
	d.unsure = true
	if e.unsure == 0 {
		e.unsureAt = e.now + unsureWait
	}
	e.unsure++
}

// lookAtUnsure finds multishots that miss the end of their connection. After
// a result that emptied the socket the kernel does not look once more but
// waits for the next event; if the connection was reset, or shut down by us,
// between the event and that result, there is none. Linux 6.18.44 errs when it
// polls before it receives; it has a repair for the other case, which older
// ones may lack. A FIN is told apart. A poll(2) asks for many of them, a second later: a single-shot
// receive for each would find out by itself, and costs 0.2 us a result more.
// They are found by a look at all descriptors: a list of them would grow as long
// as there are connections, and its memory stay.
func (e *engine) lookAtUnsure() {
	e.unsureAt = e.now + unsureWait
	for fd := 0; e.unsure > 0 && fd < e.descs.Len(); fd++ {
		d := e.descs.At(fd)
		if !d.unsure {
			continue
		}
		d.unsure = false
		e.unsure--
		if d.recv != nil && e.multishot(d.recv) {
			e.polled = append(e.polled, unix.PollFd{Fd: int32(fd)}) // asks for POLLERR and POLLHUP
		}
		if len(e.polled) == pollsMax {
			e.pollUnsure()
		}
	}
	if len(e.polled) > 0 {
		e.pollUnsure()
	}
}

// pollUnsure renews those of e.polled whose connection has ended.
func (e *engine) pollUnsure() {
	e.stats.Calls++
	errno := sys.PollNow(e.polled)
	for _, p := range e.polled {
		d := e.descs.At(int(p.Fd))
		switch {
		case errno != 0:
			e.doubt(d) // no memory, at worst: the next time
		case p.Revents != 0:
			e.renew(p.Fd, d)
		}
	}
	e.polled = e.polled[:0]
}

// CloseFD closes through the ring. The number cannot be given to a new
// descriptor before, and results from now on are of an older age.
func (e *engine) CloseFD(fd int32) {
	d := e.at(fd)
	if d.recv != nil || d.send != nil || d.connect != nil || d.acceptFirst != 0 {
		panic(fmt.Sprintf("ring: descriptor %d is closed with an Op in flight", fd))
	}
	d.attached = false
	d.age++
	if d.unsure {
		d.unsure = false
		e.unsure--
	}
	e.stats.Attached--
	s, _ := e.entry()
	s.PrepOperation(abi.IORING_OP_CLOSE, fd, 0, 0, 0)
	s.SetFlags(sqeSkipSuccess)
	s.SetUserData(userData(kindIgnored, 0, fd))
}

func (e *engine) Unsent(fd int32) int {
	e.at(fd)
	e.stats.Calls++
	return sys.Unsent(fd)
}

func (e *engine) Quiet(fd int32) bool {
	if e.at(fd).recv != nil {
		panic(fmt.Sprintf("ring: is descriptor %d quiet, with a receive in flight?", fd))
	}
	e.stats.Calls++
	return sys.Quiet(fd)
}

func (e *engine) Dead(fd int32) bool {
	e.at(fd)
	e.stats.Calls++
	return sys.Dead(fd)
}

func (e *engine) SendNow(fd int32, b []byte) int {
	e.at(fd)
	e.stats.Calls++
	n, _ := sys.Send(fd, b) // why not is of no interest
	return n
}

func (e *engine) Abort(fd int32) {
	e.at(fd)
	e.stats.Calls++
	_ = sys.SetAbort(fd) // without it the peer sees a FIN
}

func (e *engine) Wake() {
	if e.woken.Swap(true) {
		return // a wake-up is on its way, or Poll has not returned from one
	}
	e.wakeMu.Lock()
	defer e.wakeMu.Unlock()
	if e.wakeFD >= 0 {
		sys.SignalEvent(e.wakeFD)
	}
}

// armWake reads the counter that Wake writes. The descriptor is a blocking one,
// so that the kernel waits for it instead of returning EAGAIN.
func (e *engine) armWake() {
	s, _ := e.entry()
	s.PrepOperation(abi.IORING_OP_READ, e.wakeFD, e.u.scratch.eventAddress(), 8, 0)
	s.SetUserData(userData(kindWake, 0, 0))
	e.held++
}

func (e *engine) Poll(wait time.Duration, deliver func(*loop.Op)) error {
	if e.err != nil {
		return e.err
	}
	for i := range e.groups {
		g := &e.groups[i]
		g.refill()
		if len(g.starved) > 0 {
			e.feed(g)
		}
	}
	if e.unsure > 0 {
		rest := e.unsureAt - e.now
		if rest <= 0 {
			e.lookAtUnsure()
		} else if wait < 0 || wait > time.Duration(rest) {
			wait = time.Duration(rest)
		}
	}
	if len(e.ready) > 0 || e.u.completed() > 0 {
		wait = 0
	}
	e.wait(wait)
	e.now = sys.Monotonic()
	if len(e.ready) > 0 {
		e.deliverReady(deliver)
	}
	e.reap(deliver)
	return e.err
}

// wait hands over the queue and waits for results: at first without telling
// the scheduler, which is cheap, but would delay a garbage collection and keep
// the P; so only shortly.
func (e *engine) wait(wait time.Duration) {
	if wait == 0 {
		e.stats.Calls++
		e.check(e.u.enter(0, waitUnlimited, false))
		return
	}
	first := loop.RawWait
	if wait > 0 {
		first = min(first, wait)
	}
	e.stats.Waits++
	errno := e.u.enter(1, first, false)
	if !e.check(errno) || e.u.completed() > 0 {
		return
	}
	rest := waitUnlimited
	if wait > 0 {
		rest = wait
		if errno != syscall.EINTR {
			rest -= first
		}
		if rest == 0 {
			return
		}
	}
	e.stats.Waits++
	e.check(e.u.enter(1, rest, true))
}

// check reports whether io_uring_enter left the ring usable. Its time-out, a
// signal, and want of memory or of room are no more than an empty result.
func (e *engine) check(errno syscall.Errno) bool {
	switch errno {
	case 0, syscall.ETIME, syscall.EINTR, syscall.EAGAIN, syscall.EBUSY:
		return true
	case syscall.EEXIST, syscall.EINVAL: // EINVAL: another thread does not know the registered descriptor
		e.fail(fmt.Errorf("io_uring_enter: %w: perhaps the loop runs on another thread than the one that opened the engine", errno))
	default:
		e.fail(fmt.Errorf("io_uring_enter: %w", errno))
	}
	return false
}

// deliverReady delivers results that were known without the kernel.
func (e *engine) deliverReady(deliver func(*loop.Op)) {
	e.ready, e.delivering = e.delivering[:0], e.ready
	for i, op := range e.delivering {
		e.delivering[i] = nil
		if op.FD >= 0 {
			switch d := e.descs.At(int(op.FD)); op {
			case d.recv:
				d.recv = nil
			case d.send:
				d.send = nil
			}
		}
		e.finish(op, deliver)
	}
}

// finish delivers the last result of op.
func (e *engine) finish(op *loop.Op, deliver func(*loop.Op)) {
	op.Engine = 0
	e.stats.InFlight--
	e.stats.Results++
	deliver(op)
}

// reap delivers what the kernel completed up to now. What completes meanwhile,
// and what waits in the kernel for room, is for the next turn, so that timers
// get theirs.
func (e *engine) reap(deliver func(*loop.Op)) {
	if e.u.overflown() {
		e.stats.Overflows++
	}
	for n := e.u.completed(); n > 0; n-- {
		ud, res, flags := e.u.completion()
		index, age, kind := int32(uint32(ud)), uint32(ud>>32)&ageMask, ud>>56
		switch kind {
		case kindRecv, kindRecvBody:
			e.received(&e.groups[kind], index, age, res, flags, deliver)
			for round := 0; round < readyRounds && len(e.ready) > 0; round++ {
				e.deliverReady(deliver)
			}
		case kindSend:
			e.sent(index, age, res, deliver)
		case kindReadable:
			e.readable(index, age, res, deliver)
		case kindWritable:
			e.writable(index, age, res, deliver)
		case kindConnect:
			e.connected(index, age, res, deliver)
		case kindAccept:
			e.accepted(index, age, res, flags, deliver)
		case kindWake:
			e.held--
			e.woke(res)
		case kindIgnored:
		default:
			if kind&kindCancel != 0 {
				e.notCancelled(kind&^kindCancel, index, age)
				break
			}
			e.fail(fmt.Errorf("io_uring: completion of nothing we asked for: user_data %#x", ud))
		}
	}
	e.u.giveBack()
	if n := e.u.lost(); n > 0 {
		e.fail(fmt.Errorf("io_uring: the kernel lost %d completions", n))
	}
}

// split turns a CQE's result into a count and an errno.
func split(res int32) (int, syscall.Errno) {
	if res < 0 {
		return 0, syscall.Errno(-res)
	}
	return int(res), 0
}

// again tells results that mean to try once more.
func again(errno syscall.Errno) bool { return errno == syscall.EINTR || errno == syscall.EAGAIN }

// current returns the descriptor a result is of, or nil if it was closed.
func (e *engine) current(fd int32, age uint32) *desc {
	if uint(fd) < uint(e.descs.Len()) {
		if d := e.descs.At(int(fd)); d.age&ageMask == age {
			return d
		}
	}
	e.stats.Stale++
	return nil
}

func (e *engine) received(g *group, fd int32, age uint32, res int32, flags uint32, deliver func(*loop.Op)) {
	more := flags&cqeMore != 0
	if !more {
		e.held--
		g.armed--
	}
	var buf *loop.Buffer
	if flags&cqeBuffer != 0 {
		buf = g.taken(flags)
	}
	d := e.current(fd, age)
	if d == nil {
		if buf != nil {
			buf.Release()
		}
		return
	}
	op := d.recv
	if op == nil {
		e.fail(fmt.Errorf("io_uring: descriptor %d received without having been asked to", fd))
		return
	}
	n, errno := split(res)
	if !more && !e.closing && e.receiveAgain(fd, d, g, errno) {
		return
	}
	if n == 0 && buf != nil {
		buf.Release()
		buf = nil
	}
	if n > 0 && buf == nil {
		e.fail(fmt.Errorf("io_uring: descriptor %d received %d bytes into no buffer", fd, n))
		return
	}
	d.drained = n > 0 && flags&cqeNonEmpty == 0
	if errno == syscall.ENOBUFS || again(errno) {
		errno = syscall.ECANCELED // it would have waited
	}
	if errno == syscall.ECANCELED && d.ended && !d.recvCancel {
		errno = 0
	}
	op.N, op.Err, op.Buf, op.More = n, errno, buf, more
	g.brought += n
	if more {
		if d.drained {
			e.doubt(d)
		}
		e.stats.Results++
		deliver(op)
		return
	}
	d.recv = nil
	e.finish(op, deliver)
}

// receiveAgain keeps a receive going whose end is not its submitter's business.
func (e *engine) receiveAgain(fd int32, d *desc, g *group, errno syscall.Errno) bool {
	if d.recvCancel || d.ended {
		return false
	}
	switch {
	case errno == syscall.ECANCELED && d.renew:
		d.renew, d.drained = false, false
		e.armRecv(fd, d)
		return true
	case errno == syscall.ENOBUFS:
		e.stats.NoBuffers++
		g.dry = true
		d.drained, d.starved = false, true
		g.starved = append(g.starved, descRef{fd, d.age})
		return true
	case again(errno):
		d.drained = false
		e.armRecv(fd, d)
		return true
	}
	return false
}

func (e *engine) sent(fd int32, age uint32, res int32, deliver func(*loop.Op)) {
	e.held--
	d := e.current(fd, age)
	if d == nil {
		return
	}
	if d.send == nil {
		e.fail(fmt.Errorf("io_uring: descriptor %d sent without having been asked to", fd))
		return
	}
	op := d.send
	n, errno := split(res)
	if again(errno) {
		if !d.sendCancel && !e.closing {
			e.armSend(op, d)
			return
		}
		errno = syscall.ECANCELED
	}
	op.N, op.Err = n, errno
	d.send = nil
	e.finish(op, deliver)
}

func (e *engine) connected(fd int32, age uint32, res int32, deliver func(*loop.Op)) {
	e.held--
	d := e.current(fd, age)
	if d == nil {
		return
	}
	if d.connect == nil {
		e.fail(fmt.Errorf("io_uring: descriptor %d connected without having been asked to", fd))
		return
	}
	op := d.connect
	_, op.Err = split(res)
	d.connect = nil
	e.finish(op, deliver)
}

func (e *engine) accepted(index int32, age uint32, res int32, flags uint32, deliver func(*loop.Op)) {
	e.held--
	slot := &e.slots[index]
	if slot.age&ageMask != age || slot.op == nil {
		e.fail(fmt.Errorf("io_uring: accept slot %d completed without having been used", index))
		return
	}
	n, errno := split(res)
	if again(errno) && !e.closing {
		if !slot.cancel {
			e.startAccept(slot, index+1)
			return
		}
		errno = syscall.ECANCELED
	}
	d := e.descs.At(int(slot.fd))
	d.drained = flags&cqeNonEmpty == 0
	if errno == 0 && d.acceptFirst != index+1 {
		e.serveFirst(d, slot)
	}
	op := slot.op
	op.N, op.Err = n, errno
	if op.Msg != nil {
		*op.Peer = loop.Addr{}
		if errno == 0 {
			op.Peer.AddrPort = slot.area.addr.AddrPort()
		}
	}
	if slot.prev != 0 {
		e.slots[slot.prev-1].next = slot.next
	} else {
		d.acceptFirst = slot.next
	}
	if slot.next != 0 {
		e.slots[slot.next-1].prev = slot.prev
	} else {
		d.acceptLast = slot.prev
	}
	slot.op = nil
	slot.age++
	slot.next, e.slotFree = e.slotFree, index+1
	if errno == 0 && !e.closing {
		e.attach(int32(n))
	}
	e.finish(op, deliver)
}

// serveFirst gives a connection that came to a later accept to the first one:
// the Ops between move up by one slot, so that they are served in order.
func (e *engine) serveFirst(d *desc, slot *acceptSlot) {
	if slot.cancel {
		return // the kernel forgets this accept: its Op cannot wait elsewhere
	}
	var first *acceptSlot
	for i := d.acceptFirst; first != slot; i = e.slots[i-1].next {
		a := &e.slots[i-1]
		if a.cancel {
			continue
		}
		if first != nil {
			a.op, first.op = first.op, a.op
			a.op.Engine, first.op.Engine = first.op.Engine, a.op.Engine
		}
		first = a
	}
}

// woke handles the end of the read that waits for Wake.
func (e *engine) woke(res int32) {
	if e.closing {
		return
	}
	if _, errno := split(res); errno != 0 && !again(errno) {
		e.fail(fmt.Errorf("io_uring: read of the wake-up counter: %w", errno))
		return
	}
	e.woken.Store(false)
	e.armWake()
}

// Close makes the kernel give everything back before the memory goes.
func (e *engine) Close() error {
	if e.u == nil {
		return nil
	}
	e.closing = true
	deadline := sys.Monotonic() + int64(closeWait)
	for e.held > 0 && e.err == nil && sys.Monotonic() < deadline {
		s, _ := e.entry()
		s.PrepOperation(abi.IORING_OP_ASYNC_CANCEL, -1, 0, 0, 0)
		s.SetOpFlags(cancelAll | cancelAny)
		s.SetUserData(userData(kindIgnored, 0, 0))
		e.check(e.u.enter(1, closeWait/10, true))
		e.reap(drop)
	}
	return errors.Join(e.err, e.free())
}

// drop gives up a result that nobody is told of.
func drop(op *loop.Op) {
	if op.Buf != nil {
		op.Buf.Release()
		op.Buf = nil
	}
	if op.Code == loop.Accept && op.Err == 0 {
		sys.Close(int32(op.N))
	}
}

// free closes the ring. Memory that the kernel may still use is not unmapped.
func (e *engine) free() error {
	e.wakeMu.Lock()
	if e.wakeFD >= 0 {
		sys.Close(e.wakeFD)
		e.wakeFD = -1
	}
	e.wakeMu.Unlock()
	u := e.u
	e.u = nil
	if e.held > 0 {
		u.maps = nil
		u.close()
		return fmt.Errorf("io_uring: %d operations did not return: their memory stays", e.held)
	}
	for i := range e.groups {
		if g := &e.groups[i]; g.out > 0 {
			if errno := u.unregisterBuffers(g.id); errno != 0 {
				u.maps = nil
				u.close()
				return fmt.Errorf("io_uring_register: give back buffers: %w", errno)
			}
			g.release()
		}
	}
	u.close()
	return nil
}
