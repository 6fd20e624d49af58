package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// chaos makes random events happen to a cup, several at once.
type chaos struct {
	t     *testing.T
	c     *cup
	w     *town
	other string // an address that comes and goes
	unix  string // a path that does
	look  func() (*scrape, error)

	mu         sync.Mutex
	random     *rand.Rand
	generation int64
	kills      int
	killed     time.Time // the last one
	happened   map[string]int
}

// draw is a random number below n.
func (x *chaos) draw(n int) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.random.IntN(n)
}

// config is a new configuration: other routes, 1 to 4 workers, one or two
// addresses.
func (x *chaos) config() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.generation++
	w := *x.w
	w.workers = 1 + x.random.IntN(4)
	text := w.config(x.generation)
	for _, address := range []string{x.other, "unix:" + x.unix} {
		if x.random.IntN(2) == 0 {
			text = withAddress(text, address)
		}
	}
	return text
}

// withAddress lets a town's configuration listen on one more address.
func withAddress(config, address string) string {
	return strings.Replace(config, `["127.0.0.1:0"`, fmt.Sprintf(`["127.0.0.1:0", %q`, address), 1)
}

// change asks for another state or weight of a backend. The fixed one is spared:
// it serves the load. Which backends are in force changes all the time, so that
// there may be no such backend.
func (x *chaos) change() error {
	backends := append([]*backend{x.w.second}, x.w.turns[:]...)
	b := backends[x.draw(len(backends))]
	weight := x.draw(5)
	change := []control.BackendChange{
		{State: control.BackendEnabled}, {State: control.BackendDrain}, {State: control.BackendDisabled}, {Weight: &weight}, {ConfiguredWeight: true},
	}[x.draw(5)]
	_, err := x.c.admin.SetBackend(b.addr, change)
	if err != nil && strings.Contains(err.Error(), "no backend") {
		return nil
	}
	return err
}

// anyWorker is the process id of some worker, or 0.
func (x *chaos) anyWorker() int {
	s, err := x.c.admin.Status()
	if err != nil || len(s.Workers) == 0 {
		return 0
	}
	return s.Workers[x.draw(len(s.Workers))].PID
}

// kill kills some worker, unless the last one was killed a moment ago: slots
// that wait with no worker would be all there is.
func (x *chaos) kill() {
	x.mu.Lock()
	early := time.Since(x.killed) < pick(2*time.Second, 300*time.Millisecond)
	if !early {
		x.killed = time.Now()
		x.kills++
	}
	x.mu.Unlock()
	if !early {
		x.signal(syscall.SIGKILL)
	}
}

// tell sends a signal to the master that answers now.
func (x *chaos) tell(sig syscall.Signal) error {
	s, err := x.c.admin.Status()
	if err != nil {
		return err
	}
	err = syscall.Kill(s.PID, sig)
	if errors.Is(err, syscall.ESRCH) { // upgraded meanwhile
		return nil
	}
	return err
}

// signal sends a signal to some worker, which may end meanwhile.
func (x *chaos) signal(sig syscall.Signal) int {
	pid := x.anyWorker()
	if pid != 0 {
		_ = syscall.Kill(pid, sig)
	}
	return pid
}

// events are what may happen. What they return must be nil or say that nothing
// was changed.
func (x *chaos) events() map[string]func() error {
	return map[string]func() error{
		"apply": func() error {
			_, err := x.c.admin.Apply("chaos.json", []byte(x.config()), control.ApplyInMemory)
			return err
		},
		"HUP":     func() error { return x.tell(syscall.SIGHUP) },
		"USR1":    func() error { return x.tell(syscall.SIGUSR1) },
		"upgrade": func() error { _, err := x.c.admin.Upgrade(); return err },
		"broken": func() error {
			_, err := x.c.admin.Apply("chaos.json", []byte(x.config()[1:]), control.ApplyInMemory)
			if err == nil {
				return fmt.Errorf("a broken configuration was accepted")
			}
			return nil
		},
		"kill": func() error { x.kill(); return nil },
		"kill during apply": func() error {
			var wg sync.WaitGroup
			wg.Go(x.kill)
			_, err := x.c.admin.Apply("chaos.json", []byte(x.config()), control.ApplyInMemory)
			wg.Wait()
			return err
		},
		"pause": func() error {
			if pid := x.signal(syscall.SIGSTOP); pid != 0 {
				time.Sleep(time.Duration(x.draw(300)) * time.Millisecond) // the length of the pause
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
			return nil
		},
		"status":  func() error { _, err := x.c.admin.Status(); return err },
		"scrape":  func() error { _, err := x.look(); return err },
		"backend": x.change,
	}
}

// run lets one event after another happen until end.
func (x *chaos) run(end time.Time) {
	events := x.events()
	var names []string
	for name := range events {
		names = append(names, name)
	}
	for time.Now().Before(end) {
		name := names[x.draw(len(names))]
		if err := events[name](); err != nil && !strings.Contains(err.Error(), "nothing was changed") &&
			!strings.Contains(err.Error(), "upgrade") {
			x.t.Errorf("%s: %v", name, err)
		}
		x.mu.Lock()
		x.happened[name]++
		x.mu.Unlock()
	}
}

// Random events, several at once, under load. Requests may fail only as those
// do whose worker was killed; afterwards everything is as it was configured
// last, and nothing is left over.
func TestEventChaos(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		w.more = fmt.Sprintf(`"timeouts": {"drain": "5s"}, "access_log": {"file": %q}, `, filepath.Join(t.TempDir(), "access.log"))
		c, _ := startFrom(t, engine, w.config(0))
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		x := &chaos{t: t, c: c, w: w, other: freePort(t), unix: filepath.Join(t.TempDir(), "s"), look: c.scraper(), random: rand.New(rand.NewPCG(seed, 0)), happened: map[string]int{}}
		const clients = 16
		l := startLoad(t, clients, onePerConnection(c.addr))
		end := time.Now().Add(pick(2*time.Minute, 1500*time.Millisecond))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { x.run(end) })
		}
		wg.Wait()

		c.write(w.config(x.generation + 1))
		eventually(t, "a reload to be possible", func() bool { _, err := c.admin.Reload(); return err == nil })
		eventually(t, "the workers that are configured", func() bool {
			s := c.status()
			return len(s.Workers) == 2 && s.Workers[0].State == control.WorkerRunning && s.Workers[1].State == control.WorkerRunning
		})
		l.renewed()
		lost := len(l.errors())
		l.more(200)
		failed := l.stop()
		report(t, "chaos, "+engine, "%v; %d deaths, %d of %d requests failed", x.happened, x.kills, lost, l.done.Load())
		require.Len(t, failed, lost, "after the chaos")
		require.LessOrEqual(t, lost, x.kills*clients)
		for _, err := range failed {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
		_, err := c.admin.SetBackend(w.turn(x.generation+1).addr, control.BackendChange{State: control.BackendEnabled, ConfiguredWeight: true})
		require.NoError(t, err)
		for range 20 {
			a, err := browse(t, c.addr).get("/changed", 100, 1, "")
			require.NoError(t, err)
			require.Equal(t, w.turn(x.generation+1).name, a.backend)
		}
		_, err = openBrowser(x.other)
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "an address that is not configured")
	})
}
