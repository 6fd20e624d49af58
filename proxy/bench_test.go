package proxy_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
)

// instant is an engine without a kernel: clients that send their next request
// when they have a response, and backends that answer at once. Every send is
// taken whole.
type instant struct {
	pool              *loop.Pool
	request, response []byte
	answers           int        // that clients got
	accepts           []*loop.Op // that wait
	sockets           []socket   // by descriptor
	results           []*loop.Op
	delivering        []*loop.Op
}

// socket is one descriptor of an instant engine.
type socket struct {
	recv   *loop.Op // that waits
	come   []byte   // what was sent to it while none did
	client bool
}

func (e *instant) Name() string                      { return "instant" }
func (e *instant) Detail() string                    { return "" }
func (e *instant) Attach(int32) error                { return nil }
func (e *instant) Cancel(*loop.Op)                   {}
func (e *instant) Shutdown(int32, int) syscall.Errno { return 0 }
func (e *instant) CloseFD(int32)                     {}
func (e *instant) Unsent(int32) int                  { return 0 }
func (e *instant) Quiet(int32) bool                  { return true }
func (e *instant) Dead(int32) bool                   { return false }
func (e *instant) Abort(int32)                       {}
func (e *instant) SendNow(_ int32, b []byte) int     { return len(b) }
func (e *instant) Now() int64                        { return int64(time.Hour) }
func (e *instant) Wake()                             {}
func (e *instant) Stats() loop.Stats                 { return loop.Stats{} }
func (e *instant) Close() error                      { return nil }

func (e *instant) Submit(op *loop.Op) {
	op.Engine, op.N, op.Err, op.More, op.Buf = 1, 0, 0, false, nil
	switch op.Code {
	case loop.Accept:
		e.accepts = append(e.accepts, op)
	case loop.Connect:
		op.FD = e.socket(false)
		e.results = append(e.results, op)
	case loop.Send:
		for _, v := range op.Vecs {
			op.N += len(v)
		}
		e.results = append(e.results, op)
		if e.sockets[op.FD].client {
			e.answers++
			e.arrive(op.FD, e.request)
		} else {
			e.arrive(op.FD, e.response)
		}
	default:
		s := &e.sockets[op.FD]
		s.recv = op
		if b := s.come; b != nil {
			s.come = nil
			e.arrive(op.FD, b)
		}
	}
}

// socket makes a descriptor.
func (e *instant) socket(client bool) int32 {
	e.sockets = append(e.sockets, socket{client: client})
	return int32(len(e.sockets) - 1)
}

// accept gives the listener a client, which has sent its request.
func (e *instant) accept() {
	op := e.accepts[0]
	e.accepts = e.accepts[1:]
	fd := e.socket(true)
	op.N, op.Peer.AddrPort = int(fd), netip.MustParseAddrPort("127.0.0.1:1")
	e.results = append(e.results, op)
	e.arrive(fd, e.request)
}

// arrive has b received at fd.
func (e *instant) arrive(fd int32, b []byte) {
	s := &e.sockets[fd]
	op := s.recv
	if op == nil {
		s.come = b
		return
	}
	s.recv = nil
	op.Buf = e.pool.Get(loop.ClassHead)
	op.N = copy(op.Buf.Bytes(), b)
	e.results = append(e.results, op)
}

func (e *instant) Poll(_ time.Duration, deliver func(*loop.Op)) error {
	e.results, e.delivering = e.delivering[:0], e.results
	for _, op := range e.delivering {
		op.Engine = 0
		deliver(op)
	}
	return nil
}

// BenchmarkExchange is what the proxy itself does for one request and its
// response on kept connections, between the engine's results and submissions:
// parse, route, balance, write both heads, count, and log.
func BenchmarkExchange(b *testing.B) {
	for _, clients := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchmarkExchange(b, clients, proxy.LogSpec{}) })
	}
	b.Run("log", func(b *testing.B) {
		benchmarkExchange(b, 64, proxy.LogSpec{File: "x", Format: accesslog.Combined})
	})
}

func benchmarkExchange(b *testing.B, clients int, log proxy.LogSpec) {
	pool := loop.NewPool(128 << 20)
	e := &instant{
		pool:    pool,
		request: []byte("GET /bytes/100 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"),
		response: []byte("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n" +
			"Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100)),
	}
	page, rows := sharedMemory(b)
	p := proxy.New(proxy.Config{
		Engine: e, Pool: pool, Page: page, Backends: rows, Clock: e.Now, Logs: newMemoryLogs(), Log: slog.New(slog.DiscardHandler),
	})
	routes := to("127.0.0.1:1")
	routes[0].Log, routes[0].RequestID = log, true
	s := snapshot(routes)
	require.NoError(b, proxy.Prepare(s))
	p.Apply(s)
	require.NoError(b, p.Listen(0, 0, "listener", "127.0.0.1:8080", false))
	turn := func() {
		if err := p.Turn(0); err != nil {
			b.Fatal(err)
		}
	}
	for range clients {
		e.accept()
		turn()
	}
	until := func(answers int) {
		for e.answers < answers {
			turn()
		}
	}
	until(e.answers + 10*clients)
	b.ReportAllocs()
	b.ResetTimer()
	until(e.answers + b.N)
	b.StopTimer()
	require.Zero(b, page.Counters.Quarantined)
	open, _ := p.Open()
	require.Equal(b, clients, open)
}
