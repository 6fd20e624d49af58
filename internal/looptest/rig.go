package looptest

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// quiet is how long a test watches that nothing happens.
const quiet = 30 * time.Millisecond

// opener opens the engine under test.
type opener = func(*loop.Pool) (loop.Engine, error)

// rig is one engine with its pool and the operations of one test.
type rig struct {
	testing.TB
	loop.Engine
	pool  *loop.Pool
	tasks []*task
	peak  int // most that the pool had lent when something was delivered
	open  int // descriptors that the test did not close yet
	fds   int // descriptors of the process at the start
	dead  bool
}

// Name is the test's.
func (r *rig) Name() string { return r.TB.Name() }

// task is an Op and what was delivered for it.
type task struct {
	loop.Op
	done    int // final results
	results []result
	data    []byte         // received, if keep is nil
	then    func(r result) // called for each result, inside deliver
	keep    func(*loop.Buffer)
}

type result struct {
	n    int
	err  syscall.Errno
	more bool
	addr netip.AddrPort
}

// newRig opens an engine on this goroutine, which stays on its thread, and
// checks at the end of the test that nothing was left behind.
func newRig(t testing.TB, open opener, memory int) *rig {
	runtime.LockOSThread()
	fds := countFDs(t)
	pool := loop.NewPool(memory)
	pool.Poison = true
	e, err := open(pool)
	require.NoError(t, err)
	r := &rig{TB: t, Engine: e, pool: pool, fds: fds}
	t.Cleanup(func() {
		if !t.Failed() && !r.dead {
			r.checkNothingLeft()
		}
		require.NoError(t, e.Close())
		if !t.Failed() {
			require.Zero(t, pool.Lent(), "memory lent")
		}
		require.NoError(t, pool.Close())
		if !t.Failed() {
			require.Equal(t, r.fds, countFDs(t), "descriptors left")
			runtime.UnlockOSThread()
		}
	})
	return r
}

// checkNothingLeft holds the counters to zero, after the engine had its turn
// to close what was closed last.
func (r *rig) checkNothingLeft() {
	r.Helper()
	require.NoError(r, r.Poll(0, r.deliver))
	s := r.Stats()
	require.Zero(r, s.InFlight, "operations in flight")
	require.Equal(r, r.open, s.Attached, "descriptors attached")
}

func countFDs(t testing.TB) int {
	d, err := os.Open("/proc/self/fd")
	require.NoError(t, err)
	names, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	return len(names) - 1
}

// start submits an operation.
func (r *rig) start(op loop.Op) *task {
	k := &task{}
	r.startAs(k, op)
	return k
}

// startAs submits an operation as k, whose functions are set already.
func (r *rig) startAs(k *task, op loop.Op) {
	op.User = loop.Token{Index: uint32(len(r.tasks)), Age: 7}
	k.Op = op
	r.tasks = append(r.tasks, k)
	r.again(k)
}

// again submits the Op of a task once more.
func (r *rig) again(k *task) {
	k.done = 0
	r.Submit(&k.Op)
	require.True(r, k.InFlight())
}

func (r *rig) recv(fd int32) *task {
	return r.start(loop.Op{Code: loop.Recv, FD: fd, Size: loop.ClassHead})
}

func (r *rig) recvMulti(fd int32) *task {
	return r.start(loop.Op{Code: loop.RecvMulti, FD: fd})
}

func (r *rig) send(fd int32, pieces ...[]byte) *task {
	return r.start(loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: pieces}})
}

func (r *rig) accept(fd int32) *task {
	return r.start(loop.Op{Code: loop.Accept, FD: fd, Msg: &loop.Msg{Peer: &loop.Addr{}}})
}

func (r *rig) connect(addr loop.Addr) *task {
	k := r.start(loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: &addr}})
	if k.FD >= 0 {
		r.open++
	}
	return k
}

// deliver records a result and holds it to the contract.
func (r *rig) deliver(op *loop.Op) {
	k := r.tasks[op.User.Index]
	require.Same(r, &k.Op, op)
	require.EqualValues(r, 7, op.User.Age)
	require.Zero(r, k.done, "delivered after its final result")
	require.Equal(r, op.More, op.InFlight(), "in flight exactly while more is to come")
	if !op.More {
		k.done++
	}
	receive := op.Code == loop.Recv || op.Code == loop.RecvMulti
	if op.Err != 0 {
		require.Zero(r, op.N, "bytes with an error")
		require.False(r, op.More)
	}
	require.Equal(r, receive && op.N > 0, op.Buf != nil, "a buffer comes with received bytes only")
	r.peak = max(r.peak, r.pool.Lent())
	res := result{n: op.N, err: op.Err, more: op.More}
	if op.Code == loop.Accept && op.Msg != nil {
		res.addr = op.Peer.AddrPort
	}
	k.results = append(k.results, res)
	if op.Buf != nil {
		require.EqualValues(r, 1, op.Buf.Refs())
		if op.Buf.IsPipe() {
			require.Equal(r, op.N, op.Buf.Piped())
			require.LessOrEqual(r, op.N, int(op.Max))
		} else {
			require.LessOrEqual(r, op.N, len(op.Buf.Bytes()))
		}
		if op.Size == loop.ClassPipe {
			require.Contains(r, []loop.Class{loop.ClassPipe, loop.ClassBody}, op.Buf.Class())
		} else if op.Code == loop.Recv {
			require.Equal(r, op.Size, op.Buf.Class())
		} else {
			require.Equal(r, loop.ClassHead, op.Buf.Class())
		}
		if k.keep != nil {
			k.keep(op.Buf)
		} else {
			k.data = append(k.data, op.Buf.Bytes()[:op.N]...)
			op.Buf.Release()
		}
	}
	if op.Code == loop.Accept && op.Err == 0 {
		r.open++
	}
	if k.then != nil {
		k.then(res)
	}
}

