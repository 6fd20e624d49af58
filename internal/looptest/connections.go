package looptest

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// testAccept: a connection that comes later than its accept, and one that came
// earlier.
func testAccept(r *rig) {
	l, addr := r.listen(16)
	k := r.accept(l)
	r.nothing(k)
	peer, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer peer.Close()
	res := r.result(k)
	require.Zero(r, res.err)
	require.Equal(r, peer.LocalAddr().String(), res.addr.String())

	flags, err := unix.FcntlInt(uintptr(res.n), unix.F_GETFL, 0)
	require.NoError(r, err)
	require.NotZero(r, flags&unix.O_NONBLOCK)
	flags, err = unix.FcntlInt(uintptr(res.n), unix.F_GETFD, 0)
	require.NoError(r, err)
	require.NotZero(r, flags&unix.FD_CLOEXEC)

	early, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer early.Close()
	r.pollFor(quiet)
	second := r.result(r.accept(l))
	require.Equal(r, early.LocalAddr().String(), second.addr.String())
	r.close(int32(res.n), int32(second.n), l)
}

// Accepts are served in the order of their submission, and connections in the
// order of their coming.
func testAcceptOrder(r *rig) {
	const n = 20
	l, addr := r.listen(64)
	var waiting []*task
	for range n / 2 {
		waiting = append(waiting, r.accept(l))
	}
	var peers []net.Conn
	for range n {
		peer, err := net.Dial("tcp", addr.String())
		require.NoError(r, err)
		defer peer.Close()
		peers = append(peers, peer)
	}
	r.result(waiting[n/2-1])
	for range n / 2 {
		waiting = append(waiting, r.accept(l))
	}
	r.result(waiting[n-1])
	for i, k := range waiting {
		require.Equal(r, 1, k.done)
		require.Equal(r, peers[i].LocalAddr().String(), k.Peer.String())
		r.close(int32(k.N))
	}
	r.close(l)
}

func testAcceptEMFILE(r *rig) {
	l, addr := r.listen(16)
	peer, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer peer.Close()

	free, err := unix.Dup(int(l)) // the lowest free number
	require.NoError(r, err)
	require.NoError(r, unix.Close(free))
	var old unix.Rlimit
	require.NoError(r, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	require.NoError(r, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: old.Max}, nil))
	k := r.accept(l)
	for range 3 {
		res := r.result(k)
		require.Equal(r, syscall.EMFILE, res.err)
		r.again(k)
	}
	require.NoError(r, unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil))
	res := r.result(k)
	if res.err != 0 { // it was tried before there were descriptors again
		r.again(k)
		res = r.result(k)
	}
	require.Zero(r, res.err)
	require.Equal(r, peer.LocalAddr().String(), res.addr.String())
	r.close(int32(res.n), l)
}

func testAcceptCancel(r *rig) {
	l, addr := r.listen(16)
	first, second, third := r.accept(l), r.accept(l), r.accept(l)
	require.NoError(r, r.Poll(0, r.deliver))
	r.Cancel(&second.Op)
	r.Cancel(&second.Op)
	require.Equal(r, syscall.ECANCELED, r.result(second).err)
	r.Cancel(&second.Op) // not in flight: nothing

	peer, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer peer.Close()
	res := r.result(first)
	require.Zero(r, res.err)
	r.nothing(third)

	// The next connection is the third one's, not the cancelled one's.
	fourth := r.accept(l)
	next, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer next.Close()
	require.Equal(r, next.LocalAddr().String(), r.result(third).addr.String())
	r.nothing(fourth)
	require.Len(r, second.results, 1)
	r.Cancel(&fourth.Op)
	require.Equal(r, syscall.ECANCELED, r.result(fourth).err)
	require.Zero(r, *fourth.Peer)
	r.close(int32(res.n), int32(third.N), l)
}

