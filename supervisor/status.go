package supervisor

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
)

// sampleTimeout is how long a worker's loop may take to bring its counters up
// to date.
const sampleTimeout = 500 * time.Millisecond

// Status collects what there is to know about the master and its workers.
func (m *Master) Status() *control.Status {
	stale := m.sample()
	s, g := m.statusNow(stale)
	s.Config.Drift = m.drift(g) // reads a file, for which nobody else waits
	return s
}

// statusNow is Status but for what is in the file, with the generation in
// force. The workers in stale did not bring their counters up to date.
func (m *Master) statusNow(stale map[*incarnation]bool) (*control.Status, *generation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.current
	s := &control.Status{
		Version:    m.options.Version,
		PID:        os.Getpid(),
		Started:    m.started,
		Uptime:     time.Since(m.started).Seconds(),
		Draining:   isClosed(m.leaving),
		Generation: m.served,
		Config: control.ConfigStatus{
			File: m.options.Path, SHA256: sum(g.text), Source: g.source, Loaded: g.loaded,
		},
		Engine:    m.engine,
		Listeners: m.sockets.addresses(),
		Metrics:   m.metrics.name(),
		Backends:  m.backendStatus(g, m.failures),
		Refused:   m.refused,
	}
	var totals shm.Totals
	for _, slot := range m.slots {
		w, sum := m.workerStatus(slot)
		w.Stale = slot.in != nil && stale[slot.in]
		totals.Add(&sum)
		if slot.number < m.count {
			s.Workers = append(s.Workers, w)
		}
		for _, in := range slot.leaving {
			w, sum := m.leavingStatus(slot, in)
			totals.Add(&sum)
			s.Workers = append(s.Workers, w)
		}
	}
	s.Totals = m.totalsStatus(&totals)
	return s, g
}

// sample has all running workers bring their counters up to date, and returns
// those that did not.
func (m *Master) sample() map[*incarnation]bool {
	stale := map[*incarnation]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, in := range m.running() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := in.call(control.Message{Type: control.TypeSample}, -1, sampleTimeout); err != nil {
				mu.Lock()
				stale[in] = true
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return stale
}

// workerStatus is one slot and the sum of its workers' counters. m.mu is held.
func (m *Master) workerStatus(s *slot) (control.WorkerStatus, shm.Totals) {
	w := control.WorkerStatus{Slot: s.number, State: s.state, Restarts: s.restarts, LastDeath: s.lastDeath}
	sum := s.base
	if s.in != nil {
		sum.Add(&s.in.page.Counters.Totals)
		describe(&w, s.in)
	}
	w.Totals = m.totalsStatus(&sum)
	return w, sum
}

// leavingStatus is a worker that a slot has given up, with its own counters.
// m.mu is held.
func (m *Master) leavingStatus(s *slot, in *incarnation) (control.WorkerStatus, shm.Totals) {
	w := control.WorkerStatus{Slot: s.number, State: control.WorkerDraining}
	describe(&w, in)
	sum := in.page.Counters.Totals
	w.Totals = m.totalsStatus(&sum)
	return w, sum
}

// describe fills in what belongs to a slot's process.
func describe(w *control.WorkerStatus, in *incarnation) {
	c := &in.page.Counters
	w.PID = in.pid
	w.Engine, w.Detail, w.Fallback = in.engine.Name, in.engine.Detail, in.engine.Fallback
	w.Uptime = time.Since(in.started).Seconds()
	w.Generation = c.Generation
	w.Connections = c.Connections
	w.BackendIdle = c.BackendIdle
	w.BuffersLent = c.BuffersLent
	w.BuffersMapped = c.BuffersMapped
	w.Goroutines = c.Goroutines
	w.Snapshots = c.Snapshots
	w.OldestGeneration = c.OldestGeneration
	w.Guard = in.restrictions()
}

// totalsStatus is t with the reasons' words.
func (m *Master) totalsStatus(t *shm.Totals) control.Totals {
	out := control.Totals{
		Accepted:        t.Accepted,
		Requests:        t.Requests,
		BackendConnects: t.BackendConnects,
		BackendReused:   t.BackendReused,
		Retries:         t.Retries,
		BytesIn:         t.BytesIn,
		BytesOut:        t.BytesOut,
		AcceptPaused:    t.AcceptPaused,
		Quarantined:     t.Quarantined,
		LoopTurns:       t.LoopTurns,
		Waits:           t.Waits,
		Calls:           t.Calls,
		HeapObjects:     t.HeapObjects,
		LogDropped:      t.LogDropped,
	}
	out.Reasons = m.reasonCounts(t.Reasons[:])
	return out
}

// reasonCounts are the counts that are not zero, by the reasons' words; nil if
// there is none.
func (m *Master) reasonCounts(counts []uint64) map[string]uint64 {
	var words map[string]uint64
	for i, n := range counts {
		if n == 0 {
			continue
		}
		if words == nil {
			words = map[string]uint64{}
		}
		words[m.reasonWord(i)] += n
	}
	return words
}

// reasonWord is the word for what shm.Totals.Reasons counts at i.
func (m *Master) reasonWord(i int) string {
	if i < len(m.options.Reasons) {
		return m.options.Reasons[i]
	}
	return fmt.Sprintf("reason_%d", i)
}

// drift says how the file differs from what is in force.
func (m *Master) drift(g *generation) string {
	if m.options.Path == "" {
		if g.source == sourceMemory {
			return "applied from memory; a restart ends it"
		}
		return ""
	}
	text, err := readRegular(m.options.Path)
	switch {
	case err != nil:
		return "the file cannot be read: " + err.Error()
	case sum(text) == sum(g.text):
		return ""
	case g.source == sourceMemory:
		return "applied from memory, differs from the file; the next reload or restart ends it"
	}
	return "the file has changed since it was loaded"
}
