package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"sync"
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
	// youngDeath: a worker that dies before it has served for so long is one
	// of a series. One that is killed each second has served, and its slot
	// never waits.
	youngDeath = 500 * time.Millisecond
	// freeDeaths of a series are followed by a new worker at once; then the
	// slot waits, twice as long each time.
	freeDeaths   = 5
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
)

// leisureGrace is how long an idle connection stays open in a worker that ends
// while others serve: nobody waits for that end, and the longer it is, the fewer
// requests meet a connection that is just being closed.
const leisureGrace = 10 * time.Second

// backoff is how long a slot waits after the given number of early deaths.
func backoff(deaths int) time.Duration {
	if deaths <= freeDeaths {
		return 0
	}
	return min(backoffMax, backoffFirst<<min(deaths-freeDeaths-1, 10))
}

// slot is a worker's fixed number with the worker that has it now. Its fields
// are guarded by Master.mu, but for those of the keeper.
type slot struct {
	number    int
	state     string       // one of control.Worker…
	in        *incarnation // nil while there is no process
	away      bool         // no worker comes soon: others serve its sockets
	leaving   []*incarnation
	base      shm.Totals    // of its dead workers
	cpu       time.Duration // of its dead workers
	restarts  uint64
	lastDeath string

	// Of the goroutine in keep, if the slot has one: closing quit ends it,
	// and kept tells that it has ended. Guarded by Master.applying.
	quit, kept chan struct{}
}

// able reports whether the slot has a worker that can take listeners.
func (s *slot) able() bool { return s.in != nil && s.in.built && s.in.unfit == nil && !s.in.isGone() }

// workers are all that the slot has, also those that leave.
func (s *slot) workers() []*incarnation {
	if s.in == nil {
		return s.leaving
	}
	return append([]*incarnation{s.in}, s.leaving...)
}

// fill sees to it that each slot that the configuration wants is kept, and no
// other, and waits for the first start of new ones; the error is that of the
// first that failed. away says that others serve their sockets until then.
// m.applying is held, or nobody else is there yet.
func (m *Master) fill(away bool) error {
	m.mu.Lock()
	for len(m.slots) < m.count {
		m.slots = append(m.slots, &slot{number: len(m.slots), state: control.WorkerStarting, away: away})
	}
	wanted, others := m.slots[:m.count], m.slots[m.count:]
	if m.isStopping() {
		wanted = nil // nobody waits for others than are there now
	}
	m.slotsEnded.Add(len(wanted))
	m.mu.Unlock()
	for _, s := range others {
		if s.kept != nil {
			<-s.kept // soon: quit is closed
		}
	}
	first := make(chan error, len(wanted))
	fresh := 0
	for _, s := range wanted {
		if s.quit != nil {
			m.slotsEnded.Done()
			continue
		}
		s.quit, s.kept = make(chan struct{}), make(chan struct{})
		fresh++
		var once sync.Once
		go m.keep(s, s.quit, func(err error) { once.Do(func() { first <- err }) })
	}
	for range fresh {
		if err := <-first; err != nil {
			return fmt.Errorf("worker: %w", err)
		}
	}
	return nil
}

// giveUp ends the keeping of the slots that the configuration does not want
// any more. Their workers have no listeners left. m.applying is held.
func (m *Master) giveUp() {
	for _, s := range m.slots[min(m.count, len(m.slots)):] {
		if s.quit != nil {
			close(s.quit)
			s.quit = nil
		}
	}
}

// keep runs the slot's workers one after another until the master stops or
// quit is closed. tell is called with the outcome of each start, and of each
// life.
func (m *Master) keep(s *slot, quit <-chan struct{}, tell func(error)) {
	defer m.slotsEnded.Done()
	defer close(s.kept)
	for deaths := 0; ; {
		in, err := m.begin(s)
		if err == nil {
			tell(nil)
			select {
			case <-in.over:
			case <-quit:
				m.sendAway(s, in)
				return
			}
		}
		age, served := time.Duration(0), time.Duration(0)
		if in != nil {
			<-in.over
			if err != nil {
				err = fmt.Errorf("%w: %s", err, in.how)
			} else {
				err = errors.New(in.how)
			}
			age = time.Since(in.started)
			if !in.served.IsZero() {
				served = time.Since(in.served)
			}
			m.bury(s, in, err.Error())
		}
		tell(err)
		if served >= youngDeath {
			deaths = 0
		}
		deaths++
		if !m.pause(s, quit, backoff(deaths), age, err) {
			m.setState(s, control.WorkerEnded)
			return
		}
	}
}

