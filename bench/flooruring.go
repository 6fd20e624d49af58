package main

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/ring"
)

const (
	floorMemory  = 256 << 20 // bound of the buffers' bytes
	floorAccepts = 16        // in flight at a time
)

// ringEnd is one of two sockets whose bytes go to the other. Small messages come
// by a series of receives; when one has filled its buffer, what follows comes by
// single receives into large buffers, as in the proxy.
type ringEnd struct {
	index   uint32
	fd      int32
	peer    *ringEnd
	connect loop.Op
	receive loop.Op
	send    loop.Op
	what    loop.Msg    // of send
	class   loop.Class  // of the next receive
	queue   []ringPiece // for fd; while a send is in flight, it has the first of them
	ending  bool
}

// ringPiece is what is left of a received buffer.
type ringPiece struct {
	buffer *loop.Buffer
	data   []byte
}

// ringFloor forwards from one thread.
type ringFloor struct {
	engine  loop.Engine
	connect loop.Msg // to the backend
	accepts [floorAccepts]loop.Op
	ends    []*ringEnd // by index
	free    []uint32
}

func runFloorRing(listener int, backend netip.AddrPort) error {
	engine, err := ring.Open(ring.Config{Pool: loop.NewPool(floorMemory)})
	if err != nil {
		return err
	}
	f := &ringFloor{engine: engine, connect: loop.Msg{Peer: &loop.Addr{AddrPort: backend}}}
	if err := engine.Attach(int32(listener)); err != nil {
		return err
	}
	for i := range f.accepts {
		f.accepts[i] = loop.Op{Code: loop.Accept, FD: int32(listener)}
		engine.Submit(&f.accepts[i])
	}
	for {
		if err := engine.Poll(-1, f.deliver); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
	}
}

// newEnd takes a free place.
func (f *ringFloor) newEnd(fd int32) *ringEnd {
	if len(f.free) == 0 {
		f.free = append(f.free, uint32(len(f.ends)))
		f.ends = append(f.ends, nil)
	}
	e := &ringEnd{index: f.free[len(f.free)-1], fd: fd, class: loop.ClassHead}
	f.free = f.free[:len(f.free)-1]
	f.ends[e.index] = e
	return e
}

func (f *ringFloor) deliver(op *loop.Op) {
	if op.Code == loop.Accept {
		f.accepted(op)
		return
	}
	e := f.ends[op.User.Index]
	switch op {
	case &e.connect:
		if op.Err != 0 {
			f.end(e)
		}
		f.arm(e)
		f.arm(e.peer)
	case &e.receive:
		f.received(e)
	case &e.send:
		f.sent(e)
	}
	if e.ending {
		f.reap(e)
		f.reap(e.peer)
	}
}

// accepted connects a client to the backend.
func (f *ringFloor) accepted(op *loop.Op) {
	if op.Err == 0 {
		client, backend := f.newEnd(int32(op.N)), f.newEnd(-1)
		client.peer, backend.peer = backend, client
		c := &backend.connect
		*c = loop.Op{Code: loop.Connect, FD: -1, Msg: &f.connect, User: loop.Token{Index: backend.index}}
		f.engine.Submit(c)
		backend.fd = c.FD
	}
	f.engine.Submit(op)
}

// arm receives from e, unless something is left to send of what came before.
func (f *ringFloor) arm(e *ringEnd) {
	if e.ending || e.receive.InFlight() || len(e.peer.queue) > 1 {
		return
	}
	e.receive = loop.Op{Code: loop.RecvMulti, Size: e.class, FD: e.fd, User: loop.Token{Index: e.index}}
	if e.class == loop.ClassBody {
		e.receive.Code = loop.Recv
	}
	f.engine.Submit(&e.receive)
}

func (f *ringFloor) received(e *ringEnd) {
	op := &e.receive
	if op.Err != 0 || op.N == 0 {
		f.end(e)
		return
	}
	piece := ringPiece{op.Buf, op.Buf.Bytes()[:op.N]}
	switch {
	case e.ending:
		piece.buffer.Release()
		return
	case op.N == len(op.Buf.Bytes()):
		e.class = loop.ClassBody
	case op.N <= loop.HeadBytes:
		e.class = loop.ClassHead
	}
	e.peer.queue = append(e.peer.queue, piece)
	f.push(e.peer)
	if !op.More {
		f.arm(e)
	}
}

// push sends what waits for e.
func (f *ringFloor) push(e *ringEnd) {
	if e.ending || e.send.InFlight() || len(e.queue) == 0 {
		return
	}
	e.what.Vecs = e.what.Vecs[:0]
	e.send = loop.Op{Code: loop.Send, FD: e.fd, User: loop.Token{Index: e.index}, Msg: &e.what}
	for _, piece := range e.queue[:min(len(e.queue), loop.VecsMax)] {
		e.send.Vecs = append(e.send.Vecs, piece.data)
	}
	f.engine.Submit(&e.send)
}

// sent gives back what was sent.
func (f *ringFloor) sent(e *ringEnd) {
	if e.send.Err != 0 {
		f.end(e)
		return
	}
	left, whole := e.send.N, 0
	for whole < len(e.queue) && left >= len(e.queue[whole].data) {
		left -= len(e.queue[whole].data)
		e.queue[whole].buffer.Release()
		whole++
	}
	e.queue = append(e.queue[:0], e.queue[whole:]...)
	if left > 0 {
		e.queue[0].data = e.queue[0].data[left:]
	}
	f.push(e)
	f.arm(e.peer)
}

// end ends both sockets: HTTP clients do not close halves.
func (f *ringFloor) end(e *ringEnd) {
	for _, side := range []*ringEnd{e, e.peer} {
		if side.ending {
			continue
		}
		side.ending = true
		f.engine.Cancel(&side.connect)
		if side.fd >= 0 {
			f.engine.Shutdown(side.fd, unix.SHUT_RDWR)
		}
	}
}

// reap frees an end that the kernel is done with.
func (f *ringFloor) reap(e *ringEnd) {
	if f.ends[e.index] != e || e.connect.InFlight() || e.receive.InFlight() || e.send.InFlight() {
		return
	}
	for _, piece := range e.queue {
		piece.buffer.Release()
	}
	if e.fd >= 0 {
		f.engine.CloseFD(e.fd)
	}
	f.ends[e.index] = nil
	f.free = append(f.free, e.index)
}
