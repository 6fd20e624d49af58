package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// respawnTime is how soon a dead worker must be replaced: in the long forms,
// which run alone, on a machine with nothing else to do.
var respawnTime = pick(200*time.Millisecond, 3*time.Second)

// Workers that are killed are replaced at once, and those who wait in their
// accept queues are served.
func TestKilledWorkers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		for _, pid := range c.workers() {
			freeze(t, pid)
		}
		var waiting []*browser
		for i := range 40 {
			w := browse(t, c.addr)
			require.NoError(t, w.ask("GET", fmt.Sprintf("/100/%d", i), ""))
			waiting = append(waiting, w)
		}
		for _, pid := range c.workers() {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		for i, w := range waiting {
			resp, err := w.response()
			require.NoError(t, err, "connection %d of those that waited", i)
			require.NoError(t, checkContent(resp.Body, int64(i), 100))
		}
	})
}

// The same under load: only what a killed worker had in its hands is lost.
func TestKilledWorkersUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		const clients = 8
		l := startLoad(t, clients, onePerConnection(c.addr))
		kills := pick(7, 4) // more deaths of a slot in a row make it wait
		var took []time.Duration
		for i := range kills {
			l.more(100)
			pids := c.workers()
			victims := pids[i%2 : i%2+1]
			if i%3 == 2 {
				victims = pids
			}
			seen := len(servesRecords(c))
			begin := time.Now()
			for _, pid := range victims {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			eventually(t, "new workers", func() bool { return len(servesRecords(c)) == seen+len(victims) })
			took = append(took, time.Since(begin))
		}
		l.renewed()
		lost := l.errors()
		l.more(500)
		all := l.stop()
		require.Len(t, all, len(lost), "errors after the last worker was replaced")
		require.LessOrEqual(t, len(lost), kills*clients)
		for _, err := range lost {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
		slices.Sort(took)
		t.Logf("replaced after %v; %d of %d requests lost", took, len(lost), l.done.Load())
		require.Less(t, took[len(took)/2], respawnTime)
		for _, w := range c.status().Workers {
			require.NotZero(t, w.Restarts)
			require.Contains(t, w.LastDeath, "SIGKILL")
		}
	})
}

// servesRecords are the log's records of workers that began to serve.
func servesRecords(c *cup) []record {
	all, _ := c.log.since(0)
	return slices.DeleteFunc(slices.Clone(all), func(r record) bool { return r.Msg != "worker serves" })
}

// freeze stops a process and returns when it does nothing any more.
func freeze(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, "the process to stop", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(text), ") ")
		return strings.HasPrefix(rest, "T")
	})
}

// freePort is an address that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// fixedRoot replaces the port that the kernel chooses.
func fixedRoot(config, addr string) string {
	return strings.Replace(config, "127.0.0.1:0", addr, 1)
}

// When the master is killed, its workers end what they serve and leave; a new
// master serves at once.
func TestKilledMaster(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		text := fixedRoot(configOf([]string{b.addr}, `"workers": 2`, `"timeouts": {"drain": "2s"}`), freePort(t))
		c := startCup(t, engine, text)
		idle := browse(t, c.addr)
		_, err := idle.get("", 100, 1, "")
		require.NoError(t, err)
		held, endless := browse(t, c.addr), browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		// One whose response never ends: the deadline cuts it.
		other := startBackend(t, "never")
		require.NoError(t, endless.ask("POST", "/100/1", "Content-Length: 100\r\n"))

		require.NoError(t, syscall.Kill(c.pid(), syscall.SIGKILL))
		begin := time.Now()
		require.Equal(t, -1, c.wait())
		next := startCup(t, engine, strings.Replace(text, b.addr, other.addr, 1))
		t.Logf("the new master serves after %v", time.Since(begin))
		require.Less(t, time.Since(begin), time.Second+respawnTime)
		a, err := browse(t, next.addr).get("", 100, 1, "")
		require.NoError(t, err)
		require.Equal(t, "never", a.backend)

		b.release()
		resp, err := held.response()
		require.NoError(t, err)
		var body [2]byte
		_, err = io.ReadFull(resp.Body, body[:])
		require.NoError(t, err)
		require.Equal(t, "xy", string(body[:]))

		c.allGone() // long before the usual deadline of a drain
		require.Less(t, time.Since(begin), 20*time.Second)
	})
}

