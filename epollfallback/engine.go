package epollfallback

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

const (
	// eventsMax is how many events one wait takes; the rest stays for the
	// next turn. What a turn touches should stay in the caches: with 256,
	// 1000 connections cost 3 % more CPU.
	eventsMax = 64

	// batchBytes is how much is received before the results are delivered, and
	// the least that a Send sends at once. Below, a turn makes all its receives,
	// then delivers them, then makes the sends that came of it: the same code,
	// the kernel's and ours, runs again while it is in the cache, which spares 5
	// to 8 % of the CPU of small requests. More bytes than that are in the cache
	// themselves, and leave it before others come.
	batchBytes = 16 << 10

	// roundsMax bounds how often one Poll delivers what the submissions made
	// from deliver finished at once, which spares a wait; the rest is
	// delivered by the next Poll.
	roundsMax = 4
)

// What Op.Engine says.
const (
	opFree      = iota
	opWaiting   // for readiness, or for a buffer
	opKnown     // the result is in the Op and waits for Poll
	opCancelled // ECANCELED is the result and waits for Poll
)

// desc is what the engine knows of a descriptor. It is kept when the
// descriptor is closed and serves the next one with the same number.
type desc struct {
	fd  int32
	age uint32 // of the number: events carry it, those of an older age are dropped

	attached bool
	shared   bool       // other processes may hold the socket too: close does not end its registration
	readable bool       // believed: the next receive or accept is worth its call
	writable bool       // believed: the next send is worth its call
	hangup   bool       // the peer's end, or an error, was seen: edges for it are spent
	urgent   bool       // urgent data came: splice(2) stops at it, a receive ends before it and then steps over it (tcp(7))
	queued   bool       // in engine.ready
	delayed  bool       // in engine.delayed
	starved  bool       // in engine.starved
	recvSize loop.Class // of recv

	busy    int32 // Ops in flight
	multi   int32 // bytes delivered in this RecvMulti series
	recv    *loop.Op
	send    *loop.Op
	connect *loop.Op
	accepts *queue[*loop.Op] // of a listener: those that wait; nil: none ever did
}

// engine implements loop.Engine.
type engine struct {
	pool *loop.Pool
	epfd int32

	descs   loop.Table[desc] // by descriptor
	events  []unix.EpollEvent
	results queue[*loop.Op] // known and cancelled ones
	ready   []*desc         // to be served by the next turn
	serving []*desc         // the ready of this turn
	delayed []*desc         // whose send waits for the other results of the turn
	brought int             // bytes received whose results are not delivered
	address sys.Sockaddr    // scratch

	starved [classes]queue[*desc] // receives that wait for a buffer, by class
	refill  [classes]bool         // a buffer came back for them

	polling bool
	deliver func(*loop.Op) // during Poll
	now     int64
	stats   loop.Stats

	// woken is set by Wake and cleared when the loop saw it, so that many
	// wake-ups cost one write.
	woken  atomic.Bool
	wakeMu sync.Mutex
	wakeFD int32 // -1 after Close
}

const classes = int(loop.ClassBody) + 1

// Config says how to open an engine.
type Config struct {
	// Pool lends the buffers of receives. Open takes its Returned over.
	Pool *loop.Pool
}

// Open returns an epoll engine. The error wraps loop.ErrNotSupported if the
// kernel refuses what it needs.
func Open(config Config) (loop.Engine, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, refused("epoll_create1", err)
	}
	wakeFD, errno := sys.EventFD(true)
	if errno != 0 {
		sys.Close(int32(epfd))
		return nil, refused("eventfd", errno)
	}
	e := &engine{
		pool:   config.Pool,
		epfd:   int32(epfd),
		wakeFD: wakeFD,
		events: make([]unix.EpollEvent, eventsMax),
		now:    sys.Monotonic(),
	}
	// The counter is never read: each write to it is an edge of its own.
	if errno := sys.EpollAdd(e.epfd, wakeFD, 0); errno != 0 {
		sys.Close(wakeFD)
		sys.Close(e.epfd)
		return nil, refused("epoll_ctl", errno)
	}
	e.pool.Returned = func(c loop.Class) { e.refill[c] = true }
	return e, nil
}

