package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
)

// setBackendState puts the backend with the host, as it is configured, into an
// administrative state. When it returns, no worker begins an exchange with one
// that is not enabled, and idle connections to a disabled one are being closed.
func (m *Master) setBackendState(host string, state uint32) error {
	if err := m.shared.setState(host, state); err != nil {
		return err
	}
	if state != shm.AdminDisabled {
		return nil
	}
	errs := askAll(m.running(), control.Message{Type: control.TypeBackends}, -1)
	for slot, err := range errs {
		if err != nil && !errors.Is(err, errGone) {
			return fmt.Errorf("worker %d: %w", slot, err)
		}
	}
	return nil
}

// registry gives backends and routes their places in shared memory, sets what
// an operator wants of backends, and adds up what workers count. A place is
// given to another backend or route only when no worker has a configuration
// left that names the one before.
type registry struct {
	shared *shm.Backends
	fd     int // of shared; workers inherit it

	mu      sync.Mutex
	pages   map[*shm.Page]struct{} // of workers that live
	current uint64                 // the generation in force

	rows       []rowEntry // by row
	rowOf      map[string]int
	freeRows   []int
	hosts      map[string]*hostEntry
	routes     []routeEntry // by index; the last of shm.RoutesMax is other
	routeOf    map[string]int
	freeRoutes []int
	other      shm.RouteTotals // of dead workers
	gone       shm.RouteTotals // of routes that have no index any more
	crowded    bool            // routes are counted at shm.RouteOther
}

// rowEntry is a backend with its row. A free one has no key.
type rowEntry struct {
	key  string // control.BackendKey
	host string
	addr string
	span
	base shm.BackendTotals // of dead workers
}

// routeEntry is a route's pattern with its index. A free one has no pattern.
type routeEntry struct {
	pattern string
	span
	base shm.RouteTotals
}

// span is the first and the latest generation that has a place.
type span struct{ first, last uint64 }

// hostEntry is a backend as the configuration and an operator name it. It
// lives while the generation in force or a row has it.
type hostEntry struct {
	named      bool // by the generation in force
	configured string
	rows       int
	base       shm.BackendTotals // of rows that it had before
	state      uint32            // one of shm.Admin…
	weight     int               // set at run time; weightConfigured if not
}

// weightConfigured means that no weight was set at run time.
const weightConfigured = -1

// routeOther is the pattern of the routes that are counted together.
const routeOther = "(other)"

func newRegistry() (*registry, error) {
	shared, fd, err := shm.CreateBackends()
	if err != nil {
		return nil, err
	}
	return &registry{
		shared: shared, fd: fd, pages: map[*shm.Page]struct{}{},
		rowOf: map[string]int{}, hosts: map[string]*hostEntry{}, routeOf: map[string]int{},
	}, nil
}

// attach counts the worker that has the page among the living.
func (r *registry) attach(page *shm.Page) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pages[page] = struct{}{}
}

// accepting tells the workers how many of them accept connections.
func (r *registry) accepting(workers int) { r.shared.Load.Workers.Store(int64(workers)) }

// bury keeps what a dead worker has counted, and gives back the exchanges that
// ended with it. The page may be closed afterwards.
func (r *registry) bury(page *shm.Page) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pages, page)
	r.shared.Load.Clients.Add(-int64(page.Counters.Connections))
	for i := range r.rows {
		r.rows[i].base.Add(&page.Backends[i].BackendTotals)
		row, gauges := &r.shared.Rows[i], &page.Backends[i].BackendGauges
		if gauges.Counted != 0 {
			row.Return(int32(gauges.Counted))
		}
		if gauges.InFlight != 0 {
			// The trial may have been its, and would keep others from trying
			// until its lease ends. If it was not, there are two for once.
			row.Trial.Store(0)
		}
	}
	for i := range r.routes {
		r.routes[i].base.Add(&page.Routes[i].RouteTotals)
	}
	if r.crowded {
		r.other.Add(&page.Routes[shm.RouteOther].RouteTotals)
	}
}