// until polls until what is awaited is there.
func (r *rig) until(what string, there func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !there(); {
		if time.Now().After(end) {
			require.FailNow(r, "waited in vain for "+what, "%+v", r.Stats())
		}
		require.NoError(r, r.Poll(time.Until(end), r.deliver))
	}
}

// result waits for the next final result of k.
func (r *rig) result(k *task) result {
	r.Helper()
	r.until("a result", func() bool { return k.done > 0 })
	return k.results[len(k.results)-1]
}

// nothing polls for a while and checks that k gets no result.
func (r *rig) nothing(k *task) {
	r.Helper()
	before := len(k.results)
	r.pollFor(quiet)
	require.Equal(r, before, len(k.results), "an unexpected result: %+v", k.results)
}

// pollFor polls for a time, at least once, whatever comes, and counts how often.
func (r *rig) pollFor(d time.Duration) (polls int) {
	r.Helper()
	for end := time.Now().Add(d); polls == 0 || time.Now().Before(end); polls++ {
		require.NoError(r, r.Poll(max(time.Until(end), 0), r.deliver))
	}
	return polls
}

func (r *rig) close(fds ...int32) {
	for _, fd := range fds {
		r.CloseFD(fd)
		r.open--
	}
}

// listen attaches a TCP listener on 127.0.0.1.
func (r *rig) listen(backlog int) (int32, netip.AddrPort) {
	fd := listenTCP(r, backlog)
	require.NoError(r, r.Attach(fd))
	r.open++
	return fd, boundTo(r, fd)
}

func listenTCP(t testing.TB, backlog int) int32 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, backlog))
	return int32(fd)
}

func boundTo(t testing.TB, fd int32) netip.AddrPort {
	sa, err := unix.Getsockname(int(fd))
	require.NoError(t, err)
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

// pair returns a connection that the engine accepted, and its peer.
func (r *rig) pair() (int32, *net.TCPConn) {
	r.Helper()
	l, addr := r.listen(16)
	fd, peer := r.acceptFrom(l, addr)
	r.close(l)
	return fd, peer
}

// acceptFrom lets the engine accept a new peer from its listener l.
func (r *rig) acceptFrom(l int32, addr netip.AddrPort) (int32, *net.TCPConn) {
	r.Helper()
	k := r.accept(l)
	peer, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	r.Cleanup(func() { _ = peer.Close() }) // for the tests that do not
	res := r.result(k)
	require.Zero(r, res.err)
	return int32(res.n), peer.(*net.TCPConn)
}

// reset closes a connection by a RST.
func reset(t testing.TB, c *net.TCPConn) {
	require.NoError(t, c.SetLinger(0))
	require.NoError(t, c.Close())
}

// pattern is n bytes that tell their place in a stream.
func pattern(from, n int) []byte {
	b := make([]byte, n)
	fill(b, from)
	return b
}

func fill(b []byte, from int) {
	for i := range b {
		b[i] = byteAt(from + i)
	}
}

func byteAt(i int) byte { return byte(i ^ i>>8*131 ^ i>>16*29) }

// matches reports whether b stands at place from of the pattern.
func matches(b []byte, from int) bool {
	for i, c := range b {
		if c != byteAt(from+i) {
			return false
		}
	}
	return true
}

// cut splits b into n pieces of different lengths, some of them empty.
func cut(b []byte, n int) [][]byte {
	var pieces [][]byte
	for i := range n - 1 {
		m := min(len(b), i*i*37%1000)
		pieces = append(pieces, b[:m])
		b = b[m:]
	}
	return append(pieces, b)
}

// await polls until another goroutine sends: engines may do what does not
// need an answer, like closing, with the next Poll.
func await[T any](r *rig, ch <-chan T) T {
	r.Helper()
	for end := time.Now().Add(patience); len(ch) == 0; {
		require.True(r, time.Now().Before(end), "waited in vain for a peer")
		require.NoError(r, r.Poll(time.Millisecond, r.deliver))
	}
	return <-ch
}

// readAll reads from a peer until the end of the stream.
func readAll(c net.Conn) <-chan []byte {
	done := make(chan []byte, 1)
	go func() {
		var b bytes.Buffer
		_, _ = b.ReadFrom(c) // what arrived tells; a reset shows in the length
		done <- b.Bytes()
	}()
	return done
}
