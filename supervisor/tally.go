package supervisor

import (
	"reflect"
	"slices"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/shm"
)

// tally is what has been counted, as JSON in which one master tells it to the
// next, which may be of another version: fields that it does not know are
// dropped, and places in arrays mean what Reasons and the bounds say.
type tally struct {
	Reasons                       []string // the words of the places in Reasons and Failures
	LatencyBounds, OverheadBounds []float64

	Slots []slotTally
	// Routes are by pattern; routeOther and, for those that have no index any
	// more, "" are among them.
	Routes                   map[string]shm.RouteTotals
	Backends                 map[string]shm.BackendTotals // by host
	ReloadsOK, ReloadsFailed uint64
}

// slotTally is a slot's part of a tally, in the order of the slots' numbers.
type slotTally struct {
	Totals   shm.Totals
	CPU      time.Duration
	Restarts uint64
}

// tally adds up what was counted by all workers until now.
func (m *Master) tally() *tally {
	t := &tally{
		Reasons: m.options.Reasons, LatencyBounds: shm.LatencyBounds[:], OverheadBounds: shm.OverheadBounds[:],
		Routes: map[string]shm.RouteTotals{}, Backends: map[string]shm.BackendTotals{},
	}
	for _, v := range m.shared.routeSums() {
		t.Routes[v.Pattern] = v.Totals
	}
	t.Routes[""] = m.shared.goneRoutes()
	for _, v := range m.shared.backends() {
		t.Backends[v.Host] = v.Totals
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.ReloadsOK, t.ReloadsFailed = m.reloadsOK, m.reloadsFailed
	for _, s := range m.slots {
		st := slotTally{Totals: s.base, CPU: s.cpu, Restarts: s.restarts}
		for _, in := range s.workers() {
			st.Totals.Add(&in.page.Counters.Totals)
			st.CPU += in.usage().cpu
		}
		t.Slots = append(t.Slots, st)
	}
	return t
}

// addTally makes what another master counted part of what this one has.
func (m *Master) addTally(t *tally) {
	t.translate(m.options.Reasons)
	m.shared.add(t)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloadsOK += t.ReloadsOK
	m.reloadsFailed += t.ReloadsFailed
	for i := range t.Slots {
		s := m.slots[min(i, len(m.slots)-1)] // a slot that there is no more
		s.base.Add(&t.Slots[i].Totals)
		s.cpu += t.Slots[i].CPU
		s.restarts += t.Slots[i].Restarts
	}
}

// since returns what was counted after before. Both are of this process; what
// is equal in both is left out.
func (t *tally) since(before *tally) *tally {
	d := &tally{
		Reasons: t.Reasons, LatencyBounds: t.LatencyBounds, OverheadBounds: t.OverheadBounds,
		Routes: difference(t.Routes, before.Routes), Backends: difference(t.Backends, before.Backends),
		ReloadsOK: t.ReloadsOK - before.ReloadsOK, ReloadsFailed: t.ReloadsFailed - before.ReloadsFailed,
		Slots: slices.Clone(t.Slots),
	}
	for i := range min(len(d.Slots), len(before.Slots)) {
		subtract(reflect.ValueOf(&d.Slots[i]).Elem(), reflect.ValueOf(before.Slots[i]))
	}
	return d
}

// difference subtracts the counts of before and leaves out what is zero then.
func difference[T comparable](now, before map[string]T) map[string]T {
	d := map[string]T{}
	var zero T
	for name, v := range now {
		b := before[name]
		subtract(reflect.ValueOf(&v).Elem(), reflect.ValueOf(b))
		if v != zero {
			d[name] = v
		}
	}
	return d
}

// subtract takes every number of b off that of a. Both are of one type, of
// structs, arrays and integers.
func subtract(a, b reflect.Value) {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			subtract(a.Field(i), b.Field(i))
		}
	case reflect.Array:
		for i := range a.Len() {
			subtract(a.Index(i), b.Index(i))
		}
	case reflect.Uint64:
		a.SetUint(a.Uint() - b.Uint())
	case reflect.Int64:
		a.SetInt(a.Int() - b.Int())
	default:
		panic("a tally has a " + a.Kind().String()) // a mistake of ours, which the tests find
	}
}