// assign gives the backends and routes of g, which has its number, their
// places; committed or revoke must follow. The error says that there are too
// many backends.
func (r *registry) assign(g *generation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	if err := r.place(g); err != nil {
		r.release(g.number)
		return err
	}
	return nil
}

// revoke takes back what assign gave to a generation that did not come into
// force.
func (r *registry) revoke(g *generation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release(g.number)
}

func (r *registry) place(g *generation) error {
	g.rows, g.routeIndex = map[string]int{}, make([]int, len(g.cfg.Routes))
	for i := range g.cfg.Routes {
		route := &g.cfg.Routes[i]
		g.routeIndex[i] = r.routeFor(route.Pattern, g.number)
		for j := range route.Backends {
			b := &route.Backends[j]
			for _, addr := range control.BackendAddresses(b.Host, g.addresses) {
				key := control.BackendKey(addr, b)
				row, ok := r.rowFor(key, b.Host, addr, g.number)
				if !ok {
					return fmt.Errorf("there are more than %d backends, with each address of a name, and with those of"+
						" configurations that are still in use", shm.BackendRowsMax)
				}
				g.rows[key] = row
			}
		}
	}
	return nil
}

// routeFor returns the index of a pattern.
func (r *registry) routeFor(pattern string, generation uint64) int {
	i, ok := r.routeOf[pattern]
	if !ok {
		switch n := len(r.freeRoutes); {
		case n > 0:
			i = r.freeRoutes[n-1]
			r.freeRoutes = r.freeRoutes[:n-1]
		case len(r.routes) < shm.RouteOther:
			i = len(r.routes)
			r.routes = append(r.routes, routeEntry{})
		default:
			r.crowded = true
			return shm.RouteOther
		}
		r.routeOf[pattern] = i
		r.routes[i] = routeEntry{pattern: pattern, span: span{first: generation}}
	}
	r.routes[i].last = generation
	return i
}

// rowFor returns the row of a backend's address.
func (r *registry) rowFor(key, host, addr string, generation uint64) (row int, ok bool) {
	if row, ok := r.rowOf[key]; ok {
		r.rows[row].last = generation
		return row, true
	}
	switch n := len(r.freeRows); {
	case n > 0:
		row = r.freeRows[n-1]
		r.freeRows = r.freeRows[:n-1]
	case len(r.rows) < shm.BackendRowsMax:
		row = len(r.rows)
		r.rows = append(r.rows, rowEntry{})
	default:
		return 0, false
	}
	r.rowOf[key] = row
	r.rows[row] = rowEntry{key: key, host: host, addr: addr, span: span{generation, generation}}
	h := r.host(host)
	h.rows++
	r.shared.Rows[row].Clear()
	h.order(&r.shared.Rows[row])
	return row, true
}

// host returns the entry of a host, a new one if there is none.
func (r *registry) host(host string) *hostEntry {
	h := r.hosts[host]
	if h == nil {
		h = &hostEntry{weight: weightConfigured}
		r.hosts[host] = h
	}
	return h
}

// order writes what the operator wants into a row.
func (h *hostEntry) order(row *shm.BackendRow) {
	row.WeightSet.Store(uint32(h.weight + 1))
	row.Admin.Store(h.state)
}

// committed notes that g is in force. What was set at run time ends for the
// backends that g describes otherwise than the configuration that it was set
// under.
func (r *registry) committed(g *generation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = g.number
	for _, h := range r.hosts {
		h.named = false
	}
	for host, configured := range configuredHosts(g.cfg) {
		h := r.host(host)
		h.named = true
		if h.configured != configured {
			h.configured = configured
			if h.state != shm.AdminEnabled || h.weight != weightConfigured {
				r.set(host, h, shm.AdminEnabled, weightConfigured)
			}
		}
	}
	for host, h := range r.hosts {
		if !h.named {
			h.configured = ""
			r.dropHost(host)
		}
	}
}

