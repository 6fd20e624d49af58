package integration

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// backendsConfig is a configuration with one route over backends, each given as
// the members of its object.
func backendsConfig(workers int, backends ...string) string {
	return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": %d, "routes": {"*": {"backends": [{%s}]}}}`,
		workers, strings.Join(backends, "}, {"))
}

// backend is what the master says of a backend.
func (c *cup) backend(host string) control.BackendStatus {
	c.t.Helper()
	c.status() // workers bring their numbers up to date
	list, err := c.admin.Backends()
	require.NoError(c.t, err)
	for _, b := range list {
		if b.Host == host {
			return b
		}
	}
	require.FailNow(c.t, "no such backend", "%s in %v", host, list)
	return control.BackendStatus{}
}

// visitOnce makes a request on a connection of its own and returns the name of
// the backend that answered.
func visitOnce(addr string) (string, error) {
	b, err := openBrowser(addr)
	if err != nil {
		return "", err
	}
	defer b.conn.Close()
	a, err := b.get("", 10, 1, "")
	return a.backend, err
}

// visits counts who answers n requests, one after another.
func visits(t testing.TB, addr string, n int) map[string]int {
	t.Helper()
	count := map[string]int{}
	for range n {
		name, err := visitOnce(addr)
		require.NoError(t, err)
		count[name]++
	}
	return count
}

// moody is a backend that ends connections, or holds requests until it is told
// to answer.
type moody struct {
	addr     string
	breaks   atomic.Bool
	requests atomic.Int32  // that came
	holding  chan struct{} // closed: it answers
}

func startMoody(t testing.TB) *moody {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	m := &moody{addr: l.Addr().String(), holding: make(chan struct{})}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go m.serve(conn)
		}
	}()
	return m
}

func (m *moody) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		m.requests.Add(1)
		if m.breaks.Load() {
			return
		}
		<-m.holding
		_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nX-Backend: moody\r\nContent-Length: 10\r\n\r\n")
		_, _ = fmt.Fprintf(conn, "%s", contentBytes(10))
	}
}

// contentBytes is the beginning of content 1.
func contentBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = content(1, int64(n)).Read(b) // it has as many
	return b
}

// All workers count the failures of a backend together, and one request at a
// time of all tries it afterwards.
func TestWorkersShareHealth(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		good, bad := startBackend(t, "good"), startMoody(t)
		bad.breaks.Store(true)
		c := startCup(t, engine, backendsConfig(4,
			fmt.Sprintf(`"host": %q, "max_failure": 5, "cooldown": "300ms"`, bad.addr), fmt.Sprintf(`"host": %q`, good.addr)))
		for bad.requests.Load() < 5 {
			require.Equal(t, map[string]int{"good": 1}, visits(t, c.addr, 1))
		}
		_, err := c.await("backend is out")
		require.NoError(t, err)
		require.EqualValues(t, 5, bad.requests.Load())
		require.EqualValues(t, 5, c.backend(bad.addr).Failures)
		served := 0
		for _, w := range c.status().Workers {
			if w.Requests > 0 {
				served++
			}
		}
		require.Greater(t, served, 1, "the failures were those of several workers")

		bad.breaks.Store(false) // it takes a request, and says nothing yet
		var tries sync.WaitGroup
		for bad.requests.Load() == 5 {
			tries.Add(1)
			answered := make(chan struct{})
			go func() {
				defer tries.Done()
				_, err := visitOnce(c.addr)
				if err != nil {
					t.Errorf("a request after the cooldown: %v", err)
				}
				close(answered)
			}()
			select {
			case <-answered:
			case <-time.After(20 * time.Millisecond): // it may be the trial
			}
		}
		require.Equal(t, map[string]int{"good": 40}, visits(t, c.addr, 40))
		require.EqualValues(t, 6, bad.requests.Load(), "one trial at a time, of all workers")
		close(bad.holding)
		tries.Wait()
		_, err = c.await("backend is back")
		require.NoError(t, err)
		require.Positive(t, visits(t, c.addr, 20)["moody"])
		require.Zero(t, c.backend(bad.addr).Failures)
	})
}

// replaced reports whether all workers run, and the one that was killed is
// none of them.
func replaced(c *cup, pid int) bool {
	for _, w := range c.status().Workers {
		if w.State != control.WorkerRunning || w.PID == pid {
			return false
		}
	}
	return true
}

