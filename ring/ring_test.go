package ring

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	abi "github.com/iceber/iouring-go/syscall"
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

		accept := &loop.Op{Code: loop.Accept, FD: lfd, Msg: &loop.Msg{Peer: &loop.Addr{}}}
		r.Submit(accept)
		connect := &loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: &loop.Addr{AddrPort: l.Addr().(*net.TCPAddr).AddrPort()}}}
		r.Submit(connect)
		require.True(t, connect.InFlight())
		require.ElementsMatch(t, []*loop.Op{accept, connect}, []*loop.Op{r.next(), r.next()})
		require.Zero(t, accept.Err)
		require.Zero(t, connect.Err)
		local, err := unix.Getsockname(int(connect.FD))
		require.NoError(t, err)
		require.Equal(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(local.(*unix.SockaddrInet4).Port)), accept.Peer.AddrPort)
		server := int32(accept.N)

		recv := &loop.Op{Code: loop.RecvMulti, FD: server}
		r.Submit(recv)
		r.quiet()
		send := &loop.Op{Code: loop.Send, FD: connect.FD, Msg: &loop.Msg{Vecs: [][]byte{[]byte("hello "), []byte("world")}}}
		r.Submit(send)
		require.ElementsMatch(t, []*loop.Op{send, recv}, []*loop.Op{r.next(), r.next()})
		require.Equal(t, 11, send.N)
		require.Equal(t, "hello world", string(recv.Buf.Bytes()[:recv.N]))

		back := &loop.Op{Code: loop.Send, FD: server, Msg: &loop.Msg{Vecs: [][]byte{recv.Buf.Bytes()[:recv.N]}}}
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

// write gives the raw end of a pair bytes to send.
func (r *rig) write(peer int32, b []byte) {
	r.Helper()
	for len(b) > 0 {
		n, errno := sys.Send(peer, b)
		require.Zero(r, errno)
		b = b[n:]
	}
}

// A multishot receive ends after MultiBytes and one burst, however much there is.
func TestMultiEnds(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 16<<20)
		fd, peer := r.pair()
		require.NoError(t, unix.SetsockoptInt(int(peer), unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
		sent := 0
		for ; ; sent++ {
			if _, errno := sys.Send(peer, bytes.Repeat([]byte{byte(sent)}, 1000)); errno != 0 {
				break
			}
		}
		require.Greater(t, sent*1000, 2*loop.MultiBytes)
		recv := &loop.Op{Code: loop.RecvMulti, FD: fd}
		var got []byte
		var series int
		deliver := func(op *loop.Op) {
			require.Contains(t, []syscall.Errno{0, syscall.ECANCELED}, op.Err)
			series += op.N
			if op.Buf != nil {
				got = append(got, op.Buf.Bytes()[:op.N]...)
				op.Buf.Release()
				op.Buf = nil
			}
			if len(got) == sent*1000 {
				r.Cancel(op)
			}
		}
		for len(got) < sent*1000 || recv.InFlight() {
			if !recv.InFlight() {
				series = 0
				r.Submit(recv)
			}
			require.NoError(t, r.Poll(time.Second, deliver))
			require.LessOrEqual(t, series, loop.MultiBytes+loop.HeadBytes)
		}
		for i := range got {
			require.Equal(t, byte(i/1000), got[i])
		}
		r.CloseFD(fd)
	})
}

// Receives that find no buffer wait for the pool, in order, and the submitter
// sees nothing of it.
func TestStarvedReceives(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 4*loop.HeadBytes) // of which the kernel gets one
		const n = 5
		var fds, peers [n]int32
		var ops [n]loop.Op
		for i := range n {
			fds[i], peers[i] = r.pair()
			ops[i] = loop.Op{Code: loop.Recv, Size: loop.ClassHead, FD: fds[i]}
			r.Submit(&ops[i])
			r.write(peers[i], []byte{byte(i)})
		}
		var got []*loop.Op
		for range 4 {
			got = append(got, r.next())
		}
		r.quiet()
		require.NotZero(t, r.Stats().NoBuffers)
		require.Equal(t, 4*loop.HeadBytes, r.pool.Lent())
		require.Equal(t, 1, r.Stats().InFlight)

		waits := r.Stats().Waits
		require.NoError(t, r.Poll(2*loop.RawWait, r.note)) // does not spin
		require.Equal(t, waits+2, r.Stats().Waits)

		var left *loop.Op
		for i := range ops {
			if ops[i].InFlight() {
				left = &ops[i]
			}
		}
		r.Cancel(left) // also while it waits
		require.Equal(t, syscall.ECANCELED, r.next().Err)
		r.Submit(left)
		r.quiet()
		for _, op := range got {
			require.Zero(t, op.Err)
			op.Buf.Release()
			op.Buf = nil
		}
		require.Equal(t, left, r.next())
		require.Equal(t, 1, left.N)
		left.Buf.Release()
		for _, fd := range fds {
			r.CloseFD(fd)
		}
	})
}

