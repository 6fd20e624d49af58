package supervisor

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// Deadlines of an upgrade.
const (
	// helloTimeout is what a program may take to say that it knows what is
	// asked of it.
	helloTimeout = 10 * time.Second
	// heirTimeout is what it may take from then on until its workers serve.
	heirTimeout = 30 * time.Second
	// pauseTimeout bounds the wait for answers to questions that were asked
	// before the hand-over.
	pauseTimeout = time.Second
)

// errRetired refuses what comes too late.
var errRetired = errors.New("cloud-cup was upgraded meanwhile: ask the new one")

// tallyEvery is how often a master that drains tells the next one what its
// workers have counted.
const tallyEvery = time.Second

// programPath is what an upgrade executes: the file that this program was
// started from by the name that was used, so that a link that is set to another
// version leads there.
func programPath() (string, error) {
	running, err := os.Executable()
	if err != nil {
		return "", err
	}
	named, err := exec.LookPath(os.Args[0])
	if err == nil {
		named, err = filepath.Abs(named)
	}
	if err == nil && sameFile(named, running) {
		return named, nil
	}
	return running, nil
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// heir is the new master, seen from the old one.
type heir struct {
	*link
	process *os.Process
	ended   chan struct{} // closed when the process has ended
	how     string        // it did
	program string        // its version
	told    *tally        // what it knows was counted
}

// Upgrade starts the program's file anew and hands everything over to it. When
// it returns without error, the new master and its workers serve, and this one
// is about to drain; with an error, nothing has changed.
func (m *Master) Upgrade() (*control.Upgraded, error) {
	if !m.upgrading.TryLock() {
		return nil, errors.New("an upgrade is under way")
	}
	defer m.upgrading.Unlock()
	m.applying.Lock()
	defer m.applying.Unlock()
	switch {
	case m.retired.Load():
		return nil, errRetired
	case isClosed(m.leaving):
		return nil, errors.New("cloud-cup is being stopped")
	case m.options.Path == "":
		return nil, errors.New("the demo cannot be upgraded: its backends are part of the program that runs")
	}
	begin := time.Now()
	h, err := m.begetHeir()
	if err == nil {
		err = m.handTo(h)
	}
	if err != nil {
		m.notifyServing()
		return nil, fmt.Errorf("%s: %w; nothing was changed", m.program, err)
	}
	u := &control.Upgraded{
		PID: h.process.Pid, Before: os.Getpid(), Version: h.program, VersionBefore: m.options.Version,
		Seconds: time.Since(begin).Seconds(),
	}
	m.retired.Store(true)
	m.heirs <- h // at once: see obey
	m.log.Info("upgraded", "pid", u.PID, "version", u.Version, "after", time.Since(begin).Round(time.Millisecond).String())
	return u, nil
}

// begetHeir starts the new program and waits until it speaks.
func (m *Master) begetHeir() (*heir, error) {
	conn, other, err := sys.PacketPair()
	if err != nil {
		return nil, err
	}
	drop := []string{watchdogPIDEnvironment, heirEnvironment}
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(drop, name)
	})
	// Not by the thread that starts workers, with which they would end, and
	// which has no privileges.
	pid, err := syscall.ForkExec(m.program, os.Args, &syscall.ProcAttr{
		Env: append(env, heirEnvironment+"="+strconv.Itoa(fdHeir)), Files: []uintptr{0, 1, 2, other.Fd()},
	})
	other.Close() // its end must show by the connection's
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	h := &heir{link: newLink(conn), process: process, ended: make(chan struct{})}
	go func() {
		state, err := process.Wait()
		if err != nil {
			h.how = err.Error()
		} else {
			h.how = "the new program ended: " + state.String()
		}
		close(h.ended)
	}()
	hello, err := m.expect(h, heirHello, helloTimeout)
	if err != nil {
		return nil, errors.Join(err, h.kill())
	}
	h.program = hello.Program
	return h, nil
}