func testConnect(r *rig) {
	l, addr := r.listen(16)
	accepted := r.accept(l)
	k := r.connect(loop.Addr{AddrPort: addr})
	require.GreaterOrEqual(r, k.FD, int32(0))
	require.Zero(r, k.done, "delivered by Submit")
	require.Zero(r, r.result(k).err)
	res := r.result(accepted)
	sa, err := unix.Getsockname(int(k.FD))
	require.NoError(r, err)
	require.EqualValues(r, sa.(*unix.SockaddrInet4).Port, res.addr.Port())
	nodelay, err := unix.GetsockoptInt(int(k.FD), unix.IPPROTO_TCP, unix.TCP_NODELAY)
	require.NoError(r, err)
	require.NotZero(r, nodelay)
	control, err := unix.GetsockoptString(int(k.FD), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	require.NoError(r, err)
	require.Equal(r, "reno", strings.TrimRight(control, "\x00"), "a connection that stays on this host needs no pacing")

	other := int32(res.n)
	sent := r.send(k.FD, []byte("over"))
	received := r.recv(other)
	require.Equal(r, 4, r.result(sent).n)
	require.Equal(r, 4, r.result(received).n)
	require.Equal(r, "over", string(received.data))
	r.close(k.FD, other, l)
}

func testConnectFails(r *rig) {
	l := listenTCP(r, 1)
	addr := boundTo(r, l)
	require.NoError(r, unix.Close(int(l)))
	k := r.connect(loop.Addr{AddrPort: addr})
	require.GreaterOrEqual(r, k.FD, int32(0))
	require.Equal(r, syscall.ECONNREFUSED, r.result(k).err)
	r.close(k.FD)

	k = r.connect(loop.Addr{Path: filepath.Join(r.TempDir(), "none")})
	require.Equal(r, syscall.ENOENT, r.result(k).err)
	if k.FD >= 0 {
		r.close(k.FD)
	}
	// No address, no socket.
	k = r.connect(loop.Addr{Path: "/" + strings.Repeat("x", 200)})
	require.Equal(r, int32(-1), k.FD)
	require.Zero(r, k.done, "delivered by Submit")
	require.Equal(r, syscall.ENAMETOOLONG, r.result(k).err)
}

// blackHole begins a connect that gets no answer: the listener's queue is full.
func (r *rig) blackHole() (listener int32, connecting *task, others []int32) {
	l, addr := r.listen(0)
	for range 16 {
		k := r.connect(loop.Addr{AddrPort: addr})
		r.pollFor(quiet)
		if k.done == 0 {
			return l, k, others
		}
		require.Zero(r, k.Err)
		others = append(others, k.FD)
	}
	require.FailNow(r, "a listener without a queue took 16 connections")
	return 0, nil, nil
}

func testConnectCancel(r *rig) {
	l, k, others := r.blackHole()
	r.Cancel(&k.Op)
	require.Equal(r, syscall.ECANCELED, r.result(k).err)
	r.close(k.FD)

	// A number that was used before is not taken for what it was: its socket
	// is writable, the new one's connect goes on.
	r.close(others[0])
	require.NoError(r, r.Poll(0, r.deliver))
	again := r.connect(loop.Addr{AddrPort: boundTo(r, l)})
	r.nothing(again)
	r.Shutdown(again.FD, unix.SHUT_RDWR)
	r.Cancel(&again.Op)
	require.NotZero(r, r.result(again).err)
	r.close(again.FD)
	r.close(others[1:]...)
	r.close(l)
}

// The listener goes away while a connect waits for its answer: the next try of
// the kernel, after a second, is answered by a reset.
func testConnectReset(r *rig) {
	l, k, others := r.blackHole()
	r.close(l)
	require.Equal(r, syscall.ECONNREFUSED, r.result(k).err)
	r.close(k.FD)
	r.close(others...)
}

func testUnix(r *rig) {
	for _, path := range []string{
		filepath.Join(r.TempDir(), "s"),
		fmt.Sprintf("@looptest-%d", unix.Getpid()),
	} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		require.NoError(r, err)
		require.NoError(r, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		require.NoError(r, unix.Listen(fd, 16))
		l := int32(fd)
		require.NoError(r, r.Attach(l))
		r.open++

		accepted := r.accept(l)
		k := r.connect(loop.Addr{Path: path})
		require.Zero(r, r.result(k).err)
		res := r.result(accepted)
		require.Zero(r, res.err)
		require.Equal(r, netip.AddrPort{}, res.addr)
		other := int32(res.n)

		// More than the socket holds, both ways.
		for _, way := range [][2]int32{{k.FD, other}, {other, k.FD}} {
			const total = 1 << 20
			r.pump(way[0], way[1], total)
		}
		end := r.recv(other)
		r.close(k.FD)
		require.Equal(r, result{}, r.result(end))
		r.close(other, l)
	}
}

// pump moves a pattern of total bytes from one descriptor of the engine to
// another.
func (r *rig) pump(from, to int32, total int) {
	r.Helper()
	sent, got := 0, 0
	text := pattern(0, total)
	send := &task{}
	send.then = func(res result) {
		require.Zero(r, res.err)
		if sent += res.n; sent < total {
			send.Vecs = cut(text[sent:], 3)
			r.again(send)
		}
	}
	recv := &task{}
	recv.keep = func(b *loop.Buffer) {
		require.True(r, matches(b.Bytes()[:recv.N], got), "bytes differ")
		got += recv.N
		b.Release()
	}
	recv.then = func(res result) {
		require.Zero(r, res.err)
		require.NotZero(r, res.n)
		if got < total {
			r.again(recv)
		}
	}
	r.startAs(recv, loop.Op{Code: loop.Recv, FD: to, Size: loop.ClassBody})
	r.startAs(send, loop.Op{Code: loop.Send, FD: from, Msg: &loop.Msg{Vecs: cut(text, 3)}})
	r.until("all bytes", func() bool { return got == total && sent == total })
}

func testAttach(r *rig) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(r, err)
	_, err = unix.Write(pair[1], []byte("before"))
	require.NoError(r, err)
	fd := int32(pair[0])
	require.NoError(r, r.Attach(fd))
	r.open++
	k := r.recv(fd)
	require.Equal(r, 6, r.result(k).n)
	require.Equal(r, "before", string(k.data))
	s := r.send(fd, []byte("back"))
	require.Equal(r, 4, r.result(s).n)
	b := make([]byte, 10)
	n, err := unix.Read(pair[1], b)
	require.NoError(r, err)
	require.Equal(r, "back", string(b[:n]))
	r.close(fd)
	require.NoError(r, r.Poll(0, r.deliver))
	n, err = unix.Read(pair[1], b)
	require.NoError(r, err)
	require.Zero(r, n, "closed")
	require.NoError(r, unix.Close(pair[1]))
}

