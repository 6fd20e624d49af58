package supervisor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// registryRig is a registry with generations as a master brings them about.
type registryRig struct {
	*registry
	t      *testing.T
	number uint64
}

func newRegistryRig(t *testing.T) *registryRig {
	r, err := newRegistry()
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, r.shared.Close())
		require.NoError(t, unix.Close(r.fd))
	})
	return &registryRig{registry: r, t: t}
}

// worker is the page of a worker that serves by the generation in force.
func (r *registryRig) worker() *shm.Page {
	page, fd, err := shm.Create()
	require.NoError(r.t, err)
	require.NoError(r.t, unix.Close(fd))
	page.Counters.OldestGeneration = r.number
	r.attach(page)
	return page
}

// apply puts a configuration of routes with their backends in force.
func (r *registryRig) apply(routes map[string]string, resolved map[string][]string) *generation {
	r.t.Helper()
	g := r.parse(routes, resolved)
	require.NoError(r.t, r.assign(g))
	r.committed(g)
	for page := range r.pages {
		page.Counters.OldestGeneration = g.number
	}
	return g
}

func (r *registryRig) parse(routes map[string]string, resolved map[string][]string) *generation {
	r.t.Helper()
	var list []string
	for pattern, backends := range routes {
		list = append(list, fmt.Sprintf(`%q: {"backends": [%s]}`, pattern, backends))
	}
	text := fmt.Sprintf(`{"root": ":80", "routes": {%s}}`, strings.Join(list, ", "))
	cfg, err := config.Parse("test", []byte(text), "/")
	require.NoError(r.t, err)
	r.number++
	return &generation{number: r.number, cfg: cfg, addresses: resolved}
}

// row is where the first backend of "*" lies.
func (r *registryRig) row(g *generation, addr string) int {
	r.t.Helper()
	for i := range g.cfg.Routes {
		if g.cfg.Routes[i].Pattern == "*" {
			row, ok := g.rows[control.BackendKey(addr, &g.cfg.Routes[i].Backends[0])]
			require.True(r.t, ok)
			return row
		}
	}
	panic("every configuration has the route *")
}

const (
	backendA = `{"host": "127.0.0.1:1"}`
	backendB = `{"host": "127.0.0.1:2"}`
)

func TestRowsAreReusedWhenNobodyNeedsThem(t *testing.T) {
	r := newRegistryRig(t)
	one := r.apply(map[string]string{"*": backendA}, nil)
	page := r.worker()
	row := r.row(one, "127.0.0.1:1")
	r.shared.Rows[row].Failures.Store(3)
	page.Backends[row].Connects = 5

	two := r.apply(map[string]string{"*": backendA, "/x": backendB}, nil)
	require.Equal(t, row, r.row(two, "127.0.0.1:1"), "a backend that is still named keeps its row")
	require.EqualValues(t, 3, r.shared.Rows[row].Failures.Load())
	require.Len(t, r.rows, 2)

	three := r.apply(map[string]string{"*": backendB}, nil)
	page.Counters.OldestGeneration = two.number // an exchange goes on
	four := r.apply(map[string]string{"*": backendB, "/y": `{"host": "127.0.0.1:3"}`}, nil)
	require.NotContains(t, four.rows, row)
	require.Len(t, r.rows, 3)
	page.Counters.OldestGeneration = three.number
	five := r.apply(map[string]string{"*": `{"host": "127.0.0.1:4"}`}, nil)
	require.Equal(t, row, r.row(five, "127.0.0.1:4"), "the row is free once no worker has generation 2 any more")
	require.Zero(t, r.shared.Rows[row].Failures.Load(), "and says nothing of the one before")
	require.Zero(t, page.Backends[row].Connects)
	require.Len(t, r.rows, 3)

	require.NotContains(t, r.hosts, "127.0.0.1:1")
	for range 50 {
		r.apply(map[string]string{"*": backendA}, nil)
		r.apply(map[string]string{"*": backendB}, nil)
	}
	require.LessOrEqual(t, len(r.rows), 4)
	require.LessOrEqual(t, len(r.routes), 3)
	require.Len(t, r.hosts, 2)
}

