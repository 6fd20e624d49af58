package supervisor

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
)

// drainGrace is what workers may need beyond the drain deadline to say that it
// passed.
const drainGrace = 2 * time.Second

// obey does what signals ask for until one has stopped the master.
func (m *Master) obey(signals <-chan os.Signal) error {
	beats, end := m.notify.beats()
	defer end()
	for {
		select {
		case <-beats:
			m.notifyAlive()
		case s := <-signals:
			if !stops(s) {
				go m.follow(s) // a signal to stop must not wait for it
				continue
			}
			select {
			case h := <-m.heirs: // which has the sockets and their files: not ours to remove
				return m.retire(h, signals)
			default:
				return m.stop(s, signals)
			}
		case h := <-m.heirs:
			return m.retire(h, signals)
		}
	}
}

// stops reports whether a signal asks for the end.
func stops(s os.Signal) bool {
	return s == syscall.SIGTERM || s == syscall.SIGINT || s == syscall.SIGQUIT
}

// follow does what a signal asks for that does not stop the master.
func (m *Master) follow(s os.Signal) {
	what, err := "reload", error(nil)
	switch s {
	case syscall.SIGUSR1:
		what, err = "access logs", m.ReopenLogs()
	case syscall.SIGUSR2:
		what = "upgrade"
		_, err = m.Upgrade()
	default:
		_, err = m.Reload()
	}
	if err != nil {
		m.log.Error(what, "err", err)
	}
}

// stop drains all workers and waits for them. Readiness is the first to go;
// accepting goes on for the drain delay, in which whoever looks at it can send
// new connections elsewhere. A second signal ends all at once.
func (m *Master) stop(why os.Signal, signals <-chan os.Signal) error {
	g := m.generation()
	delay, deadline := g.cfg.Timeouts.DrainDelay, g.cfg.Timeouts.Drain
	close(m.leaving)
	m.notifyStopping(delay + deadline + 2*drainGrace)
	m.log.Info("stopping", "signal", why.String(), "delay", delay.String(), "deadline", deadline.String())
	second := make(chan os.Signal, 1)
	go func() {
		for s := range signals {
			if stops(s) {
				second <- s
				return
			}
			if s == syscall.SIGUSR1 {
				go m.follow(s)
			}
		}
	}()
	select {
	case <-time.After(delay):
	case s := <-second:
		return m.stopAtOnce(s)
	}

	m.mu.Lock()
	close(m.stopping)
	m.mu.Unlock()
	drained := make(chan struct{})
	go func() {
		m.drainAll(deadline)
		m.slotsEnded.Wait()
		m.before.wait() // its workers drain, too
		close(drained)
	}()
	select {
	case <-drained:
	case s := <-second:
		return m.stopAtOnce(s)
	case <-time.After(deadline + drainGrace):
		m.log.Error("workers did not end in time and are killed")
		m.endNow()
	}
	return errors.Join(m.drainResult(), m.closeListeners())
}

// drainAll lets go of the listeners and tells every worker to drain. The
// sockets live on in the workers, which close them once their accept queues are
// empty; were the master to close them later, connections would queue up
// meanwhile that nobody takes.
func (m *Master) drainAll(deadline time.Duration) {
	m.awaitTurn()
	if err := m.closeListeners(); err != nil {
		m.log.Error("listeners", "err", err)
	}
	var wg sync.WaitGroup
	for _, in := range m.drainable() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			m.drain(in, deadline, control.StopGrace)
		}()
	}
	wg.Wait()
}

// drain tells a worker to drain; one that does not answer is killed.
func (m *Master) drain(in *incarnation, deadline, grace time.Duration) {
	_, err := in.call(control.Message{Type: control.TypeDrain, Deadline: deadline, Grace: grace}, -1, deadline+drainGrace)
	if err != nil && !errors.Is(err, errGone) {
		m.log.Error("worker does not drain and is killed", "pid", in.pid, "err", err)
		in.killFor("killed: does not drain")
	}
}

// drainable marks all workers as draining and returns them.
func (m *Master) drainable() []*incarnation {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*incarnation
	for _, s := range m.slots {
		if s.in != nil {
			s.state = control.WorkerDraining
			list = append(list, s.in)
		}
	}
	return list
}

// drainResult tells whether every connection ended in order.
func (m *Master) drainResult() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut == 0 && m.lost == 0 {
		m.log.Info("stopped")
		return nil
	}
	m.log.Warn("stopped", "connections_cut", m.cut, "workers_killed", m.lost)
	return &ExitError{Code: exitCut, Err: errors.New("the drain deadline passed before all connections ended")}
}

// stopAtOnce kills all workers.
func (m *Master) stopAtOnce(why os.Signal) error {
	m.log.Warn("stopping at once", "signal", why.String())
	m.endNow()
	return errors.Join(&ExitError{Code: exitCut, Err: errors.New("stopped at once by a second signal")}, m.closeListeners())
}