// The kernel's share of buffers grows when it runs dry and falls when it is
// not needed.
func TestBuffersFollowTheLoad(t *testing.T) {
	r := newRig(t, Config{}, 256<<20)
	const n = 100
	var peers [n]int32
	var ops [n]loop.Op
	for i := range n {
		ops[i] = loop.Op{Code: loop.Recv, Size: loop.ClassHead}
		ops[i].FD, peers[i] = r.pair()
	}
	round := func(n int) {
		for i := range n {
			r.Submit(&ops[i])
			r.write(peers[i], []byte("x"))
		}
		for range n {
			op := r.next()
			require.Equal(t, 1, op.N)
			op.Buf.Release()
			op.Buf = nil
		}
	}
	g := &r.groups[0]
	require.Zero(t, g.out, "nothing is lent before it is needed")
	for range 4 {
		round(n)
	}
	require.Greater(t, g.target, headsHot)
	dry := r.Stats().NoBuffers
	require.NotZero(t, dry)
	round(n)
	require.Equal(t, dry, r.Stats().NoBuffers)
	for range 3 * decayTurns {
		round(1)
	}
	require.Equal(t, headsHot, g.target)
	for i := range ops {
		r.CloseFD(ops[i].FD)
	}
}

// Body receives that bring much in a turn are not lent more buffers, which would
// only be colder.
func TestFullBodiesAreEnough(t *testing.T) {
	r := newRig(t, Config{}, 256<<20)
	const n = 4 * bodiesHot
	g := &r.groups[1]
	for round := range 4 {
		for range n {
			fd, peer := r.pair()
			for errno := syscall.Errno(0); errno == 0; {
				_, errno = sys.Send(peer, make([]byte, 64<<10))
			}
			r.Submit(&loop.Op{Code: loop.Recv, Size: loop.ClassBody, FD: fd})
		}
		for range n {
			op := r.next()
			require.Greater(t, op.N, loop.BodyBytes/2)
			op.Buf.Release()
			op.Buf = nil
			r.CloseFD(op.FD)
		}
		require.Equal(t, bodiesHot, g.target, "round %d", round)
	}
	require.NotZero(t, r.Stats().NoBuffers)
}

func TestCancel(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 16<<20)
		fd, peer := r.pair()
		for _, armed := range []bool{false, true} {
			for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
				op := &loop.Op{Code: code, Size: loop.ClassHead, FD: fd}
				r.Submit(op)
				if armed {
					r.quiet()
				}
				r.Cancel(op)
				r.Cancel(op)
				require.Equal(t, op, r.next())
				require.Equal(t, syscall.ECANCELED, op.Err)
				require.False(t, op.InFlight())
				r.Cancel(op) // not in flight: nothing
				r.quiet()
			}
		}
		// A send that got stuck tells what it sent.
		send := r.stuckSend(fd, peer)
		r.Cancel(send)
		require.Equal(t, send, r.next())
		require.Zero(t, send.Err)
		require.Greater(t, send.N, 0)
		require.Greater(t, r.Unsent(fd), 0)
		require.Equal(t, send.N, drain(peer))

		// What came before the cancel is delivered.
		op := &loop.Op{Code: loop.Recv, Size: loop.ClassHead, FD: fd}
		r.write(peer, []byte("x"))
		r.Submit(op)
		r.Cancel(op)
		require.Equal(t, op, r.next())
		if op.Err == 0 {
			require.Equal(t, 1, op.N)
			op.Buf.Release()
			op.Buf = nil
		}
		r.CloseFD(fd)
	})
}

func (r *rig) listen() (fd int32, to *loop.Addr) {
	l, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(r, err)
	require.NoError(r, unix.Bind(l, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}))
	require.NoError(r, unix.Listen(l, 4096))
	require.NoError(r, r.Attach(int32(l)))
	sa, err := unix.Getsockname(l)
	require.NoError(r, err)
	return int32(l), &loop.Addr{AddrPort: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(sa.(*unix.SockaddrInet6).Port))}
}

