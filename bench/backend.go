package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// backendCommand runs this program as the backend of the others. It serves what
// backendanswer.go says and nothing else, from one thread with edge-triggered
// epoll: one read and one write for a request, one wait for as many as have
// arrived. What it costs is missing to the client beside it, so a part of the
// suite compares it with the least that nginx can do (nothing.go).
const backendCommand = "backend"

const (
	backendReadBytes = 64 << 10 // bound of one read
	backendEvents    = 512      // taken by one wait
)

type backend struct {
	epoll     int
	listeners []int
	conns     []*backendConn // by descriptor
	in        []byte         // what one read brings; heads are seldom in pieces
	date      string

	// The last answer and its target's number: a load asks for one only.
	number string
	last   []byte
	frames []byte // echoed by one turn of a tunnel
}

type backendConn struct {
	part   []byte // of a head or a frame whose rest is missing
	out    []byte // what the socket did not take yet
	number string // what is asked for by a request with a body
	body   int    // bytes of it that are still to come
	tunnel bool   // it speaks WebSocket
}

// serveBackend serves at the addresses that are its arguments, until killed.
func serveBackend(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("usage: bench backend IP:PORT [PATH]")
	}
	address, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	// With one P the runtime's monitor takes it away in every wait: 5 % more CPU.
	runtime.GOMAXPROCS(2)
	b := &backend{
		in:   make([]byte, backendReadBytes),
		date: time.Now().UTC().Format(http.TimeFormat),
	}
	if b.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if len(args) > 1 { // first, as who reaches the other may use both
		fd, err := listenUnix(args[1])
		if err != nil {
			return err
		}
		b.listeners = append(b.listeners, fd)
	}
	fd, err := listen(address)
	if err != nil {
		return err
	}
	b.listeners = append(b.listeners, fd)
	for _, fd := range b.listeners {
		// By level: what one accept leaves is reported again.
		if err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return fmt.Errorf("epoll_ctl: %w", err)
		}
	}
	return b.loop()
}

func (b *backend) loop() error {
	events := make([]unix.EpollEvent, backendEvents)
	for {
		ready, err := waitEvents(b.epoll, events, -time.Second)
		if err != nil {
			return err
		}
		for i := range ready {
			if fd := ready[i].Fd; slices.Contains(b.listeners, int(fd)) {
				err = b.accept(int(fd))
			} else {
				b.serve(fd, ready[i].Events)
			}
			if err != nil {
				return err
			}
		}
	}
}

// rawWait is how long a wait stays out of the Go scheduler's sight, as in Cloud
// Cup's own engines: it takes no part in the ends of short ones, and hears of
// longer ones.
const rawWait = 2 // milliseconds

// waitEvents waits for events and returns those of list that were filled: none
// after limit, if it is not negative.
func waitEvents(epoll int, list []unix.EpollEvent, limit time.Duration) ([]unix.EpollEvent, error) {
	n, errno := sys.EpollWait(int32(epoll), list, rawWait)
	for n == 0 && (errno == 0 || errno == unix.EINTR) {
		n, errno = sys.EpollWaitLong(int32(epoll), list, int(max(limit.Milliseconds(), -1)))
		if n == 0 && errno == 0 {
			break
		}
	}
	return list[:n], called("epoll_pwait", errno)
}

// called is the error of a system call, nil if it went well.
func called(name string, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", name, errno)
}

// listen makes a listener of TCP.
func listen(address netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	// Accepted sockets inherit TCP_NODELAY.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(fd, socketAddress(address)),
		unix.Listen(fd, unix.SOMAXCONN))
	if err != nil {
		return -1, fmt.Errorf("listen %v: %w", address, err)
	}
	return fd, nil
}

// listenUnix makes a listener of a unix socket that everybody may connect to.
func listenUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), os.Chmod(path, 0o666), unix.Listen(fd, unix.SOMAXCONN))
	if err != nil {
		return -1, fmt.Errorf("listen %s: %w", path, err)
	}
	return fd, nil
}

func socketAddress(address netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
}

// accept takes one connection.
func (b *backend) accept(listener int) error {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	switch err {
	case nil:
		for fd >= len(b.conns) {
			b.conns = append(b.conns, nil)
		}
		b.conns[fd] = new(backendConn)
		return called("epoll_ctl", sys.EpollAdd(int32(b.epoll), int32(fd), 0))
	case unix.EAGAIN, unix.ECONNABORTED, unix.EINTR:
		return nil // the peer has gone
	}
	return fmt.Errorf("accept: %w", err)
}

// serve does what can be done on a connection that has changed. Whatever goes
// wrong ends the connection; the client counts it.
func (b *backend) serve(fd int32, events uint32) {
	c := b.conns[fd]
	hangup := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if c.flush(fd) && b.receive(fd, c, hangup) {
		return
	}
	b.conns[fd] = nil
	sys.Close(fd)
}

// flush sends what is left; it reports whether the connection is still good.
func (c *backendConn) flush(fd int32) bool {
	for len(c.out) > 0 {
		n, errno := sys.Send(fd, c.out)
		if errno == unix.EAGAIN {
			return true // the socket reports when it takes more
		}
		if errno != 0 {
			return false
		}
		c.out = c.out[n:]
	}
	return true
}

// receive reads and answers until nothing is left to read or the peer does not
// read; it reports whether the connection is still good.
func (b *backend) receive(fd int32, c *backendConn, hangup bool) bool {
	for len(c.out) == 0 {
		n, errno := sys.Recv(fd, b.in)
		if errno == unix.EAGAIN {
			return true
		}
		if errno != 0 || n == 0 {
			return false
		}
		data := b.in[:n]
		if len(c.part) > 0 {
			c.part = append(c.part, data...)
			data = c.part
		}
		rest, ok := b.answer(c, data)
		if !ok || len(rest) > backendPartMax || !c.flush(fd) {
			return false
		}
		c.part = append(c.part[:0], rest...)
		if c.tunnel {
			c.out = slices.Clone(c.out) // the next tunnel overwrites it
		}
		// Less than was asked for: nothing is left, and more is a new event.
		// Unless that event has been: the end of the stream comes with it.
		if n < len(b.in) && !hangup {
			return true
		}
	}
	return true
}
