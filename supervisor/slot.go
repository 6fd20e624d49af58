package supervisor

import (
	"errors"
	"fmt"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"golang.org/x/sys/unix"
)

// Respawning.
const (
	// startTimeout bounds the time from a worker's start to its readiness.
	startTimeout = 10 * time.Second
	// lastLog is how long a worker that did not start may take to end by
	// itself, which lets it log why.
	lastLog = 100 * time.Millisecond
	// youngDeath is the age below which a death counts as one of a series.
	youngDeath = 10 * time.Second
	// freeDeaths of a series are followed by a new worker at once; then the
	// slot waits, twice as long each time.
	freeDeaths   = 5
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
)

// backoff is how long a slot waits after the given number of early deaths.
func backoff(deaths int) time.Duration {
	if deaths <= freeDeaths {
		return 0
	}
	return min(backoffMax, backoffFirst<<min(deaths-freeDeaths-1, 10))
}

// slot is a worker's fixed number with the worker that has it now. Its fields
// are guarded by Master.mu.
type slot struct {
	number    int
	state     string       // one of control.Worker…
	in        *incarnation // nil while there is no process
	base      shm.Totals   // of its dead workers
	restarts  uint64
	lastDeath string
	lastCut   int  // connections that the last worker cut when it was drained
	lastClean bool // the last worker ended in order
}

// keep runs the slot's workers one after another until the master stops. tell
// is called with the outcome of each start, and of each life.
func (m *Master) keep(s *slot, tell func(error)) {
	defer m.slotsEnded.Done()
	deaths := 0
	for {
		in, err := m.begin(s)
		if err == nil {
			tell(nil)
		}
		age := time.Duration(0)
		if in != nil {
			how, clean := in.wait()
			if err != nil {
				how = err.Error() + ": " + how
			}
			age = time.Since(in.started)
			m.bury(s, in, how, clean)
			err = errors.New(how)
		}
		tell(err)
		if age >= youngDeath {
			deaths = 0
		}
		deaths++
		delay := backoff(deaths)
		if m.isStopping() {
			m.setState(s, control.WorkerEnded)
			return
		}
		m.log.Error("worker ended", "slot", s.number, "reason", err, "age", age.Round(time.Millisecond).String(),
			"again_in", delay.String())
		if delay > 0 {
			m.setState(s, control.WorkerWaiting)
		}
		select {
		case <-time.After(delay):
		case <-m.stopping:
			m.setState(s, control.WorkerEnded)
			return
		}
		m.mu.Lock()
		s.restarts++
		m.mu.Unlock()
	}
}

// begin starts a worker and waits until it serves. A reload cannot happen in
// between, so that no worker comes up with what is no longer in force. The
// process of a failed start, if there is one, is being killed.
func (m *Master) begin(s *slot) (*incarnation, error) {
	m.turn.RLock()
	defer m.turn.RUnlock()
	if m.isStopping() {
		return nil, errors.New("the master is stopping")
	}
	in, err := m.spawn(s.number)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	s.in, s.state = in, control.WorkerStarting
	g := m.current
	m.mu.Unlock()

	start := control.Message{Type: control.TypeStart, Start: &control.Start{
		Slot:      s.number,
		Slots:     len(m.slots),
		Listeners: m.addresses(),
		Engine:    m.engine.Used,
		Required:  m.engine.Asked != EngineAuto,
	}}
	ack, err := m.callWithPayload(in, start, g, startTimeout)
	if err != nil {
		time.AfterFunc(lastLog, in.kill)
		return in, fmt.Errorf("start: %w", err)
	}
	m.mu.Lock()
	if ack.Engine != nil {
		in.engine = *ack.Engine
	}
	if s.state == control.WorkerStarting {
		s.state = control.WorkerRunning
	}
	m.mu.Unlock()
	m.log.Info("worker serves", "slot", s.number, "pid", in.pid, "engine", in.engine.Name, "detail", in.engine.Detail,
		"generation", g.number, "after", time.Since(in.started).Round(time.Millisecond).String())
	return in, nil
}

// callWithPayload sends msg with g in a sealed memory file.
func (m *Master) callWithPayload(in *incarnation, msg control.Message, g *generation, timeout time.Duration) (control.Message, error) {
	fd, err := g.seal()
	if err != nil {
		return msg, err
	}
	defer unix.Close(fd)
	return in.call(msg, fd, timeout)
}

// bury adds a dead worker's counters to its slot's and frees what it had.
func (m *Master) bury(s *slot, in *incarnation, reason string, clean bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.base.Add(&in.page.Counters.Totals)
	m.shared.bury(in.page)
	s.in = nil
	s.state = control.WorkerStarting
	s.lastDeath = reason
	words := in.lastWords()
	s.lastClean = clean && words != nil
	s.lastCut = 0
	if words != nil {
		s.lastCut = words.Cut
	}
	if err := errors.Join(in.page.Close(), in.channel.Close()); err != nil {
		m.log.Warn("worker's remains", "slot", s.number, "err", err)
	}
}

func (m *Master) setState(s *slot, state string) {
	m.mu.Lock()
	s.state = state
	m.mu.Unlock()
}

// running returns the workers that serve now, by slot.
func (m *Master) running() map[int]*incarnation {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[int]*incarnation{}
	for _, s := range m.slots {
		if s.in != nil && s.state == control.WorkerRunning && !s.in.isGone() {
			all[s.number] = s.in
		}
	}
	return all
}
