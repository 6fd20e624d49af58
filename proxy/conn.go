package proxy

import (
	"syscall"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"golang.org/x/sys/unix"
)

// conn is the transport under a client connection or a backend stream: a
// descriptor, what was received and not consumed, what waits to be sent, and
// one deadline. It moves bytes and knows no protocol; its owner decides what
// is wanted, and settle asks the engine for it.
//
// Most connections rest most of the time: what only bytes on their way need is
// in work, which a conn borrows while it has any.
type conn struct {
	p *Proxy
	*work
	recv loop.Op  // its User names c
	tls  *session // nil: what is queued goes as it is

	timer    loop.Timer
	deadline int64 // when owner.timeout is due, 0 for never: the timer may fire earlier
	since    int64 // when the deadline began

	fd        int32
	fault     fault // of the receive side
	sendFault fault // of the send side: nothing more can be sent
	waits     wait
	eof       bool // the peer's FIN was received
	progress  bool // something moved since the deadline was set
	dirty     bool // in p.dirty
	starved   bool // in p.starved
	abort     bool // closing is to send a RST
	closing   bool // waiting for operations to come back, then freed
}

// fault is the errno that one side of a connection failed with, 0 for none.
type fault uint16

// owner is what a conn carries: a client connection or a backend stream.
type owner interface {
	// advance does all that can be done with the bytes and room there is.
	advance()
	// wantRecv is the kind of receive that is wanted now: 0 for none,
	// loop.Recv or loop.RecvMulti.
	wantRecv() (loop.Code, loop.Class)
	// wantSend reports whether queued bytes may be sent now.
	wantSend() bool
	// wrote is told of n bytes that the kernel has taken. It reports whether
	// the owner has waited for that.
	wrote(n int) bool
	// waitsFor tells which deadline runs now.
	waitsFor() (wait, int64)
	// timeout is called when the deadline has passed.
	timeout()
	// free gives the owner back after its conn was closed.
	free()
}

// wait is what a deadline is for. A deadline starts anew when the kind changes
// and on progress.
type wait uint8

const (
	waitNothing wait = iota
	waitIdle
	waitDrain
	waitHead
	waitBody
	waitSend
	waitLinger
	waitConnect
	waitHandshake
	waitTunnel
)

// Tags of a conn's operations.
const (
	tagRecv uint8 = iota + 1
	tagSend
	tagConnect
	tagAccept
)

// work is what a conn needs while something is queued or being sent. It is given
// back empty, with the memory of its queues, for the next conn that something
// comes from.
type work struct {
	in  inQueue
	out outQueue

	// Bytes of our own making are written into pad behind padEnd, and queued.
	pad    *loop.Buffer
	padEnd int

	send loop.Op
	msg  loop.Msg             // of send
	vecs [loop.VecsMax][]byte // of msg
}

// self names c.
func (c *conn) self() loop.Token { return c.recv.User }

// sending reports whether a send is in flight.
func (c *conn) sending() bool { return c.send.InFlight() }

// mark has c settled before the next turn.
func (c *conn) mark() {
	if !c.dirty {
		c.dirty = true
		c.p.dirty = append(c.p.dirty, c)
	}
}

// starve has c settled when there may be memory again.
func (c *conn) starve() {
	if !c.starved {
		c.starved = true
		c.p.starved = append(c.p.starved, c)
	}
}

// settle advances the owner, then asks the engine for what is wanted.
func (c *conn) settle() {
	o := c.owner()
	if !c.closing {
		o.advance()
	}
	for c.tls != nil && !c.closing && c.tls.fill() {
		o.advance()
	}
	if c.closing {
		c.reap()
		return
	}
	if !c.sending() && c.queued() && c.sendFault == 0 && o.wantSend() {
		c.flush()
	}
	if !c.recv.InFlight() && !c.eof && c.fault == 0 && (c.tls == nil || c.tls.thirsty()) {
		if code, class := o.wantRecv(); code != 0 {
			c.recv.Code, c.recv.Size, c.recv.FD = code, class, c.fd
			c.p.engine.Submit(&c.recv)
		}
	}
	c.setDeadline(o)
	c.rest()
}

// flush sends what is queued, as much as one send takes.
func (c *conn) flush() {
	out := &c.out
	if c.tls != nil {
		if !c.tls.seal() {
			return
		}
		out = &c.tls.out
	}
	c.rise()
	op := &c.send
	op.Code, op.Tag, op.FD, op.User = loop.Send, tagSend, c.fd, c.self()
	op.Msg = &c.msg
	if op.Pipe = out.pipe(); op.Pipe == nil {
		op.Vecs = c.vecs[:out.gather(&c.vecs)]
	}
	c.p.engine.Submit(op)
}

