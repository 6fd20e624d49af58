package looptest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// peerVariable tells a process of the test binary that it is a peer: its value
// is an address and a number of connections.
const peerVariable = "CUP_LOOPTEST_PEER"

func init() {
	if job := os.Getenv(peerVariable); job != "" {
		if err := peer(job, os.Stdin); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// peer opens connections, waits for the end of its input, sends a number on
// each connection, and expects the next number on each.
func peer(job string, input io.Reader) error {
	addr, count, _ := strings.Cut(job, " ")
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", addr); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, input); err != nil {
		return err
	}
	var b [8]byte
	for i, c := range conns {
		binary.BigEndian.PutUint64(b[:], uint64(i))
		if _, err := c.Write(b[:]); err != nil {
			return err
		}
	}
	for i, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		if got := binary.BigEndian.Uint64(b[:]); got != uint64(i)+1 {
			return fmt.Errorf("connection %d was answered %d", i, got)
		}
	}
	for _, c := range conns {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Many connections at once, whose peers are another process because of the
// limit of descriptors.
func testMany(r *rig) {
	n := 2000
	if long() {
		n = 10_000
	}
	l, addr := r.listen(4096)
	accepted, closed := 0, 0
	serve := func(fd int32) {
		in, out := &task{}, &task{}
		text := make([]byte, 8)
		in.then = func(res result) {
			require.Zero(r, res.err)
			if res.n == 0 {
				require.Zero(r, out.Engine)
				r.close(fd)
				closed++
				return
			}
			require.Equal(r, 8, res.n)
			binary.BigEndian.PutUint64(text, binary.BigEndian.Uint64(in.data)+1)
			r.startAs(out, loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{text}}})
			r.again(in)
		}
		r.startAs(in, loop.Op{Code: loop.Recv, FD: fd, Size: loop.ClassHead})
	}
	var accepts []*task
	for range 8 {
		k := &task{}
		k.then = func(res result) {
			if res.err == syscall.ECANCELED {
				return
			}
			require.Zero(r, res.err)
			accepted++
			serve(int32(res.n))
			r.again(k)
		}
		accepts = append(accepts, k)
		r.startAs(k, loop.Op{Code: loop.Accept, FD: l})
	}

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", peerVariable, addr, n))
	var said bytes.Buffer
	child.Stdout, child.Stderr = &said, &said
	start, err := child.StdinPipe()
	require.NoError(r, err)
	require.NoError(r, child.Start())
	exit := make(chan error, 1)
	go func() {
		exit <- child.Wait()
		r.Wake()
	}()
	r.until("all connections", func() bool { return accepted == n || len(exit) > 0 })
	require.Less(r, r.pool.Lent(), 4<<20, "idle connections hold buffers")
	require.NoError(r, start.Close())
	r.until("the peers' end", func() bool { return len(exit) > 0 })
	require.NoError(r, <-exit, "%s", &said)
	r.until("all ends", func() bool { return closed == n })
	for _, k := range accepts {
		r.Cancel(&k.Op)
	}
	r.until("the accepts' end", func() bool { return r.Stats().InFlight == 0 })
	r.close(l)
}

// Connections come and go, closed by either side first, by a FIN or a RST, and
// nothing of them stays.
func testChurn(r *rig) {
	cycles := 3000
	if long() {
		cycles = 100_000
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(r, err)
	require.NoError(r, unix.Bind(fd, &unix.SockaddrInet4{}))
	require.NoError(r, unix.Listen(fd, 64))
	l := int32(fd)
	require.NoError(r, r.Attach(l))
	r.open++
	port := boundTo(r, l).Port()
	fds, mapped, tasks := 0, 0, len(r.tasks)
	for i := range cycles {
		// Many addresses, as closed connections keep their ports for a minute.
		to := netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)%250 + 1})
		ours := r.connect(loop.Addr{AddrPort: netip.AddrPortFrom(to, port)})
		accepted := r.accept(l)
		require.Zero(r, r.result(ours).err)
		require.Zero(r, r.result(accepted).err)
		theirs := int32(accepted.N)
		if i%2 == 0 {
			got := r.recvMulti(theirs)
			s := r.send(ours.FD, []byte("hello"))
			require.Equal(r, 5, r.result(s).n)
			r.until("hello", func() bool { return string(got.data) == "hello" })
			if i%4 == 0 { // the receive ends by the peer's end
				r.close(ours.FD)
				r.until("the end", func() bool {
					if got.done > 0 && got.N > 0 {
						r.again(got)
					}
					return got.done > 0
				})
				r.close(theirs)
			} else { // by our own
				require.Zero(r, r.Shutdown(theirs, unix.SHUT_RDWR))
				r.until("the end", func() bool {
					if got.done > 0 && got.N > 0 {
						r.again(got)
					}
					return got.done > 0
				})
				r.close(theirs, ours.FD)
			}
		} else {
			if i%3 == 0 {
				require.NoError(r, unix.SetsockoptLinger(int(theirs), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			}
			r.close(theirs, ours.FD)
		}
		r.tasks = r.tasks[:tasks]
		if i == 100 {
			require.NoError(r, r.Poll(0, r.deliver))
			fds, mapped = countFDs(r), r.pool.Mapped()
		}
	}
	require.NoError(r, r.Poll(0, r.deliver))
	require.Equal(r, fds, countFDs(r))
	require.Equal(r, mapped, r.pool.Mapped())
	r.close(l)
}

