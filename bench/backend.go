package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// backendCommand runs this program as the backend of the others. It serves
// GET /bytes/N with N bytes and nothing else, from one thread with
// edge-triggered epoll: one read and one write for a request, one wait for as
// many as have arrived. What it costs is missing to the client beside it: 4.5 us
// of CPU for 100 bytes at 256 connections, where nginx's "return 200" took 4.7
// (medians of four rounds) and the proxies take 8 to 13.
const backendCommand = "backend"

const (
	backendPath      = "/bytes/"
	backendBytesMax  = 16 << 20
	backendReadBytes = 16 << 10 // bound of one read, and of a request's head
	backendEvents    = 512      // taken by one wait
)

// backendBody is the body of n bytes.
func backendBody(n int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), n/16+1)[:n] }

type backend struct {
	epoll, listener int
	conns           []*backendConn // by descriptor
	in              []byte         // what one read brings; heads are seldom in pieces
	date            string

	// The last answer and its target's number: a load asks for one only.
	number string
	last   []byte
}

type backendConn struct {
	part []byte // of a head whose rest is missing
	out  []byte // what the socket did not take yet
}

// serveBackend serves at the address that is its argument, until killed.
func serveBackend(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench backend IP:PORT")
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
	if b.listener, err = listen(address); err != nil {
		return err
	}
	if b.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if err := b.watch(int32(b.listener), unix.EPOLLIN); err != nil {
		return err
	}
	events := make([]unix.EpollEvent, backendEvents)
	for {
		n, err := unix.EpollWait(b.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for i := range max(n, 0) {
			if fd := events[i].Fd; int(fd) == b.listener {
				err = b.accept()
			} else {
				b.serve(fd, events[i].Events)
			}
			if err != nil && err != unix.EINTR {
				return err
			}
		}
	}
}

func listen(address netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	// Accepted sockets inherit TCP_NODELAY.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}),
		unix.Listen(fd, unix.SOMAXCONN))
	if err != nil {
		return -1, fmt.Errorf("listen %v: %w", address, err)
	}
	return fd, nil
}

func (b *backend) watch(fd int32, events uint32) error {
	err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: events, Fd: fd})
	if err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// accept takes one connection. The listener is watched by level: others are
// reported again.
func (b *backend) accept() error {
	fd, _, err := unix.Accept4(b.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	switch err {
	case nil:
		for fd >= len(b.conns) {
			b.conns = append(b.conns, nil)
		}
		b.conns[fd] = new(backendConn)
		return b.watch(int32(fd), unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
	case unix.EAGAIN, unix.ECONNABORTED:
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
	unix.Close(int(fd))
}

// flush sends what is left; it reports whether the connection is still good.
func (c *backendConn) flush(fd int32) bool {
	for len(c.out) > 0 {
		n, err := unix.Write(int(fd), c.out)
		if err == unix.EAGAIN {
			return true // the socket reports when it takes more
		}
		if err != nil {
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
		n, err := unix.Read(int(fd), b.in)
		if err == unix.EAGAIN {
			return true
		}
		if err != nil || n == 0 {
			return false
		}
		data := b.in[:n]
		if len(c.part) > 0 {
			c.part = append(c.part, data...)
			data = c.part
		}
		rest, ok := b.answer(c, data)
		if !ok || len(rest) > backendReadBytes || !c.flush(fd) {
			return false
		}
		c.part = append(c.part[:0], rest...)
		// Less than was asked for: nothing is left, and more is a new event.
		// Unless that event has been: the end of the stream comes with it.
		if n < len(b.in) && !hangup {
			return true
		}
	}
	return true
}

// answer queues the answers to all whole heads in data and returns the rest.
// It reports whether all were what this backend serves.
func (b *backend) answer(c *backendConn, data []byte) (rest []byte, ok bool) {
	for {
		end := bytes.Index(data, []byte("\r\n\r\n"))
		if end < 0 {
			return data, true
		}
		target, found := bytes.CutPrefix(data[:end], []byte("GET "+backendPath))
		stop := bytes.IndexByte(target, ' ')
		if !found || stop < 0 {
			return nil, false
		}
		if b.number != string(target[:stop]) && !b.build(string(target[:stop])) {
			return nil, false
		}
		if len(c.out) == 0 {
			c.out = b.last[:len(b.last):len(b.last)] // shared: an append copies it
		} else {
			c.out = append(c.out, b.last...)
		}
		data = data[end+len("\r\n\r\n"):]
	}
}

// build makes the whole response to a target.
func (b *backend) build(number string) bool {
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n > backendBytesMax {
		return false
	}
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", b.date, n)
	b.number, b.last = number, append([]byte(head), backendBody(n)...)
	return true
}
