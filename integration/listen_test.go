package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// reload puts a configuration in force by cupctl.
func (c *cup) reload(config string) {
	c.t.Helper()
	c.write(config)
	_, stderr, code := c.cupctl("reload")
	require.Zero(c.t, code, stderr)
}

// rooted replaces the address that a configuration listens on.
func rooted(config string, roots ...string) string {
	list := strings.ReplaceAll(fmt.Sprintf("%q", roots), `" "`, `", "`)
	return strings.Replace(config, `"127.0.0.1:0"`, list, 1)
}

// An address comes and goes under load: no request to the other one fails, and
// none that connected to it before the command to remove it.
func TestAddressComesAndGoes(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		text := configOf([]string{b.addr}, `"workers": 2`)
		c := startCup(t, engine, text)
		workers := c.workers()
		l := startLoad(t, 16, onePerConnection(c.addr))
		other := freePort(t)
		for range pick(50, 8) {
			c.reload(rooted(text, "127.0.0.1:0", other))
			require.Equal(t, []string{c.addr, other}, c.status().Listeners)
			kept := browse(t, other)
			_, err := kept.get("", 100, 1, "")
			require.NoError(t, err)
			var early []*browser
			for range 20 { // some of them wait in the accept queue when it is removed
				early = append(early, browse(t, other))
			}
			l.more(50)
			c.reload(text)
			for i, e := range append(early, kept) {
				_, err := e.get("", 100, int64(i), "")
				require.NoError(t, err, "a connection from before the command")
				require.NoError(t, e.conn.Close())
			}
			_, err = net.Dial("tcp", other)
			require.ErrorIs(t, err, syscall.ECONNREFUSED, "the command has returned")
			l.more(50)
		}
		require.Empty(t, l.stop())
		require.Equal(t, workers, c.workers())
	})
}

// The number of workers changes under load, and no request fails.
func TestWorkersComeAndGo(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		config := func(workers int) string {
			return configOf([]string{b.addr}, fmt.Sprintf(`"workers": %d`, workers))
		}
		c := startCup(t, engine, config(1))
		kept := browse(t, c.addr)
		l := startLoad(t, 16, onePerConnection(c.addr))
		l.more(100)
		first := c.workers()[0]
		for range pick(20, 2) {
			for _, workers := range []int{4, 2, 4, 1} {
				c.reload(config(workers))
				var serving []control.WorkerStatus
				for _, w := range c.status().Workers {
					if w.State == control.WorkerRunning {
						serving = append(serving, w)
					}
				}
				require.Len(t, serving, workers)
				require.Equal(t, first, serving[0].PID)
				l.more(200)
				_, err := kept.get("", 1000, 7, "")
				require.NoError(t, err, "the connection to the first worker")
			}
		}
		require.Empty(t, l.stop())
		eventually(t, "the workers that went to end", func() bool { return len(groupOf(c.pid())) == 2 })
		require.EqualValues(t, l.done.Load()+int64(pick(20, 2)*4), c.status().Totals.Requests, "totals outlive slots")
	})
}

// A long request in a worker that the reload made one too many is finished.
func TestWorkerThatGoesFinishes(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		config := func(workers int) string {
			return configOf([]string{b.addr}, fmt.Sprintf(`"workers": %d`, workers))
		}
		c := startCup(t, engine, config(2))
		held := browse(t, c.addr)
		holder := -1
		for holder != 1 { // until the kernel's choice is the second worker
			require.NoError(t, held.conn.Close())
			held = browse(t, c.addr)
			_, err := held.get("", 10, 1, "")
			require.NoError(t, err)
			for i, w := range c.status().Workers {
				if w.Connections > 0 {
					holder = i
				}
			}
		}
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		c.reload(config(1))
		states := map[string]int{}
		for _, w := range c.status().Workers {
			states[w.State]++
		}
		require.Equal(t, map[string]int{control.WorkerRunning: 1, control.WorkerDraining: 1}, states)
		c.reload(config(2)) // the slot comes back beside its old worker
		require.Len(t, c.status().Workers, 3)
		b.release()
		resp, err := held.response()
		require.NoError(t, err)
		var text [2]byte
		_, err = io.ReadFull(resp.Body, text[:])
		require.NoError(t, err)
		require.Equal(t, "xy", string(text[:]))
		eventually(t, "the old worker to end", func() bool { return len(c.status().Workers) == 2 })
	})
}

// A worker that dies at each start leaves no connection waiting: while its slot
// waits, another serves its sockets.
func TestCrashLoopUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		const clients = 8
		l := startLoad(t, clients, onePerConnection(c.addr))
		second := func() control.WorkerStatus { return c.status().Workers[1] }
		kills := 0
		for waits := 0; waits < pick(3, 1); {
			switch w := second(); w.State {
			case control.WorkerRunning:
				require.NoError(t, syscall.Kill(w.PID, syscall.SIGKILL))
				kills++
				eventually(t, "the worker to be gone", func() bool { return second().PID != w.PID })
			case control.WorkerWaiting:
				restarts := w.Restarts
				l.renewed()
				lost := len(l.errors())
				l.more(100)
				now := len(l.errors())
				if w := second(); w.State == control.WorkerWaiting && w.Restarts == restarts {
					require.Equal(t, lost, now, "errors while the slot waits")
					waits++
				}
			}
		}
		eventually(t, "the slot to be back", func() bool { return second().State == control.WorkerRunning })
		l.renewed()
		lost := len(l.errors())
		l.more(300)
		all := l.stop()
		require.Len(t, all, lost, "errors once it is back")
		require.LessOrEqual(t, lost, kills*clients, "more than was in flight")
		for _, err := range all {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
		t.Logf("%d kills, %d of %d requests lost", kills, lost, l.done.Load())
	})
}

// A second master is refused when it wants one address of the first, whatever
// else it wants, and leaves nothing behind.
func TestSecondMasterOfSeveralAddresses(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		path := filepath.Join(t.TempDir(), "cup.sock")
		text := configOf([]string{b.addr}, oneWorker)
		c := startCup(t, engine, rooted(text, "127.0.0.1:0", "unix:"+path))
		free, other := freePort(t), filepath.Join(t.TempDir(), "free.sock")
		for _, taken := range []string{c.addr, "unix:" + path} {
			require.Contains(t, refusals(t, engine, rooted(text, free, "unix:"+other, taken)),
				fmt.Sprintf("%s: another cloud-cup (pid %d) is listening there", taken, c.pid()))
		}
		_, err := net.Dial("tcp", free)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		_, err = os.Stat(other)
		require.ErrorIs(t, err, os.ErrNotExist)
		_, err = browse(t, c.addr).get("", 100, 1, "")
		require.NoError(t, err)
	})
}
