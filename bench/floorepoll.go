package main

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// floorReadBytes bounds one read. The buffer is one for all connections and
// stays in the cache.
const floorReadBytes = 256 << 10

// floorPipe is one of two sockets whose bytes go to the other.
type floorPipe struct {
	fd     int32
	peer   *floorPipe
	out    []byte // for fd, which did not take it yet
	ended  bool   // nothing more comes from fd
	closed bool
}

// epollFloor forwards, edge-triggered, from one thread.
type epollFloor struct {
	epoll int
	pipes []*floorPipe // by descriptor
	in    []byte
}

func runFloorEpoll(listener int, backend netip.AddrPort) error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, listener, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(listener)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	f := &epollFloor{epoll: epoll, in: make([]byte, floorReadBytes)}
	to := socketAddress(backend)
	events := make([]unix.EpollEvent, backendEvents)
	for {
		ready, err := waitEvents(epoll, events, -1)
		if err != nil {
			return err
		}
		for i := range ready {
			if fd := ready[i].Fd; fd == int32(listener) {
				if err := f.accept(listener, to); err != nil {
					return err
				}
			} else if p := f.pipes[fd]; p != nil { // else closed in this turn
				f.serve(p, ready[i].Events)
			}
		}
	}
}

// accept takes a client and connects it to the backend.
func (f *epollFloor) accept(listener int, to unix.Sockaddr) error {
	client, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err == unix.EAGAIN || err == unix.ECONNABORTED || err == unix.EINTR {
		return nil // the peer has gone
	}
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	backend, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	// On loopback a connect that may wait does not.
	if err := unix.Connect(backend, to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := unix.SetsockoptInt(backend, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	a, b := &floorPipe{fd: int32(client)}, &floorPipe{fd: int32(backend)}
	a.peer, b.peer = b, a
	for _, p := range []*floorPipe{a, b} {
		for int(p.fd) >= len(f.pipes) {
			f.pipes = append(f.pipes, nil)
		}
		f.pipes[p.fd] = p
		if err := called("epoll_ctl", sys.EpollAdd(int32(f.epoll), p.fd, 0)); err != nil {
			return err
		}
	}
	return nil
}

// serve moves what can be moved from and to a socket that has changed. An end
// in one direction, or an error, ends both: HTTP clients do not close halves.
func (f *epollFloor) serve(p *floorPipe, events uint32) {
	hangup := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	blocked := len(p.out) > 0
	good := p.send(nil)
	if good && blocked && len(p.out) == 0 {
		good = f.move(p.peer, p.peer.ended) // it was not read meanwhile
	}
	if good && !p.closed {
		good = f.move(p, hangup)
	}
	if !good {
		f.close(p)
		f.close(p.peer)
	}
}

// move reads from p and sends to its peer until nothing is left or the peer
// takes no more. It reports whether both are good.
func (f *epollFloor) move(p *floorPipe, hangup bool) bool {
	p.ended = p.ended || hangup
	for len(p.peer.out) == 0 {
		n, errno := sys.Recv(p.fd, f.in)
		if errno == unix.EAGAIN {
			return true
		}
		if errno != 0 || n == 0 || !p.peer.send(f.in[:n]) {
			return false
		}
		if n < len(f.in) && !p.ended {
			return true // more is a new event
		}
	}
	return true
}

// send sends what waits, or else data; what is not taken waits.
func (p *floorPipe) send(data []byte) bool {
	waiting := len(p.out) > 0
	if waiting {
		data = p.out
	}
	for len(data) > 0 {
		n, errno := sys.Send(p.fd, data)
		if errno == unix.EAGAIN {
			break
		}
		if errno != 0 {
			return false
		}
		data = data[n:]
	}
	if !waiting && len(data) > 0 {
		data = slices.Clone(data)
	}
	p.out = data
	return true
}

func (f *epollFloor) close(p *floorPipe) {
	if !p.closed {
		p.closed = true
		f.pipes[p.fd] = nil
		sys.Close(p.fd)
	}
}
