package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// bareCommand runs this program as a server that holds connections of crypto/tls
// and nothing else: no buffers, no net.Conn, no goroutine for each. It answers
// as the backend does. What it takes for a connection that rests is what
// crypto/tls takes in any program.
const (
	bareCommand = "bare"
	nameBare    = "Go's TLS alone"
)

// serveBare serves at its first argument with the certificate in the folder that
// is the second, until killed.
func serveBare(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench bare IP:PORT DIR")
	}
	address, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(args[1], certificateFile), filepath.Join(args[1], keyFile))
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	s := &bare{config: &tls.Config{Certificates: []tls.Certificate{pair}}, conns: map[int32]*tls.Conn{}}
	s.answers.date = time.Now().UTC().Format(time.RFC1123)
	if s.listener, err = listen(address); err != nil {
		return err
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if err := s.watch(int32(s.listener)); err != nil {
		return err
	}
	events := make([]unix.EpollEvent, backendEvents)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for i := range max(n, 0) {
			fd := events[i].Fd
			if int(fd) == s.listener {
				err = s.accept()
			} else if s.serve(fd, s.conns[fd]) != nil {
				delete(s.conns, fd)
				unix.Close(int(fd))
			}
			if err != nil && err != unix.EINTR {
				return err
			}
		}
	}
}

type bare struct {
	config          *tls.Config
	listener, epoll int
	conns           map[int32]*tls.Conn // by descriptor
	in              [backendReadBytes]byte
	answers         backend
}

func (s *bare) watch(fd int32) error {
	err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: fd})
	if err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// accept takes one connection. Its descriptor blocks until the end of the
// handshake: clients here say at once what they have to.
func (s *bare) accept() error {
	fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC)
	switch err {
	case nil:
		s.conns[int32(fd)] = tls.Server(bareConn(fd), s.config)
		return s.watch(int32(fd))
	case unix.EAGAIN, unix.ECONNABORTED:
		return nil
	}
	return fmt.Errorf("accept: %w", err)
}

// serve makes the handshake, and answers what has come: maybe with the
// handshake's last bytes, so that no other event will tell.
func (s *bare) serve(fd int32, c *tls.Conn) error {
	if !c.ConnectionState().HandshakeComplete {
		err := errors.Join(c.Handshake(), unix.SetNonblock(int(fd), true))
		if err != nil {
			return err
		}
	}
	n, err := c.Read(s.in[:])
	if errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return err
	}
	var answer backendConn
	if rest, ok := s.answers.answer(&answer, s.in[:n]); !ok || len(rest) > 0 {
		return errors.New("not a request")
	}
	_, err = c.Write(answer.out)
	return err
}

// errNothing is that nothing has come. It is a temporary one: crypto/tls keeps
// every other for ever.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing has come" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// bareConn is a connection's descriptor, as crypto/tls wants it.
type bareConn int

func (c bareConn) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(c), p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errNothing
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (c bareConn) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Write(int(c), p[done:])
		if err != nil && err != unix.EINTR {
			return done, err
		}
		done += max(n, 0)
	}
	return len(p), nil
}

func (c bareConn) Close() error                     { return unix.Close(int(c)) }
func (c bareConn) LocalAddr() net.Addr              { return nil }
func (c bareConn) RemoteAddr() net.Addr             { return nil }
func (c bareConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c bareConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c bareConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