// Accepts are served in submission order, also around cancelled ones, and more
// of them than are mapped at a time.
func TestAcceptOrder(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		l, to := r.listen()
		const n = acceptsMapped + 10
		var accepts [n]loop.Op
		for i := range accepts {
			accepts[i] = loop.Op{Code: loop.Accept, FD: l, Msg: &loop.Msg{Peer: &loop.Addr{}}}
			r.Submit(&accepts[i])
		}
		r.quiet()
		r.Cancel(&accepts[1])
		require.Equal(t, &accepts[1], r.next())
		require.Equal(t, syscall.ECANCELED, accepts[1].Err)
		r.Submit(&accepts[1])
		order := append(append([]int{0}, seq(2, n)...), 1)
		var fds []int32
		var connects [n]loop.Op
		for i := range connects {
			connects[i] = loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: to}}
			r.Submit(&connects[i])
			fds = append(fds, connects[i].FD)
		}
		for left := 2 * n; left > 0; left-- {
			op := r.next()
			require.Zero(t, op.Err)
			if op.Code == loop.Accept {
				require.Equal(t, &accepts[order[0]], op)
				order = order[1:]
				require.True(t, op.Peer.AddrPort.Addr().IsLoopback())
				fds = append(fds, int32(op.N))
			}
		}
		for _, fd := range fds {
			r.CloseFD(fd)
		}
		r.CloseFD(l)
	})
}

// An accept that is told to wait before it looks, because the last one emptied
// the queue, misses no connection that came before it was submitted.
func TestAcceptLate(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		l, to := r.listen()
		first := &loop.Op{Code: loop.Accept, FD: l}
		r.Submit(first)
		r.quiet()
		for range 3 {
			var connects [3]loop.Op
			for i := range connects {
				connects[i] = loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: to}}
				r.Submit(&connects[i])
			}
			for left := len(connects); left > 0; {
				op := r.next()
				require.Zero(t, op.Err)
				if op.Code == loop.Accept { // the one that was in flight
					r.CloseFD(int32(op.N))
				} else {
					left--
				}
			}
			for first.InFlight() {
				require.Equal(t, first, r.next())
				r.CloseFD(int32(first.N))
			}
			// Two wait in the queue, and the next accepts find them.
			for left := len(connects) - 2; left >= 0; left-- {
				r.Submit(first)
				require.Equal(t, first, r.next())
				require.Zero(t, first.Err)
				r.CloseFD(int32(first.N))
				if r.pollAccept {
					require.Equal(t, left == 0, r.at(l).drained)
				}
			}
			for i := range connects {
				r.CloseFD(connects[i].FD)
			}
			r.Submit(first) // waits from now on
			r.quiet()
		}
		r.Cancel(first)
		require.Equal(t, first, r.next())
		require.Equal(t, syscall.ECANCELED, first.Err)
		r.CloseFD(l)
	})
}

func seq(from, to int) (s []int) {
	for i := from; i < to; i++ {
		s = append(s, i)
	}
	return s
}

// A later accept that is served first gives its connection to the first one.
func TestServeFirst(t *testing.T) {
	r := newRig(t, Config{}, 1<<20)
	l, _ := r.listen()
	d := r.at(l)
	var ops [4]loop.Op
	for i := range ops {
		ops[i] = loop.Op{Code: loop.Accept, FD: l}
		r.Submit(&ops[i])
	}
	slots := func() (order []int) {
		for i := d.acceptFirst; i != 0; i = r.slots[i-1].next {
			for k := range ops {
				if r.slots[i-1].op == &ops[k] {
					require.EqualValues(t, inFlight+i, ops[k].Engine)
					order = append(order, k)
				}
			}
		}
		return order
	}
	require.Equal(t, []int{0, 1, 2, 3}, slots())
	second := r.slots[d.acceptFirst-1].next
	third := r.slots[second-1].next
	r.slots[second-1].cancel = true
	r.serveFirst(d, &r.slots[third-1])
	require.Equal(t, []int{2, 1, 0, 3}, slots())
	r.slots[second-1].cancel = false
	r.serveFirst(d, &r.slots[d.acceptLast-1])
	require.Equal(t, []int{1, 0, 3, 2}, slots())
	for i := range ops {
		r.Cancel(&ops[i])
	}
	for range ops {
		require.Equal(t, syscall.ECANCELED, r.next().Err)
	}
	r.CloseFD(l)
}

