package main

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// openTo are the options of a client for a server.
func openTo(s *httptest.Server, rate float64, connections int) *openLoopOptions {
	host := strings.TrimPrefix(s.URL, "http://")
	return &openLoopOptions{
		arrivals: arrivalsConstant, rate: rate, connections: connections, length: 300 * time.Millisecond,
		address: netip.MustParseAddrPort(host), host: host, path: "/",
	}
}

// The client's count is the server's, of requests and bytes, and has all that
// was due.
func TestOpenLoopCounts(t *testing.T) {
	for _, arrivals := range []string{arrivalsConstant, arrivalsPoisson} {
		var requests, sent atomic.Int64
		body := strings.Repeat("x", 100_000) // some reads
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			length := int(requests.Add(1)%2*99_000 + 1000)
			w.Header().Set("Content-Length", strconv.Itoa(length))
			n, _ := w.Write([]byte(body[:length]))
			sent.Add(int64(n))
		}))
		o := openTo(s, 500, 8)
		o.arrivals = arrivals
		got, err := openLoop(o)
		s.Close()
		require.NoError(t, err)
		require.Zero(t, got.Errors(), "%+v", got)
		require.Equal(t, requests.Load(), got.Requests)
		var due, all int64
		for plan := newSchedule(o); plan.next() < o.end(); plan.advance() {
			all++
			if counts(plan.next()) {
				due++
			}
		}
		require.Equal(t, all, got.Requests)
		require.Equal(t, due, got.Due)
		if arrivals == arrivalsConstant {
			require.Equal(t, int64(75+150), all)
		}
		heads := got.Bytes - sent.Load()
		require.Greater(t, heads, 60*all)
		require.Less(t, heads, 200*all)
	}
}

// Exponential gaps have the rate on average, and are the same each time.
func TestOpenLoopSchedules(t *testing.T) {
	o := &openLoopOptions{arrivals: arrivalsPoisson, rate: 10_000}
	a, b := newSchedule(o), newSchedule(o)
	for !counts(a.next()) {
		a.advance()
		b.advance()
	}
	begin, short := a.at, 0
	for range 100_000 {
		before := a.at
		a.advance()
		b.advance()
		if a.at-before < a.gap {
			short++
		}
	}
	require.Equal(t, a.at, b.at)
	require.InEpsilon(t, 10*time.Second.Nanoseconds(), a.at-begin, 0.02)
	require.InEpsilon(t, 63_212, short, 0.02) // 1 - 1/e of them
}

// A server that stands still for a while delays all that was due meanwhile:
// each of them counts, not only the one that was asked for.
func TestOpenLoopOmitsNothing(t *testing.T) {
	const pause = 200 * time.Millisecond
	var requests atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 150+50 { // 50 ms after the warm-up, or later
			time.Sleep(pause)
		}
	}))
	defer s.Close()
	got, err := openLoop(openTo(s, 1000, 1))
	require.NoError(t, err)
	require.Zero(t, got.Errors(), "%+v", got)
	require.Equal(t, int64(300), got.Due)
	require.GreaterOrEqual(t, got.Latency.Max, 1e6*pause.Seconds())
	require.GreaterOrEqual(t, got.Queued, int64(190))
	// 200 of 300 were due while it stood still; a closed loop would have seen
	// one slow request.
	require.GreaterOrEqual(t, got.Latency.P50, 1e6*pause.Seconds()/5)
	require.LessOrEqual(t, got.Late.P50, got.Latency.P50)
}

// What a server cannot do in time is not left out either.
func TestOpenLoopUnanswered(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-hang }))
	defer s.Close()
	defer close(hang)
	got, err := openLoop(openTo(s, 100, 2))
	require.NoError(t, err)
	require.Zero(t, got.Requests)
	require.Equal(t, int64(15+30), got.Unanswered)
	require.Equal(t, int64(30), got.Due)
	require.GreaterOrEqual(t, got.Latency.P50, 1e6*openLoopPatience.Seconds())
}

// A client that is late says so.
func TestOpenLoopLate(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer s.Close()
	c, err := newOpenClient(openTo(s, 100, 100))
	require.NoError(t, err)
	defer c.close()
	c.began = time.Now().Add(-time.Second)
	require.NoError(t, c.run())
	got := c.finish()
	require.Zero(t, got.Errors(), "%+v", got)
	require.Zero(t, got.Queued)
	require.GreaterOrEqual(t, got.Late.P50, 0.5e6)
	require.GreaterOrEqual(t, got.Latency.P50, got.Late.P50*0.99)
}

func TestOpenLoopErrors(t *testing.T) {
	var answers atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch answers.Add(1) % 5 {
		case 0:
			w.WriteHeader(http.StatusBadGateway)
		case 1:
			w.Header().Set("Connection", "close")
		case 4:
			w.Header().Set("Connection", "Keep-Alive")
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			w.(http.Flusher).Flush() // chunked
		}
	}))
	o := openTo(s, 500, 4)
	got, err := openLoop(o)
	require.NoError(t, err)
	require.Equal(t, answers.Load()/5, got.BadStatus)
	require.Equal(t, answers.Load()-got.Requests, got.Broken)
	require.Greater(t, got.Broken, answers.Load()/2)
	require.Zero(t, got.Unanswered)
	require.Zero(t, got.Connects)

	s.Close()
	got, err = openLoop(o)
	require.NoError(t, err)
	require.Zero(t, got.Requests)
	require.Equal(t, int64(225), got.Connects)
	require.Equal(t, int64(150), got.Due)
}

func TestOpenLoopArguments(t *testing.T) {
	for _, args := range [][]string{
		{"http://localhost:80/"}, {"https://127.0.0.1:80/"}, {"--rate=0", "http://127.0.0.1:80/"},
		{"--arrivals=bursts", "http://127.0.0.1:80/"}, {"--connections=0", "http://127.0.0.1:80/"}, {"http://[::1]:80/"}, {},
	} {
		require.Error(t, serveOpenLoop(args), "%q", args)
	}
}
