package integration

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Upgrades while the configuration changes ten times a second: no request
// fails, each is answered by a generation that may, clients learn by a response
// that their connection ends, and tunnels live until the drain deadline.
func TestEventUpgrades(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		w.more = `"timeouts": {"drain": "3s"}, `
		c, file := startFrom(t, engine, w.config(0))
		clients := pick(256, 64)
		here := settle(t, c.addr, clients)
		f := inForce{upgrades: true}
		var moved atomic.Int64
		kept := startLoad(t, clients, func(worker, turn int) error {
			_, err := here.request(worker, func(b *browser) (answer, error) {
				return w.visit(b, worker+turn, int64(worker*31+turn), &f)
			})
			if errors.Is(err, errMoved) {
				moved.Add(1)
				return nil
			}
			return err
		})
		single := startLoad(t, 8, onePerConnection(c.addr))
		tunnels := make([]*tunnel, 16)
		for i := range tunnels {
			tunnels[i] = dig(t, c.addr, "/changed/tunnel")
		}
		reloads := everReload(t, c, w, &f)

		upgrades := pick(20, 3)
		var took []time.Duration
		var first time.Time // of the upgrades
		for i := range upgrades {
			kept.more(int64(clients))
			single.more(50)
			install(t, file, program("cloud-cup"))
			begin := time.Now()
			_, err := c.admin.Upgrade()
			require.NoError(t, err)
			took = append(took, time.Since(begin))
			if i == 0 {
				first = begin
			}
		}
		for _, u := range tunnels {
			lived := untilCut(u, first)
			require.Greater(t, lived, 3*time.Second-200*time.Millisecond, "a tunnel is cut before the drain deadline")
			require.Less(t, lived, 3*time.Second+patience)
		}
		kept.more(int64(clients))
		changed := reloads()
		kept.renewed()
		failed := append(kept.stop(), single.stop()...)
		median, most := spread(took)
		report(t, fmt.Sprintf("%d upgrades, %d clients, reloads all the time, %s", upgrades, clients, engine),
			"%d failed of %d requests, %d connections ended in order; %d reloads; upgrade p50 %v, max %v",
			len(failed), kept.done.Load()+single.done.Load(), moved.Load(), changed, median, most)
		require.Empty(t, failed)
		require.Zero(t, c.wait(), "the first master, whose tunnels were cut: the service goes on")
	})
}

// everReload reloads ten times a second, until the function that it returns is
// called; that tells how often it did. A reload that an upgrade refuses is tried
// again.
func everReload(t *testing.T, c *cup, w *town, f *inForce) (stop func() int) {
	done := make(chan struct{})
	generation := int64(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for next := true; ; {
			select {
			case <-tick.C:
			case <-done:
				if next {
					return
				}
			}
			if next {
				generation++
				c.write(w.config(generation))
				f.asked.Store(generation)
			}
			_, err := c.admin.Reload()
			if next = err == nil; next {
				f.acknowledged.Store(generation)
			} else if !strings.Contains(err.Error(), "upgrade") {
				t.Errorf("reload %d: %v", generation, err)
				return
			}
		}
	})
	var once sync.Once
	stop = func() int {
		once.Do(func() { close(done) })
		wg.Wait()
		return int(generation)
	}
	t.Cleanup(func() { stop() })
	return stop
}

// untilCut sends messages through a tunnel until it is cut, and returns how
// long that was after begin.
func untilCut(u *tunnel, begin time.Time) time.Duration {
	for u.echo() == nil {
		time.Sleep(5 * time.Millisecond) // a tunnel is seldom busy; its end is waited for
	}
	return time.Since(begin)
}

// Upgrades that several ask for at once, with workers that die meanwhile, both
// old and new: each ends with an answer, one master is there afterwards, and it
// has the workers that are configured.
func TestEventUpgradesAndDeaths(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		w.more = `"timeouts": {"drain": "3s"}, `
		c, _ := startFrom(t, engine, w.config(0))
		l := startLoad(t, 8, onePerConnection(c.addr))
		upgraded := 0
		for i := range pick(30, 3) {
			var wg sync.WaitGroup
			var answers [2]error
			for n := range answers {
				wg.Go(func() { _, answers[n] = c.admin.Upgrade() })
			}
			if i%2 == 0 {
				wg.Go(func() {
					if all := groupOf(c.pid()); len(all) > 0 {
						killWorker(all[i%len(all)])
					}
				})
			}
			wg.Wait()
			for _, err := range answers {
				if err == nil {
					upgraded++
				} else {
					require.Regexp(t, "nothing was changed|upgrade is under way|being stopped|handed over", err.Error())
				}
			}
			eventually(t, "all workers to run", func() bool { return runningWorkers(c) == 2 })
			l.more(20)
		}
		require.NotZero(t, upgraded)
		l.renewed()
		lost := len(l.errors())
		l.more(100)
		failed := l.stop()
		report(t, "upgrades and deaths, "+engine, "%d upgrades, %d of %d requests failed, %d after the last death",
			upgraded, lost, l.done.Load(), len(failed)-lost)
		require.Len(t, failed, lost)
		for _, err := range failed {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
	})
}

// killWorker kills a process if it is a worker.
func killWorker(pid int) {
	if name, err := commandOf(pid); err == nil && strings.HasPrefix(name, "cup-worker") {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}