func TestConnectFails(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		l, gone := r.listen()
		r.CloseFD(l)
		r.quiet()
		for _, c := range []struct {
			to   loop.Addr
			want syscall.Errno
			fd   bool
		}{
			{*gone, syscall.ECONNREFUSED, true},
			{loop.Addr{Path: filepath.Join(t.TempDir(), "none")}, syscall.ENOENT, true},
			{loop.Addr{Path: "@cloud-cup-nobody"}, syscall.ECONNREFUSED, true},
			{loop.Addr{Path: string(make([]byte, 200))}, syscall.ENAMETOOLONG, false},
			{loop.Addr{}, syscall.EDESTADDRREQ, false},
		} {
			op := &loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: &c.to}}
			r.Submit(op)
			require.Empty(t, r.done, "nothing is delivered by Submit")
			if !c.fd {
				r.Cancel(op)
			}
			require.Equal(t, op, r.next())
			require.Equal(t, c.want, op.Err)
			require.Equal(t, c.fd, op.FD >= 0)
			if c.fd {
				r.CloseFD(op.FD)
			}
		}
		// An address nobody answers for: connecting goes on until cancelled.
		op := &loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: &loop.Addr{AddrPort: netip.MustParseAddrPort("127.0.0.1:1")}}}
		full, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(full)
		require.NoError(t, unix.Bind(full, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		require.NoError(t, unix.Listen(full, 0))
		sa, err := unix.Getsockname(full)
		require.NoError(t, err)
		op.Peer.AddrPort = netip.AddrPortFrom(op.Peer.AddrPort.Addr(), uint16(sa.(*unix.SockaddrInet4).Port))
		first := &loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: op.Peer}} // fills the backlog
		r.Submit(first)
		require.Equal(t, first, r.next())
		r.Submit(op)
		r.quiet()
		r.Cancel(op)
		require.Equal(t, op, r.next())
		require.Equal(t, syscall.ECANCELED, op.Err)
		r.CloseFD(first.FD)
		r.CloseFD(op.FD)
	})
}

func TestWake(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		for range 3 {
			go func() {
				for range 100 {
					r.Wake()
				}
			}()
			require.NoError(t, r.Poll(-1, r.note))
			before := r.Now()
			require.NoError(t, r.Poll(20*time.Millisecond, r.note))
			for r.Now()-before < int64(15*time.Millisecond) { // some of the 100
				before = r.Now()
				require.NoError(t, r.Poll(20*time.Millisecond, r.note))
			}
		}
		require.Empty(t, r.done)
	})
}

// An idle loop makes two calls and then sleeps, also through garbage
// collections, which it does not delay.
func TestIdle(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		before := r.Stats()
		go func() {
			for range 5 {
				runtime.GC()
				time.Sleep(10 * time.Millisecond)
			}
			r.Wake()
		}()
		start := time.Now()
		require.NoError(t, r.Poll(-1, r.note))
		require.GreaterOrEqual(t, time.Since(start), 50*time.Millisecond)
		after := r.Stats()
		require.Equal(t, before.Waits+2, after.Waits)
		require.Equal(t, before.Calls, after.Calls)
	})
}

// Poll waits as long as it was told, and its clock is the kernel's. A busy
// machine may make it late, but not always.
func TestPollWaits(t *testing.T) {
	r := newRig(t, Config{}, 1<<20)
	for _, wait := range []time.Duration{time.Microsecond, time.Millisecond, loop.RawWait, 12 * time.Millisecond} {
		inTime(t, wait+100*time.Millisecond, func() time.Duration {
			require.NoError(t, r.Poll(0, r.note))
			before := r.Now()
			require.NoError(t, r.Poll(wait, r.note))
			took := time.Duration(r.Now() - before)
			require.GreaterOrEqual(t, took, wait)
			return took
		})
	}
}

// inTime fails if f takes longer than most each time that it is tried.
func inTime(t *testing.T, most time.Duration, f func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for range 10 {
		last := f()
		if last < most {
			return
		}
		took = append(took, last)
	}
	t.Fatalf("not once less than %v: %v", most, took)
}