// rise gives c a work of its own, into which something may be put.
func (c *conn) rise() {
	if c.work == &c.p.nothing {
		c.work = c.p.takeWork()
	}
}

// rest gives c's work back, if nothing is in it.
func (c *conn) rest() {
	if c.work != &c.p.nothing && c.in.empty() && c.out.empty() && c.pad == nil && !c.sending() {
		c.p.putWork(c.work)
		c.work = &c.p.nothing
	}
}

// received takes the result of c.recv.
func (c *conn) received(op *loop.Op) {
	c.mark()
	if c.closing {
		if op.Buf != nil {
			op.Buf.Release()
			op.Buf = nil
		}
		return
	}
	switch {
	case op.Err == syscall.ECANCELED:
	case op.Err != 0:
		c.fault = fault(op.Err)
	case op.N == 0 && c.tls != nil:
		c.tls.ended = true
		c.tls.arrived()
	case op.N == 0:
		c.eof = true
	default:
		c.progress = true
		c.wire().add(op.Buf, op.N)
		op.Buf = nil
		if c.tls != nil {
			c.tls.arrived()
		}
	}
}

// room makes sure that n bytes of our own making can be written.
func (c *conn) room(n int) bool {
	c.rise()
	if c.pad != nil {
		if len(c.pad.Bytes())-c.padEnd >= n {
			return true
		}
		c.dropPad()
	}
	class := loop.ClassSmall
	for class.Bytes() < n {
		if class == loop.ClassBody {
			return false
		}
		class++
	}
	c.pad = c.p.pool.Get(class)
	return c.pad != nil
}

// scratch is where bytes of our own making are appended, within room.
func (c *conn) scratch() []byte { return c.pad.Bytes()[c.padEnd:c.padEnd] }

// write queues b, which was appended to scratch.
func (c *conn) write(b []byte) {
	if n := len(c.out.segs); n > c.out.head && c.out.segs[n-1].buf == c.pad && c.out.padEnd == c.padEnd {
		// It continues the last segment. A send of that is not disturbed:
		// the bytes behind its end were not lent.
		last := &c.out.segs[n-1]
		last.b = last.b[:len(last.b)+len(b)]
	} else {
		c.pad.Retain()
		c.out.add(c.pad, b)
	}
	c.padEnd += len(b)
	c.out.padEnd = c.padEnd
}

// push queues b, a part of buf whose one count c takes over, or with buf nil
// bytes that live forever.
func (c *conn) push(buf *loop.Buffer, b []byte) {
	c.rise()
	c.out.add(buf, b)
}

func (c *conn) dropPad() {
	if c.pad != nil {
		c.pad.Release()
		c.pad, c.padEnd = nil, 0
	}
}

// sent takes the result of c.send.
func (c *conn) sent(op *loop.Op) {
	n, errno := op.N, op.Err
	op.Vecs, op.Pipe = nil, nil
	if errno == 0 && c.tls != nil {
		c.progress = true
		c.tls.out.sent(n)
		if c.tls.out.empty() {
			c.tls.dropPad()
		}
	} else if errno == 0 {
		c.progress = true
		c.out.sent(n)
		if c.out.empty() {
			c.dropPad()
		}
		o := c.owner()
		if !o.wrote(n) && !c.closing && c.out.empty() && !c.stopped() {
			// There is nothing to advance, and nothing to ask for.
			c.setDeadline(o)
			c.rest()
			return
		}
	} else if !c.closing {
		c.sendFault = fault(errno)
	}
	c.mark()
}

// stopped reports whether c may have to be settled when others have taken bytes:
// unless all that came was consumed, and more is waited for.
func (c *conn) stopped() bool { return !c.recv.InFlight() || !c.in.empty() || c.tls != nil }

// setDeadline starts, keeps or ends the deadline. The timer itself is moved
// only when it would fire too late, so that a request costs no timer work.
func (c *conn) setDeadline(o owner) {
	kind, limit := o.waitsFor()
	if kind == waitNothing {
		c.waits, c.deadline = kind, 0
		return
	}
	if kind == c.waits && !c.progress {
		return
	}
	c.waits, c.progress = kind, false
	c.since = c.p.now
	c.deadline = c.p.now + limit
	if !c.timer.Scheduled() || c.deadline < c.timer.At() {
		c.p.wheel.Schedule(&c.timer, c.deadline)
	}
}

// fired is called when the timer fires.
func (c *conn) fired() {
	switch {
	case c.deadline == 0 || c.closing:
	case c.p.now < c.deadline:
		c.p.wheel.Schedule(&c.timer, c.deadline)
	default:
		c.waits, c.deadline = waitNothing, 0
		c.owner().timeout()
		c.mark()
	}
}