// A worker that is just starting may still get the generation in force.
func TestNothingIsFreedWhileAWorkerStarts(t *testing.T) {
	r := newRegistryRig(t)
	r.apply(map[string]string{"*": backendA}, nil)
	page := r.worker()
	page.Counters.OldestGeneration = 0
	r.current = 9
	r.collect()
	require.Len(t, r.rowOf, 1)
	r.bury(page)
	r.collect()
	require.Empty(t, r.rowOf)
}

func TestSumsNeverShrink(t *testing.T) {
	r := newRegistryRig(t)
	g := r.apply(map[string]string{"*": backendA}, nil)
	row, route := r.row(g, "127.0.0.1:1"), g.routeIndex[0]
	one, two := r.worker(), r.worker()
	for _, page := range []*shm.Page{one, two} {
		page.Backends[row].Requests[2] = 10
		page.Backends[row].InFlight = 2
		page.Backends[row].Counted = 2
		r.shared.Rows[row].Trial.Store(1 << 60)
		page.Routes[route].Requests[2] = 20
		page.Routes[route].InFlight = 3
		r.shared.Rows[row].InFlight.Add(2)
	}
	check := func(backend, inFlight, route, routeInFlight uint64) {
		t.Helper()
		b := r.backends()
		require.Len(t, b, 1)
		require.Equal(t, "127.0.0.1:1", b[0].Host)
		require.Equal(t, backend, b[0].Totals.Requests[2])
		require.Equal(t, inFlight, b[0].Gauges.InFlight)
		sums := r.routeSums()
		require.Len(t, sums, 1)
		require.Equal(t, "*", sums[0].Pattern)
		require.Equal(t, route, sums[0].Totals.Requests[2])
		require.Equal(t, routeInFlight, sums[0].Gauges.InFlight)
	}
	check(20, 4, 40, 6)
	r.bury(one)
	require.NoError(t, one.Close())
	check(20, 2, 40, 3)
	require.EqualValues(t, 2, r.shared.Rows[row].InFlight.Load(), "the dead worker's exchanges are given back")
	require.Zero(t, r.shared.Rows[row].Trial.Load(), "and its trial")
	two.Backends[row].Requests[2]++
	check(21, 2, 40, 3)

	// Another max_failure makes another row of the same backend.
	r.apply(map[string]string{"*": `{"host": "127.0.0.1:1", "max_failure": 1}`}, nil)
	check(21, 2, 40, 3)
	r.apply(map[string]string{"*": `{"host": "127.0.0.1:1", "max_failure": 1}`}, nil)
	require.Len(t, r.freeRows, 1)
	check(21, 0, 40, 3)
}