func refused(step string, err error) error {
	cause := ""
	switch {
	case errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		cause = " (a seccomp filter?)"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		cause = " (the limit of open files)"
	}
	return fmt.Errorf("epoll: %s: %w%s: %w", step, err, cause, loop.ErrNotSupported)
}

func (e *engine) Name() string { return "epoll" }

func (e *engine) Detail() string { return "edge-triggered" }

func (e *engine) Now() int64 { return e.now }

func (e *engine) Stats() loop.Stats { return e.stats }

func (e *engine) Attach(fd int32) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("attach descriptor %d: %w", fd, err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("attach descriptor %d: it is blocking", fd)
	}
	if errno := e.attach(fd); errno != 0 {
		return fmt.Errorf("attach descriptor %d: %w", fd, errno)
	}
	e.descs.At(int(fd)).shared = true
	return nil
}

// attach registers fd. The first wait after it reports what fd is ready for.
func (e *engine) attach(fd int32) syscall.Errno {
	e.descs.Grow(int(fd) + 1)
	d := e.descs.At(int(fd))
	if d.age == 0 {
		d.fd, d.age = fd, 1
	}
	if d.attached {
		return syscall.EEXIST
	}
	e.stats.Calls++
	if errno := sys.EpollAdd(e.epfd, fd, d.age); errno != 0 {
		return errno
	}
	d.attached = true
	d.readable, d.writable, d.hangup, d.urgent, d.shared = false, false, false, false, false
	e.stats.Attached++
	return 0
}

// of finds the desc of an attached descriptor.
func (e *engine) of(fd int32, what string) *desc {
	if uint(fd) < uint(e.descs.Len()) {
		if d := e.descs.At(int(fd)); d.attached {
			return d
		}
	}
	panic(fmt.Sprintf("epollfallback: %s: descriptor %d is not attached", what, fd))
}

func (e *engine) CloseFD(fd int32) {
	d := e.of(fd, "close")
	if d.busy != 0 {
		panic(fmt.Sprintf("epollfallback: close: descriptor %d has %d operations in flight", fd, d.busy))
	}
	e.stats.Calls++
	if d.shared {
		// Without it the socket would go on reporting as long as another
		// process holds it.
		e.stats.Calls++
		sys.EpollDel(e.epfd, fd)
	}
	d.attached = false
	if d.age++; d.age == 0 {
		d.age = 1 // 0 is Wake's
	}
	e.stats.Attached--
	sys.Close(fd)
}

func (e *engine) Shutdown(fd int32, how int) syscall.Errno {
	e.of(fd, "shutdown")
	e.stats.Calls++
	return sys.Shutdown(fd, how)
}

func (e *engine) Unsent(fd int32) int {
	e.of(fd, "unsent")
	e.stats.Calls++
	return sys.Unsent(fd)
}

func (e *engine) Quiet(fd int32) bool {
	d := e.of(fd, "quiet")
	if d.recv != nil {
		panic(fmt.Sprintf("epollfallback: quiet: descriptor %d has a receive in flight", fd))
	}
	e.stats.Calls++
	if !sys.Quiet(fd) {
		return false
	}
	d.readable = false // what comes from now on is an edge
	return true
}

func (e *engine) Dead(fd int32) bool {
	e.of(fd, "dead")
	e.stats.Calls++
	return sys.Dead(fd)
}

func (e *engine) SendNow(fd int32, b []byte) int {
	e.of(fd, "send now")
	e.stats.Calls++
	n, _ := sys.Send(fd, b) // why not is of no interest
	return n
}

func (e *engine) Abort(fd int32) {
	e.of(fd, "abort")
	e.stats.Calls++
	_ = sys.SetAbort(fd) // without it the peer sees a FIN
}

