package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/metrics"
	"golang.org/x/sys/unix"
)

// What those who read metrics may cost.
const (
	// scrapeConnectionsMax bounds the connections over TCP; further ones are
	// closed at once.
	scrapeConnectionsMax = 64
	// scrapeTextsMax bounds the texts that are being sent at a time. Beyond
	// it readers get the newest of them.
	scrapeTextsMax = 4
	// scrapeTimeout bounds a request, and scrapeIdle the time between two.
	scrapeTimeout = 10 * time.Second
	scrapeIdle    = 2 * time.Minute
)

// scrapeText is one text for all who asked while it was the newest.
type scrapeText struct {
	text    []byte
	readers int
}

// scraper makes the texts of /metrics, one at a time. A reader that takes its
// text slowly costs the master nothing but that text, and no worker anything.
type scraper struct {
	make    func(b []byte) []byte
	timeout time.Duration // for a text to be taken

	mu     sync.Mutex
	newest *scrapeText
	alive  int // texts with readers
}

// get returns a text, which must be given back with put.
func (s *scraper) get() *scrapeText {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alive < scrapeTextsMax {
		size := 0
		if s.newest != nil {
			size = len(s.newest.text)
		}
		s.newest = &scrapeText{text: s.make(make([]byte, 0, size+size/8))}
	}
	if s.newest.readers == 0 {
		s.alive++
	}
	s.newest.readers++
	return s.newest
}

func (s *scraper) put(t *scrapeText) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.readers--; t.readers == 0 {
		s.alive--
	}
}

// ServeHTTP answers GET /metrics.
func (s *scraper) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	t := s.get()
	defer s.put(t)
	w.Header().Set("Content-Type", metrics.ContentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(t.text)))
	conn := http.NewResponseController(w)
	// None of these errors is ours: who takes the text too slowly sees that it
	// is cut short.
	_ = conn.SetWriteDeadline(time.Now().Add(s.timeout))
	_, _ = w.Write(t.text)
	_ = conn.Flush()
	_ = conn.SetWriteDeadline(time.Time{})
}

// metricsServer serves /metrics and /readyz over TCP, to be read by anybody. A
// nil *metricsServer is one that is not configured.
type metricsServer struct {
	address  string // as configured
	listener net.Listener
	http     http.Server
}

// listenMetrics listens on address, nowhere if that is empty. It returns
// before, which may be nil, if that is the one. The new address may hold the
// one of before: both listen until before is closed.
func (m *Master) listenMetrics(address string, before *metricsServer) (*metricsServer, error) {
	switch {
	case address == before.configured():
		return before, nil
	case address == "":
		return nil, nil
	}
	if before != nil {
		// Set late it lets a socket of this user in beside the one that
		// listens (socket(7)); without it on both there would be a moment
		// without a listener, and no way back from a failure.
		if err := before.share(true); err != nil {
			return nil, fmt.Errorf("admin.metrics: %w", err)
		}
		defer func() { _ = before.share(false) }() // before is about to be closed, or goes on as it was
	}
	return m.bindMetrics(address, before != nil)
}

// bindMetrics listens on address, which is not empty, and if beside is true
// also where a server that shares its address listens.
func (m *Master) bindMetrics(address string, beside bool) (*metricsServer, error) {
	network := "tcp4"
	switch address[0] {
	case ':':
		network = "tcp"
	case '[':
		network = "tcp6"
	}
	listener, err := m.before.adoptMetrics(address)
	if listener == nil && err == nil {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return setReusePort(raw, beside) }}
		listener, err = config.Listen(context.Background(), network, address)
	}
	if err != nil {
		return nil, fmt.Errorf("admin.metrics: %w", err)
	}
	s := &metricsServer{address: address, listener: listener}
	if err := s.share(false); err != nil {
		return nil, fmt.Errorf("admin.metrics: %w", errors.Join(err, listener.Close()))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.scraper)
	mux.HandleFunc("GET /readyz", m.answerReady)
	var open atomic.Int64
	s.http = http.Server{
		Handler: mux, ReadTimeout: scrapeTimeout, WriteTimeout: scrapeTimeout, IdleTimeout: scrapeIdle,
		MaxHeaderBytes: 8 << 10,
		// What readers do wrong is no news.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > scrapeConnectionsMax {
					conn.Close()
				}
			case http.StateClosed:
				open.Add(-1)
			}
		},
	}
	return s, nil
}

// share sets whether others of this user may listen on the same address.
func (s *metricsServer) share(on bool) error {
	raw, err := s.listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	return setReusePort(raw, on)
}

func setReusePort(raw syscall.RawConn, on bool) error {
	value := 0
	if on {
		value = 1
	}
	var err error
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value)
	})
	return errors.Join(controlErr, err)
}

// serve answers from now on.
func (s *metricsServer) serve() {
	if s != nil {
		// It returns when close is called.
		go func() { _ = s.http.Serve(s.listener) }()
	}
}

// close stops listening and ends all connections.
func (s *metricsServer) close() error {
	if s == nil {
		return nil
	}
	// Serve may not have been called: the listener is closed in any case.
	return errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
}

// name is where it listens, empty if nowhere. It tells the port that the
// kernel chose.
func (s *metricsServer) name() string {
	if s == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// configured is the address in the configuration.
func (s *metricsServer) configured() string {
	if s == nil {
		return ""
	}
	return s.address
}