func TestOrdersSurviveUntilTheFileChangesTheBackend(t *testing.T) {
	r := newRegistryRig(t)
	names := map[string][]string{"b.test:80": {"10.0.0.1:80"}}
	plain := `{"host": "b.test:80", "weight": 3}`
	g := r.apply(map[string]string{"*": plain}, names)
	require.NoError(t, r.setState("b.test:80", shm.AdminDrain))
	require.NoError(t, r.setWeight("b.test:80", 0))
	ordered := func(addr string) (state, weightSet uint32) {
		t.Helper()
		row := &r.shared.Rows[r.row(g, addr)]
		return row.Admin.Load(), row.WeightSet.Load()
	}
	expect := func(addr string, state uint32, weight int) {
		t.Helper()
		gotState, gotWeight := ordered(addr)
		require.Equal(t, state, gotState)
		require.Equal(t, uint32(weight+1), gotWeight)
		require.Equal(t, state, r.backends()[0].State)
		require.Equal(t, weight, r.backends()[0].Weight)
	}
	expect("10.0.0.1:80", shm.AdminDrain, 0)

	// Another address, another route around it: the same backend.
	names = map[string][]string{"b.test:80": {"10.0.0.2:80"}}
	g = r.apply(map[string]string{"*": plain, "/x": plain}, names)
	expect("10.0.0.2:80", shm.AdminDrain, 0)

	// What was prepared and not committed changes nothing.
	aborted := r.parse(map[string]string{"*": `{"host": "b.test:80", "weight": 4}`, "/y": backendB}, names)
	require.NoError(t, r.assign(aborted))
	require.Len(t, r.rowOf, 2)
	r.revoke(aborted)
	require.Len(t, r.rowOf, 1)
	require.Len(t, r.routeOf, 2)
	expect("10.0.0.2:80", shm.AdminDrain, 0)

	g = r.apply(map[string]string{"*": `{"host": "b.test:80", "weight": 4}`}, names)
	expect("10.0.0.2:80", shm.AdminEnabled, weightConfigured)

	require.NoError(t, r.setState("b.test:80", shm.AdminDisabled))
	g = r.apply(map[string]string{"*": backendA}, names)
	require.ErrorContains(t, r.setState("b.test:80", shm.AdminDrain), `there is no backend "b.test:80"`)
	g = r.apply(map[string]string{"*": plain}, names)
	expect("10.0.0.2:80", shm.AdminEnabled, weightConfigured)
	require.ErrorContains(t, r.setWeight("b.test:80", config.WeightMax+1), "not between 0 and 1000")
}

func TestTooManyRoutesAndBackends(t *testing.T) {
	r := newRegistryRig(t)
	routes := map[string]string{"*": backendA}
	for i := range shm.RoutesMax {
		routes[fmt.Sprintf("/%d", i)] = backendA
	}
	g := r.apply(routes, nil)
	others := 0
	for _, i := range g.routeIndex {
		if i == shm.RouteOther {
			others++
		}
	}
	require.Equal(t, 2, others, "all but the last index have a route each")
	page := r.worker()
	page.Routes[shm.RouteOther].BytesIn = 4
	r.bury(page)
	sums := r.routeSums()
	require.Len(t, sums, shm.RoutesMax)
	require.Equal(t, routeOther, sums[shm.RouteOther].Pattern)
	require.EqualValues(t, 4, sums[shm.RouteOther].Totals.BytesIn)

	many := make([]string, shm.BackendRowsMax)
	for i := range many {
		many[i] = fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255)
	}
	g = r.parse(map[string]string{"*": `{"host": "many.test:80"}`}, map[string][]string{"many.test:80": many})
	require.ErrorContains(t, r.assign(g), "more than 65536 backends")
	require.Len(t, r.rowOf, 1, "what was refused is free again")
}

func TestTooManyBackendsInTheFile(t *testing.T) {
	var routes strings.Builder
	for i := range shm.BackendRowsMax {
		fmt.Fprintf(&routes, `"/%d": {"backends": [{"host": "10.0.%d.%d:80"}]}, `, i, i>>8, i&255)
	}
	text := func(max int) []byte {
		return fmt.Appendf(nil, `{"root": ":80", "routes": {%s "*": {"backends": [{"host": "10.0.0.1:80", "max_failure": %d}]}}}`,
			routes.String(), max)
	}
	_, err := parse("cup.json", text(5), "/", sourceFile)
	require.NoError(t, err)
	_, err = parse("cup.json", text(4), "/", sourceFile)
	require.ErrorContains(t, err, "cup.json:1:1: there are 65537 backends, at most 65536 are possible")
	require.Equal(t, exitInvalid, ExitCode(err))
}

func TestSetBackendState(t *testing.T) {
	r := startRig(t, nil)
	require.ErrorContains(t, r.setBackendState("127.0.0.1:10", shm.AdminDrain), "there is no backend")
	for _, state := range []uint32{shm.AdminDrain, shm.AdminDisabled, shm.AdminEnabled} {
		require.NoError(t, r.setBackendState("127.0.0.1:9", state))
		require.Equal(t, state, r.shared.shared.Rows[0].Admin.Load())
	}
}