// end is one side of a connection of the random test.
type end struct {
	fd         int32
	base       int // of the pattern that it sends
	sent       int // bytes told as sent
	maybe      int // bytes that a failed send may have sent beside them
	got        int // bytes received of the other's pattern
	ended      bool
	failed     bool // the connection was cut: less may arrive than was sent
	send, recv *task
	other      *end
}

// testRandom does everything at once in a random order and compares every
// byte. CUP_SEED repeats a failure.
func testRandom(r *rig) {
	rng := rand.New(rand.NewPCG(newSeed(r), 0))
	steps := 20_000
	if long() {
		steps = 500_000
	}
	w := &world{rig: r, rng: rng}
	if f, ok := r.Engine.(*FaultyEngine); ok {
		w.harm = f.Rates.Reset > 0
	}
	w.listener, w.addr = r.listen(64)
	for range 16 {
		w.connectPair()
	}
	for range steps {
		w.step()
	}
	for _, e := range w.ends {
		if e.fd >= 0 {
			w.cut(e)
		}
	}
	r.until("everything to end", func() bool { return r.Stats().InFlight == 0 })
	for len(w.held) > 0 {
		w.release()
	}
	for _, e := range w.ends {
		r.close(e.fd)
	}
	r.close(w.listener)
	require.NotZero(r, w.moved)
	require.Equal(r, w.harm, w.harmed > 0)
}

// newSeed logs a seed, which CUP_SEED gives to repeat a failure.
func newSeed(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CUP_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("CUP_SEED=%d", seed)
	return seed
}

// world is the random test's.
type world struct {
	*rig
	rng      *rand.Rand
	listener int32
	addr     netip.AddrPort
	ends     []*end
	held     []heldBuffer
	moved    int // bytes received
	harmed   int
	harm     bool // connections are reset and refused by the engine
}

// heldBuffer is a received buffer whose bytes must stay.
type heldBuffer struct {
	buf  *loop.Buffer
	n    int
	from int // place in the pattern
}