func testCloseBusy(r *rig) {
	l, addr := r.listen(16)
	fd, _ := r.acceptFrom(l, addr)
	r.accept(l)
	r.recvMulti(fd)
	require.NoError(r, r.Poll(0, r.deliver))
	busy := r.connect(loop.Addr{AddrPort: addr}).FD
	require.NoError(r, r.Engine.Close())
	r.dead = true
	// Descriptors are not the engine's to close.
	for _, fd := range []int32{l, fd, busy} {
		require.NoError(r, unix.Close(int(fd)))
	}
}

func testBroken(r *rig) {
	fd, _ := r.pair()
	k := r.recv(fd)
	require.Panics(r, func() { r.Submit(&k.Op) }, "submit what is in flight")
	require.Panics(r, func() { r.CloseFD(fd) }, "close with an operation in flight")
	require.Panics(r, func() { r.Quiet(fd) }, "ask for what a receive in flight may have")
	require.Panics(r, func() { r.recv(fd) }, "two receives")
	r.tasks = r.tasks[:len(r.tasks)-1]
	r.Cancel(&k.Op)
	require.Equal(r, syscall.ECANCELED, r.result(k).err)
	r.close(fd)
	require.Panics(r, func() { r.CloseFD(fd) }, "close twice")
	require.Panics(r, func() { r.recv(fd) }, "a descriptor that is not attached")
	r.dead = true // counters may be wrong after a panic
}