// More submissions than entries are handed over in between.
func TestQueueFull(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		c.Entries = 8
		r := newRig(t, c, 16<<20)
		const n = 100
		var ops [n]loop.Op
		for i := range ops {
			ops[i] = loop.Op{Code: loop.Send, Msg: &loop.Msg{Vecs: [][]byte{{byte(i)}, {byte(i + 1)}}}}
			var peer int32
			ops[i].FD, peer = r.pair()
			r.Submit(&ops[i])
			defer func() {
				var b [3]byte
				got, errno := sys.Recv(peer, b[:])
				require.Zero(t, errno)
				require.Equal(t, []byte{byte(i), byte(i + 1)}, b[:got])
			}()
		}
		for range ops {
			op := r.next()
			require.Equal(t, 2, op.N)
			r.CloseFD(op.FD)
		}
		require.NotZero(t, r.Stats().Overflows, "32 completions fit")
	})
}

func TestBrokenContractPanics(t *testing.T) {
	r := newRig(t, Config{}, 1<<20)
	fd, _ := r.pair()
	recv := &loop.Op{Code: loop.Recv, FD: fd}
	r.Submit(recv)
	for want, broken := range map[string]func(){
		"ring: an Op in flight is submitted":                                  func() { r.Submit(recv) },
		fmt.Sprintf("ring: second receive on descriptor %d", fd):              func() { r.Submit(&loop.Op{Code: loop.Recv, FD: fd}) },
		fmt.Sprintf("ring: descriptor %d is closed with an Op in flight", fd): func() { r.CloseFD(fd) },
		"ring: descriptor 9999 is not attached":                               func() { r.Submit(&loop.Op{Code: loop.Send, FD: 9999}) },
		"ring: descriptor -1 is not attached":                                 func() { r.CloseFD(-1) },
		"ring: Op with code 0":                                                func() { r.Submit(&loop.Op{}) },
	} {
		require.PanicsWithValue(t, want, broken)
	}
	r.Cancel(recv)
	require.Equal(t, recv, r.next())
	r.CloseFD(fd)
	r.stats.InFlight = 0
}

// Close takes everything back from the kernel, whatever is in flight.
func TestCloseInFlight(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 16<<20)
		l, _ := r.listen()
		r.Submit(&loop.Op{Code: loop.Accept, FD: l})
		fd, peer := r.pair()
		r.Submit(&loop.Op{Code: loop.RecvMulti, FD: fd})
		r.stuckSend(fd, peer)
		require.NotZero(t, r.Stats().BuffersOut)
		r.write(peer, []byte("never delivered"))
		require.NoError(t, r.Close())
		require.Zero(t, r.pool.Lent())
		require.Zero(t, sys.Close(fd))
		require.Zero(t, sys.Close(l))
	})
}

// pingPong returns a function that sends a byte each way between two sockets
// of one engine.
func pingPong(r *rig, recvCode loop.Code) func() {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(r, err)
	var recv, send [2]loop.Op
	vecs := [2][][]byte{{[]byte("x")}, {[]byte("y"), []byte("z")}}
	for i, fd := range p {
		require.NoError(r, r.Attach(int32(fd)))
		recv[i] = loop.Op{Code: recvCode, Size: loop.ClassHead, FD: int32(fd), Tag: uint8(i)}
		send[i] = loop.Op{Code: loop.Send, FD: int32(fd), Msg: &loop.Msg{Vecs: vecs[i]}}
		r.Submit(&recv[i])
	}
	r.Cleanup(func() {
		for i := range recv {
			require.Zero(r, r.Shutdown(recv[i].FD, unix.SHUT_RDWR))
		}
		for recv[0].InFlight() || recv[1].InFlight() {
			require.NoError(r, r.Poll(time.Second, func(*loop.Op) {}))
		}
		for i := range recv {
			r.CloseFD(recv[i].FD)
		}
	})
	legs := 0
	deliver := func(op *loop.Op) {
		if op.Buf == nil {
			return
		}
		op.Buf.Release()
		op.Buf = nil
		if !op.More {
			r.Submit(op)
		}
		if legs++; op.Tag == 1 {
			r.Submit(&send[1])
		}
	}
	return func() {
		for legs = 0; send[0].InFlight() || send[1].InFlight(); {
			if err := r.Poll(time.Second, deliver); err != nil {
				r.Fatal(err)
			}
		}
		for r.Submit(&send[0]); legs < 2; {
			if err := r.Poll(time.Second, deliver); err != nil {
				r.Fatal(err)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
			r := newRig(t, c, 16<<20)
			l, to := r.listen()
			accept := &loop.Op{Code: loop.Accept, FD: l}
			connect := &loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: to}}
			exchange := pingPong(r, code)
			require.Zero(t, testing.AllocsPerRun(200, func() {
				r.done = r.done[:0]
				exchange()
				r.Submit(accept)
				r.Submit(connect)
				for len(r.done) < 2 {
					_ = r.Poll(-1, r.note)
				}
				r.CloseFD(int32(accept.N))
				r.CloseFD(connect.FD)
			}))
			r.CloseFD(l)
			r.done = nil
		}
	})
}

