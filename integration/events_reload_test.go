package integration

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// town is a set of backends with a configuration for each generation: what
// "/changed/*" leads to changes with each, "/only-G/*" exists in generation G
// alone, and "*" has a second backend in every third.
type town struct {
	fixed, second *backend
	turns         [3]*backend
	workers       int
	more          string // further members of its configurations, each with a comma
}

func foundTown(t testing.TB, workers int) *town {
	t.Helper()
	w := &town{fixed: startBackend(t, "fixed"), second: startBackend(t, "second"), workers: workers}
	for i := range w.turns {
		w.turns[i] = startBackend(t, fmt.Sprint(i))
	}
	return w
}

// turn is the backend whose turn it is in a generation.
func (w *town) turn(generation int64) *backend { return w.turns[generation%3] }

// config is a generation's configuration; more are further routes.
func (w *town) config(generation int64, more ...string) string {
	rest := fmt.Sprintf(`{"host": %q}`, w.fixed.addr)
	if generation%3 == 2 {
		rest += fmt.Sprintf(`, {"host": %q}`, w.second.addr)
	}
	routes := append([]string{
		fmt.Sprintf(`"*": {"backends": [%s]}`, rest),
		fmt.Sprintf(`"/changed/*": {"backends": [{"host": %q}]}`, w.turn(generation).addr),
		fmt.Sprintf(`"/only-%d/*": {"backends": [{"host": %q}]}`, generation, w.turn(generation).addr),
	}, more...)
	return fmt.Sprintf(`{"root": ["127.0.0.1:0"], "workers": %d, %s"routes": {%s}}`, w.workers, w.more, strings.Join(routes, ",\n"))
}

// visit makes one request of four kinds and checks that a generation answered
// that may.
func (w *town) visit(b *browser, kind int, seed int64, f *inForce) (answer, error) {
	from := f.acknowledged.Load()
	var a answer
	var err error
	size := int64(100 + seed%4*15_000)
	switch kind % 4 {
	case 0:
		a, err = b.get("/fixed", size, seed, "")
	case 1:
		a, err = b.get("/changed", size, seed, "?chunked")
	case 2:
		a, err = b.get(fmt.Sprintf("/only-%d", from), size, seed, "")
	case 3:
		a, err = b.post("/changed", size, seed, seed%2 == 0)
	}
	if err != nil {
		return a, err
	}
	first, last := f.window(from)
	if f.upgrades {
		first = b.since
	}
	b.since = from
	elsewhere := a.backend == w.fixed.name || a.backend == w.second.name
	for g := first; g <= last; g++ {
		turn := a.backend == w.turn(g).name
		switch kind % 4 {
		case 0:
			if a.backend == w.fixed.name || elsewhere && g%3 == 2 {
				return a, nil
			}
		case 1, 3:
			if turn {
				return a, nil
			}
		case 2: // the route exists in generation from alone
			if g == from && turn || g != from && elsewhere {
				return a, nil
			}
		}
	}
	return a, fmt.Errorf("kind %d, generations %d to %d: answered by %q", kind%4, first, last, a.backend)
}

// Reloads that change routes and backends, ten a second, under the load of many
// clients and tunnels.
func TestEventReloads(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for _, workers := range pick([]int{2, 8}, []int{2}) {
			t.Run(fmt.Sprint(workers), func(t *testing.T) { manyReloads(t, engine, workers) })
		}
	})
}

func manyReloads(t *testing.T, engine string, workers int) {
	clients, reloads := pick(256, 96), pick(100, 20)
	w := foundTown(t, workers)
	c := startCup(t, engine, w.config(0))
	pids := c.workers()
	here := settle(t, c.addr, clients)
	tunnels := startTunnels(t, c.addr, "/changed/tunnel", 16)
	var f inForce
	l := startLoad(t, clients, func(worker, turn int) error {
		_, err := here.request(worker, func(b *browser) (answer, error) {
			return w.visit(b, worker+turn, int64(worker*31+turn), &f)
		})
		return err
	})
	l.more(int64(clients))

	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var took []time.Duration
	begin := time.Now()
	for g := int64(1); g <= int64(reloads); g++ {
		<-tick.C
		c.write(w.config(g))
		f.asked.Store(g)
		took = append(took, timed(func() {
			_, err := c.admin.Reload()
			require.NoError(t, err)
		}))
		f.acknowledged.Store(g)
	}
	lasted := time.Since(begin)
	l.renewed()
	tunnels.renewed()
	failed := append(l.stop(), tunnels.stop()...)
	median, most := spread(took)
	report(t, fmt.Sprintf("%d reloads, %d clients, %d workers, %s", reloads, clients, workers, engine),
		"%d failed of %d requests and %d messages in tunnels; %.1f reloads a second, latency p50 %v, max %v",
		len(failed), l.done.Load(), tunnels.done.Load(), float64(reloads)/lasted.Seconds(), median, most)
	require.Empty(t, failed)
	require.Equal(t, pids, c.workers(), "the workers")
	s := c.status()
	require.EqualValues(t, reloads+1, s.Generation)
	require.EqualValues(t, clients+16, s.Totals.Accepted, "connections stay")
	require.Zero(t, s.Totals.Retries)
}

