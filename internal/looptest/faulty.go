package looptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// Rates are the probabilities of faults, each from 0 to 1.
type Rates struct {
	Short  float64 // a send is given only a part of its bytes
	Split  float64 // received bytes come in several results
	Late   float64 // a result is held back for one to five turns
	Refuse float64 // a connect that succeeds is told as refused
	Reset  float64 // a receive or a send ends with ECONNRESET; the peer sees a reset when the descriptor is closed
}

// Harmless faults change no byte and break no connection.
var Harmless = Rates{Short: 0.3, Split: 0.3, Late: 0.3}

// Harmful faults come beside the harmless ones, now and then.
var Harmful = Rates{Short: 0.3, Split: 0.3, Late: 0.3, Refuse: 0.02, Reset: 0.005}

// FaultyEngine is an engine around another that makes the worst of the
// contract, and keeps it. The faults follow from its seed and from the order
// of what is asked and what the other engine delivers. It allocates.
type FaultyEngine struct {
	loop.Engine
	Rates Rates // may be changed between two turns

	rng     *rand.Rand
	pool    *loop.Pool // for what comes in several results
	shadows []*shadow
	free    []uint32
	late    []*shadow // those with results that wait, in the order of their first
	conns   map[int32]*faultyConn
	turn    uint64
	flying  int
	results uint64
}

// shadow stands for a submitter's Op towards the inner engine.
type shadow struct {
	inner   loop.Op
	outer   *loop.Op
	running bool // the inner engine has it
	doom    syscall.Errno
	queue   []lateResult
	listed  bool // in FaultyEngine.late
}

// lateResult is a result that the submitter is told of in turn due.
type lateResult struct {
	op  loop.Op // the fields that an engine sets
	due uint64
}

// faultyConn is what is kept for a descriptor.
type faultyConn struct {
	recv, send *shadow
	busy       int
	rest       []byte // received, for the next receive
	broken     bool   // by a reset of ours
	acceptDue  uint64 // of the last accept, which are told in order
}

// Faulty wraps an engine, which it closes with itself; it begins with the
// harmful rates. The same seed makes the same faults.
func Faulty(engine loop.Engine, seed uint64) *FaultyEngine {
	e := &FaultyEngine{
		Engine: engine,
		Rates:  Harmful,
		pool:   loop.NewPool(1 << 30),
		conns:  map[int32]*faultyConn{},
	}
	e.Seed(seed)
	return e
}

// Seed has the faults from now on follow from seed, as if the engine were new.
func (e *FaultyEngine) Seed(seed uint64) { e.rng = rand.New(rand.NewPCG(seed, 0xfa)) }

// Detail tells the faulty engine from the one that it wraps.
func (e *FaultyEngine) Detail() string { return e.Engine.Detail() + ", faulty" }

// Stats are the inner engine's, with the operations as the submitter sees them.
func (e *FaultyEngine) Stats() loop.Stats {
	s := e.Engine.Stats()
	s.InFlight, s.Results = e.flying, e.results
	return s
}

func (e *FaultyEngine) happens(rate float64) bool { return rate > 0 && e.rng.Float64() < rate }

func (e *FaultyEngine) conn(fd int32) *faultyConn {
	c := e.conns[fd]
	if c == nil {
		c = &faultyConn{}
		e.conns[fd] = c
	}
	return c
}

// Submit takes op and submits another in its place.
func (e *FaultyEngine) Submit(op *loop.Op) {
	if op.Engine != 0 {
		panic("looptest: submit: the operation is in flight")
	}
	s := e.newShadow(op)
	op.N, op.Err, op.More, op.Buf = 0, 0, false, nil
	e.flying++
	if op.Code == loop.Connect {
		e.forward(s)
		op.FD = s.inner.FD
		if op.FD >= 0 {
			e.conn(op.FD).busy++
		}
		return
	}
	c := e.conn(op.FD)
	c.busy++
	switch op.Code {
	case loop.Recv, loop.RecvMulti:
		c.recv = s
		switch {
		case c.broken:
			e.push(s, loop.Op{Err: syscall.ECONNRESET})
			return
		case len(c.rest) > 0:
			e.push(s, e.fromRest(c, op))
			return
		}
	case loop.Send:
		c.send = s
		if c.broken {
			e.push(s, loop.Op{Err: syscall.EPIPE})
			return
		}
		if op.Pipe == nil && e.happens(e.Rates.Short) {
			s.inner.Msg = &loop.Msg{Vecs: e.shorten(op.Vecs)}
		}
	}
	e.forward(s)
}

