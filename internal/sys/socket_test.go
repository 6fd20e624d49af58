package sys

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Addresses that we write are read back alike by the standard library, and
// addresses that the kernel writes by us.
func TestSockaddr(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		require.NoError(t, err)
		defer l.Close()
		to := l.Addr().(*net.TCPAddr).AddrPort()

		var a Sockaddr
		for i := range a {
			a[i] = 0xff // every byte that counts is written
		}
		family, length, errno := a.SetAddrPort(to)
		require.Zero(t, errno)
		require.Equal(t, to, a.AddrPort())
		fd, errno := Socket(family, true)
		require.Zero(t, errno)
		require.Contains(t, []syscall.Errno{0, syscall.EINPROGRESS}, Connect(fd, &a, length))
		nodelay, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
		require.NoError(t, err)
		require.Equal(t, 1, nodelay)
		control, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		require.NoError(t, err)
		require.Equal(t, "reno", strings.TrimRight(control, "\x00"))

		file, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		accepted := waitAccept(t, int32(file.Fd()), &a)
		require.NoError(t, file.Close())
		local, err := unix.Getsockname(int(fd))
		require.NoError(t, err)
		require.Equal(t, portOf(local), a.AddrPort().Port())
		require.Equal(t, to.Addr(), a.AddrPort().Addr())
		require.Zero(t, SocketError(fd))

		n, errno := SendVecs(fd, [][]byte{[]byte("abc"), nil, []byte("def"), []byte("g")}, 2)
		require.Zero(t, errno)
		require.Equal(t, 5, n)
		require.Zero(t, Shutdown(fd, unix.SHUT_WR))
		buf := make([]byte, 10)
		n, errno = Recv(accepted, buf)
		require.Zero(t, errno)
		require.Equal(t, "cdefg", string(buf[:n]))
		n, errno = Recv(accepted, buf)
		require.Zero(t, errno)
		require.Zero(t, n)
		n, errno = Recv(fd, buf)
		require.Equal(t, syscall.EAGAIN, errno)
		require.Zero(t, n)
		_, errno = Send(fd, []byte("x"))
		require.Equal(t, syscall.EPIPE, errno)
		require.Equal(t, 0, Unsent(accepted))
		require.Zero(t, Close(fd))
		require.Zero(t, Close(accepted))
	}
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")
	var a Sockaddr
	family, _, errno := a.SetAddrPort(mapped)
	require.Zero(t, errno)
	require.Equal(t, syscall.AF_INET, family)
	require.Equal(t, "192.0.2.1:80", a.AddrPort().String())
	_, _, errno = a.SetAddrPort(netip.MustParseAddrPort("[fe80::1%nowhere]:80"))
	require.Equal(t, syscall.ENODEV, errno)
	_, _, errno = a.SetAddrPort(netip.AddrPort{})
	require.Equal(t, syscall.EDESTADDRREQ, errno)
}

// waitAccept accepts from the blocking listener fd.
func waitAccept(t *testing.T, fd int32, a *Sockaddr) int32 {
	p := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
	_, err := unix.Poll(p, 5000)
	require.NoError(t, err)
	got, errno := Accept(fd, a)
	require.Zero(t, errno)
	return got
}

func portOf(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

func TestSockaddrUnix(t *testing.T) {
	var a Sockaddr
	for _, path := range []string{filepath.Join(t.TempDir(), "s"), "@cloud-cup-test-" + t.Name()} {
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		fd, errno := Socket(unix.AF_UNIX, false)
		require.Zero(t, errno)
		for i := range a {
			a[i] = 0xff
		}
		length, errno := a.SetUnix(path)
		require.Zero(t, errno)
		require.Zero(t, Connect(fd, &a, length), path)
		require.Equal(t, netip.AddrPort{}, a.AddrPort())
		require.Zero(t, Close(fd))
		require.NoError(t, l.Close())
	}
	_, errno := a.SetUnix(string(make([]byte, 108)))
	require.Equal(t, syscall.ENAMETOOLONG, errno)
	_, errno = a.SetUnix("")
	require.Equal(t, syscall.EDESTADDRREQ, errno)
}

func TestEventFD(t *testing.T) {
	fd, errno := EventFD(true)
	require.Zero(t, errno)
	var count [8]byte
	_, err := unix.Read(int(fd), count[:])
	require.Equal(t, syscall.EAGAIN, err)
	require.Zero(t, SignalEvent(fd))
	require.Zero(t, SignalEvent(fd))
	_, err = unix.Read(int(fd), count[:])
	require.NoError(t, err)
	require.EqualValues(t, 2, binary.NativeEndian.Uint64(count[:]))
	require.Zero(t, Close(fd))
}

func TestMonotonic(t *testing.T) {
	a := Monotonic()
	kernel := monotonicRaw()
	b := Monotonic()
	const slack = int64(10 * time.Microsecond)
	require.LessOrEqual(t, a-slack, kernel)
	require.LessOrEqual(t, kernel, b+slack)
}

func TestSocketCallsDoNotAllocate(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	a, b := int32(pair[0]), int32(pair[1])
	defer Close(a)
	defer Close(b)
	vecs := [][]byte{[]byte("ab"), []byte("cd")}
	buf := make([]byte, 8)
	var addr Sockaddr
	addr.SetAddrPort(netip.MustParseAddrPort("[::1]:80"))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		SendVecs(a, vecs, 0)
		Send(a, vecs[0])
		Recv(b, buf)
		Unsent(a)
		Quiet(a)
		SocketError(a)
		Monotonic()
		Connect(a, &addr, 28)
		addr.AddrPort()
	}))
}

// A pending signal ends ppoll(2) with EINTR also if it need not wait.
func TestPollNowWithSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	list := make([]unix.PollFd, 200)
	for i := range list {
		list[i] = unix.PollFd{Fd: int32(fds[0])}
	}
	self, stop, done := unix.Gettid(), make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				// As the runtime does to preempt.
				_ = unix.Tgkill(os.Getpid(), self, unix.SIGURG)
			}
		}
	}()
	for range 3000 {
		if errno := PollNow(list); errno != 0 {
			t.Error(errno)
			break
		}
	}
	close(stop)
	<-done
}