// expect waits for a message of the new program.
func (m *Master) expect(h *heir, what string, timeout time.Duration) (heirMessage, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	late := fmt.Errorf("the new program does not say %q within %v", what, timeout)
	for messages, ended := h.messages, h.ended; ; {
		select {
		case msg, ok := <-messages:
			closeAll(msg.fds) // it has nothing to hand over
			switch {
			case !ok && isClosed(h.ended):
				return msg, h.failure(h.how)
			case !ok:
				late = h.failure("the new program closed the connection")
				timer.Reset(lastLog) // its end will say more
				messages = nil
				continue
			case msg.Type == heirFailed:
				return msg, fmt.Errorf("the new program does not start: %s", msg.Error)
			case msg.Type != what:
				return msg, fmt.Errorf("the new program says %q instead of %q", msg.Type, what)
			}
			return msg, nil
		case <-ended:
			late, ended = h.failure(h.how), nil
			timer.Reset(lastLog) // it may have said more before
		case <-timer.C:
			return heirMessage{}, late
		case <-m.leaving:
			return heirMessage{}, errors.New("cloud-cup is being stopped")
		}
	}
}

// kill ends the new program, and waits for its end.
func (h *heir) kill() error {
	_ = h.process.Kill() // it may have ended
	<-h.ended
	err := h.conn.Close()
	for msg := range h.messages { // until the connection's reader has ended
		closeAll(msg.fds)
	}
	return err
}

// handTo hands everything to the new master. After an error nothing has changed.
func (m *Master) handTo(h *heir) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.kill(), m.relock())
		}
	}()
	err = m.leave(h)
	if err == nil || errors.Is(err, unix.EPIPE) { // then its end says why
		_, err = m.expect(h, heirReady, heirTimeout)
	}
	if err != nil {
		return err
	}
	// From now on nobody gets an answer of the old one's, in which more was
	// counted than the new one knows.
	resume, err := m.pauseServers()
	if err != nil {
		return err
	}
	m.tell(h)
	m.notify.send(fmt.Sprintf("MAINPID=%d", h.process.Pid))
	if err = h.say(heirMessage{Type: heirYours}); err == nil {
		_, err = m.expect(h, heirServes, helloTimeout)
	}
	if err != nil {
		m.notify.send(fmt.Sprintf("MAINPID=%d", os.Getpid()))
		return errors.Join(err, resume())
	}
	return nil
}

// leave tells the new master all there is to know, and gives it what it needs.
func (m *Master) leave(h *heir) error {
	g := m.generation()
	legacy := heritage{
		Config:   g.handed(),
		Backends: m.shared.export(sys.Monotonic()),
		Tally:    m.tally(),
		Tickets:  &m.tickets,
		Metrics:  m.metrics.configured(),
	}
	h.told = legacy.Tally
	legacy.Config.Last = m.lastNumber
	m.mu.Lock()
	groups, fds := m.sockets.export()
	legacy.Config.Failures = m.failures
	m.mu.Unlock()
	legacy.Groups = groups
	var servers []syscall.Conn
	if a := m.admin; a != nil {
		legacy.Admin = &handedAdmin{Path: a.path, Group: a.group}
		servers = append(servers, a.listener)
	}
	if m.metrics != nil {
		servers = append(servers, m.metrics.listener.(*net.TCPListener))
	}
	for _, s := range servers {
		fd, err := duplicate(s)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	legacy.FDs = len(fds)
	if err := h.sayWith(heirMessage{Type: heirLeaves, Program: m.options.Version, PID: os.Getpid()}, &legacy); err != nil {
		return err
	}
	for chunk := range slices.Chunk(fds, sys.FDsMax) {
		if err := h.sayPatiently(heirMessage{Type: heirFDs}, chunk...); err != nil {
			return err
		}
	}
	return nil
}

// duplicate returns another descriptor of a socket. Not by its File method: the
// Fd of that would make the socket a blocking one for everybody.
func duplicate(s syscall.Conn) (fd int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(controlErr, os.NewSyscallError("fcntl", err))
}

// relock makes the locks name this process again, which the new one had taken
// over.
func (m *Master) relock() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, g := range m.sockets.groups {
		if g.lockFD >= 0 {
			errs = append(errs, os.NewSyscallError("listen", unix.Listen(g.lockFD, backlog)))
		}
	}
	return errors.Join(errs...)
}

// pauseServers takes no more connections on the admin socket and for metrics, and
// waits for the answers to questions that are under way. resume goes on with it.
func (m *Master) pauseServers() (resume func() error, err error) {
	admin, err := m.admin.pause()
	if err != nil {
		return nil, err
	}
	metrics, err := m.metrics.pause()
	if err != nil {
		return nil, errors.Join(err, admin())
	}
	for end := time.Now().Add(pauseTimeout); m.answering.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return func() error {
		m.mu.Lock() // the listeners change, of which Status tells
		defer m.mu.Unlock()
		return errors.Join(admin(), metrics())
	}, nil
}