func (e *FaultyEngine) forward(s *shadow) {
	s.running = true
	e.Engine.Submit(&s.inner)
}

func (e *FaultyEngine) newShadow(op *loop.Op) *shadow {
	var s *shadow
	if n := len(e.free); n > 0 {
		s = e.shadows[e.free[n-1]]
		e.free = e.free[:n-1]
	} else {
		s = &shadow{inner: loop.Op{User: loop.Token{Index: uint32(len(e.shadows))}}}
		e.shadows = append(e.shadows, s)
	}
	place := s.inner.User
	s.inner = *op
	s.inner.User = place
	s.outer = op
	s.doom = 0
	op.Engine = place.Index + 1
	return s
}

// shorten takes a part of the bytes, at least one.
func (e *FaultyEngine) shorten(vecs [][]byte) [][]byte {
	total := 0
	for _, v := range vecs {
		total += len(v)
	}
	if total < 2 {
		return vecs
	}
	left := 1 + e.rng.IntN(total-1)
	var short [][]byte
	for _, v := range vecs {
		v = v[:min(len(v), left)]
		left -= len(v)
		short = append(short, v)
	}
	return short
}

// fromRest makes the result of a receive from bytes that came before.
func (e *FaultyEngine) fromRest(c *faultyConn, op *loop.Op) loop.Op {
	class := loop.ClassHead
	if op.Code == loop.Recv {
		class = min(op.Size, loop.ClassBody)
	}
	buf := e.pool.Get(class)
	if buf == nil {
		panic("looptest: out of memory for split receives")
	}
	n := min(len(c.rest), class.Bytes())
	if e.happens(e.Rates.Split) {
		n = 1 + e.rng.IntN(n)
	}
	copy(buf.Bytes(), c.rest[:n])
	c.rest = c.rest[n:]
	return loop.Op{N: n, Buf: buf}
}

// Cancel cancels what the inner engine still works on.
func (e *FaultyEngine) Cancel(op *loop.Op) {
	if op.Engine == 0 {
		return
	}
	if s := e.shadows[op.Engine-1]; s.running {
		e.Engine.Cancel(&s.inner)
	}
}

// Shutdown sends nothing on a connection that was reset.
func (e *FaultyEngine) Shutdown(fd int32, how int) syscall.Errno {
	if c := e.conns[fd]; c != nil && c.broken {
		return syscall.ENOTCONN
	}
	return e.Engine.Shutdown(fd, how)
}

// Quiet knows what was held back.
func (e *FaultyEngine) Quiet(fd int32) bool {
	if c := e.conns[fd]; c != nil && (c.broken || len(c.rest) > 0) {
		return false
	}
	return e.Engine.Quiet(fd)
}

// SendNow sends nothing on a connection that was reset.
func (e *FaultyEngine) SendNow(fd int32, b []byte) int {
	if c := e.conns[fd]; c != nil && c.broken {
		return 0
	}
	return e.Engine.SendNow(fd, b)
}

// CloseFD forgets what was held back.
func (e *FaultyEngine) CloseFD(fd int32) {
	if c := e.conns[fd]; c != nil {
		if c.busy != 0 {
			panic(fmt.Sprintf("looptest: close: descriptor %d has %d operations in flight", fd, c.busy))
		}
		delete(e.conns, fd)
	}
	e.Engine.CloseFD(fd)
}

// Poll collects from the inner engine and delivers what is due.
func (e *FaultyEngine) Poll(wait time.Duration, deliver func(*loop.Op)) error {
	if len(e.late) > 0 {
		wait = 0
	}
	e.turn++
	if err := e.Engine.Poll(wait, e.collect); err != nil {
		return err
	}
	waiting := e.late
	e.late = nil
	for _, s := range waiting {
		for len(s.queue) > 0 && s.queue[0].due <= e.turn {
			e.tell(s, deliver)
		}
		if s.listed = len(s.queue) > 0; s.listed {
			e.late = append(e.late, s)
		}
	}
	return nil
}

// tell delivers the first result of s.
func (e *FaultyEngine) tell(s *shadow, deliver func(*loop.Op)) {
	op, res := s.outer, s.queue[0].op
	s.queue = s.queue[1:]
	op.N, op.Err, op.More, op.Buf = res.N, res.Err, res.More, res.Buf
	e.results++
	if !op.More {
		op.Engine = 0
		e.flying--
		s.outer = nil
		e.free = append(e.free, s.inner.User.Index)
		if op.FD >= 0 {
			c := e.conn(op.FD)
			c.busy--
			switch s {
			case c.recv:
				c.recv = nil
			case c.send:
				c.send = nil
			}
		}
	}
	deliver(op)
}

