package supervisor

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/metrics"
)

// How much of the past the master remembers.
const (
	sampleEvery  = 5 * time.Second
	samples      = 14 // those of a bit more than a minute
	errorMinutes = 15
	// errorsMax bounds the pairs of a route or backend and a reason; further
	// ones are counted together as errorsOther.
	errorsMax   = 4096
	errorsOther = "(other)"
)

// history remembers what routes and backends had counted, so that there are
// rates, latencies and errors of the last minutes and not only of all times.
type history struct {
	mu sync.Mutex // held while counts are taken and noted: they come in order

	// times has when the requests of all pasts were sampled, around; the
	// newest is number taken-1.
	times    [samples]time.Time
	taken    int
	routes   map[string]*past
	backends map[string]*past
	errors   map[errorKey]*errorCount
	// minute is when the present minute of errors and latencies began, and
	// minuteBefore when the one before did.
	started, minute, minuteBefore time.Time
}

// past is what a route or a backend had counted before.
type past struct {
	requests [samples]uint64        // at history.times
	last     uint64                 // requests when it was noted last
	reasons  [shm.ReasonsMax]uint64 // at that time
	// latency is that when the present minute began, and latencyBefore when
	// the one before did.
	latency, latencyBefore shm.Histogram
	seen                   bool // since the last sample
}

// errorKey is a reason at a route or at a backend.
type errorKey struct {
	backend bool
	name    string
	reason  int
}

type errorCount struct {
	minutes [errorMinutes]uint64 // the present one first
	last    time.Time
}

// counted is what a route or a backend has counted up to now.
type counted struct {
	backend  bool
	name     string // empty for what has no route
	requests uint64
	reasons  *[shm.ReasonsMax]uint64
	latency  *shm.Histogram
}

func newHistory(now time.Time) *history {
	return &history{
		started: now, minute: now, minuteBefore: now,
		routes: map[string]*past{}, backends: map[string]*past{}, errors: map[errorKey]*errorCount{},
	}
}

// note takes what has been counted up to now. The first call only begins with
// that; who is new later has counted from zero.
func (h *history) note(now time.Time, all []counted) {
	first := h.taken == 0
	turned := h.turnMinute(now)
	sample := first || now.Sub(h.times[(h.taken-1)%samples]) >= sampleEvery
	for i := range all {
		c := &all[i]
		p := h.past(c)
		if first {
			p.begin(c)
		}
		for reason, n := range c.reasons {
			if n > p.reasons[reason] {
				h.count(errorKey{c.backend, c.name, reason}, n-p.reasons[reason], now)
			}
		}
		p.last, p.reasons = c.requests, *c.reasons
		p.seen = true
		if turned {
			p.latencyBefore, p.latency = p.latency, *c.latency
		}
		if sample {
			p.requests[h.taken%samples] = c.requests
		}
	}
	if sample {
		h.times[h.taken%samples] = now
		h.taken++
		forget(h.routes)
		forget(h.backends)
	}
}

// past returns what is remembered of c. Who has counted less of anything than
// before has begun anew.
func (h *history) past(c *counted) *past {
	list := h.pasts(c.backend)
	p := list[c.name]
	if p == nil || !p.precedes(c) {
		p = new(past)
		list[c.name] = p
	}
	return p
}

// precedes reports whether c may have counted on from p.
func (p *past) precedes(c *counted) bool {
	for i, n := range c.latency.Buckets {
		if n < p.latency.Buckets[i] {
			return false
		}
	}
	return c.requests >= p.last && c.latency.SumNanos >= p.latency.SumNanos
}

func (h *history) pasts(backend bool) map[string]*past {
	if backend {
		return h.backends
	}
	return h.routes
}

// begin makes p begin with what c has counted until now.
func (p *past) begin(c *counted) {
	for i := range p.requests {
		p.requests[i] = c.requests
	}
	p.reasons, p.latency, p.latencyBefore = *c.reasons, *c.latency, *c.latency
}

// forget drops what was not seen since the last sample.
func forget(list map[string]*past) {
	for name, p := range list {
		if !p.seen {
			delete(list, name)
		}
		p.seen = false
	}
}

// turnMinute begins a new minute if the present one is over, and reports
// whether it did.
func (h *history) turnMinute(now time.Time) bool {
	minutes := int(now.Sub(h.minute) / time.Minute)
	if minutes == 0 {
		return false
	}
	for key, e := range h.errors {
		var turned [errorMinutes]uint64
		if minutes < errorMinutes {
			copy(turned[minutes:], e.minutes[:])
		}
		e.minutes = turned
		if turned == [errorMinutes]uint64{} {
			delete(h.errors, key)
		}
	}
	h.minuteBefore, h.minute = h.minute, now
	return true
}

// count adds n to the errors of the present minute.
func (h *history) count(key errorKey, n uint64, now time.Time) {
	e := h.errors[key]
	if e == nil && len(h.errors) >= errorsMax {
		key.name = errorsOther
		e = h.errors[key]
	}
	if e == nil {
		e = new(errorCount)
		h.errors[key] = e
	}
	e.minutes[0] += n
	e.last = now
}

// rate is what c did per second in the time before now, as far as that is
// remembered.
func (h *history) rate(c *counted, now time.Time, span time.Duration) float64 {
	oldest := max(0, h.taken-samples)
	for i := h.taken - 1; i >= oldest; i-- {
		elapsed := now.Sub(h.times[i%samples])
		if elapsed < span && i > oldest {
			continue
		}
		if elapsed <= 0 {
			return 0
		}
		return float64(c.requests-h.pasts(c.backend)[c.name].requests[i%samples]) / elapsed.Seconds()
	}
	return 0
}

// rates are those of c up to now, when it was noted.
func (h *history) rates(c *counted, now time.Time) control.Rate {
	return control.Rate{TenSeconds: h.rate(c, now, 10*time.Second), Minute: h.rate(c, now, time.Minute)}
}

// latency is that of what c did since the minute before the present one began.
func (h *history) latency(c *counted) *control.Latency {
	before := &h.pasts(c.backend)[c.name].latencyBefore
	recent := metrics.Histogram{Counts: make([]uint64, len(c.latency.Buckets))}
	for i, n := range c.latency.Buckets {
		recent.Counts[i] = n - before.Buckets[i]
	}
	n := recent.Count()
	if n == 0 {
		return nil
	}
	quantile := func(q float64) float64 { return recent.Quantile(shm.LatencyBounds[:], q) }
	return &control.Latency{
		Requests: n,
		Mean:     float64(c.latency.SumNanos-before.SumNanos) / 1e9 / float64(n),
		P50:      quantile(0.5), P90: quantile(0.9), P99: quantile(0.99),
	}
}

// recent lists the errors of routes or of backends, the most first.
func (h *history) recent(backend bool, word func(reason int) string) []control.ErrorCount {
	list := []control.ErrorCount{}
	for key, e := range h.errors {
		if key.backend != backend {
			continue
		}
		c := control.ErrorCount{Reason: word(key.reason), Last: e.last, PerMinute: slices.Clone(e.minutes[:])}
		if backend {
			c.Backend = key.name
		} else {
			c.Route = key.name
		}
		for _, n := range e.minutes {
			c.Count += n
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b control.ErrorCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Route, b.Route),
			cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