// pause takes no more connections. The socket lives on in the descriptor that
// the new master has.
func (a *adminServer) pause() (resume func() error, err error) {
	if a == nil {
		return func() error { return nil }, nil
	}
	a.listener.SetUnlinkOnClose(false)
	return pauseServer(&a.http, a.listener, func(l net.Listener) {
		a.listener = l.(*net.UnixListener)
		a.listener.SetUnlinkOnClose(true)
		a.serve()
	})
}

// pause takes no more connections.
func (s *metricsServer) pause() (resume func() error, err error) {
	if s == nil {
		return func() error { return nil }, nil
	}
	return pauseServer(&s.http, s.listener.(*net.TCPListener), func(l net.Listener) {
		s.listener = l
		s.serve()
	})
}

// pauseServer closes a server's listener; resume calls serve with one that has
// the same socket.
func pauseServer(server *http.Server, listener interface {
	net.Listener
	syscall.Conn
}, serve func(net.Listener)) (resume func() error, err error) {
	fd, err := duplicate(listener)
	if err != nil {
		return nil, err
	}
	kept := os.NewFile(uintptr(fd), "listener")
	server.SetKeepAlivesEnabled(false)
	err = listener.Close()
	return func() error {
		defer kept.Close()
		again, err := net.FileListener(kept)
		if err != nil {
			return err
		}
		server.SetKeepAlivesEnabled(true)
		serve(again)
		return nil
	}, err
}

// retire drains the workers after the new master has taken over, and tells it
// what they count until their end. What connections are left at the drain's
// deadline is cut, and no error: the service goes on. One signal to stop changes
// nothing; it may have been meant for all of a process group. A second one ends
// it at once.
func (m *Master) retire(h *heir, signals <-chan os.Signal) error {
	m.log.Info("draining after an upgrade", "successor", h.process.Pid, "deadline", m.generation().cfg.Timeouts.Drain.String())
	gone := make(chan struct{})
	go func() {
		m.letGo(h)
		m.slotsEnded.Wait()
		m.before.wait() // what it counts goes on to the new one by this one
		close(gone)
	}()
	ticker := time.NewTicker(tallyEvery)
	defer ticker.Stop()
	messages, signalled := h.messages, 0
	for {
		select {
		case <-gone:
			m.tell(h)
			// A new one that is gone has been logged.
			_ = h.say(heirMessage{Type: heirEnd})
			m.log.Info("ended after an upgrade", "connections_cut", m.cut, "workers_killed", m.lost)
			if err := h.conn.Close(); err != nil || !m.isStopping() {
				return err
			}
			return &ExitError{Code: exitCut, Err: errors.New("ended at once by a second signal")}
		case <-ticker.C:
			m.tell(h)
		case msg, ok := <-messages:
			if !ok {
				m.log.Warn("the new master is gone", "end", h.failure("its connection is closed").Error())
				messages = nil
				continue
			}
			if msg.Type == heirConfig {
				go m.followHeir(h, &msg)
				continue
			}
			closeAll(msg.fds)
			if msg.Type == heirAtOnce {
				m.endNow()
			}
		case s := <-signals:
			if !stops(s) {
				continue
			}
			if signalled++; signalled > 1 {
				m.endNow()
			}
		}
	}
}

// endNow makes retire end.
func (m *Master) endNow() {
	m.before.atOnce()
	m.abandon()
}

// letGo makes all workers leave the listeners to those of the new master, and
// drain.
func (m *Master) letGo(h *heir) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.turn.Lock()
	m.mu.Lock()
	m.count = 0
	m.mu.Unlock()
	m.handOver()
	m.turn.Unlock()
	m.giveUp()
	m.mu.Lock()
	m.sockets.disown()
	err := m.sockets.close()
	m.mu.Unlock()
	if err != nil {
		m.log.Error("listeners", "err", err)
	}
	// Who cannot be told will know by the end of the connection.
	_ = h.say(heirMessage{Type: heirLetGo})
}

// tell tells the new master what was counted since it was told last.
func (m *Master) tell(h *heir) {
	now := m.tally()
	if h.sayWith(heirMessage{Type: heirCounted}, now.since(h.told)) == nil {
		h.told = now
	}
}
