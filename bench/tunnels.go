package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// tunnelsCommand runs this program as a client of WebSocket tunnels: it sends a
// message on each, and the next one when the echo has come. It is one thread
// on epoll, so that it costs less than what it measures.
const tunnelsCommand = "tunnels"

// tunnelMessage is the message that clients send: 64 bytes of text, masked.
var tunnelMessage = func() []byte {
	frame := []byte{frameText, frameMasked | 64, 1, 2, 3, 4}
	for i, v := range backendBody(64) {
		frame = append(frame, v^frame[2+i%frameKeyBytes])
	}
	return frame
}()

// tunnelEcho is what comes back.
var tunnelEcho = append([]byte{frameText, 64}, backendBody(64)...)

type tunnel struct {
	sent time.Time
	got  int // bytes of the echo
}

// serveTunnels is the client. It prints a Wrk as JSON.
func serveTunnels(args []string) error {
	var o clientOptions
	if err := o.parse(tunnelsCommand, args); err != nil {
		return err
	}
	runtime.GOMAXPROCS(2) // as the backend
	return printed(tunnels(o.connections, o.length(), o.target))
}

// tunnels keeps messages going on as many tunnels as told until the time is
// over, and one message at least. A latency is that of a message and its echo.
func tunnels(connections int, duration time.Duration, target *url.URL) (Wrk, error) {
	var w Wrk
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return w, err
	}
	defer unix.Close(epoll)
	open := map[int32]*tunnel{}
	for range connections {
		fd, err := openTunnel(target)
		if err != nil {
			return w, err
		}
		defer sys.Close(fd)
		open[fd] = new(tunnel)
		if err := called("epoll_ctl", sys.EpollAdd(int32(epoll), fd, 0)); err != nil {
			return w, err
		}
	}
	began := time.Now()
	for fd, t := range open {
		if !t.send(fd) {
			return w, errors.New("a new tunnel takes no message")
		}
	}
	var times []float64
	events, in := make([]unix.EpollEvent, connections), make([]byte, len(tunnelEcho))
	for len(times) == 0 || time.Since(began) < duration {
		ready, err := waitEvents(epoll, events, exchangeTimeout)
		if err != nil {
			return w, err
		}
		if len(ready) == 0 {
			return w, fmt.Errorf("no echo within %v", exchangeTimeout)
		}
		for i := range ready {
			fd := ready[i].Fd
			t := open[fd]
			if t == nil {
				continue
			}
			whole, good := t.receive(fd, in)
			if whole {
				times = append(times, float64(time.Since(t.sent))/float64(time.Microsecond))
				good = t.send(fd)
			}
			if !good {
				w.ReadErrors++
				delete(open, fd)
			}
		}
		if len(open) == 0 {
			return w, errors.New("all tunnels broke")
		}
	}
	w.summarize(times, time.Since(began))
	return w, nil
}

// send sends the next message, which fits into any socket that is empty.
func (t *tunnel) send(fd int32) bool {
	t.sent, t.got = time.Now(), 0
	n, errno := sys.Send(fd, tunnelMessage)
	return errno == 0 && n == len(tunnelMessage)
}

// receive takes what is there of the echo. It reports whether that is whole and
// whether it is as it should be.
func (t *tunnel) receive(fd int32, in []byte) (whole, good bool) {
	for t.got < len(tunnelEcho) {
		n, errno := sys.Recv(fd, in[:len(tunnelEcho)-t.got])
		if errno == unix.EAGAIN {
			return false, true
		}
		if errno != 0 || n == 0 || !bytes.Equal(in[:n], tunnelEcho[t.got:t.got+n]) {
			return false, false
		}
		t.got += n
	}
	return true, true
}

// openTunnel connects and changes to WebSocket. The socket does not block
// afterwards.
func openTunnel(target *url.URL) (int32, error) {
	address, err := netip.ParseAddrPort(target.Host)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(exchangeTimeout))
	err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Connect(fd, socketAddress(address)))
	if err == nil {
		err = upgradeTunnel(fd, target)
	}
	if err = errors.Join(err, unix.SetNonblock(fd, true)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%v: %w", target, err)
	}
	return int32(fd), nil
}

func upgradeTunnel(fd int, target *url.URL) error {
	const key = "Y2xvdWQtY3VwLWJlbmNoLg=="
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", target.Path, target.Host, key)
	if _, err := unix.Write(fd, request); err != nil {
		return err
	}
	var head []byte
	in := make([]byte, backendPartMax)
	for !bytes.Contains(head, []byte("\r\n\r\n")) { // no echo comes behind it unasked
		n, err := unix.Read(fd, in)
		if err == unix.EINTR {
			continue // a socket with a timeout is not read again by the kernel: signal(7)
		}
		if err != nil {
			return err
		}
		if n == 0 || len(head) > backendPartMax {
			return fmt.Errorf("no whole answer to the request for a tunnel: %q", head)
		}
		head = append(head, in[:n]...)
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) || string(field(head, "Sec-WebSocket-Accept")) != webSocketAccept([]byte(key)) {
		return fmt.Errorf("no tunnel: %q", head)
	}
	return nil
}
