package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Workers that are killed one after another under load: no more is lost than
// the connections that the dead had taken in. Those that waited in an accept
// queue, and all that come later, are served.
func TestEventKilledWorkers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		const clients = 32
		l := startLoad(t, clients, onePerConnection(c.addr))
		kills := pick(30, 3)
		every := pick(time.Second, 100*time.Millisecond)
		inHand, lost := 0, 0
		var took []time.Duration
		for i := range kills {
			l.more(clients)
			next := time.After(every)
			seen, before := len(servesRecords(c)), len(l.errors())
			pid := c.workers()[i%2]
			// What it has in its hands is counted when it does nothing more;
			// meanwhile others wait in its accept queue.
			freeze(t, pid)
			inHand += connectionsOf(t, c, pid, clients)
			took = append(took, timed(func() {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
				eventually(t, "a new worker", func() bool { return len(servesRecords(c)) > seen })
			}))
			l.renewed()
			lost += len(l.errors()) - before
			<-next
		}
		l.more(clients)
		failed := l.stop()
		median, most := spread(took)
		report(t, fmt.Sprintf("%d killed workers, connection per request, %s", kills, engine),
			"%d failed of %d requests, %d connections were in the hands of the dead; replaced after p50 %v, max %v",
			len(failed), l.done.Load(), inHand, median, most)
		require.Len(t, failed, lost, "errors after the last worker was replaced")
		require.LessOrEqual(t, lost, inHand)
		for _, err := range failed {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
		}
	})
}

// connectionsOf is how many connections of clients a worker has that does not
// run now, those in its completion queue included, of which it does not know.
// Who may not look (workers are not dumpable) gets the most that there can be:
// each client has one.
func connectionsOf(t testing.TB, c *cup, pid, clients int) int {
	t.Helper()
	links, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if errors.Is(err, syscall.EACCES) {
		return clients
	}
	require.NoError(t, err)
	has := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, l.Name()))
		require.NoError(t, err)
		has[to] = true
	}
	_, port, err := net.SplitHostPort(c.addr)
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	text, err := os.ReadFile("/proc/net/tcp") // proc_net_tcp: number local remote state ... inode
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) && fields[3] != tcpListens && has["socket:["+fields[9]+"]"] {
			n++
		}
	}
	return n
}

// tcpListens is the state of a listening socket in /proc/net/tcp.
const tcpListens = "0A"

// A master that is killed under load is followed by another one at once: what
// was established is served to its end, no new connection hangs, and none is
// taken in by the old workers once the new master serves.
func TestEventKilledMaster(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		old, young := startBackend(t, "old"), startBackend(t, "young")
		text := fixedRoot(configOf([]string{old.addr}, `"workers": 2`, `"timeouts": {"drain": "5s"}`), freePort(t))
		c := startCup(t, engine, text)
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-old.held
		var serves atomic.Bool // the new master
		var slowest [32]time.Duration
		l := startLoad(t, len(slowest), func(worker, turn int) error {
			late := serves.Load()
			begin := time.Now()
			b, err := openBrowser(c.addr)
			if err == nil {
				defer b.conn.Close()
				var a answer
				if a, err = b.get("", 1000, int64(turn), ""); err == nil && late && a.backend != "young" {
					err = fmt.Errorf("an old worker took a new connection")
				}
			}
			slowest[worker] = max(slowest[worker], time.Since(begin))
			if !late && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)) {
				return nil // nobody listened at that moment
			}
			return err
		})
		l.more(200)
		require.NoError(t, syscall.Kill(c.pid(), syscall.SIGKILL))
		begin := time.Now()
		require.Equal(t, -1, c.wait()) // until then the address is its own
		next := startCup(t, engine, strings.Replace(text, old.addr, young.addr, 1))
		took := time.Since(begin)
		serves.Store(true)
		l.renewed()
		l.more(200)
		failed := l.stop()
		old.release()
		_, err := held.response()
		require.NoError(t, err)
		require.NoError(t, held.conn.Close())
		c.allGone()
		_, most := spread(slowest[:])
		report(t, "killed master, another one started at once, "+engine,
			"%d failed of %d requests; serves after %v; slowest request %v", len(failed), l.done.Load(), took, most)
		require.Empty(t, failed)
		require.Less(t, most, patience, "a connection hung")
		require.Equal(t, c.addr, next.addr)
	})
}

// A worker that is stopped under load is replaced, and costs no more than the
// connections that it had taken in. A stop of all processes together costs
// nothing, though it is longer than the deadline of each.
func TestEventStopped(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel() // it mostly waits
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		each := onePerConnection(c.addr)
		const clients = 16
		l := startLoad(t, clients, func(worker, turn int) error {
			time.Sleep(5 * time.Millisecond) // a light load: others run beside this test
			return each(worker, turn)
		})
		l.more(100)
		pid := c.workers()[0]
		freeze(t, pid)
		begin := time.Now()
		inHand := connectionsOf(t, c, pid, clients)
		c.replaced(0, pid)
		replaced := time.Since(begin)
		l.renewed()
		lost := len(l.errors())
		l.more(100)
		require.Len(t, l.errors(), lost, "errors after it was replaced")
		require.LessOrEqual(t, lost, inHand)

		pids, done := c.workers(), l.done.Load()
		require.NoError(t, syscall.Kill(-c.pid(), syscall.SIGSTOP))
		<-time.After(pick(10*time.Second, 6500*time.Millisecond))
		require.NoError(t, syscall.Kill(-c.pid(), syscall.SIGCONT))
		l.renewed()
		l.more(1000) // for some turns of the watch
		failed := l.stop()
		report(t, "a stopped worker, then all stopped, "+engine,
			"%d failed, %d connections were in its hands, replaced after %v; %d failed of %d requests over the stop of all, %d killed",
			lost, inHand, replaced.Round(time.Millisecond), len(failed)-lost, l.done.Load()-done, changes(pids, c.workers()))
		require.Len(t, failed, lost, "errors of the stop of all")
		require.Equal(t, pids, c.workers())
	})
}

// changes counts the places where a and b differ.
func changes(a, b []int) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}