// translate puts counts at the places that they have in this version. What it
// does not know, it cannot show: it is dropped.
func (t *tally) translate(words []string) {
	sameLatency := slices.Equal(t.LatencyBounds, shm.LatencyBounds[:])
	sameOverhead := slices.Equal(t.OverheadBounds, shm.OverheadBounds[:])
	move := func(counts *[shm.ReasonsMax]uint64) {
		var moved [shm.ReasonsMax]uint64
		for i, word := range t.Reasons[:min(len(t.Reasons), len(counts))] {
			if at := slices.Index(words, word); at >= 0 {
				moved[at] += counts[i]
			}
		}
		*counts = moved
	}
	for i := range t.Slots {
		move(&t.Slots[i].Totals.Reasons)
	}
	for pattern, r := range t.Routes {
		move(&r.Reasons)
		if !sameLatency {
			r.Latency = shm.Histogram{}
		}
		if !sameOverhead {
			r.Overhead = shm.Histogram{}
		}
		t.Routes[pattern] = r
	}
	for host, b := range t.Backends {
		move(&b.Failures)
		if !sameLatency {
			b.Latency = shm.Histogram{}
		}
		t.Backends[host] = b
	}
}

// goneRoutes is what was counted of routes that have no index any more.
func (r *registry) goneRoutes() shm.RouteTotals {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

// add adds what another master counted. A backend that is not in the
// configuration any more is forgotten, as it would be here.
func (r *registry) add(t *tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pattern, totals := range t.Routes {
		base := &r.gone
		if i, ok := r.routeOf[pattern]; ok {
			base = &r.routes[i].base
		} else if pattern == routeOther {
			base, r.crowded = &r.other, true
		}
		base.Add(&totals)
	}
	for host, totals := range t.Backends {
		if h := r.hosts[host]; h != nil {
			h.base.Add(&totals)
		}
	}
}

// handedBackend is a backend as an operator and its failures left it.
type handedBackend struct {
	State  uint32 // one of shm.Admin…
	Weight int    // weightConfigured if none was set
	Rows   []handedRow
}

// handedRow is the health of one address of a backend.
type handedRow struct {
	Key      string // control.BackendKey
	Failures uint32
	Out      bool
	OutFor   time.Duration // what is left of the cooldown
}

// export describes the backends of the configuration in force, by host. now is
// CLOCK_MONOTONIC in nanoseconds.
func (r *registry) export(now int64) map[string]handedBackend {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := map[string]handedBackend{}
	for host, h := range r.hosts {
		if h.named {
			list[host] = handedBackend{State: h.state, Weight: h.weight}
		}
	}
	for i := range r.rows {
		e, row := &r.rows[i], &r.shared.Rows[i]
		b, ok := list[e.host]
		if !ok || e.key == "" {
			continue
		}
		until := row.OutUntil.Load()
		b.Rows = append(b.Rows, handedRow{
			Key: e.key, Failures: row.Failures.Load(), Out: until != 0, OutFor: time.Duration(max(0, until-now)),
		})
		list[e.host] = b
	}
	return list
}

// take gives the backends of the configuration in force what another master
// knew of them.
func (r *registry) take(list map[string]handedBackend, now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, b := range list {
		h := r.hosts[host]
		if h == nil {
			continue
		}
		r.set(host, h, b.State, b.Weight)
		for _, known := range b.Rows {
			i, ok := r.rowOf[known.Key]
			if !ok {
				continue
			}
			row := &r.shared.Rows[i]
			row.Failures.Store(known.Failures)
			if known.Out {
				row.OutUntil.Store(now + int64(known.OutFor))
			}
		}
	}
}