func (e *engine) Submit(op *loop.Op) {
	if op.Engine != opFree {
		panic("epollfallback: submit: the operation is in flight")
	}
	if op.Code == loop.Connect {
		e.submitConnect(op)
		return
	}
	d := e.of(op.FD, "submit")
	slot := &d.recv
	switch op.Code {
	case loop.Accept:
		e.begin(op, d)
		if op.Msg != nil {
			*op.Peer = loop.Addr{}
		}
		if d.accepts == nil {
			d.accepts = new(queue[*loop.Op])
		}
		d.accepts.push(op)
		if d.readable {
			e.queue(d)
		}
		return
	case loop.Recv:
		d.recvSize = op.Size
	case loop.RecvMulti:
		d.recvSize = loop.ClassHead
		d.multi = 0
	case loop.Send:
		slot = &d.send
		if len(op.Vecs) > loop.VecsMax {
			panic(fmt.Sprintf("epollfallback: submit: %d pieces in one send", len(op.Vecs)))
		}
	default:
		panic(fmt.Sprintf("epollfallback: submit: unknown code %d", op.Code))
	}
	if *slot != nil {
		panic(fmt.Sprintf("epollfallback: submit: descriptor %d has such an operation in flight", op.FD))
	}
	*slot = op
	e.begin(op, d)
	switch {
	case op.Code == loop.Send:
		switch {
		case !d.writable:
		case e.polling && op.Pipe == nil && length(op.Vecs) < batchBytes:
			e.delay(d)
		default:
			e.trySend(d)
		}
	case d.readable:
		e.queue(d)
	}
}

// begin accounts for an Op that is in flight from now on; d is nil for a
// connect without a socket.
func (e *engine) begin(op *loop.Op, d *desc) {
	op.Engine = opWaiting
	op.N, op.Err, op.More, op.Buf = 0, 0, false, nil
	e.stats.InFlight++
	if d != nil {
		d.busy++
	}
}

// known sets the result of an Op for Poll to deliver.
func (e *engine) known(op *loop.Op, n int, errno syscall.Errno) {
	op.N, op.Err = n, errno
	op.Engine = opKnown
	e.results.push(op)
}

func (e *engine) Cancel(op *loop.Op) {
	if op.Engine == opKnown {
		op.More = false // its result ends a series
	}
	if op.Engine != opWaiting {
		return
	}
	// The result is written when it is delivered: the submitter may still be
	// looking at the last one of a series.
	op.Engine = opCancelled
	e.results.push(op)
	d := e.descs.At(int(op.FD))
	switch {
	case op.Code == loop.Accept:
		d.accepts.remove(op)
	case op == d.recv && d.starved:
		d.starved = false
		e.starved[d.recvSize].remove(d)
	}
}

func (e *engine) Close() error {
	e.wakeMu.Lock()
	defer e.wakeMu.Unlock()
	if e.wakeFD < 0 {
		return nil
	}
	sys.Close(e.wakeFD)
	e.wakeFD = -1
	e.pool.Returned = nil
	if errno := sys.Close(e.epfd); errno != 0 {
		return fmt.Errorf("close epoll: %w", errno)
	}
	return nil
}

func (e *engine) Wake() {
	if e.woken.Swap(true) {
		return // the loop has not seen the last one yet
	}
	e.wakeMu.Lock()
	defer e.wakeMu.Unlock()
	if e.wakeFD >= 0 {
		sys.SignalEvent(e.wakeFD)
	}
}

func (e *engine) Poll(wait time.Duration, deliver func(*loop.Op)) error {
	if e.polling {
		panic("epollfallback: Poll is called from deliver")
	}
	n, errno := e.wait(wait)
	if errno != 0 {
		return fmt.Errorf("epoll_wait: %w", errno)
	}
	e.now = sys.Monotonic()
	e.polling, e.deliver = true, deliver
	for i := range e.events[:n] {
		e.note(&e.events[i])
	}
	for class := range e.starved {
		e.feed(loop.Class(class))
	}
	e.ready, e.serving = e.serving[:0], e.ready
	for _, d := range e.serving {
		d.queued = false
		e.serve(d)
		if e.brought >= batchBytes {
			e.finishKnown()
			e.sendDelayed()
			// Sends that are done give their buffers back, still in the cache,
			// before the next receive asks for one.
			e.finishKnown()
		}
	}
	for round := 0; round < roundsMax && e.results.len()+len(e.delayed) > 0; round++ {
		e.finishKnown()
		e.sendDelayed()
	}
	e.polling, e.deliver = false, nil
	return nil
}

// delay has the send of d made by sendDelayed.
func (e *engine) delay(d *desc) {
	if !d.delayed {
		d.delayed = true
		e.delayed = append(e.delayed, d)
	}
}

