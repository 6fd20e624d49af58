package ring

import (
	"cmp"
	"fmt"
	"syscall"

	abi "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// Bytes that go by a pipe are moved by splice(2) from the loop, once a poll of
// the ring tells that the socket is ready: IORING_OP_SPLICE hands each to a
// kernel thread.

// await polls a descriptor once.
func (e *engine) await(kind uint64, fd int32, d *desc, events uint32) {
	s, _ := e.entry()
	s.PrepOperation(abi.IORING_OP_POLL_ADD, fd, 0, 0, 0)
	s.SetOpFlags(events)
	s.SetUserData(userData(kind, d.age, fd))
	e.held++
}

func (e *engine) awaitReadable(fd int32, d *desc) {
	d.polledIn = true
	e.await(kindReadable, fd, d, unix.POLLIN|unix.POLLRDHUP)
}

func (e *engine) awaitWritable(fd int32, d *desc) {
	d.polledOut = true
	e.await(kindWritable, fd, d, unix.POLLOUT)
}

// readable receives into a pipe. Where there is none, and where splice(2) finds
// nothing, or the end, it lets the ring receive into a buffer: splice stops at
// urgent data, which a receive steps over (tcp(7)).
func (e *engine) readable(fd int32, age uint32, res int32, deliver func(*loop.Op)) {
	e.held--
	d := e.current(fd, age)
	if d == nil {
		return
	}
	if !d.polledIn {
		e.fail(fmt.Errorf("io_uring: descriptor %d became readable without having been polled", fd))
		return
	}
	d.polledIn = false
	op := d.recv
	_, errno := split(res)
	if errno == 0 {
		op.N, errno = e.recvPipe(fd, op)
	}
	if again(errno) {
		if !d.recvCancel && !e.closing {
			e.armRecv(fd, d)
			return
		}
		errno = syscall.ECANCELED
	}
	op.Err = errno
	d.recv, d.drained = nil, false
	e.finish(op, deliver)
}

// recvPipe moves into a pipe what is there; EAGAIN if that is nothing, or there
// is no pipe.
func (e *engine) recvPipe(fd int32, op *loop.Op) (int, syscall.Errno) {
	buf := e.pool.Get(loop.ClassPipe)
	if buf == nil {
		return 0, syscall.EAGAIN
	}
	_, to := buf.Ends()
	e.stats.Calls++
	n, errno := sys.Splice(fd, to, int(op.Max))
	buf.Moved(n)
	if n == 0 {
		buf.Release()
		return 0, cmp.Or(errno, syscall.EAGAIN)
	}
	op.Buf = buf
	return n, 0
}

// sendPipe sends what a pipe holds at once, or when there is room.
func (e *engine) sendPipe(op *loop.Op, d *desc) {
	n, errno := e.drain(op)
	if errno == syscall.EAGAIN {
		e.awaitWritable(op.FD, d)
		return
	}
	e.knowSent(op, d, n, errno)
}

// drain moves to the socket what it takes of the pipe.
func (e *engine) drain(op *loop.Op) (int, syscall.Errno) {
	from, _ := op.Pipe.Ends()
	e.stats.Calls++
	n, errno := sys.Splice(from, op.FD, op.Pipe.Piped())
	op.Pipe.Moved(-n)
	return n, errno
}

func (e *engine) writable(fd int32, age uint32, res int32, deliver func(*loop.Op)) {
	e.held--
	d := e.current(fd, age)
	if d == nil {
		return
	}
	if !d.polledOut {
		e.fail(fmt.Errorf("io_uring: descriptor %d became writable without having been polled", fd))
		return
	}
	d.polledOut = false
	op := d.send
	n := 0
	_, errno := split(res)
	if errno == 0 {
		n, errno = e.drain(op)
	}
	if again(errno) {
		if !d.sendCancel && !e.closing {
			e.awaitWritable(fd, d)
			return
		}
		errno = syscall.ECANCELED
	}
	op.N, op.Err = n, errno
	d.send = nil
	e.finish(op, deliver)
}
