package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// statsOf returns what the route 0 and the backend at addr have counted.
func (r *rig) statsOf(addr string) (route shm.RouteStats, backend shm.BackendStats) {
	r.onLoop(func() { route, backend = r.page.Routes[0], r.page.Backends[rowOf(addr)] })
	return route, backend
}

// say sends text on a connection of its own and returns all that comes.
func (r *rig) say(text string) string {
	r.t.Helper()
	c := r.dial()
	defer c.Close()
	_, err := io.WriteString(c, text)
	require.NoError(r.t, err)
	all, err := io.ReadAll(c)
	require.NoError(r.t, err)
	return string(all)
}

func TestExchangesAreCountedOnce(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			switch req.URL.Path {
			case "/hints":
				w.WriteHeader(http.StatusEarlyHints)
			case "/missing":
				w.WriteHeader(http.StatusNotFound)
			case "/break":
				w.Header().Set("Content-Length", "100")
				fmt.Fprint(w, "half")
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Write(body)
		})
		r := start(t, engine, to(backend), func(s *proxy.Snapshot) { s.Routes[0].Limits.BodyBytes = 100 })
		const last = "Host: a\r\nConnection: close\r\n\r\n"
		require.Contains(t, r.say("POST / HTTP/1.1\r\nContent-Length: 5\r\n"+last+"hello"), "200 OK")
		require.Contains(t, r.say("GET /hints HTTP/1.1\r\n"+last), "103 Early Hints")
		require.Contains(t, r.say("GET /missing HTTP/1.1\r\n"+last), "404 Not Found")
		require.Contains(t, r.say("GET /break HTTP/1.1\r\n"+last), "half")
		require.Contains(t, r.say("POST / HTTP/1.1\r\nContent-Length: 101\r\n"+last), "413 ")
		require.Contains(t, r.say("GET nonsense\r\n\r\n"), "400 ")

		route, b := r.statsOf(backend)
		require.Equal(t, [shm.Classes]uint64{2: 3, 4: 2}, route.Requests)
		require.EqualValues(t, 5, route.Latency.Count())
		require.EqualValues(t, 5, route.BytesIn)
		require.EqualValues(t, 5+4, route.BytesOut)
		require.EqualValues(t, 1, route.Reasons[message.ReasonBackendReset])
		require.EqualValues(t, 1, route.Reasons[message.ReasonBodyTooLarge])
		require.Zero(t, route.Reasons[message.ReasonBadRequest], "no route was chosen")
		require.EqualValues(t, 1, r.counted().Reasons[message.ReasonBadRequest])
		require.Zero(t, route.InFlight)
		require.Equal(t, [shm.Classes]uint64{2: 3, 4: 1}, b.Requests)
		require.EqualValues(t, 4, b.Latency.Count())
		require.EqualValues(t, 4, b.Connects+b.Reused)
		require.Zero(t, b.InFlight)
		require.EqualValues(t, 6, r.counted().Requests)
	})
}

func TestAttemptsAreCountedByBackend(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		dead := deadAddr(t)
		alive := serve(t, func(http.ResponseWriter, *http.Request) {})
		r := start(t, engine, to(dead, alive), nil)
		for range 10 {
			require.Contains(t, r.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), "200 OK")
		}
		route, d := r.statsOf(dead)
		_, a := r.statsOf(alive)
		require.Equal(t, [shm.Classes]uint64{2: 10}, route.Requests)
		require.Equal(t, route.Requests, a.Requests)
		require.EqualValues(t, 5, d.Failures[message.ReasonBackendRefused], "then it is out")
		require.EqualValues(t, 5, d.Requests[0])
		require.EqualValues(t, 5, d.Retries)
		require.Zero(t, d.Latency.Count())
		require.Zero(t, a.Failures[message.ReasonBackendRefused])
	})
}

// What nobody else could be asked after is no retry, and takes none of those that
// other routes may need.
func TestFailuresOfTheLastBackend(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		dead := deadAddr(t)
		r := start(t, engine, to(dead), nil)
		var before, after int
		r.onLoop(func() { before = r.proxy.RetryBudget() })
		for range 5 {
			require.Contains(t, r.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), "502 ")
		}
		_, d := r.statsOf(dead)
		require.EqualValues(t, 5, d.Failures[message.ReasonBackendRefused])
		require.Zero(t, d.Retries)
		require.Zero(t, r.counted().Retries)
		r.onLoop(func() { after = r.proxy.RetryBudget() })
		require.GreaterOrEqual(t, after, before)
	})
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// slowBackend answers when it is told to, and says when it has a request.
func slowBackend(t *testing.T) (addr string, begun chan struct{}, release chan struct{}) {
	begun, release = make(chan struct{}, 100), make(chan struct{})
	return serve(t, func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-release
	}), begun, release
}

