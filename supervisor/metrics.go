package supervisor

import (
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/metrics"
)

// appendMetrics appends the text of /metrics. It reads memory that workers
// write, and asks them nothing.
func (m *Master) appendMetrics(b []byte) []byte {
	s := metrics.Snapshot{
		Version:        m.options.Version,
		GoVersion:      runtime.Version(),
		Reasons:        m.options.Reasons,
		LatencyBounds:  shm.LatencyBounds[:],
		OverheadBounds: shm.OverheadBounds[:],
	}
	m.measureMaster(&s)
	routes, backends := m.shared.routeSums(), m.shared.backends()
	overhead := m.shared.overhead()
	s.Overhead = histogramOf(&overhead)
	for i := range routes {
		s.Routes = append(s.Routes, routeMetrics(&routes[i]))
	}
	for i := range backends {
		s.Backends = append(s.Backends, backendMetrics(&backends[i]))
	}
	return s.Append(b)
}

// measureMaster fills in what the master knows of itself and its slots.
func (m *Master) measureMaster(s *metrics.Snapshot) {
	own, _ := usageOf(os.Getpid()) // it is there
	s.Master = processMetrics(own)
	s.Master.Started = unixSeconds(m.started)
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Draining = isClosed(m.leaving)
	s.Generation = m.served
	s.ConfigLoaded = unixSeconds(m.current.loaded)
	s.ReloadsOK, s.ReloadsFailed = m.reloadsOK, m.reloadsFailed
	s.Certificates = certificateMetrics(m.current)
	for _, r := range m.refused {
		s.Refused = append(s.Refused, r.File)
	}
	var sum shm.Totals
	for _, slot := range m.slots {
		totals := slot.totals()
		sum.Add(&totals)
		s.Workers = append(s.Workers, slotMetrics(slot, &totals))
	}
	s.Errors, s.Sessions = sum.Reasons[:], sum.Sessions
	s.Handshakes, s.HandshakesFailed = sum.Handshakes, sum.HandshakesFailed
}

// totals is what all workers counted that the slot has or had. Master.mu is
// held.
func (s *slot) totals() shm.Totals {
	sum := s.base
	for _, in := range s.workers() {
		sum.Add(&in.page.Counters.Totals)
	}
	return sum
}

// slotMetrics is a slot with its totals. Master.mu is held.
func slotMetrics(s *slot, totals *shm.Totals) metrics.Worker {
	w := metrics.Worker{Slot: strconv.Itoa(s.number), Running: s.state == control.WorkerRunning, Restarts: s.restarts}
	spent := usage{cpu: s.cpu}
	if s.in != nil {
		w.Engine = s.in.engine.Name
	}
	for _, in := range s.workers() {
		c := &in.page.Counters
		w.Connections += c.Connections
		w.Snapshots += c.Snapshots
		w.BuffersLent += c.BuffersLent
		w.BuffersMapped += c.BuffersMapped
		spent.add(in.usage())
	}
	w.Process = processMetrics(spent)
	w.Accepted, w.AcceptPaused, w.Quarantined = totals.Accepted, totals.AcceptPaused, totals.Quarantined
	w.BytesIn, w.BytesOut = totals.BytesIn, totals.BytesOut
	w.LogDropped = totals.LogDropped
	w.LoopTurns, w.Waits, w.Calls = totals.LoopTurns, totals.Waits, totals.Calls
	w.Results, w.NoBuffers, w.Overflows = totals.Results, totals.NoBuffers, totals.Overflows
	return w
}

func processMetrics(u usage) metrics.Process {
	return metrics.Process{CPU: u.cpu.Seconds(), ResidentBytes: u.residentBytes, Files: u.files}
}

func routeMetrics(r *routeView) metrics.Route {
	return metrics.Route{
		Pattern: r.Pattern, Requests: r.Totals.Requests, Errors: r.Totals.Reasons[:],
		BytesIn: r.Totals.BytesIn, BytesOut: r.Totals.BytesOut, InFlight: r.Gauges.InFlight,
		Latency: histogramOf(&r.Totals.Latency),
	}
}

func backendMetrics(b *backendView) metrics.Backend {
	return metrics.Backend{
		Host: b.Host, Up: b.up(), State: int(b.State), Requests: b.Totals.Requests, Failures: b.Totals.Failures[:],
		Retries: b.Totals.Retries, Connects: b.Totals.Connects, Reused: b.Totals.Reused,
		InFlight: b.Gauges.InFlight, Idle: b.Gauges.Idle, Latency: histogramOf(&b.Totals.Latency),
	}
}

// up reports whether an address of the backend is not out because of failures.
func (b *backendView) up() bool {
	for i := range b.Rows {
		if r := &b.Rows[i]; r.Named && r.OutUntil == 0 {
			return true
		}
	}
	return false
}