// configuredHosts tells by host what a configuration says about the backend
// itself, wherever it stands.
func configuredHosts(cfg *config.Config) map[string]string {
	said := map[string][]string{}
	for i := range cfg.Routes {
		for _, b := range cfg.Routes[i].Backends {
			said[b.Host] = append(said[b.Host], fmt.Sprintf("%+v", b))
		}
	}
	hosts := make(map[string]string, len(said))
	for host, list := range said {
		slices.Sort(list)
		hosts[host] = strings.Join(slices.Compact(list), "\n")
	}
	return hosts
}

// dropHost forgets a host that nothing has any more.
func (r *registry) dropHost(host string) {
	if h := r.hosts[host]; !h.named && h.rows == 0 {
		delete(r.hosts, host)
	}
}

// collect frees the places that no worker needs any more. A worker says which
// generation is the oldest that it still has; one that has just been started
// says 0.
func (r *registry) collect() {
	oldest := r.current
	for page := range r.pages {
		oldest = min(oldest, page.Counters.OldestGeneration)
	}
	r.free(func(s *span) bool { return s.last < oldest })
}

// release frees the places that only a generation had that did not come into
// force. It gives no others up: those before it may still be in use.
func (r *registry) release(generation uint64) {
	r.free(func(s *span) bool {
		if s.last == generation {
			s.last = r.current
		}
		return s.first == generation
	})
}

// free frees the places whose span is over.
func (r *registry) free(over func(*span) bool) {
	for i := range r.rows {
		if e := &r.rows[i]; e.key != "" && over(&e.span) {
			r.freeRow(i)
		}
	}
	for i := range r.routes {
		if e := &r.routes[i]; e.pattern != "" && over(&e.span) {
			r.freeRouteIndex(i)
		}
	}
}

func (r *registry) freeRouteIndex(i int) {
	v := r.routeSum(i, "", &r.routes[i].base)
	r.gone.Add(&v.Totals)
	for page := range r.pages {
		page.Routes[i] = shm.RouteStats{}
	}
	delete(r.routeOf, r.routes[i].pattern)
	r.routes[i] = routeEntry{}
	r.freeRoutes = append(r.freeRoutes, i)
}

// freeRow frees a row. The host keeps what was counted.
func (r *registry) freeRow(i int) {
	e := &r.rows[i]
	h := r.hosts[e.host]
	totals, _ := r.rowSum(i)
	h.base.Add(&totals)
	h.rows--
	r.dropHost(e.host)
	for page := range r.pages {
		page.Backends[i] = shm.BackendStats{}
	}
	delete(r.rowOf, e.key)
	*e = rowEntry{}
	r.freeRows = append(r.freeRows, i)
}

// rowSum adds up what the dead and the living counted in a row.
func (r *registry) rowSum(i int) (totals shm.BackendTotals, gauges shm.BackendGauges) {
	totals = r.rows[i].base
	for page := range r.pages {
		totals.Add(&page.Backends[i].BackendTotals)
		gauges.Add(&page.Backends[i].BackendGauges)
	}
	return totals, gauges
}

// setState puts the backend with the host, as it is configured, into an
// administrative state. Workers see it at once.
func (r *registry) setState(host string, state uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, err := r.namedHost(host)
	if err == nil {
		r.set(host, h, state, h.weight)
	}
	return err
}

// setWeight gives the backend with the host another weight than the configured
// one, or that again (weightConfigured). Workers see it at once.
func (r *registry) setWeight(host string, weight int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, err := r.namedHost(host)
	switch {
	case err != nil:
		return err
	case weight != weightConfigured && (weight < 0 || weight > config.WeightMax):
		return fmt.Errorf("weight %d is not between 0 and %d", weight, config.WeightMax)
	}
	r.set(host, h, h.state, weight)
	return nil
}

