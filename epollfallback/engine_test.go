package epollfallback

import (
	"errors"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/loop"
)

func TestEngine(t *testing.T) {
	looptest.Run(t, func(pool *loop.Pool) (loop.Engine, error) { return Open(Config{Pool: pool}) })
}

// opened returns an engine on this goroutine's thread and one end of a socket
// pair that is attached to it.
func opened(t testing.TB) (e *engine, fd, peer int32) {
	runtime.LockOSThread()
	pool := loop.NewPool(8 << 20)
	opened, err := Open(Config{Pool: pool})
	require.NoError(t, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, opened.Attach(int32(pair[0])))
	t.Cleanup(func() {
		require.NoError(t, opened.Close())
		require.NoError(t, pool.Close())
		require.NoError(t, unix.Close(pair[1]))
		runtime.UnlockOSThread()
	})
	return opened.(*engine), int32(pair[0]), int32(pair[1])
}

// exchanger returns a function that sends a request to peer and reads the
// answer that fd gives, and the receive that waits at fd in between.
func exchanger(t testing.TB, e *engine, fd, peer int32) (exchange func(), waiting *loop.Op) {
	recv := loop.Op{Code: loop.Recv, FD: fd, Size: loop.ClassHead}
	send := loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{[]byte("answer")}}}
	answered := 0
	deliver := func(op *loop.Op) {
		if op == &recv {
			recv.Buf.Release()
			e.Submit(&send)
			return
		}
		answered++
		e.Submit(&recv)
	}
	e.Submit(&recv)
	request, answer := []byte("request"), make([]byte, 10)
	return func() {
		before := answered
		_, err := unix.Write(int(peer), request)
		require.NoError(t, err)
		require.NoError(t, e.Poll(time.Second, deliver))
		if answered != before+1 { // without the garbage of require.Equal
			require.Fail(t, "no answer")
		}
		_, err = unix.Read(int(peer), answer)
		require.NoError(t, err)
	}, &recv
}

// A request and its answer take one receive, one send, and one wait; no call
// finds out that there is nothing more.
func TestCallsPerExchange(t *testing.T) {
	e, fd, peer := opened(t)
	exchange, recv := exchanger(t, e, fd, peer)
	exchange()
	before := e.Stats()
	for range 100 {
		exchange()
	}
	after := e.Stats()
	require.EqualValues(t, 200, after.Calls-before.Calls)
	require.EqualValues(t, 100, after.Waits-before.Waits)
	e.Cancel(recv)
	require.NoError(t, e.Poll(0, func(*loop.Op) {}))
	e.CloseFD(fd)
}

// A turn makes all its receives, delivers them, and then makes the sends that
// come of it, but for large ones, which Submit makes.
func TestTurn(t *testing.T) {
	e, fd, peer := opened(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, e.Attach(int32(pair[0])))
	fds, peers := []int32{fd, int32(pair[0])}, []int{int(peer), pair[1]}
	for _, size := range []int{batchBytes - 1, batchBytes} {
		var recvs, sends [2]loop.Op
		for i := range fds {
			recvs[i] = loop.Op{Code: loop.Recv, FD: fds[i], Size: loop.ClassHead, User: loop.Token{Index: uint32(i)}}
			sends[i] = loop.Op{Code: loop.Send, FD: fds[i], Msg: &loop.Msg{Vecs: [][]byte{make([]byte, size)}}}
			e.Submit(&recvs[i])
			_, err := unix.Write(peers[i], []byte("request"))
			require.NoError(t, err)
		}
		received, sent, early := 0, 0, 0
		deliver := func(op *loop.Op) {
			if op.Code == loop.Send {
				sent++
				require.Equal(t, size, op.N)
				return
			}
			op.Buf.Release()
			received++
			e.Submit(&sends[op.User.Index])
			for _, p := range peers {
				if left, err := unix.IoctlGetInt(p, unix.SIOCINQ); err != nil || left > 0 {
					early++
				}
			}
		}
		for received < len(fds) || sent < len(fds) {
			require.NoError(t, e.Poll(time.Second, deliver))
		}
		if size < batchBytes {
			require.Zero(t, early)
		} else {
			require.Equal(t, 1+2, early)
		}
		for _, p := range peers {
			n, err := unix.Read(p, make([]byte, size))
			require.NoError(t, err)
			require.Equal(t, size, n)
		}
	}
	for i := range fds {
		e.CloseFD(fds[i])
	}
	require.NoError(t, unix.Close(pair[1]))
}

// BenchmarkPingPong measures a request and its answer with one wait, and the
// peer's two calls.
func BenchmarkPingPong(b *testing.B) {
	e, fd, peer := opened(b)
	exchange, recv := exchanger(b, e, fd, peer)
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
	e.Cancel(recv)
	require.NoError(b, e.Poll(0, func(*loop.Op) {}))
	e.CloseFD(fd)
}

