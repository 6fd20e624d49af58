package proxy_test

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/epollfallback"
	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/cloud-cup/cloud-cup/ring"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// engines are what every test of this package runs over.
var engines = map[string]func(*loop.Pool) (loop.Engine, error){
	"uring": func(pool *loop.Pool) (loop.Engine, error) {
		return ring.Open(ring.Config{Pool: pool})
	},
	"epoll": func(pool *loop.Pool) (loop.Engine, error) {
		return epollfallback.Open(epollfallback.Config{Pool: pool})
	},
}

// faulty engines make the worst of the contract, with a seed that the test
// prints.
func init() {
	for name, open := range engines {
		engines["faulty "+name] = func(pool *loop.Pool) (loop.Engine, error) {
			e, err := open(pool)
			if err != nil {
				return nil, err
			}
			return looptest.Faulty(e, seed), nil
		}
	}
}

// seed of all that is random.
var seed = uint64(time.Now().UnixNano())

// rig is a Proxy that serves on a loopback port.
type rig struct {
	t        *testing.T
	addr     string
	proxy    *proxy.Proxy
	pool     *loop.Pool
	page     *shm.Page
	counters *shm.Counters // of page
	rows     *shm.Backends
	logs     *memoryLogs
	done     chan struct{}
	cut      int
}

// start runs a Proxy over the named engine. edit may change the snapshot
// before it is applied; the TLS of "listener" is that of its port.
func start(t *testing.T, engine string, routes []proxy.RouteSpec, edit func(*proxy.Snapshot)) *rig {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	file, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	fd, err := unix.Dup(int(file.Fd()))
	require.NoError(t, err)
	require.NoError(t, unix.SetNonblock(fd, true))
	r := &rig{t: t, addr: ln.Addr().String(), logs: newMemoryLogs(), done: make(chan struct{})}
	r.page, r.rows = sharedMemory(t)
	r.counters = &r.page.Counters
	require.NoError(t, file.Close())
	require.NoError(t, ln.Close())

	s := snapshot(routes)
	if edit != nil {
		edit(s)
	}
	if policy := s.TLS["listener"]; policy != nil {
		s.TLS[r.addr] = policy
	}
	require.NoError(t, proxy.Prepare(s))
	ready := make(chan error, 1)
	go func() {
		defer close(r.done)
		runtime.LockOSThread()
		pool := loop.NewPool(s.Limits.Memory)
		pool.Poison = true
		r.pool = pool
		e, err := engines[engine](pool)
		if err != nil {
			ready <- err
			return
		}
		level := slog.LevelInfo
		if !testing.Verbose() {
			level = slog.LevelError
		}
		r.proxy = proxy.New(proxy.Config{
			Engine: e, Pool: pool, Page: r.page, Backends: r.rows, Clock: monotonic, Logs: r.logs,
			Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		})
		r.proxy.Apply(s)
		ready <- r.proxy.Listen(0, int32(fd), r.addr, r.addr, false)
		r.cut, err = r.proxy.Run()
		if err != nil {
			t.Error("run:", err)
		}
		if err := e.Close(); err != nil {
			t.Error("close:", err)
		}
		if n := pool.Lent(); n != 0 {
			t.Errorf("%d bytes of buffers were not given back", n)
		}
		if err := pool.Close(); err != nil {
			t.Error("close:", err)
		}
		if n := r.counters.Connections; n != 0 {
			t.Errorf("%d client connections are open in the end", n)
		}
		if n := r.counters.Quarantined; n != 0 {
			t.Errorf("quarantined = %d, want 0", n)
		}
		r.checkGauges()
	}()
	require.NoError(t, <-ready)
	t.Cleanup(r.stop)
	return r
}