// hold makes a request that the backend does not end.
func hold(t testing.TB, c *cup, b *backend) *browser {
	t.Helper()
	client := browse(t, c.addr)
	require.NoError(t, client.ask("GET", "/held/1", ""))
	<-b.held
	return client
}

// All workers together give a backend no more requests than it may have, and a
// worker that is killed takes none of them along.
func TestMaxConnectionsOfAllWorkers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, backendsConfig(2, fmt.Sprintf(`"host": %q, "max_connections": 6`, b.addr)))
		full := func() bool {
			_, err := visitOnce(c.addr)
			if err != nil {
				require.ErrorContains(t, err, "backend_full")
			}
			return err != nil
		}
		for range 5 {
			hold(t, c, b)
		}
		require.False(t, full())
		tunnel := dig(t, c.addr, "/tunnel")
		require.True(t, full(), "a tunnel is one of them")
		require.EqualValues(t, 6, c.backend(b.addr).InFlight)
		require.NoError(t, tunnel.echo())

		for _, pid := range c.workers() {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			eventually(t, "a new worker", func() bool { return replaced(c, pid) })
		}
		require.Zero(t, c.backend(b.addr).InFlight)
		for range 6 {
			hold(t, c, b)
		}
		require.True(t, full())
		b.release()
		eventually(t, "the held ones to end", func() bool { return c.backend(b.addr).InFlight == 0 })
		require.False(t, full())
		require.EqualValues(t, 2, c.status().Totals.Reasons["backend_full"])
	})
}

// Requests are shared by weight, exactly; what is set at run time is obeyed by
// all workers at once, survives reloads, and ends when the file changes that
// backend.
func TestWeightsAndStates(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		config := func(weightOfA int, more string) string {
			return backendsConfig(1, fmt.Sprintf(`"host": %q, "weight": %d`, a.addr, weightOfA), fmt.Sprintf(`"host": %q`, b.addr)+more)
		}
		c := startCup(t, engine, config(5, ""))
		reload := func(text string) {
			t.Helper()
			c.write(text)
			_, err := c.admin.Reload()
			require.NoError(t, err)
		}
		set := func(host string, change control.BackendChange) {
			t.Helper()
			_, err := c.admin.SetBackend(host, change)
			require.NoError(t, err)
		}
		for range 3 {
			require.Equal(t, map[string]int{"a": 5, "b": 1}, visits(t, c.addr, 6))
		}
		weight := 2
		set(a.addr, control.BackendChange{Weight: &weight})
		require.Equal(t, map[string]int{"a": 20, "b": 10}, visits(t, c.addr, 30))
		set(b.addr, control.BackendChange{State: control.BackendDrain})
		require.Equal(t, map[string]int{"a": 8}, visits(t, c.addr, 8))
		require.EqualValues(t, 1, c.backend(b.addr).Idle)

		reload(strings.Replace(config(5, ""), `"routes": {`, `"routes": {"/more/*": {"backends": [{"host": "127.0.0.1:9"}]}, `, 1))
		require.Equal(t, map[string]int{"a": 8}, visits(t, c.addr, 8), "drained, whatever changed elsewhere")
		require.EqualValues(t, 1, c.backend(b.addr).Idle, "and its connections are kept")
		set(b.addr, control.BackendChange{State: control.BackendDisabled})
		require.Zero(t, c.backend(b.addr).Idle)
		set(b.addr, control.BackendChange{State: control.BackendEnabled})
		require.Equal(t, map[string]int{"a": 20, "b": 10}, visits(t, c.addr, 30), "the weight is still the one that was set")

		requests := c.backend(a.addr).Requests["2xx"]
		reload(config(3, ""))
		require.Equal(t, map[string]int{"a": 6, "b": 2}, visits(t, c.addr, 8), "the file's, which says something else now")
		require.Equal(t, requests+6, c.backend(a.addr).Requests["2xx"], "what was counted stays")
	})
}

// What was counted never shrinks, whoever dies.
func TestCountsSurviveWorkers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, backendsConfig(2, fmt.Sprintf(`"host": %q`, b.addr)))
		requests := uint64(0)
		for range 4 {
			visits(t, c.addr, 20)
			requests += 20
			for _, pid := range c.workers() {
				require.Equal(t, requests, c.backend(b.addr).Requests["2xx"])
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
				eventually(t, "a new worker", func() bool {
					// At no moment less, whether it is dead, buried or replaced.
					require.Equal(t, requests, c.backend(b.addr).Requests["2xx"])
					return replaced(c, pid)
				})
			}
		}
		require.Equal(t, requests, c.status().Totals.Requests)
	})
}