// close ends c. It may be called twice and in any state; c is freed when its
// operations have come back.
func (c *conn) close() {
	if c.closing {
		return
	}
	c.closing = true
	c.in.drop()
	if c.abort {
		c.p.engine.Abort(c.fd)
	}
	if c.sending() && (c.abort || c.p.engine.Shutdown(c.fd, unix.SHUT_RDWR) != 0) {
		c.p.engine.Cancel(&c.send)
	}
	c.p.engine.Cancel(&c.recv)
	if !c.sending() {
		c.out.drop()
	}
	c.mark()
}

// reap frees c once the kernel has returned all operations. Memory freed
// earlier would still be written or read by it.
func (c *conn) reap() {
	if c.recv.InFlight() || c.sending() {
		return // settled again by the last result
	}
	o := c.owner()
	if st, ok := o.(*stream); ok && st.connect.InFlight() {
		return
	}
	if s := c.tls; s != nil {
		if s.tls.Busy() {
			return // settled again when the helper is done
		}
		s.drop()
		c.tls = nil
	}
	c.out.drop()
	c.in.drop()
	c.dropPad()
	c.rest()
	c.p.wheel.Stop(&c.timer)
	if c.fd >= 0 {
		c.p.engine.CloseFD(c.fd)
	}
	c.fd = -1
	c.deadline, c.waits = 0, waitNothing
	c.eof, c.fault, c.sendFault, c.progress, c.abort, c.closing = false, 0, 0, false, false, false
	c.recv.User.Age++
	o.free()
}

// piece is a part of a received buffer.
type piece struct {
	buf        *loop.Buffer
	start, end int
}

// inQueue is what was received and not consumed, in order. It is bounded: a
// series of receives ends after loop.MultiBytes, and no other begins while
// bytes wait.
type inQueue struct {
	pieces []piece
}

func (q *inQueue) empty() bool { return len(q.pieces) == 0 }

// size is the number of bytes of the first piece.
func (q *inQueue) size() int { return q.pieces[0].end - q.pieces[0].start }

// front is the first run of contiguous bytes, unless they are in a pipe.
func (q *inQueue) front() []byte {
	f := &q.pieces[0]
	return f.buf.Bytes()[f.start:f.end]
}

// add appends the first n bytes of buf, whose count it takes over. Small
// pieces are copied behind the last one, so that a peer that sends byte by
// byte holds no more buffers than another.
func (q *inQueue) add(buf *loop.Buffer, n int) {
	if k := len(q.pieces); k > 0 && !buf.IsPipe() && !q.pieces[k-1].buf.IsPipe() {
		last := &q.pieces[k-1]
		// What lies behind end is lent to nobody, also if what lies before
		// it is being sent.
		if room := last.buf.Bytes()[last.end:]; n <= len(room) {
			last.end += copy(room, buf.Bytes()[:n])
			buf.Release()
			return
		}
	}
	q.pieces = append(q.pieces, piece{buf, 0, n})
}

// consume takes n bytes of the front away.
func (q *inQueue) consume(n int) {
	f := &q.pieces[0]
	f.start += n
	if f.start < f.end {
		return
	}
	f.buf.Release()
	q.pop()
}

// pass moves the first piece, which is in a pipe, to the end of out.
func (q *inQueue) pass(out *outQueue) {
	out.addPipe(q.pieces[0].buf, q.size())
	q.pop()
}

// lend consumes n bytes of the front and returns them with one count of their
// buffer, which the caller gives back.
func (q *inQueue) lend(n int) (*loop.Buffer, []byte) {
	f := &q.pieces[0]
	buf, b := f.buf, f.buf.Bytes()[f.start:f.start+n]
	f.start += n
	if f.start < f.end {
		buf.Retain()
	} else {
		q.pop()
	}
	return buf, b
}

func (q *inQueue) pop() {
	n := 0
	if len(q.pieces) > 1 {
		n = copy(q.pieces, q.pieces[1:])
	}
	q.pieces[n] = piece{}
	q.pieces = q.pieces[:n]
}

// join makes all bytes contiguous, in a buffer with room for more, so that a
// head that spans receives can be parsed. It returns the reason if it cannot:
// they are too many for any buffer, or there is no memory.
func (q *inQueue) join(pool *loop.Pool) message.Reason {
	total := 0
	for _, f := range q.pieces {
		total += f.end - f.start
	}
	if total >= loop.BodyBytes {
		return message.ReasonHeadTooLarge
	}
	class := loop.ClassSmall
	for total > class.Bytes()*3/4 && class < loop.ClassBody {
		class++
	}
	buf := pool.Get(class)
	if buf == nil {
		return message.ReasonMemory
	}
	n := 0
	for _, f := range q.pieces {
		n += copy(buf.Bytes()[n:], f.buf.Bytes()[f.start:f.end])
		f.buf.Release()
	}
	clear(q.pieces)
	q.pieces = append(q.pieces[:0], piece{buf, 0, n})
	return message.ReasonNone
}

