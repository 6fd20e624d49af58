package epollfallback

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// submitConnect makes the socket and begins to connect. A socket joins the
// epoll set only then: before, it would report a hang-up.
func (e *engine) submitConnect(op *loop.Op) {
	op.FD = -1
	fd, errno := e.connect(op.Peer)
	if fd < 0 {
		e.begin(op, nil)
		e.known(op, 0, errno)
		return
	}
	op.FD = fd
	d := e.descs.At(int(fd))
	d.connect = op
	e.begin(op, d)
	if errno != syscall.EINPROGRESS {
		d.writable = errno == 0
		e.known(op, 0, errno)
	}
}

// connect returns an attached socket and what connect(2) said, or -1 and why
// there is no socket.
func (e *engine) connect(peer *loop.Addr) (int32, syscall.Errno) {
	family := unix.AF_UNIX
	var size uint32
	var errno syscall.Errno
	if peer.Path != "" {
		size, errno = e.address.SetUnix(peer.Path)
	} else {
		family, size, errno = e.address.SetAddrPort(peer.AddrPort)
	}
	if errno != 0 {
		return -1, errno
	}
	e.stats.Calls += 2
	fd, errno := sys.Socket(family, peer.AddrPort.Addr().IsLoopback())
	if errno != 0 {
		return -1, errno
	}
	began := sys.Connect(fd, &e.address, size)
	if errno := e.attach(fd); errno != 0 {
		sys.Close(fd)
		return -1, errno
	}
	return fd, began
}

// tryAccept serves the first waiting accept of a listener that is believed to
// have a connection.
func (e *engine) tryAccept(d *desc) {
	e.stats.Calls++
	fd, errno := sys.Accept(d.fd, &e.address)
	switch errno {
	case 0:
	case syscall.EAGAIN:
		d.readable = false
		return
	case syscall.ECONNABORTED:
		return // that one gave up; readable still, so there is another try
	default:
		e.finishAccept(d, 0, errno)
		return
	}
	if errno := e.attach(fd); errno != 0 {
		sys.Close(fd)
		e.finishAccept(d, 0, errno)
		return
	}
	e.descs.At(int(fd)).writable = true
	op := d.accepts.first()
	if op.Msg != nil {
		op.Peer.AddrPort = e.address.AddrPort()
	}
	e.finishAccept(d, int(fd), 0)
}

func (e *engine) finishAccept(d *desc, n int, errno syscall.Errno) {
	op := d.accepts.pop()
	op.N, op.Err = n, errno
	e.finish(op)
}

// length is the number of bytes in vecs.
func length(vecs [][]byte) int {
	n := 0
	for _, v := range vecs {
		n += len(v)
	}
	return n
}

// trySend makes the send of d, which is believed to have room.
func (e *engine) trySend(d *desc) {
	op := d.send
	if op.Pipe != nil {
		e.trySendPipe(d)
		return
	}
	total := length(op.Vecs)
	if total == 0 {
		e.known(op, 0, 0)
		return
	}
	e.stats.Calls++
	var n int
	var errno syscall.Errno
	if len(op.Vecs) == 1 {
		n, errno = sys.Send(d.fd, op.Vecs[0])
	} else {
		n, errno = sys.SendVecs(d.fd, op.Vecs, 0)
	}
	if errno == syscall.EAGAIN {
		d.writable = false
		return
	}
	if errno == 0 && n < total {
		d.writable = false // full: the kernel makes an edge when there is room
	}
	e.known(op, n, errno)
}

// trySendPipe sends what a pipe holds on d, which is believed to have room.
func (e *engine) trySendPipe(d *desc) {
	pipe := d.send.Pipe
	from, _ := pipe.Ends()
	e.stats.Calls++
	n, errno := sys.Splice(from, d.fd, pipe.Piped())
	pipe.Moved(-n)
	if errno == syscall.EAGAIN {
		d.writable = false
		return
	}
	// Less than all of it may also have gone for other reasons than a full
	// socket, and then no edge follows. Only EAGAIN promises one.
	e.known(d.send, n, errno)
}

// tryRecv makes one receive of d, which is believed to have data. Without a
// buffer it joins those that starve.
func (e *engine) tryRecv(d *desc) {
	if d.urgent && d.recvSize == loop.ClassPipe {
		d.recvSize = loop.ClassBody
	}
	buf := e.pool.Get(d.recvSize)
	if buf == nil && d.recvSize == loop.ClassPipe {
		d.recvSize = loop.ClassBody
		buf = e.pool.Get(d.recvSize)
	}
	if buf == nil {
		d.starved = true
		e.starved[d.recvSize].push(d)
		e.stats.NoBuffers++
		return
	}
	e.recvInto(d, buf)
}

// recvInto receives into buf, or gives it back.
func (e *engine) recvInto(d *desc, buf *loop.Buffer) {
	op := d.recv
	e.stats.Calls++
	var n int
	var errno syscall.Errno
	if buf.IsPipe() {
		_, to := buf.Ends()
		n, errno = sys.Splice(d.fd, to, int(op.Max))
		buf.Moved(n)
		if n == 0 && errno == 0 { // the end, or urgent data and the end behind it
			buf.Release()
			d.recvSize = loop.ClassBody
			e.tryRecv(d)
			return
		}
	} else {
		n, errno = sys.Recv(d.fd, buf.Bytes())
	}
	if n == 0 {
		buf.Release()
		if errno == syscall.EAGAIN {
			d.readable = false
			return
		}
		op.More, op.Buf = false, nil
		e.known(op, 0, errno)
		return
	}
	// A pipe may take less than there is, and a receive ends before urgent data.
	if n < len(buf.Bytes()) && !d.hangup && !d.urgent {
		d.readable = false
	}
	e.brought += n
	op.More, op.Buf = false, buf
	if op.Code == loop.RecvMulti {
		d.multi += int32(n)
		op.More = d.multi < loop.MultiBytes
	}
	e.known(op, n, 0)
}

// canFeed reports whether a starved receive may get a buffer.
func (e *engine) canFeed() bool {
	for class, back := range e.refill {
		if back && e.starved[class].len() > 0 {
			return true
		}
	}
	return false
}

// feed serves receives that starve for buffers of class, first come, first
// served, as long as there are buffers.
func (e *engine) feed(class loop.Class) {
	starved := &e.starved[class]
	for range starved.len() {
		if !e.refill[class] || starved.len() == 0 {
			break
		}
		buf := e.pool.Get(class)
		if buf == nil {
			e.refill[class] = false // the pool tells when it is worth another try
			return
		}
		d := starved.pop()
		d.starved = false
		e.recvInto(d, buf)
	}
	if starved.len() == 0 {
		e.refill[class] = false
	}
}