// histogramOf is h for package metrics; it shares h's memory.
func histogramOf(h *shm.Histogram) metrics.Histogram {
	return metrics.Histogram{Counts: h.Buckets[:], Sum: time.Duration(h.SumNanos).Seconds()}
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

// countReload notes how a configuration that was to be put in force fared.
func (m *Master) countReload(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.reloadsFailed++
	} else {
		m.reloadsOK++
	}
}

// metricsServer is the one over TCP, nil if there is none.
func (m *Master) metricsServer() *metricsServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.metrics
}

// useMetrics makes next the server of metrics over TCP, or drops it if its
// configuration did not come in force. m.applying is held.
func (m *Master) useMetrics(next *metricsServer, inForce bool) {
	before := m.metrics
	if next == before {
		return
	}
	drop := next
	if inForce {
		m.mu.Lock()
		m.metrics = next
		m.mu.Unlock()
		next.serve()
		m.log.Info("metrics", "address", next.name())
		drop = before
	}
	if err := drop.close(); err != nil {
		m.log.Warn("metrics", "err", err)
	}
}

// keepSampling notes what was counted again and again until done is closed.
func (m *Master) keepSampling(done <-chan struct{}) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			m.history.mu.Lock()
			m.lockedNote()
			m.history.mu.Unlock()
		}
	}
}

// unrouted are the reasons that occurred where there was no route.
func (m *Master) unrouted() (reasons [shm.ReasonsMax]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, slot := range m.slots {
		totals := slot.totals()
		for i, n := range totals.Unrouted {
			reasons[i] += n
		}
	}
	return reasons
}

// lockedNote notes what has been counted until now, which it returns: first
// the routes, then the backends, then what has neither. m.history.mu is held.
func (m *Master) lockedNote() (now time.Time, routes []routeView, backends []backendView, all []counted) {
	routes, backends = m.shared.routeSums(), m.shared.backends()
	for i := range routes {
		r := &routes[i]
		all = append(all, counted{
			name: r.Pattern, requests: sumOf(r.Totals.Requests[:]), reasons: &r.Totals.Reasons, latency: &r.Totals.Latency,
		})
	}
	for i := range backends {
		b := &backends[i]
		all = append(all, counted{
			backend: true, name: b.Host, requests: sumOf(b.Totals.Requests[:]), reasons: &b.Totals.Failures, latency: &b.Totals.Latency,
		})
	}
	unrouted := m.unrouted()
	all = append(all, counted{reasons: &unrouted, latency: new(shm.Histogram)})
	now = time.Now()
	m.history.note(now, all)
	return now, routes, backends, all
}

// Stats tells what routes and backends did.
func (m *Master) Stats() *control.Stats {
	h := m.history
	h.mu.Lock()
	defer h.mu.Unlock()
	now, routes, backends, all := m.lockedNote()
	s := &control.Stats{
		Time: now, LatencyWindow: now.Sub(h.minuteBefore).Seconds(),
		Routes: make([]control.RouteStats, 0, len(routes)), Backends: make([]control.BackendStats, 0, len(backends)),
	}
	for i := range routes {
		t, c := &routes[i].Totals, &all[i]
		s.Routes = append(s.Routes, control.RouteStats{
			Route: c.name, Requests: c.requests, Classes: classesOf(&t.Requests), Errors: sumOf(t.Reasons[:]),
			Rate: h.rates(c, now), Latency: h.latency(c), InFlight: routes[i].Gauges.InFlight,
			BytesIn: t.BytesIn, BytesOut: t.BytesOut,
		})
	}
	for i := range backends {
		t, g, c := &backends[i].Totals, &backends[i].Gauges, &all[len(routes)+i]
		s.Backends = append(s.Backends, control.BackendStats{
			Backend: c.name, Requests: c.requests, Classes: classesOf(&t.Requests), Failures: sumOf(t.Failures[:]),
			Retries: t.Retries, Connects: t.Connects, Reused: t.Reused,
			Rate: h.rates(c, now), Latency: h.latency(c), InFlight: g.InFlight, Idle: g.Idle,
		})
	}
	return s
}

// Errors tells what went wrong in the last minutes.
func (m *Master) Errors() *control.Errors {
	h := m.history
	h.mu.Lock()
	defer h.mu.Unlock()
	now, _, _, _ := m.lockedNote()
	window := min(now.Sub(h.started), (errorMinutes-1)*time.Minute+now.Sub(h.minute))
	return &control.Errors{
		Time: now, Window: window.Seconds(),
		Routes: h.recent(false, m.reasonWord), Backends: h.recent(true, m.reasonWord),
	}
}

// classesOf names the classes of responses that there were.
func classesOf(requests *[shm.Classes]uint64) map[string]uint64 {
	classes := map[string]uint64{}
	for i, n := range requests {
		if n != 0 {
			classes[metrics.ClassName(i)] = n
		}
	}
	return classes
}

func sumOf(list []uint64) (sum uint64) {
	for _, n := range list {
		sum += n
	}
	return sum
}