// sendDelayed makes the sends that waited for the results before them.
func (e *engine) sendDelayed() {
	for _, d := range e.delayed {
		d.delayed = false
		if d.writable && d.send != nil && d.send.Engine == opWaiting {
			e.trySend(d)
		}
	}
	e.delayed = e.delayed[:0]
}

// finishKnown delivers the results that are known now.
func (e *engine) finishKnown() {
	e.brought = 0
	for range e.results.len() {
		e.finish(e.results.pop())
	}
}

// wait collects events: at most for the given time, and not sleeping if there
// is something to do.
func (e *engine) wait(d time.Duration) (int, syscall.Errno) {
	if d == 0 || e.results.len() > 0 || len(e.ready) > 0 || len(e.delayed) > 0 || e.canFeed() {
		e.stats.Calls++
		n, errno := sys.EpollWait(e.epfd, e.events, 0)
		if errno == syscall.EINTR {
			return 0, 0
		}
		return n, errno
	}
	deadline := int64(math.MaxInt64)
	first := loop.RawWait
	if d > 0 {
		deadline = sys.Monotonic() + int64(d)
		first = min(first, d)
	}
	e.stats.Waits++
	n, errno := sys.EpollWait(e.epfd, e.events, milliseconds(first))
	// A signal ends the raw wait too: it may be the scheduler's, which wants
	// the P for others.
	for n == 0 && (errno == 0 || errno == syscall.EINTR) {
		rest := -1
		if d > 0 {
			left := deadline - sys.Monotonic()
			if left <= 0 {
				return 0, 0
			}
			rest = milliseconds(time.Duration(left))
		}
		e.stats.Waits++
		n, errno = sys.EpollWaitLong(e.epfd, e.events, rest)
	}
	return n, errno
}

// milliseconds rounds up, so that no wait ends early.
func milliseconds(d time.Duration) int {
	return int(min((d+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
}

// note remembers what an event tells.
func (e *engine) note(event *unix.EpollEvent) {
	if event.Pad == 0 {
		e.woken.Store(false)
		return
	}
	d := e.descs.At(int(event.Fd))
	if d.age != uint32(event.Pad) {
		e.stats.Stale++
		return
	}
	const ends = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if event.Events&ends != 0 {
		d.hangup = true
	}
	if event.Events&unix.EPOLLPRI != 0 {
		d.urgent = true
	}
	if event.Events&(unix.EPOLLIN|ends) != 0 {
		d.readable = true
	}
	if event.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		d.writable = true
	}
	if d.busy > 0 {
		e.queue(d)
	}
}

// queue lets the next turn serve d.
func (e *engine) queue(d *desc) {
	if !d.queued {
		d.queued = true
		e.ready = append(e.ready, d)
	}
}

// serve does for d what its readiness allows. Every delivery may submit, cancel
// and close, and d may serve another descriptor after it.
func (e *engine) serve(d *desc) {
	if d.writable {
		if op := d.connect; op != nil && op.Engine == opWaiting {
			e.known(op, 0, sys.SocketError(d.fd))
			e.stats.Calls++
		}
		if d.send != nil && d.send.Engine == opWaiting {
			e.trySend(d)
		}
	}
	if d.accepts != nil {
		for range d.accepts.len() {
			if !d.readable || d.accepts.len() == 0 {
				break
			}
			e.tryAccept(d)
		}
		if d.readable && d.accepts.len() > 0 {
			e.queue(d)
		}
	}
	if d.readable && !d.starved && d.recv != nil && d.recv.Engine == opWaiting {
		e.tryRecv(d)
	}
}

// finish delivers a result of op.
func (e *engine) finish(op *loop.Op) {
	if op.Engine == opCancelled {
		op.N, op.Err, op.More, op.Buf = 0, syscall.ECANCELED, false, nil
	}
	e.stats.Results++
	if op.More {
		op.Engine = opWaiting
		if d := e.descs.At(int(op.FD)); d.readable {
			e.queue(d)
		}
		e.deliver(op)
		return
	}
	op.Engine = opFree
	e.stats.InFlight--
	if op.FD >= 0 { // else a connect without a socket
		d := e.descs.At(int(op.FD))
		d.busy--
		switch op.Code {
		case loop.Recv, loop.RecvMulti:
			d.recv = nil
		case loop.Send:
			d.send = nil
		case loop.Connect:
			d.connect = nil
		}
	}
	e.deliver(op)
}