func BenchmarkPingPong(b *testing.B) {
	for i, name := range []string{"best", "A", "B"} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, Config{Tier: Tier(i)}, 16<<20)
			r.pool.Poison = false
			exchange := pingPong(r, loop.RecvMulti)
			b.ReportAllocs()
			for b.Loop() {
				exchange()
			}
		})
	}
}

// BenchmarkNop measures what the ring itself costs per operation: an entry, a
// 64th of a turn, and its completion.
func BenchmarkNop(b *testing.B) {
	r := newRig(b, Config{}, 1<<20)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		s, _ := r.entry()
		s.PrepOperation(abi.IORING_OP_NOP, -1, 0, 0, 0)
		s.SetUserData(userData(kindIgnored, 0, 0))
		if n++; n%64 == 0 {
			if err := r.Poll(0, r.note); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A loop that never sleeps lets others run and be collected, on one CPU too.
func TestBusyLoopIsPreempted(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := newRig(t, Config{}, 16<<20)
	exchange := pingPong(r, loop.RecvMulti)
	var collected atomic.Bool
	go func() {
		for range 3 {
			runtime.GC()
		}
		collected.Store(true)
	}()
	for end := time.Now().Add(10 * time.Second); !collected.Load(); exchange() {
		require.True(t, time.Now().Before(end), "starved")
	}
}

// stuckSend returns a send that the kernel holds and has done a part of. The
// peer has read everything before it.
func (r *rig) stuckSend(fd, peer int32) *loop.Op {
	big := make([]byte, 8<<20)
	n, errno := sys.Send(fd, big)
	require.Zero(r, errno)
	send := &loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{big[:4<<20], big[4<<20:]}}}
	r.Submit(send)
	r.quiet()
	got, errno := sys.Recv(peer, big)
	require.Zero(r, errno)
	require.Equal(r, n, got)
	r.quiet()
	return send
}

// drain reads what there is, and returns how much it was.
func drain(fd int32) (got int) {
	for buf := make([]byte, 1<<20); ; {
		n, errno := sys.Recv(fd, buf)
		if errno != 0 {
			return got
		}
		got += n
	}
}

// Large sends are made from Submit: what they name is still in the cache.
func TestLargeSends(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 16<<20)
		fd, peer := r.pair()
		text := make([]byte, sendNowBytes)
		for i := range text {
			text[i] = byte(i % 251)
		}
		send := &loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{text[:1000], text[1000:]}}}
		r.Submit(send)
		got := make([]byte, len(text)+1)
		n, errno := sys.Recv(peer, got)
		require.Zero(t, errno)
		require.Equal(t, text, got[:n])
		require.True(t, send.InFlight())
		r.Cancel(send) // too late: its result is known
		require.Equal(t, send, r.next())
		require.Zero(t, send.Err)
		require.Equal(t, len(text), send.N)
		r.quiet()

		require.Zero(t, sys.Shutdown(peer, unix.SHUT_RDWR))
		r.Submit(send)
		require.Equal(t, send, r.next())
		require.Equal(t, syscall.EPIPE, send.Err)
		require.Zero(t, send.N)
		r.CloseFD(fd)
	})
}

// What deliver sends at once is delivered by the same Poll, so that a body that
// is sent in parts stays in the cache; but not without end.
func TestSendsWithinAPoll(t *testing.T) {
	r := newRig(t, Config{}, 16<<20)
	fd, peer := r.pair()
	recv := &loop.Op{Code: loop.Recv, Size: loop.ClassHead, FD: fd}
	send := &loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{make([]byte, sendNowBytes)}}}
	sends := 0
	r.Submit(recv)
	r.write(peer, []byte("x"))
	deliver := func(op *loop.Op) {
		if op == recv {
			op.Buf.Release()
			op.Buf = nil
		} else {
			sends++
			require.Equal(t, sendNowBytes, op.N)
			require.Equal(t, sendNowBytes, drain(peer))
		}
		r.Submit(send)
	}
	for sends == 0 {
		require.NoError(t, r.Poll(time.Second, deliver))
	}
	require.Equal(t, readyRounds, sends)
	require.NoError(t, r.Poll(-1, deliver)) // does not wait
	require.Equal(t, readyRounds+1, sends)
	require.NoError(t, r.Poll(-1, func(*loop.Op) {}))
	r.CloseFD(fd)
}

