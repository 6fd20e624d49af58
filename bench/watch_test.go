package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watcherOf asks a server.
func watcherOf(t *testing.T, address string, keep bool) *watcher {
	t.Helper()
	target, err := url.Parse("http://" + address + "/")
	require.NoError(t, err)
	w := &watcher{target: target, want: backendBody(watchBytes), keep: keep}
	t.Cleanup(w.hangUp)
	return w
}

// serveBytes is a handler that answers as the backend does.
func serveBytes(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write(backendBody(watchBytes)) // the client may have gone
}

func TestWatchSeesWhatIsRight(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(serveBytes))
	defer s.Close()
	target, err := url.Parse(s.URL + "/")
	require.NoError(t, err)
	w := watch(100*time.Millisecond, target)
	require.Zero(t, w.failed(), "%v", w.Failed)
	require.Zero(t, w.Repeated)
	require.EqualValues(t, watchKept, w.Connects)
	require.GreaterOrEqual(t, w.Requests, int64(watchKept+watchFresh))
	require.Greater(t, w.Max, 0.0)
	require.LessOrEqual(t, w.P50, w.P99)
	require.LessOrEqual(t, w.P99, w.Max)
}

// One answer after the other, each on a connection of its own.
func TestWatchTellsFailuresApart(t *testing.T) {
	whole := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", watchBytes, backendBody(watchBytes))
	for _, c := range []struct{ answer, kind string }{
		{whole, ""},
		{"", failedNone},
		{whole[:len(whole)-1], failedCut},
		{whole[:20], failedCut},
		{whole[:len(whole)-1] + "x", failedBytes},
		{"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno", failedStatus},
		{"reset", failedReset},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1000)) // its end would be a failure
			if c.answer == "reset" {
				_ = conn.(*net.TCPConn).SetLinger(0)
				return
			}
			_, _ = conn.Write([]byte(c.answer))
		}()
		err = watcherOf(t, l.Addr().String(), false).ask()
		require.NoError(t, l.Close())
		if c.kind == "" {
			require.NoError(t, err)
			continue
		}
		require.Error(t, err)
		require.Equal(t, c.kind, kindOf(err), "%.20q: %v", c.answer, err)
	}
	// Nobody listens.
	require.Equal(t, failedRefused, kindOf(watcherOf(t, closedAddress(t), false).ask()))
	require.Equal(t, failedOther, kindOf(errors.New("something else")))
}

// closedAddress is one where nobody listens.
func closedAddress(t *testing.T) string {
	address, err := freeAddress()
	require.NoError(t, err)
	return address
}

// A kept connection that was ended is no failure: without a word if the client
// can know it, and by a second attempt if it cannot.
func TestWatchAsksAgain(t *testing.T) {
	var cut atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cut.CompareAndSwap(true, false) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
			return
		}
		serveBytes(w, r)
	}))
	defer s.Close()
	w := watcherOf(t, strings.TrimPrefix(s.URL, "http://"), true)
	require.NoError(t, w.ask())
	cut.Store(true)
	require.NoError(t, w.ask())
	require.EqualValues(t, 1, w.seen.Repeated)
	require.EqualValues(t, 2, w.seen.Connects)

	s.CloseClientConnections()
	require.Eventually(t, func() bool { return ended(w.conn) }, time.Minute, time.Millisecond)
	require.NoError(t, w.ask())
	require.EqualValues(t, 1, w.seen.Repeated)
	require.EqualValues(t, 3, w.seen.Connects)

	// On a new connection there is nothing to repeat.
	cut.Store(true)
	w = watcherOf(t, strings.TrimPrefix(s.URL, "http://"), false)
	require.Error(t, w.ask())
	require.Zero(t, w.seen.Repeated)
}