// shrink moves a few bytes, whose rest may be long in coming, out of a large
// buffer.
func (q *inQueue) shrink(pool *loop.Pool) {
	f := &q.pieces[0]
	if f.buf.Class() == loop.ClassSmall || f.end-f.start > loop.SmallBytes/2 {
		return
	}
	buf := pool.Get(loop.ClassSmall)
	if buf == nil {
		return
	}
	n := copy(buf.Bytes(), f.buf.Bytes()[f.start:f.end])
	f.buf.Release()
	*f = piece{buf, 0, n}
}

// full reports whether the last buffer has no room behind its bytes, so that
// what comes next will not be contiguous with them.
func (q *inQueue) full() bool {
	last := &q.pieces[len(q.pieces)-1]
	return last.end == len(last.buf.Bytes())
}

func (q *inQueue) drop() {
	for i := range q.pieces {
		q.pieces[i].buf.Release()
		q.pieces[i] = piece{}
	}
	q.pieces = q.pieces[:0]
}

// segment is bytes to send. buf is nil for bytes that live forever.
type segment struct {
	buf   *loop.Buffer
	b     []byte
	piped int // bytes in buf, if that is a pipe
}

// outQueue is what waits to be sent, in order.
type outQueue struct {
	segs []segment
	head int // segs[:head] are sent
	held int // bytes of the buffers that the queue holds, each segment's counted
	// padEnd is the end in its conn's pad of the last segment, if that lies
	// in the pad.
	padEnd int
}

func (q *outQueue) empty() bool { return q.head == len(q.segs) }

// add appends b, a part of buf whose one count the queue takes over.
func (q *outQueue) add(buf *loop.Buffer, b []byte) {
	if buf != nil {
		q.held += buf.Class().Bytes()
	}
	q.segs = append(q.segs, segment{buf: buf, b: b})
	q.padEnd = -1
}

// addPipe appends the n bytes in a pipe, whose one count the queue takes over.
func (q *outQueue) addPipe(pipe *loop.Buffer, n int) {
	q.add(pipe, nil)
	q.segs[len(q.segs)-1].piped = n
}

// pipe is what is to be sent next, if that is a pipe.
func (q *outQueue) pipe() *loop.Buffer {
	if q.empty() || q.segs[q.head].piped == 0 {
		return nil
	}
	return q.segs[q.head].buf
}

// bytes is the number of queued bytes, at most limit.
func (q *outQueue) bytes(limit int) int {
	n := 0
	for _, s := range q.segs[q.head:] {
		if n += len(s.b) + s.piped; n >= limit {
			return limit
		}
	}
	return n
}

// gather fills vecs from the front up to a pipe, and returns how many it took.
func (q *outQueue) gather(vecs *[loop.VecsMax][]byte) int {
	n := 0
	for _, s := range q.segs[q.head:] {
		if n == len(vecs) || s.piped > 0 {
			break
		}
		vecs[n] = s.b
		n++
	}
	return n
}

// sent takes n sent bytes away.
func (q *outQueue) sent(n int) {
	for n > 0 {
		s := &q.segs[q.head]
		if n < s.piped {
			s.piped -= n
			return
		}
		if s.piped == 0 && n < len(s.b) {
			s.b = s.b[n:]
			return
		}
		n -= len(s.b) + s.piped
		q.release(s)
		q.head++
	}
	if q.head == len(q.segs) {
		q.segs, q.head = q.segs[:0], 0
	} else if q.head >= 64 {
		k := copy(q.segs, q.segs[q.head:])
		clear(q.segs[k:])
		q.segs, q.head = q.segs[:k], 0
	}
}

func (q *outQueue) release(s *segment) {
	if s.buf != nil {
		q.held -= s.buf.Class().Bytes()
		s.buf.Release()
	}
	*s = segment{}
}

// skip takes the first n segments away.
func (q *outQueue) skip(n int) {
	for range n {
		q.release(&q.segs[q.head])
		q.head++
	}
}

// join moves all segments of o behind those of q.
func (q *outQueue) join(o *outQueue) {
	for i := o.head; i < len(o.segs); i++ {
		q.add(o.segs[i].buf, o.segs[i].b)
		q.segs[len(q.segs)-1].piped = o.segs[i].piped
		o.segs[i] = segment{}
	}
	*o = outQueue{}
}

func (q *outQueue) drop() {
	for i := q.head; i < len(q.segs); i++ {
		q.release(&q.segs[i])
	}
	q.segs, q.head = q.segs[:0], 0
}