// A cancel that the kernel had no operation for is tried again, if the
// operation still waits.
func TestCancelThatMissed(t *testing.T) {
	r := newRig(t, Config{}, 1<<20)
	fd, peer := r.pair()
	l, _ := r.listen()
	recv := &loop.Op{Code: loop.Recv, Size: loop.ClassHead, FD: fd}
	accept := &loop.Op{Code: loop.Accept, FD: l}
	r.Submit(recv)
	r.Submit(accept)
	send := r.stuckSend(fd, peer)
	d := r.at(fd)
	slot := r.at(l).acceptFirst - 1
	missed := func() {
		r.notCancelled(kindRecv, fd, d.age&ageMask)
		r.notCancelled(kindSend, fd, d.age&ageMask)
		r.notCancelled(kindAccept, slot, r.slots[slot].age&ageMask)
	}
	missed() // of an earlier Op: these are not to be cancelled
	r.quiet()
	d.recvCancel, d.sendCancel, r.slots[slot].cancel = true, true, true
	missed()
	require.ElementsMatch(t, []*loop.Op{recv, send, accept}, []*loop.Op{r.next(), r.next(), r.next()})
	require.Equal(t, syscall.ECANCELED, recv.Err)
	require.Equal(t, syscall.ECANCELED, accept.Err)
	require.NotZero(t, send.N)
	missed() // nothing in flight
	r.quiet()
	r.CloseFD(fd)
	r.CloseFD(l)
}

// tcpPair returns an attached TCP socket and its raw peer.
func (r *rig) tcpPair() (fd, peer int32) {
	l, to := r.listen()
	accept := &loop.Op{Code: loop.Accept, FD: l}
	r.Submit(accept)
	var addr sys.Sockaddr
	family, length, _ := addr.SetAddrPort(to.AddrPort)
	peer, errno := sys.Socket(family, false)
	require.Zero(r, errno)
	require.Contains(r, []syscall.Errno{0, syscall.EINPROGRESS}, sys.Connect(peer, &addr, length))
	require.Equal(r, accept, r.next())
	require.Zero(r, accept.Err)
	r.CloseFD(l)
	return int32(accept.N), peer
}

// ending waits for the final result of recv and returns what came before it.
func (r *rig) ending(recv *loop.Op) (got string, took time.Duration) {
	start := time.Now()
	for ended := false; !ended; {
		require.Less(r, time.Since(start), 30*time.Second, "the end was missed")
		require.NoError(r, r.Poll(time.Second, func(op *loop.Op) {
			require.Equal(r, recv, op)
			if op.Buf != nil {
				got += string(op.Buf.Bytes()[:op.N])
				op.Buf.Release()
				op.Buf = nil
			}
			if ended = !op.More && op.N == 0; !op.More && !ended {
				r.Submit(op)
			}
		}))
	}
	return got, time.Since(start)
}

// What ends a connection before its last data is taken is not missed, though
// the kernel tells a multishot of the data alone.
func TestEndBehindData(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, 1<<20)
		for _, armed := range []bool{true, false} {
			for _, end := range []string{"reset", "shut down here", "shut down here after a reset", "closed"} {
				t.Log(armed, end)
				inTime(t, 500*time.Millisecond, func() time.Duration { return r.endBehindData(armed, end) })
			}
		}
	})
}

// endBehindData sends data and an end behind it, and returns how long the end
// took to be known.
func (r *rig) endBehindData(armed bool, end string) time.Duration {
	fd, peer := r.tcpPair()
	recv := &loop.Op{Code: loop.RecvMulti, FD: fd}
	if armed {
		r.Submit(recv)
		r.quiet()
	} else { // a receive that empties the socket came before
		first := &loop.Op{Code: loop.Recv, Size: loop.ClassHead, FD: fd}
		r.Submit(first)
		r.write(peer, []byte("first"))
		require.Equal(r, first, r.next())
		first.Buf.Release()
	}
	r.write(peer, []byte("last"))
	want := syscall.Errno(0)
	switch end {
	case "shut down here":
		require.Zero(r, r.Shutdown(fd, unix.SHUT_RDWR))
	case "reset", "shut down here after a reset":
		require.Zero(r, sys.SetAbort(peer))
		want = syscall.ECONNRESET
	}
	require.Zero(r, sys.Close(peer))
	if end == "shut down here after a reset" {
		require.Equal(r, syscall.ENOTCONN, r.Shutdown(fd, unix.SHUT_RDWR))
	}
	if !armed {
		r.Submit(recv)
	}
	got, took := r.ending(recv)
	require.Equal(r, want, recv.Err)
	if end != "shut down here" {
		require.Equal(r, "last", got)
	}
	r.CloseFD(fd)
	return took
}