// Very many reloads leave the processes as they were. Exchanges and tunnels that
// began before some of them go on.
func TestEventReloadsLeaveNothing(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		reloads := pick(1000, 120)
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		var generation int64
		batch := func(n int) {
			held := settle(t, c.addr, 4)
			var tunnels []*tunnel
			for i := range 4 {
				require.NoError(t, held.open[i].ask("GET", "/changed/held/1", ""))
				<-w.turn(generation).held
				tunnels = append(tunnels, dig(t, c.addr, "/changed/tunnel"))
			}
			before := w.turn(generation)
			for range n {
				generation++
				c.write(w.config(generation, manyRoutes(w, generation)...))
				_, err := c.admin.Reload()
				require.NoError(t, err)
			}
			for _, worker := range c.status().Workers {
				require.LessOrEqual(t, worker.Snapshots, uint64(2), "the one in force, and the one of the tunnels")
			}
			for i, u := range tunnels {
				require.Equal(t, before.name, u.backend)
				require.NoError(t, u.echo(), "a tunnel that is older than the configuration")
				require.NoError(t, u.conn.Close())
				require.NoError(t, held.open[i].conn.Close())
			}
			idleWorkers(t, c)
			for _, worker := range c.status().Workers {
				require.EqualValues(t, 1, worker.Snapshots)
				require.Equal(t, worker.Generation, worker.OldestGeneration)
			}
		}
		for range 3 {
			batch(reloads / 10) // heaps and pools grow to what this needs
		}
		before := measure(t, c)
		for range 10 {
			batch(reloads / 10)
		}
		after := measure(t, c)
		for i, b := range before {
			a := after[i]
			report(t, fmt.Sprintf("%d reloads, process %d, %s", reloads, i, engine),
				"RSS %.1f MiB, then %.1f; descriptors %d, then %d; goroutines %d, then %d",
				float64(b.rss)/(1<<20), float64(a.rss)/(1<<20), b.descriptors, a.descriptors, b.goroutines, a.goroutines)
			require.LessOrEqual(t, a.descriptors, b.descriptors+b.loose, "descriptors of process %d", i)
			require.LessOrEqual(t, a.goroutines, b.goroutines+b.loose+1, "goroutines of process %d", i)
			require.Less(t, a.rss, b.rss+b.rss/4+(4<<20), "memory of process %d", i)
		}
	})
}

// manyRoutes are routes that neither the generation before nor the next one has.
func manyRoutes(w *town, generation int64) []string {
	var routes []string
	for i := range pick(1000, 200) {
		routes = append(routes, fmt.Sprintf(`"/g%d/%d/*": {"backends": [{"host": %q, "max_failure": %d}]}`,
			generation%3, i, w.turns[i%3].addr, i%7))
	}
	return routes
}

// idleWorkers waits until no worker has a connection of a client, and none has
// buffers.
func idleWorkers(t testing.TB, c *cup) {
	t.Helper()
	eventually(t, "the clients' connections to end", func() bool {
		for _, w := range c.status().Workers {
			if w.Connections+w.BuffersLent > 0 {
				return false
			}
		}
		return true
	})
}

// Reloads by every way at once, while workers are killed: each ends with an
// answer, what is in force afterwards is what was asked for last, and no
// connection waits for ever.
func TestEventReloadsAndDeaths(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		c.write(w.config(1))
		l := startLoad(t, 8, onePerConnection(c.addr))
		tunnels := startTunnels(t, c.addr, "/fixed/tunnel", 2) // they may be lost
		var wg sync.WaitGroup
		callers := func(call func() error) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range pick(40, 8) {
					// A worker that dies twice in a row may make it fail,
					// and then it says that nothing was changed.
					if err := call(); err != nil && !strings.Contains(err.Error(), "nothing was changed") {
						t.Errorf("reload: %v", err)
					}
				}
			}()
		}
		callers(func() error { _, err := c.admin.Reload(); return err })
		callers(func() error {
			_, err := c.admin.Apply("other.json", []byte(w.config(2)), control.ApplyInMemory)
			return err
		})
		callers(func() error { return syscall.Kill(c.pid(), syscall.SIGHUP) })
		callers(func() error { _, err := c.admin.Status(); return err })
		deaths := pick(20, 4)
		for i := range deaths {
			all := c.status().Workers
			if pid := all[i%len(all)].PID; pid != 0 {
				// It may have been replaced meanwhile.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			l.more(20)
		}
		wg.Wait()
		eventually(t, "all workers to run", func() bool { return runningWorkers(c) == 2 })
		c.write(w.config(3))
		_, err := c.admin.Reload()
		require.NoError(t, err)
		l.renewed()
		lost := len(l.errors())
		l.more(100)
		require.Len(t, l.stop(), lost, "errors after the last worker was replaced")
		tunnels.stop()
		for _, err := range l.errors() {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
		for range 20 {
			a, err := browse(t, c.addr).get("/changed", 100, 1, "")
			require.NoError(t, err)
			require.Equal(t, w.turn(3).name, a.backend)
		}
	})
}

// runningWorkers counts the workers that serve.
func runningWorkers(c *cup) int {
	n := 0
	for _, w := range c.status().Workers {
		if w.State == "running" {
			n++
		}
	}
	return n
}