// Reloads under load: no request fails, connections and workers stay, and once
// the command has returned nothing comes from the old backend.
func TestReloadUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		fixed, even, odd := startBackend(t, "fixed"), startBackend(t, "0"), startBackend(t, "1")
		config := func(generation int) string {
			changed := even
			if generation%2 == 1 {
				changed = odd
			}
			return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "routes": {
				"*": {"backends": [{"host": %q}]},
				"/changed/*": {"backends": [{"host": %q}]}
			}}`, fixed.addr, changed.addr)
		}
		c := startCup(t, engine, config(0))
		workers := c.workers()

		const clients = 32
		browsers := make([]*browser, clients)
		for i := range browsers {
			browsers[i] = browse(t, c.addr)
		}
		// A request may be answered by what was in force when it began and by
		// what has come since.
		var floor, ceiling atomic.Int64
		l := startLoad(t, clients, func(worker, turn int) error {
			b := browsers[worker]
			size := int64(100 + worker%3*40_000)
			if turn%3 == 0 {
				a, err := b.get("/fixed", size, int64(turn), "")
				if err == nil && (a.backend != "fixed" || a.closes) {
					err = fmt.Errorf("fixed route: %+v", a)
				}
				return err
			}
			from := floor.Load()
			a, err := b.get("/changed", size, int64(turn), "")
			to := ceiling.Load()
			if err != nil {
				return err
			}
			for g := from; g <= to; g++ {
				if a.backend == fmt.Sprint(g%2) && !a.closes {
					return nil
				}
			}
			return fmt.Errorf("generations %d to %d: %+v", from, to, a)
		})
		l.more(200)
		for generation := 1; generation <= 20; generation++ {
			c.write(config(generation))
			ceiling.Store(int64(generation))
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
			floor.Store(int64(generation))
			l.more(20)
		}
		l.more(200)
		require.Empty(t, l.stop())
		require.Equal(t, workers, c.workers(), "the workers")
		require.EqualValues(t, 21, c.status().Generation)
		// The browsers' connections are those they began with: they have no
		// way to open another one. What they come to is known to the workers.
		require.EqualValues(t, clients, c.status().Totals.Accepted)
		require.Zero(t, c.status().Totals.Retries)
	})
}

// A broken file is refused with the place of the mistake, and changes nothing.
func TestReloadOfBrokenFile(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		text := configOf([]string{b.addr}, oneWorker)
		c := startCup(t, engine, text)
		before := c.status()
		for broken, place := range map[string]string{
			strings.Replace(text, `"workers": 1`, `"workerz": 1`, 1):             ":3:1: ",
			strings.Replace(text, `"workers"`, `"workers`, 1):                    ":3:",
			strings.Replace(text, `"*"`, `"nothing/*"`, 1):                       ":2:",
			strings.Replace(text, `"127.0.0.1:0"`, `"192.0.2.1:1"`, 1):           "192.0.2.1:1: ",
			strings.Replace(text, `{"backends"`, `{"balance": 1, "backends"`, 1): ":2:",
		} {
			c.write(broken)
			_, stderr, code := c.cupctl("reload")
			require.Contains(t, []int{1, 4}, code, "%s", broken)
			require.Contains(t, stderr, place)
			if place[0] == ':' {
				require.Equal(t, 4, code, "%s", stderr)
				require.Contains(t, stderr, filepath.Base(c.file)+place)
			}
		}
		after := c.status()
		require.Equal(t, before.Generation, after.Generation)
		require.Equal(t, before.Config.SHA256, after.Config.SHA256)
		require.NotEmpty(t, after.Config.Drift)
		_, err := browse(t, c.addr).get("", 1000, 1, "")
		require.NoError(t, err)
	})
}

// A configuration of 5 MiB starts, reloads, and finds its routes.
func TestLargeConfiguration(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		first, second := startBackend(t, "first"), startBackend(t, "second")
		large := func(b *backend) string {
			var routes strings.Builder
			for i := 0; routes.Len() < 5<<20; i++ {
				fmt.Fprintf(&routes, ",\n"+`"/folder-%d/*": {"backends": [{"host": %q}]}`, i, b.addr)
			}
			return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "routes": {"*": {"backends": [{"host": %q}]}%s}}`,
				refusingPort(t), routes.String())
		}
		c := startCup(t, engine, configOf([]string{first.addr}, `"workers": 2`))
		l := startLoad(t, 4, onePerConnection(c.addr))
		pids := c.workers()
		l.more(10)
		require.Empty(t, l.stop())
		for _, b := range []*backend{first, second} {
			c.write(large(b))
			begin := time.Now()
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
			t.Logf("reloaded in %v", time.Since(begin))
			client := browse(t, c.addr)
			for _, i := range []int{0, 777, 40_000} {
				a, err := client.get(fmt.Sprintf("/folder-%d", i), 100, 1, "")
				require.NoError(t, err)
				require.Equal(t, b.name, a.backend)
			}
		}
		require.Equal(t, pids, c.workers())
	})
}

// TERM under load: what is under way is finished, and the exit is clean.
func TestTermUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		idle := browse(t, c.addr)
		_, err := idle.get("", 100, 1, "")
		require.NoError(t, err)
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		var stopping atomic.Bool
		l := startLoad(t, 16, func(worker, turn int) error {
			b, err := openBrowser(c.addr)
			late := stopping.Load() // not before, or it might connect only then
			if err == nil {
				defer b.conn.Close()
				_, err = b.get("", 100, int64(worker*1000+turn), "")
			}
			if late && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)) {
				return nil // nobody listens any more, or stopped just now
			}
			return err
		})
		l.more(300)
		stopping.Store(true)
		c.signal(syscall.SIGTERM)
		_, err = c.await("stopping")
		require.NoError(t, err)
		b.release()
		resp, err := held.response()
		require.NoError(t, err)
		var text [2]byte
		_, err = io.ReadFull(resp.Body, text[:])
		require.NoError(t, err)
		require.Equal(t, "xy", string(text[:]))
		_, err = idle.r.ReadByte()
		require.ErrorIs(t, err, io.EOF, "an idle connection ends")
		require.NoError(t, idle.conn.Close())
		require.Zero(t, c.wait(), c.log.text())
		c.allGone()
		require.Empty(t, l.stop(), "requests on connections that were there before the signal")
	})
}

// What does not end until the drain deadline is cut, and the exit code says so.
func TestDrainDeadline(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`, `"timeouts": {"drain": "300ms"}`))
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		c.signal(syscall.SIGTERM)
		require.Equal(t, 3, c.wait())
		c.allGone()
		resp, err := held.response()
		require.NoError(t, err)
		_, err = io.ReadFull(resp.Body, make([]byte, 2))
		require.Error(t, err, "a response that was cut must look like it")
	})
}

// A second signal ends it at once.
func TestSecondSignal(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		c.signal(syscall.SIGTERM)
		_, err := c.await("stopping")
		require.NoError(t, err)
		begin := time.Now()
		c.signal(syscall.SIGINT)
		require.Equal(t, 3, c.wait())
		require.Less(t, time.Since(begin), 20*time.Second, "a drain may take 30 s")
		c.allGone()
	})
}