// A reset that the kernel forgets is found by asking a second later. Polling
// before receiving makes it forget, on Linux 6.18.
func TestForgottenReset(t *testing.T) {
	r := newRig(t, Config{}, 1<<20)
	if !r.multi {
		t.Skip("single-shot receives: Linux before 6.18")
	}
	fd, peer := r.tcpPair()
	r.write(peer, []byte("last"))
	require.Zero(t, sys.SetAbort(peer))
	require.Zero(t, sys.Close(peer))
	recv := &loop.Op{Code: loop.RecvMulti, FD: fd}
	r.Submit(recv)
	r.u.sqes[(r.u.tail-1)&r.u.sqMask].SetIoprio(recvMultishot | recvPollFirst)
	got, took := r.ending(recv)
	require.Equal(t, "last", got)
	require.Equal(t, syscall.ECONNRESET, recv.Err)
	t.Log("after", took)
	r.CloseFD(fd)

	// Nothing is asked of connections that are quiet, or gone.
	calls := r.Stats().Calls
	require.NoError(t, r.Poll(1100*time.Millisecond, r.note))
	require.LessOrEqual(t, r.Stats().Calls, calls+1)
}

// A receive that waits for buffers ends when receiving is shut down.
func TestShutdownOfStarved(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		r := newRig(t, c, loop.HeadBytes)
		all := r.pool.Get(loop.ClassHead)
		for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
			for _, seen := range []bool{true, false} {
				fd, peer := r.pair()
				recv := &loop.Op{Code: code, Size: loop.ClassHead, FD: fd}
				r.Submit(recv)
				r.write(peer, []byte("x"))
				if seen {
					r.quiet()
				}
				require.Zero(t, r.Shutdown(fd, unix.SHUT_RDWR))
				require.Equal(t, recv, r.next())
				require.Zero(t, recv.Err)
				require.Zero(t, recv.N)
				r.CloseFD(fd)
			}
		}
		all.Release()
	})
}

// BenchmarkReceive measures one message of 100 bytes from send to receive over
// TCP, by multishots and by single-shots. It is why there are multishots.
func BenchmarkReceive(b *testing.B) {
	for _, multi := range []bool{true, false} {
		b.Run(fmt.Sprintf("multishot=%v", multi), func(b *testing.B) {
			r := newRig(b, Config{}, 64<<20)
			r.pool.Poison = false
			r.multi = multi
			const n = 64
			var recv, send [n]loop.Op
			for i := range n {
				fd, peer := r.tcpPair()
				require.NoError(b, r.Attach(peer))
				recv[i] = loop.Op{Code: loop.RecvMulti, FD: fd, User: loop.Token{Index: uint32(i)}}
				send[i] = loop.Op{Code: loop.Send, FD: peer, Msg: &loop.Msg{Vecs: [][]byte{make([]byte, 100)}}}
				r.Submit(&recv[i])
			}
			got := 0
			deliver := func(op *loop.Op) {
				if op.Buf == nil {
					return
				}
				op.Buf.Release()
				op.Buf = nil
				if !op.More {
					r.Submit(op)
				}
				got++
			}
			b.ReportAllocs()
			for b.Loop() {
				for s := &send[got%n]; s.InFlight(); {
					_ = r.Poll(-1, deliver)
				}
				r.Submit(&send[got%n])
				for sent := got; got == sent; {
					_ = r.Poll(-1, deliver)
				}
			}
			for i := range n {
				r.Shutdown(recv[i].FD, unix.SHUT_RDWR)
			}
			for r.Stats().InFlight > 0 {
				_ = r.Poll(time.Second, func(*loop.Op) {})
			}
			for i := range n {
				r.CloseFD(recv[i].FD)
				r.CloseFD(send[i].FD)
			}
		})
	}
}