func (r *registry) namedHost(host string) (*hostEntry, error) {
	if h := r.hosts[host]; h != nil && h.named {
		return h, nil
	}
	return nil, fmt.Errorf("there is no backend %q in the configuration in force", host)
}

func (r *registry) set(host string, h *hostEntry, state uint32, weight int) {
	h.state, h.weight = state, weight
	for i := range r.rows {
		if r.rows[i].host == host {
			h.order(&r.shared.Rows[i])
		}
	}
}

// backendView is one backend of the configuration in force.
type backendView struct {
	Host   string
	State  uint32 // one of shm.Admin…
	Weight int    // set at run time; weightConfigured if not
	// Totals and Gauges are the sums of all rows that the host has or had.
	Totals shm.BackendTotals
	Gauges shm.BackendGauges
	Rows   []rowView
}

// rowView is one address of a backend. A name's address that is no longer one
// stays as long as a worker has exchanges with it.
type rowView struct {
	Addr     string
	Named    bool   // by the configuration in force
	Failures uint32 // in a row
	OutUntil int64  // CLOCK_MONOTONIC nanoseconds: the end of the cooldown, 0 if it is in
	Gauges   shm.BackendGauges
}

// backends lists the backends of the configuration in force, by host.
func (r *registry) backends() []backendView {
	r.mu.Lock()
	defer r.mu.Unlock()
	views := map[string]*backendView{}
	for host, h := range r.hosts {
		if h.named {
			views[host] = &backendView{Host: host, State: h.state, Weight: h.weight, Totals: h.base}
		}
	}
	for i := range r.rows {
		e := &r.rows[i]
		v := views[e.host]
		if v == nil {
			continue
		}
		totals, gauges := r.rowSum(i)
		v.Totals.Add(&totals)
		v.Gauges.Add(&gauges)
		row := &r.shared.Rows[i]
		v.Rows = append(v.Rows, rowView{
			Addr: e.addr, Named: e.last >= r.current, Failures: row.Failures.Load(), OutUntil: row.OutUntil.Load(), Gauges: gauges,
		})
	}
	list := make([]backendView, 0, len(views))
	for _, host := range slices.Sorted(maps.Keys(views)) {
		list = append(list, *views[host])
	}
	return list
}

// routeView is one route that was counted.
type routeView struct {
	Pattern string // routeOther: all those beyond shm.RoutesMax
	Totals  shm.RouteTotals
	Gauges  shm.RouteGauges
}

// routeSums lists the routes of the configuration in force, and those of
// exchanges under way, by pattern.
func (r *registry) routeSums() []routeView {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]routeView, 0, len(r.routes)+1)
	for i := range r.routes {
		if e := &r.routes[i]; e.pattern != "" {
			list = append(list, r.routeSum(i, e.pattern, &e.base))
		}
	}
	slices.SortFunc(list, func(a, b routeView) int { return strings.Compare(a.Pattern, b.Pattern) })
	if r.crowded {
		list = append(list, r.routeSum(shm.RouteOther, routeOther, &r.other))
	}
	return list
}

// overhead is that of all routes there have been.
func (r *registry) overhead() shm.Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.gone
	for i := range r.routes {
		v := r.routeSum(i, "", &r.routes[i].base)
		all.Add(&v.Totals)
	}
	if r.crowded {
		other := r.routeSum(shm.RouteOther, routeOther, &r.other)
		all.Add(&other.Totals)
	}
	return all.Overhead
}

func (r *registry) routeSum(i int, pattern string, base *shm.RouteTotals) routeView {
	v := routeView{Pattern: pattern, Totals: *base}
	for page := range r.pages {
		v.Totals.Add(&page.Routes[i].RouteTotals)
		v.Gauges.Add(&page.Routes[i].RouteGauges)
	}
	return v
}
