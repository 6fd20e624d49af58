package looptest

import (
	"io"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// relay passes bytes on from one descriptor to another, by pipes where there
// are any.
type relay struct {
	r          *rig
	recv, send *task
	buf        *loop.Buffer // lent by recv
	left       int          // bytes to come
	from, to   int32
	buffers    int // results that came without a pipe
}

func (r *rig) relay(from, to int32, total int) *relay {
	l := &relay{r: r, left: total, from: from, to: to, recv: &task{}, send: &task{}}
	l.recv.keep = func(b *loop.Buffer) { l.buf = b }
	l.recv.then = l.received
	l.send.then = l.sent
	r.startAs(l.recv, loop.Op{Code: loop.Recv, FD: from, Size: loop.ClassPipe, Max: int32(min(total, loop.PipeBytes))})
	return l
}

func (l *relay) received(res result) {
	require.Zero(l.r, res.err)
	require.Positive(l.r, res.n)
	l.left -= res.n
	op := loop.Op{Code: loop.Send, FD: l.to, Msg: &loop.Msg{}}
	if l.buf.IsPipe() {
		op.Pipe = l.buf
	} else {
		l.buffers++
		op.Vecs = [][]byte{l.buf.Bytes()[:res.n]}
	}
	if len(l.send.results) == 0 {
		l.r.startAs(l.send, op)
		return
	}
	op.User = l.send.User
	l.send.Op = op
	l.r.again(l.send)
}

func (l *relay) sent(res result) {
	require.Zero(l.r, res.err)
	if op := &l.send.Op; op.Pipe != nil && op.Pipe.Piped() > 0 {
		l.r.again(l.send)
		return
	} else if op.Pipe == nil && res.n < len(op.Vecs[0]) {
		op.Vecs[0] = op.Vecs[0][res.n:]
		l.r.again(l.send)
		return
	}
	l.buf.Release()
	l.buf = nil
	if l.left > 0 {
		l.recv.Max = int32(min(l.left, loop.PipeBytes))
		l.r.again(l.recv)
	}
}

// fill relays until the send waits, and leaves it there.
func (l *relay) fill() {
	for end, before := time.Now().Add(patience), -1; !l.send.InFlight() || len(l.send.results) != before; {
		require.True(l.r, time.Now().Before(end), "waited in vain for the send to wait")
		before = len(l.send.results)
		l.r.pollFor(quiet)
	}
	l.send.then = nil
}

func (l *relay) done() bool { return l.left == 0 && l.buf == nil }

// testPipe passes bytes on to a reader that is slow at first, and no more of
// them than were asked for.
func testPipe(r *rig) {
	const total, more = 12<<20 + 77, 1000
	a, writer := r.pair()
	b, reader := r.pair()
	go write(r, writer, pattern(0, total+more))
	l := r.relay(a, b, total)
	r.until("the send to wait for room", func() bool {
		r.pollFor(2 * quiet)
		return l.send.InFlight()
	})
	require.False(r, l.done())

	read := make(chan []byte, 1)
	go func() {
		got := make([]byte, total)
		n, err := io.ReadFull(reader, got)
		if err != nil {
			r.Errorf("peer: %v", err)
		}
		read <- got[:n]
	}()
	r.until("all to be passed on", l.done)
	got := await(r, read)
	require.Len(r, got, total)
	require.True(r, matches(got, 0))
	require.Zero(r, l.buffers)

	// What follows was left to others.
	var rest []byte
	for len(rest) < more {
		k := r.recv(a)
		require.Zero(r, r.result(k).err)
		rest = append(rest, k.data...)
	}
	require.True(r, matches(rest, total))

	// The end.
	k := r.start(loop.Op{Code: loop.Recv, FD: a, Size: loop.ClassPipe, Max: 1000})
	r.nothing(k)
	require.NoError(r, writer.Close())
	require.Equal(r, result{}, r.result(k), "the end")
	r.again(k)
	require.Equal(r, result{}, r.result(k), "the end, again")
	r.close(a, b)
}

// testPipesRunOut passes bytes on in buffers where there are no pipes.
func testPipesRunOut(r *rig) {
	const total = 1 << 20
	r.pool.Pipes = 1
	lent := r.pool.Get(loop.ClassPipe)
	require.NotNil(r, lent)
	a, writer := r.pair()
	b, reader := r.pair()
	go write(r, writer, pattern(0, total))
	read := make(chan []byte, 1)
	go func() {
		got, err := io.ReadAll(reader)
		if err != nil {
			r.Errorf("peer: %v", err)
		}
		read <- got
	}()
	l := r.relay(a, b, total)
	r.until("all to be passed on", l.done)
	require.Positive(r, l.buffers)
	require.Zero(r, r.Shutdown(b, unix.SHUT_WR))
	require.True(r, matches(await(r, read), 0))
	lent.Release()
	r.close(a, b)
}

func testPipeCancel(r *rig) {
	a, writer := r.pair()
	b, _ := r.pair()
	k := r.start(loop.Op{Code: loop.Recv, FD: a, Size: loop.ClassPipe, Max: 1000})
	r.Cancel(&k.Op) // not even begun
	require.Equal(r, syscall.ECANCELED, r.result(k).err)
	r.again(k)
	require.NoError(r, r.Poll(0, r.deliver))
	r.Cancel(&k.Op) // waiting
	r.Cancel(&k.Op)
	require.Equal(r, syscall.ECANCELED, r.result(k).err)

	// Nothing was lost by it. Then the reader takes nothing until the send
	// waits.
	go func() {
		for chunk := pattern(0, 1<<20); ; {
			if _, err := writer.Write(chunk); err != nil {
				return // closed below
			}
		}
	}()
	l := r.relay(a, b, 1<<40)
	for cancelled := false; !cancelled; {
		l.fill()
		r.Cancel(&l.send.Op)
		r.Cancel(&l.send.Op)
		res := r.result(l.send)
		l.send.then = l.sent
		if cancelled = res.err == syscall.ECANCELED; !cancelled {
			l.sent(res) // the peer's kernel had made some room before
		}
	}

	// Shutting down ends what waits.
	r.again(l.send)
	l.fill()
	require.Zero(r, r.Shutdown(b, unix.SHUT_RDWR))
	require.Equal(r, syscall.EPIPE, r.result(l.send).err)
	l.buf.Release() // with bytes in it
	require.NoError(r, writer.Close())
	c, _ := r.pair()
	k = r.start(loop.Op{Code: loop.Recv, FD: c, Size: loop.ClassPipe, Max: 1000})
	require.NoError(r, r.Poll(0, r.deliver))
	require.Zero(r, r.Shutdown(c, unix.SHUT_RDWR))
	require.Equal(r, result{}, r.result(k))

	// The pipe that was given back with bytes in it holds none any more.
	empty := r.pool.Get(loop.ClassPipe)
	require.Zero(r, empty.Piped())
	from, _ := empty.Ends()
	_, err := unix.Read(int(from), make([]byte, 1))
	require.Equal(r, unix.EAGAIN, err)
	empty.Release()
	r.close(a, b, c)
}

// testPipeReset tells of a connection that is reset before and after bytes came.
func testPipeReset(r *rig) {
	a, writer := r.pair()
	k := r.start(loop.Op{Code: loop.Recv, FD: a, Size: loop.ClassPipe, Max: 1000})
	require.NoError(r, r.Poll(0, r.deliver))
	require.NoError(r, writer.SetLinger(0))
	require.NoError(r, writer.Close())
	require.Equal(r, syscall.ECONNRESET, r.result(k).err)

	b, reader := r.pair()
	pipe := r.pool.Get(loop.ClassPipe)
	_, to := pipe.Ends()
	n, err := unix.Write(int(to), pattern(0, 1000))
	require.NoError(r, err)
	pipe.Moved(n)
	require.NoError(r, reader.SetLinger(0))
	require.NoError(r, reader.Close())
	k = r.recv(b)
	require.Equal(r, syscall.ECONNRESET, r.result(k).err)
	k = r.start(loop.Op{Code: loop.Send, FD: b, Msg: &loop.Msg{Pipe: pipe}})
	require.Equal(r, syscall.EPIPE, r.result(k).err)
	pipe.Release()
	r.close(a, b)
}

// testPipeUrgent passes on what comes around urgent data, which a receive steps
// over and splice(2) does not.
func testPipeUrgent(r *rig) {
	const half = 1000
	for _, ended := range []bool{false, true} {
		a, writer := r.pair()
		b, reader := r.pair()
		l := r.relay(a, b, 2*half)
		write(r, writer, pattern(0, half))
		r.until("the first half to be passed on", func() bool { return l.left == half && l.buf == nil })
		raw, err := writer.SyscallConn()
		require.NoError(r, err)
		require.NoError(r, raw.Write(func(fd uintptr) bool {
			err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
			return true
		}))
		require.NoError(r, err)
		if !ended {
			r.pollFor(quiet) // it is found alone
		}
		write(r, writer, pattern(half, half))
		if ended {
			require.NoError(r, writer.CloseWrite())
		}
		r.until("the rest to be passed on", l.done)
		got := make([]byte, 2*half)
		_, err = io.ReadFull(reader, got)
		require.NoError(r, err)
		require.True(r, matches(got, 0))
		r.close(a, b)
	}
}

// testPipeSignals passes bytes on while signals come in, such as those with
// which Go preempts goroutines: splice(2) then ends early, with room left.
func testPipeSignals(r *rig) {
	const total = 16 << 20
	a, writer := r.pair()
	b, reader := r.pair()
	go func() {
		for range total / 1024 { // pieces fill a pipe's slots
			write(r, writer, make([]byte, 1024))
		}
	}()
	read := make(chan int64, 1)
	go func() {
		n, err := io.Copy(io.Discard, reader)
		if err != nil {
			r.Errorf("peer: %v", err)
		}
		read <- n
	}()
	pid, tid := unix.Getpid(), unix.Gettid()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(pid, tid, unix.SIGURG) // the thread is there
			}
		}
	}()
	l := r.relay(a, b, total)
	r.until("all to be passed on", l.done)
	close(stop)
	<-stopped
	require.Zero(r, r.Shutdown(b, unix.SHUT_WR))
	require.EqualValues(r, total, await(r, read))
	r.close(a, b)
}