// checkGauges complains about what is still counted when all exchanges have
// ended.
func (r *rig) checkGauges() {
	if n := r.counters.Snapshots; n != 1 {
		r.t.Errorf("%d snapshots are held in the end", n)
	}
	for i := range 8 {
		if n := r.page.Routes[i].InFlight; n != 0 {
			r.t.Errorf("%d exchanges of route %d are under way in the end", n, i)
		}
	}
	if r.proxy.Strayed() {
		r.t.Error("something is queued for connections that rest")
	}
	idle := uint64(0)
	for i := range rowsGiven.Load() + 1 {
		g := &r.page.Backends[i].BackendGauges
		idle += g.Idle
		if n := r.rows.Rows[i].InFlight.Load(); g.InFlight != 0 || g.Counted != 0 || n != 0 {
			r.t.Errorf("backend %d has %d exchanges in the end, %d and %d counted", i, g.InFlight, g.Counted, n)
		}
	}
	if n := r.counters.BackendIdle; n != idle {
		r.t.Errorf("%d connections are idle, %d by backend", n, idle)
	}
}

// sharedMemory is what a master makes for a worker.
func sharedMemory(t testing.TB) (*shm.Page, *shm.Backends) {
	page, pageFD, err := shm.Create()
	require.NoError(t, err)
	rows, rowsFD, err := shm.CreateBackends()
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, errors.Join(page.Close(), rows.Close(), unix.Close(pageFD), unix.Close(rowsFD)))
	})
	return page, rows
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it cannot fail
	return ts.Nano()
}

// onLoop calls f on the loop and returns when it has run.
func (r *rig) onLoop(f func()) {
	done := make(chan struct{})
	r.proxy.Post(func() { f(); close(done) })
	<-done
}

// counted returns a copy of the counters.
func (r *rig) counted() (c shm.Counters) {
	r.onLoop(func() { c = *r.counters })
	return c
}

func (r *rig) stop() {
	http.DefaultClient.CloseIdleConnections()
	r.proxy.Post(func() { r.proxy.Drain(2*time.Second, time.Second) })
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Error("the loop did not end")
	}
}

// snapshot is a complete one over routes.
func snapshot(routes []proxy.RouteSpec) *proxy.Snapshot {
	s := &proxy.Snapshot{
		Generation: 1,
		Routes:     routes,
		Timeouts: proxy.Timeouts{
			ClientHead: 10 * time.Second, ClientBody: 30 * time.Second, ClientIdle: 60 * time.Second,
			Connect: 2 * time.Second, Response: 60 * time.Second, BackendIdle: 55 * time.Second, TunnelIdle: time.Hour,
		},
		Limits: proxy.Limits{
			HeadBytes: 32 << 10, Headers: 100, TargetBytes: 8 << 10, BodyBytes: -1,
			Connections: 10000, Memory: 128 << 20,
		},
	}
	for i := range s.Routes {
		s.Routes[i].Timeouts, s.Routes[i].Limits = s.Timeouts, s.Limits
	}
	return s
}

// to is a route for everything to the given addresses.
func to(addrs ...string) []proxy.RouteSpec {
	return []proxy.RouteSpec{routeTo("*", addrs...)}
}

func routeTo(pattern string, addrs ...string) proxy.RouteSpec {
	r := proxy.RouteSpec{Pattern: pattern}
	for _, a := range addrs {
		r.Backends = append(r.Backends, proxy.BackendSpec{
			Host: a, Addrs: []proxy.BackendAddr{{Addr: loop.Addr{AddrPort: netip.MustParseAddrPort(a)}, Row: rowOf(a)}},
			Weight: 1, MaxFailure: 5, Cooldown: 200 * time.Millisecond,
		})
	}
	return r
}

// rowOf gives each address its row, as a master would.
func rowOf(addr string) int {
	row, _ := rowsByAddr.LoadOrStore(addr, int(rowsGiven.Add(1)))
	return row.(int)
}

var (
	rowsByAddr sync.Map
	rowsGiven  atomic.Int32
)

// serve starts a net/http backend and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// each runs f once per engine.
func each(t *testing.T, f func(t *testing.T, engine string)) {
	for _, name := range []string{"uring", "epoll"} {
		t.Run(name, func(t *testing.T) { f(t, name) })
	}
}

// eachFaulty runs f once per engine, and once over each with faults.
func eachFaulty(t *testing.T, f func(t *testing.T, engine string)) {
	t.Logf("seed %d", seed)
	for _, name := range []string{"uring", "epoll", "faulty uring", "faulty epoll"} {
		t.Run(name, func(t *testing.T) { f(t, name) })
	}
}

func readAll(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return string(b)
}
