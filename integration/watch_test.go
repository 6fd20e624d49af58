package integration

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A worker that is stopped, and one whose loop does not turn, are replaced, and
// those who wait for them are served.
func TestSilentWorkersAreReplaced(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel() // it mostly waits
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		pids := c.workers()
		freeze(t, pids[0])
		begin := time.Now()
		serveAcrossReplacement(t, c, 0, pids[0])
		t.Logf("a stopped worker is replaced after %v", time.Since(begin))
		require.Equal(t, "replaced: stopped", c.status().Workers[0].LastDeath)
		require.Equal(t, pids[1], c.workers()[1])
		if os.Geteuid() != 0 {
			t.Skip("only root can stop a thread of a process that is not dumpable")
		}
		pids = c.workers()
		holdLoop(t, pids[1])
		serveAcrossReplacement(t, c, 1, pids[1])
		require.Equal(t, "replaced: loop does not answer for 5s", c.status().Workers[1].LastDeath)
		require.Equal(t, pids[0], c.workers()[0])
	})
}

// serveAcrossReplacement makes connections that wait for the slot's worker, and
// checks that they are served by its successor.
func serveAcrossReplacement(t *testing.T, c *cup, slot, pid int) {
	t.Helper()
	var waiting []*browser
	for i := range 20 {
		w := browse(t, c.addr)
		require.NoError(t, w.ask("GET", fmt.Sprintf("/100/%d", i), ""))
		waiting = append(waiting, w)
	}
	c.replaced(slot, pid)
	require.EqualValues(t, 1, c.status().Workers[slot].Restarts)
	for i, w := range waiting {
		resp, err := w.response()
		require.NoError(t, err)
		require.NoError(t, checkContent(resp.Body, int64(i), 100))
	}
}

// holdLoop stops the thread of a worker's loop, and no other, as a debugger
// does, until the process ends.
func holdLoop(t *testing.T, pid int) {
	t.Helper()
	held, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // which is the tracer, and ends with it
		if err := unix.PtraceSeize(pid); err != nil {
			held <- err
			return
		}
		err := unix.PtraceInterrupt(pid)
		if err != nil {
			held <- err
			return
		}
		stopped := false
		for {
			var status unix.WaitStatus
			_, err := unix.Wait4(pid, &status, unix.WALL, nil)
			switch {
			case err == unix.EINTR:
			case err == nil && status.Stopped():
				if !stopped {
					held <- nil // only now: it may go on for a while
					stopped = true
				}
			default:
				if !stopped {
					held <- err
				}
				ended <- err
				return
			}
		}
	}()
	require.NoError(t, <-held)
	t.Cleanup(func() { require.NoError(t, <-ended) })
}

// A pause of master and workers together kills nobody, though it is longer than
// the deadline.
func TestPauseOfAllKillsNobody(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel() // it mostly waits
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		pids := c.workers()
		client := browse(t, c.addr)
		_, err := client.get("", 100, 1, "")
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(-c.pid(), syscall.SIGSTOP))
		<-time.After(pick(10*time.Second, 6500*time.Millisecond))
		require.NoError(t, syscall.Kill(-c.pid(), syscall.SIGCONT))
		_, err = client.get("", 100, 2, "")
		require.NoError(t, err)
		<-time.After(pick(7*time.Second, 3*time.Second)) // for some turns of the watch
		require.Equal(t, pids, c.workers())
		for _, w := range c.status().Workers {
			require.Zero(t, w.Restarts)
		}
		_, err = client.get("", 100, 3, "")
		require.NoError(t, err)
	})
}