// A send to a full socket makes no call until the kernel tells of room.
func TestCallsOfBlockedSend(t *testing.T) {
	e, fd, peer := opened(t)
	send := loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{make([]byte, 4<<20)}}}
	delivered := 0
	deliver := func(*loop.Op) { delivered++ }
	require.NoError(t, e.Poll(0, deliver)) // learns that there is room
	e.Submit(&send)
	require.NoError(t, e.Poll(0, deliver))
	require.Equal(t, 1, delivered)
	require.Less(t, send.N, 4<<20)

	before := e.Stats().Calls
	e.Submit(&send)
	require.Equal(t, before, e.Stats().Calls)
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(5 * time.Second); delivered == 1 && time.Now().Before(end); {
		_, err := unix.Read(int(peer), buf)
		require.True(t, err == nil || errors.Is(err, unix.EAGAIN), "%v", err)
		require.NoError(t, e.Poll(0, deliver))
	}
	require.Equal(t, 2, delivered)
	require.Positive(t, send.N)
	e.CloseFD(fd)
}

// The socket of a closed number lives on in a child between fork and exec, and
// so do its events: they are not the next descriptor's.
func TestStaleEvents(t *testing.T) {
	e, fd, peer := opened(t)
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100)
	require.NoError(t, err)
	e.descs.At(int(fd)).shared = false // as if it were our own
	e.CloseFD(fd)

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.EqualValues(t, fd, pair[0])
	require.NoError(t, e.Attach(fd))
	none := func(op *loop.Op) { require.Fail(t, "delivered", "%+v", op) }
	require.NoError(t, e.Poll(0, none))
	stale := e.Stats().Stale

	recv := loop.Op{Code: loop.Recv, FD: fd, Size: loop.ClassHead}
	e.Submit(&recv)
	calls := e.Stats().Calls
	_, err = unix.Write(int(peer), []byte("old"))
	require.NoError(t, err)
	require.NoError(t, e.Poll(time.Second, none))
	require.Greater(t, e.Stats().Stale, stale)
	require.Equal(t, calls, e.Stats().Calls, "a receive was tried")

	e.Cancel(&recv)
	require.NoError(t, e.Poll(0, func(*loop.Op) {}))
	e.CloseFD(fd)
	require.NoError(t, unix.Close(copied))
	require.NoError(t, unix.Close(pair[1]))
}

// A listener that the master holds too is not heard of any more.
func TestSharedDescriptorIsQuietAfterClose(t *testing.T) {
	e, fd, peer := opened(t)
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100)
	require.NoError(t, err)
	e.CloseFD(fd)
	_, err = unix.Write(int(peer), []byte("x"))
	require.NoError(t, err)
	require.NoError(t, e.Poll(10*time.Millisecond, func(*loop.Op) {}))
	require.Zero(t, e.Stats().Stale)
	require.NoError(t, unix.Close(copied))
}

// A loop that is never idle lets other goroutines run.
func TestBusyLoopLetsOthersRun(t *testing.T) {
	e, fd, _ := opened(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	send := loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{}} // of nothing: known at once
	var ran atomic.Int64
	go func() {
		for range 10 {
			ran.Add(1)
			runtime.Gosched()
		}
	}()
	deliver := func(*loop.Op) {}
	for end := time.Now().Add(10 * time.Second); ran.Load() < 10; {
		e.Submit(&send)
		require.NoError(t, e.Poll(time.Second, deliver))
		require.True(t, time.Now().Before(end), "the other goroutine does not run")
	}
	e.CloseFD(fd)
}

func TestAttachRefuses(t *testing.T) {
	e, fd, peer := opened(t)
	require.ErrorIs(t, e.Attach(fd), syscall.EEXIST)
	require.ErrorIs(t, e.Attach(1<<20), syscall.EBADF)
	require.NoError(t, unix.SetNonblock(int(peer), false))
	require.ErrorContains(t, e.Attach(peer), "it is blocking")
	e.CloseFD(fd)
}

func TestOpenTellsWhy(t *testing.T) {
	for errno, text := range map[syscall.Errno]string{
		syscall.EPERM:  "epoll: epoll_create1: operation not permitted (a seccomp filter?): not supported here",
		syscall.ENOSYS: "epoll: epoll_create1: function not implemented (a seccomp filter?): not supported here",
		syscall.EMFILE: "epoll: epoll_create1: too many open files (the limit of open files): not supported here",
		syscall.ENOMEM: "epoll: epoll_create1: cannot allocate memory: not supported here",
	} {
		err := refused("epoll_create1", errno)
		require.EqualError(t, err, text)
		require.ErrorIs(t, err, loop.ErrNotSupported)
		require.ErrorIs(t, err, errno)
	}
}