// pause lets delay pass between a worker's death and the next one. It reports
// whether there is to be a next one.
func (m *Master) pause(s *slot, quit <-chan struct{}, delay, age time.Duration, why error) bool {
	select {
	case <-quit:
		return false
	case <-m.stopping:
		return false
	default:
	}
	m.log.Error("worker ended", "slot", s.number, "reason", why, "age", age.Round(time.Millisecond).String(),
		"again_in", delay.String())
	if delay > 0 {
		m.mu.Lock()
		s.state, s.away = control.WorkerWaiting, true
		m.mu.Unlock()
	}
	m.reassign(delay > 0)
	select {
	case <-time.After(delay):
	case <-quit:
		return false
	case <-m.stopping:
		return false
	}
	m.mu.Lock()
	s.restarts++
	m.mu.Unlock()
	return true
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
	if s.number >= m.count {
		return nil, errors.New("the slot is given up")
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
		Slot:     s.number,
		Engine:   m.engine.Used,
		Required: m.engine.Asked != EngineAuto,
	}}
	ack, err := m.callWithPayload(in, start, g, startTimeout)
	if err == nil {
		err = m.logs.giveTo(in)
	}
	if err == nil {
		m.mu.Lock()
		if ack.Engine != nil {
			in.engine = *ack.Engine
		}
		in.built, s.away = true, false
		m.mu.Unlock()
		m.handOver()
		m.mu.Lock()
		err = in.unfit
		m.mu.Unlock()
	}
	if err != nil {
		time.AfterFunc(lastLog, in.kill)
		return in, fmt.Errorf("start: %w", err)
	}
	m.mu.Lock()
	in.served = time.Now()
	if s.state == control.WorkerStarting {
		s.state = control.WorkerRunning
	}
	m.mu.Unlock()
	m.log.Info("worker serves", "slot", s.number, "pid", in.pid, "engine", in.engine.Name, "detail", in.engine.Detail,
		"generation", g.number, "after", time.Since(in.started).Round(time.Millisecond).String())
	return in, nil
}

// callWithPayload sends msg with g in a sealed memory file. m.turn is held.
func (m *Master) callWithPayload(in *incarnation, msg control.Message, g *generation, timeout time.Duration) (control.Message, error) {
	fd, err := g.seal(m.tickets.Keys)
	if err != nil {
		return msg, err
	}
	defer unix.Close(fd)
	return in.call(msg, fd, timeout)
}

// sendAway lets a worker without listeners end once its connections have
// ended, and leaves the slot to the next one.
func (m *Master) sendAway(s *slot, in *incarnation) {
	m.mu.Lock()
	s.in, s.state, s.away = nil, control.WorkerEnded, true
	s.leaving = append(s.leaving, in)
	deadline := m.current.cfg.Timeouts.Drain
	m.mu.Unlock()
	m.slotsEnded.Add(1)
	go func() {
		defer m.slotsEnded.Done()
		m.drain(in, deadline, min(leisureGrace, deadline/2))
		select {
		case <-in.over:
		case <-time.After(deadline + drainGrace):
			in.kill()
			<-in.over
		}
		m.bury(s, in, in.how)
		m.log.Info("worker given up", "slot", s.number, "pid", in.pid, "end", in.how)
	}()
}

// bury adds a dead worker's counters to its slot's and frees what it had.
func (m *Master) bury(s *slot, in *incarnation, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.base.Add(&in.page.Counters.Totals)
	s.cpu += max(in.cpu, in.spent)
	m.shared.bury(in.page)
	words := in.lastWords()
	if s.in == in {
		s.in = nil
		s.state = control.WorkerStarting
		s.lastDeath = reason
	} else {
		s.leaving = slices.DeleteFunc(s.leaving, func(other *incarnation) bool { return other == in })
	}
	if m.isStopping() || m.retired.Load() {
		if words != nil {
			m.cut += words.Cut
		}
		if !in.clean || words == nil {
			m.lost++
		}
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