// collect takes a result of the inner engine.
func (e *FaultyEngine) collect(inner *loop.Op) {
	s := e.shadows[inner.User.Index]
	s.running = inner.More
	switch inner.Code {
	case loop.Recv, loop.RecvMulti:
		e.collectRecv(s)
	case loop.Send:
		e.collectSend(s)
	case loop.Connect:
		if inner.Err == 0 && e.happens(e.Rates.Refuse) {
			inner.Err = syscall.ECONNREFUSED
			e.breakConn(inner.FD)
		}
		e.push(s, *inner)
	default:
		e.push(s, *inner)
	}
}

func (e *FaultyEngine) collectSend(s *shadow) {
	switch {
	case s.doom != 0 && s.inner.N == 0:
		e.push(s, loop.Op{Err: s.doom})
	case s.doom == 0 && s.inner.N > 0 && e.happens(e.Rates.Reset):
		e.push(s, s.inner) // the bytes went; nothing follows
		e.breakConn(s.inner.FD)
	default:
		e.push(s, s.inner)
	}
}

func (e *FaultyEngine) collectRecv(s *shadow) {
	op := &s.inner
	if op.Buf != nil && s.doom == 0 && e.happens(e.Rates.Reset) {
		s.doom = syscall.ECONNRESET
		e.breakConn(op.FD)
	}
	if s.doom != 0 {
		if op.Buf != nil {
			op.Buf.Release()
			op.Buf = nil
		}
		if op.More {
			e.Engine.Cancel(op)
		} else {
			e.push(s, loop.Op{Err: s.doom})
		}
		return
	}
	if op.N < 2 || op.Buf.IsPipe() || !e.happens(e.Rates.Split) {
		e.push(s, *op)
		return
	}
	// The first part stays where it is; the rest is copied, and waits for the
	// next receive or follows in the series.
	n := 1 + e.rng.IntN(op.N-1)
	rest := append([]byte(nil), op.Buf.Bytes()[n:op.N]...)
	first := *op
	first.N = n
	if op.Code == loop.Recv {
		e.conn(op.FD).rest = rest
		e.push(s, first)
		return
	}
	first.More = true
	e.push(s, first)
	second := e.fromRest(&faultyConn{rest: rest}, op)
	for rest = rest[second.N:]; len(rest) > 0; rest = rest[second.N:] {
		second.More = true
		e.push(s, second)
		second = e.fromRest(&faultyConn{rest: rest}, op)
	}
	second.More = op.More
	e.push(s, second)
}

// breakConn makes a connection one that was reset: nothing more is sent, what
// is in flight fails, and closing it sends a RST.
func (e *FaultyEngine) breakConn(fd int32) {
	c := e.conn(fd)
	if c.broken {
		return
	}
	c.broken = true
	c.rest = nil
	e.Engine.Abort(fd)
	if c.recv != nil && c.recv.running {
		c.recv.doom = syscall.ECONNRESET
		e.Engine.Cancel(&c.recv.inner)
	}
	if c.send != nil && c.send.running {
		c.send.doom = syscall.EPIPE
		e.Engine.Cancel(&c.send.inner)
	}
}

// push queues a result for the submitter.
func (e *FaultyEngine) push(s *shadow, op loop.Op) {
	due := e.turn
	if e.happens(e.Rates.Late) {
		due += 1 + e.rng.Uint64N(5)
	}
	if n := len(s.queue); n > 0 {
		due = max(due, s.queue[n-1].due)
	}
	if s.inner.Code == loop.Accept {
		c := e.conn(s.inner.FD)
		due = max(due, c.acceptDue)
		c.acceptDue = due
	}
	s.queue = append(s.queue, lateResult{op, due})
	if !s.listed {
		s.listed = true
		e.late = append(e.late, s)
	}
}

// Close drops what was held back and closes the inner engine.
func (e *FaultyEngine) Close() error {
	for _, s := range e.late {
		for _, l := range s.queue {
			if l.op.Buf != nil {
				l.op.Buf.Release()
			}
			if s.inner.Code == loop.Accept && l.op.Err == 0 {
				_ = unix.Close(l.op.N) // nobody knows of it
			}
		}
	}
	e.late = nil
	return errors.Join(e.Engine.Close(), e.pool.Close())
}
