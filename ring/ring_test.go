package ring

import (
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// rig is an engine with what a test needs to drive it.
type rig struct {
	testing.TB
	*engine
	pool *loop.Pool
	done []*loop.Op
	note func(*loop.Op) // the deliver function
}

// newRig opens an engine on the test's thread. After the test nothing is left
// in the kernel or lent by the pool.
func newRig(t testing.TB, c Config, poolBytes int) *rig {
	runtime.LockOSThread()
	pool := loop.NewPool(poolBytes)
	pool.Poison = true
	c.Pool = pool
	opened, err := Open(c)
	require.NoError(t, err)
	r := &rig{TB: t, engine: opened.(*engine), pool: pool}
	r.note = func(op *loop.Op) { r.done = append(r.done, op) }
	t.Cleanup(func() {
		require.NoError(t, opened.Close())
		for _, op := range r.done {
			if op.Buf != nil {
				op.Buf.Release()
				op.Buf = nil
			}
		}
		require.Zero(t, pool.Lent(), "buffers not given back")
		require.NoError(t, pool.Close())
		opened.Wake() // does nothing, also after Close
		runtime.UnlockOSThread()
	})
	return r
}

// next polls until an Op is delivered.
func (r *rig) next() *loop.Op {
	r.Helper()
	for range 1000 {
		if len(r.done) > 0 {
			op := r.done[0]
			r.done = r.done[1:]
			return op
		}
		require.NoError(r, r.Poll(100*time.Millisecond, r.note))
	}
	r.Fatal("nothing was delivered")
	return nil
}

// quiet polls twice without waiting and requires that nothing is delivered.
func (r *rig) quiet() {
	r.Helper()
	for range 2 {
		require.NoError(r, r.Poll(0, r.note))
		require.Empty(r, r.done)
	}
}

// pair returns an attached socket and its raw peer.
func (r *rig) pair() (fd, peer int32) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(r, err)
	require.NoError(r, r.Attach(int32(p[0])))
	r.Cleanup(func() { sys.Close(int32(p[1])) })
	return int32(p[0]), int32(p[1])
}

// everyTier runs the test on each tier.
func everyTier(t *testing.T, test func(t *testing.T, c Config)) {
	for i, name := range []string{"best", "A", "B"} {
		t.Run(name, func(t *testing.T) { test(t, Config{Tier: Tier(i)}) })
	}
}

func TestTier(t *testing.T) {
	for tier, want := range []string{
		"tier A (single issuer, deferred task run, no SQ array), ",
		"tier A (single issuer, deferred task run), ",
		"tier B (cooperative task run), single-shot receives, 1024 entries",
	} {
		r := newRig(t, Config{Tier: Tier(tier)}, 1<<20)
		require.Contains(t, r.Detail(), want)
		require.Equal(t, "uring", r.engine.Name())
	}
}

func TestEcho(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 16<<20)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		file, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		defer file.Close()
		lfd := int32(file.Fd())
		require.NoError(t, unix.SetNonblock(int(lfd), true))
		require.NoError(t, r.Attach(lfd))

		accept := &loop.Op{Code: loop.Accept, FD: lfd}
		r.Submit(accept)
		connect := &loop.Op{Code: loop.Connect, Peer: &loop.Addr{AddrPort: l.Addr().(*net.TCPAddr).AddrPort()}}
		r.Submit(connect)
		require.True(t, connect.InFlight())
		require.ElementsMatch(t, []*loop.Op{accept, connect}, []*loop.Op{r.next(), r.next()})
		require.Zero(t, accept.Err)
		require.Zero(t, connect.Err)
		local, err := unix.Getsockname(int(connect.FD))
		require.NoError(t, err)
		require.Equal(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(local.(*unix.SockaddrInet4).Port)), accept.Addr)
		server := int32(accept.N)

		recv := &loop.Op{Code: loop.RecvMulti, FD: server}
		r.Submit(recv)
		r.quiet()
		send := &loop.Op{Code: loop.Send, FD: connect.FD, Vecs: [][]byte{[]byte("hello "), []byte("world")}}
		r.Submit(send)
		require.ElementsMatch(t, []*loop.Op{send, recv}, []*loop.Op{r.next(), r.next()})
		require.Equal(t, 11, send.N)
		require.Equal(t, "hello world", string(recv.Buf.Bytes()[:recv.N]))

		back := &loop.Op{Code: loop.Send, FD: server, Vecs: [][]byte{recv.Buf.Bytes()[:recv.N]}}
		r.Submit(back)
		body := &loop.Op{Code: loop.Recv, Size: loop.ClassBody, FD: connect.FD}
		r.Submit(body)
		require.ElementsMatch(t, []*loop.Op{back, body}, []*loop.Op{r.next(), r.next()})
		require.Equal(t, "hello world", string(body.Buf.Bytes()[:body.N]))
		require.Equal(t, loop.ClassBody, body.Buf.Class())
		body.Buf.Release()
		recv.Buf.Release()

		require.Zero(t, r.Shutdown(connect.FD, unix.SHUT_WR))
		if !recv.InFlight() {
			r.Submit(recv)
		}
		require.Equal(t, recv, r.next())
		require.Zero(t, recv.N)
		require.Zero(t, recv.Err)
		require.False(t, recv.InFlight())
		require.Nil(t, recv.Buf)
		require.Equal(t, 0, r.Unsent(server))
		r.CloseFD(connect.FD)
		r.CloseFD(server)
		r.quiet()
		require.Equal(t, syscall.EBADF, sys.SocketError(server))
		require.Zero(t, r.Stats().InFlight)
		require.Equal(t, 1, r.Stats().Attached)
	})
}