func (w *world) connectPair() {
	ours := w.connect(loop.Addr{AddrPort: w.addr})
	accepted := w.accept(w.listener)
	refused := w.result(ours).err == syscall.ECONNREFUSED
	require.Zero(w, w.result(accepted).err)
	if w.harm && refused {
		w.close(ours.FD, int32(accepted.N))
		w.connectPair()
		return
	}
	require.Zero(w, ours.Err)
	a := &end{fd: ours.FD, base: w.rng.IntN(1 << 30)}
	b := &end{fd: int32(accepted.N), base: w.rng.IntN(1 << 30), other: a}
	a.other = b
	for _, e := range []*end{a, b} {
		e.send, e.recv = w.newTask(), w.newTask()
		e.send.then = func(res result) { w.sent(e, res) }
		e.recv.keep = func(b *loop.Buffer) { w.received(e, b) }
		e.recv.then = func(res result) { w.recvEnded(e, res) }
		// Small socket buffers are full more often.
		require.NoError(w, unix.SetsockoptInt(int(e.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10))
	}
	w.ends = append(w.ends, a, b)
}

// newTask gives a task its place, so that it can be submitted again.
func (r *rig) newTask() *task {
	k := &task{}
	k.User = loop.Token{Index: uint32(len(r.tasks)), Age: 7}
	r.tasks = append(r.tasks, k)
	return k
}

func (w *world) sent(e *end, res result) {
	e.send.results = e.send.results[:0]
	if res.err == 0 {
		e.sent += res.n
		return
	}
	// It may have sent a part. Nothing more may follow.
	for _, v := range e.send.Vecs {
		e.maybe += len(v)
	}
	e.ended = true
	if res.err != syscall.ECANCELED {
		require.Contains(w, []syscall.Errno{syscall.EPIPE, syscall.ECONNRESET}, res.err)
		w.mayFail(e, res.err)
	}
	if errno := w.Shutdown(e.fd, unix.SHUT_WR); errno != 0 {
		require.Equal(w, syscall.ENOTCONN, errno)
	}
}

func (w *world) received(e *end, b *loop.Buffer) {
	h := heldBuffer{b, e.recv.N, e.other.base + e.got}
	require.True(w, matches(b.Bytes()[:h.n], h.from), "bytes differ at %d", e.got)
	e.got += h.n
	w.moved += h.n
	require.LessOrEqual(w, e.got, e.other.sentAtMost())
	if len(w.held) < 24 && w.rng.IntN(4) == 0 && b.Class() != loop.ClassBody {
		w.held = append(w.held, h)
		return
	}
	b.Release()
}

// sentAtMost counts what is in flight too.
func (e *end) sentAtMost() int {
	n := e.sent + e.maybe
	if e.send.InFlight() {
		for _, v := range e.send.Vecs {
			n += len(v)
		}
	}
	return n
}

func (w *world) release() {
	i := w.rng.IntN(len(w.held))
	h := w.held[i]
	w.held[i] = w.held[len(w.held)-1]
	w.held = w.held[:len(w.held)-1]
	require.True(w, matches(h.buf.Bytes()[:h.n], h.from), "a held buffer was written")
	h.buf.Release()
}

func (w *world) recvEnded(e *end, res result) {
	e.recv.results = e.recv.results[:0]
	switch {
	case res.n > 0 || res.err == syscall.ECANCELED:
	case res.err == 0:
		if !e.failed {
			require.True(w, e.other.ended, "an end that nobody made")
			require.GreaterOrEqual(w, e.got, e.other.sent)
		}
	default:
		require.Equal(w, syscall.ECONNRESET, res.err)
		w.mayFail(e, res.err)
	}
}

// mayFail holds an error to be the consequence of a cut, or of a fault that
// was asked for.
func (w *world) mayFail(e *end, errno syscall.Errno) {
	if w.harm && !e.failed {
		e.failed, e.other.failed = true, true
		e.ended, e.other.ended = true, true
		w.harmed++
	}
	require.True(w, e.failed, "%v on a connection that nobody cut", errno)
}

// cut ends a connection from one side.
func (w *world) cut(e *end) {
	e.failed, e.other.failed = true, true
	e.ended, e.other.ended = true, true
	w.Shutdown(e.fd, unix.SHUT_RDWR)
	w.Shutdown(e.other.fd, unix.SHUT_RDWR)
}

func (w *world) step() {
	e := w.ends[w.rng.IntN(len(w.ends))]
	switch w.rng.IntN(16) {
	case 0, 1, 2:
		if e.send.InFlight() || e.ended {
			break
		}
		text := pattern(e.base+e.sent, 1+w.rng.IntN(1<<(1+w.rng.IntN(17))))
		e.send.Op = loop.Op{Code: loop.Send, FD: e.fd, User: e.send.User, Msg: &loop.Msg{Vecs: cut(text, 1+w.rng.IntN(loop.VecsMax))}}
		w.again(e.send)
	case 3, 4, 5, 6, 7, 8:
		if e.recv.InFlight() {
			break
		}
		e.recv.Op = loop.Op{Code: loop.Recv, FD: e.fd, User: e.recv.User, Size: loop.ClassHead + loop.Class(w.rng.IntN(2))}
		if w.rng.IntN(2) == 0 {
			e.recv.Code = loop.RecvMulti
		}
		w.again(e.recv)
	case 9:
		w.Cancel(&e.recv.Op)
	case 10:
		if w.rng.IntN(50) == 0 {
			w.Cancel(&e.send.Op)
		}
	case 11:
		if w.rng.IntN(50) == 0 && !e.send.InFlight() && !e.ended {
			e.ended = true
			require.Zero(w, w.Shutdown(e.fd, unix.SHUT_WR))
		}
	case 12:
		if w.rng.IntN(100) == 0 {
			w.replace(e)
		}
	case 13:
		if len(w.held) > 0 {
			w.release()
		}
	default:
		wait := time.Duration(w.rng.IntN(2)) * 100 * time.Microsecond
		require.NoError(w, w.Poll(wait, w.deliver))
	}
}

// replace cuts a connection and opens another one, mostly on its numbers.
func (w *world) replace(e *end) {
	w.cut(e)
	busy := []*task{e.send, e.recv, e.other.send, e.other.recv}
	w.until("its operations", func() bool {
		for len(w.held) > 0 {
			w.release() // they may starve
		}
		for _, k := range busy {
			if k.InFlight() {
				return false
			}
		}
		return true
	})
	w.close(e.fd, e.other.fd)
	for i := 0; i < len(w.ends); i++ {
		if w.ends[i] == e || w.ends[i] == e.other {
			w.ends[i] = w.ends[len(w.ends)-1]
			w.ends = w.ends[:len(w.ends)-1]
			i--
		}
	}
	w.connectPair()
}