func TestClientThatGoesAwayIsCounted(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend, begun, release := slowBackend(t)
		defer close(release)
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		<-begun
		route, b := r.statsOf(backend)
		require.EqualValues(t, 1, route.InFlight)
		require.EqualValues(t, 1, b.InFlight)
		require.Zero(t, route.Requests)
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
		require.Eventually(t, func() bool {
			route, b = r.statsOf(backend)
			return route.InFlight == 0
		}, 10*time.Second, time.Millisecond)
		require.Equal(t, [shm.Classes]uint64{1}, route.Requests)
		require.EqualValues(t, 1, route.Reasons[message.ReasonClientGone])
		require.Zero(t, b.InFlight)
		require.Equal(t, [shm.Classes]uint64{1}, b.Requests)
	})
}

func TestOverheadIsSampled(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Millisecond) })
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		defer c.Close()
		in := bufio.NewReader(c)
		for range 128 {
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
			res, err := http.ReadResponse(in, nil)
			require.NoError(t, err)
			readAll(t, res)
		}
		route, _ := r.statsOf(backend)
		require.EqualValues(t, 2, route.Overhead.Count())
		require.NotZero(t, route.Overhead.SumNanos)
		require.Less(t, route.Overhead.SumNanos/2, route.Latency.SumNanos/128)
		require.GreaterOrEqual(t, route.Latency.SumNanos, uint64(128e6))
	})
}

// A backend that is full gets no more, in whatever route; with all full there
// is an answer that says so.
func TestMaxConnections(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend, begun, release := slowBackend(t)
		routes := []proxy.RouteSpec{routeTo("*", backend), routeTo("/free", backend)}
		routes[0].Backends[0].MaxConnections = 2
		r := start(t, engine, routes, nil)
		row := &r.rows.Rows[rowOf(backend)]
		ask := func(path string) chan string {
			answer := make(chan string, 1)
			go func() {
				answer <- r.say("GET " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			}()
			return answer
		}
		one, two := ask("/free"), ask("/")
		<-begun
		<-begun
		require.EqualValues(t, 2, row.InFlight.Load())
		require.Contains(t, <-ask("/"), "503 Service Unavailable: backend_full")
		three := ask("/free") // its route sets no bound
		<-begun
		require.EqualValues(t, 3, row.InFlight.Load())
		require.EqualValues(t, 1, r.counted().Reasons[message.ReasonBackendFull])
		close(release)
		for _, answer := range []chan string{one, two, three} {
			require.Contains(t, <-answer, "200 OK")
		}
		require.Contains(t, <-ask("/"), "200 OK")
	})
}

func TestDrainedAndDisabledBackends(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		a := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from a") })
		b := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from b") })
		r := start(t, engine, to(a, b), nil)
		answers := func() string {
			var all strings.Builder
			for range 4 {
				all.WriteString(r.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
			}
			return all.String()
		}
		require.Equal(t, 2, strings.Count(answers(), "from a"))
		idle := func() (n uint64) {
			_, s := r.statsOf(a)
			return s.Idle
		}
		require.Eventually(t, func() bool { return idle() == 1 }, 10*time.Second, time.Millisecond)
		row := &r.rows.Rows[rowOf(a)]
		row.Admin.Store(shm.AdminDrain)
		r.onLoop(r.proxy.CloseDisabled)
		require.NotContains(t, answers(), "from a")
		require.EqualValues(t, 1, idle(), "a drain leaves idle connections alone")
		row.Admin.Store(shm.AdminDisabled)
		r.onLoop(r.proxy.CloseDisabled)
		require.Zero(t, idle())
		require.NotContains(t, answers(), "from a")
		row.Admin.Store(shm.AdminEnabled)
		require.Equal(t, 2, strings.Count(answers(), "from a"))
	})
}

// A snapshot lives as long as exchanges go by it, and no longer.
func TestOldSnapshotsAreFreed(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend, begun, release := slowBackend(t)
		r := start(t, engine, to(backend), nil)
		var freed atomic.Int32
		apply := func(generation uint64) {
			s := snapshot(to(backend))
			s.Generation = generation
			require.NoError(t, proxy.Prepare(s))
			runtime.AddCleanup(s, func(int) { freed.Add(1) }, 0)
			r.onLoop(func() { r.proxy.Apply(s) })
		}
		held := func() [2]uint64 {
			c := r.counted()
			return [2]uint64{c.OldestGeneration, c.Snapshots}
		}
		apply(2)
		require.Equal(t, [2]uint64{2, 1}, held())
		answer := make(chan string)
		go func() { answer <- r.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") }()
		<-begun
		for g := range uint64(20) {
			apply(3 + g)
			require.Equal(t, [2]uint64{2, 2}, held())
		}
		require.Equal(t, [2]uint64{2, 2}, held(), "the one of the exchange, and the one in force")
		isFreed := func(want int32) {
			t.Helper()
			require.Eventually(t, func() bool {
				runtime.GC()
				return freed.Load() == want
			}, 20*time.Second, 10*time.Millisecond)
		}
		isFreed(19)
		close(release)
		require.Contains(t, <-answer, "200 OK")
		require.Eventually(t, func() bool { return held() == [2]uint64{22, 1} }, 10*time.Second, time.Millisecond)
		isFreed(20)
	})
}
