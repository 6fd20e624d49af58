package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// predecessor is the old master, seen from the new one. A nil *predecessor
// means that there is none.
type predecessor struct {
	*link
	log     *slog.Logger
	program string // its version
	pid     int
	left    heritage
	sockets *socketSet
	admin   int // descriptor of the admin socket, -1 without one
	metrics int // and of the listener for metrics

	pending bool          // what it left is not ours yet
	ended   chan struct{} // closed when its last words were read

	followed chan heirMessage // its answers to follow
}

// inherit takes what a running master leaves to this process, if it was started
// by one. An error has been told to it.
func inherit(o *Options) (p *predecessor, err error) {
	text := os.Getenv(heirEnvironment)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(heirEnvironment); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", heirEnvironment, err)
	}
	conn, err := sys.NewPacketConn(fd)
	if err != nil {
		return nil, fmt.Errorf("%s is set, but no master started this process: %w", heirEnvironment, err)
	}
	p = &predecessor{link: newLink(conn), log: o.Log, admin: -1, metrics: -1, pending: true, ended: make(chan struct{}), followed: make(chan heirMessage, lateMax)}
	if err := p.say(heirMessage{Type: heirHello, Program: o.Version, PID: os.Getpid()}); err != nil {
		return nil, err
	}
	if err := p.receiveAll(); err != nil {
		return nil, p.refuse(err)
	}
	return p, nil
}

// refuse tells the old master why there will be no new one, and returns err.
func (p *predecessor) refuse(err error) error {
	if p == nil || err == nil {
		return err
	}
	text := err.Error()
	return errors.Join(err, p.say(heirMessage{Type: heirFailed, Error: text[:min(len(text), heirMessageMax/4)]}))
}

// receiveAll receives the heritage with its descriptors.
func (p *predecessor) receiveAll() error {
	const otherwise = "the old master is gone"
	msg, ok := <-p.messages
	if !ok {
		return p.failure(otherwise)
	}
	p.program, p.pid = msg.Program, msg.PID
	if err := msg.decode(&p.left); err != nil {
		return err
	}
	var fds []int
	for len(fds) < p.left.FDs {
		msg, ok := <-p.messages
		if !ok {
			return p.failure(otherwise)
		}
		fds = append(fds, msg.fds...)
	}
	last := func(there bool) int {
		if !there || len(fds) == 0 {
			return -1
		}
		fd := fds[len(fds)-1]
		fds = fds[:len(fds)-1]
		return fd
	}
	p.metrics = last(p.left.Metrics != "")
	p.admin = last(p.left.Admin != nil)
	var err error
	p.sockets, err = importSockets(p.left.Groups, fds)
	return err
}

// adoptAdmin is the old master's admin socket, if it is the one that is wanted.
func (p *predecessor) adoptAdmin(path string, group int) (*net.UnixListener, error) {
	if p == nil || p.admin < 0 || p.left.Admin.Path != path || p.left.Admin.Group != group {
		return nil, nil
	}
	l, err := listenerOf(&p.admin)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// adoptMetrics is the old master's listener for metrics, if it has the address.
func (p *predecessor) adoptMetrics(address string) (net.Listener, error) {
	if p == nil || p.metrics < 0 || p.left.Metrics != address {
		return nil, nil
	}
	return listenerOf(&p.metrics)
}

// listenerOf makes a descriptor a listener, which takes its place.
func listenerOf(fd *int) (net.Listener, error) {
	// From now on it names this process to who connects.
	if err := unix.Listen(*fd, backlog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	f := os.NewFile(uintptr(*fd), "listener")
	*fd = -1
	defer f.Close() // FileListener has a copy
	return net.FileListener(f)
}

// takeOver says that all workers serve, and waits until the old master has
// given the rest up. If it dies meanwhile, there is nobody else: all is ours.
func (m *Master) takeOver() error {
	p := m.before
	if p == nil {
		return nil
	}
	m.addTally(p.left.Tally)
	if err := p.say(heirMessage{Type: heirReady, PID: os.Getpid()}); err != nil {
		p.log.Warn("the old master is gone", "pid", p.pid, "err", err)
	} else if err := m.awaitYours(); err != nil {
		return err
	}
	p.pending = false
	m.history.mu.Lock()
	m.lockedNote() // what comes now is new
	m.history.mu.Unlock()
	if m.admin != nil {
		m.admin.listener.SetUnlinkOnClose(true)
	}
	return nil
}

// awaitYours waits until the old master has given all up, or its end.
func (m *Master) awaitYours() error {
	p := m.before
	for msg := range p.messages {
		switch msg.Type {
		case heirCounted:
			if err := m.hearTally(&msg); err != nil {
				return err
			}
		case heirYours:
			return nil
		default:
			closeAll(msg.fds)
			return fmt.Errorf("the old master says %q instead of %q", msg.Type, heirYours)
		}
	}
	p.log.Warn("the old master is gone", "pid", p.pid, "err", p.failure("its connection is closed"))
	return nil
}

// hearTally adds what the old master says was counted.
func (m *Master) hearTally(msg *heirMessage) error {
	counted := new(tally)
	err := msg.decode(counted)
	if err == nil {
		m.addTally(counted)
	}
	return err
}

// hearPredecessor hears what the old master says until it has ended.
func (m *Master) hearPredecessor() {
	p := m.before
	if p == nil {
		return
	}
	defer close(p.ended)
	defer p.conn.Close() // nobody hears of an error
	// Its end shows by the connection's, if this cannot be said.
	_ = p.say(heirMessage{Type: heirServes})
	for msg := range p.messages {
		switch msg.Type {
		case heirLetGo:
			m.renew()
		case heirCounted:
			if err := m.hearTally(&msg); err != nil {
				p.log.Warn("what the old master counted", "err", err)
			}
			continue // the descriptors are closed
		case heirFollowed:
			select {
			case p.followed <- msg:
			default: // nobody has waited for a long time
			}
		case heirEnd:
			p.log.Info("the old master has ended", "pid", p.pid)
			return
		}
		closeAll(msg.fds)
	}
	p.log.Warn("the old master is gone", "pid", p.pid, "err", p.failure("it ended before its last words"))
}

// wait waits until the old master has ended.
func (p *predecessor) wait() {
	if p != nil {
		<-p.ended
	}
}

// atOnce makes the old master end at once.
func (p *predecessor) atOnce() {
	if p == nil {
		return
	}
	// It may have ended.
	_ = p.say(heirMessage{Type: heirAtOnce})
}
