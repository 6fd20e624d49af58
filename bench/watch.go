package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// watchCommand runs this program as a client that asks at a steady pace while
// something goes wrong, looks at every byte, and tells what failed and how.
const watchCommand = "watch"

// The pace: each connection asks once in watchPause, whether or not the answer
// before came in time.
const (
	watchKept   = 48 // connections that are kept
	watchFresh  = 16 // that are opened for each request
	watchPause  = 20 * time.Millisecond
	watchBytes  = 16 << 10 // of a response's body
	watchWithin = 5 * time.Second
)

// Kinds of failed requests.
const (
	failedRefused = "refused"     // no connection was had
	failedReset   = "reset"       // by the proxy, before or in the response
	failedNone    = "no response" // the connection ended before it
	failedCut     = "cut"         // the connection ended in it
	failedTimeout = "timeout"     // longer than watchWithin
	failedStatus  = "status"      // other than 200
	failedBytes   = "wrong bytes" // whole, but not what was asked for
	failedOther   = "other"       // told on standard error
)

// Watched is what the client saw. Latencies are in microseconds, from the moment
// when the request was due.
type Watched struct {
	Requests int64            `json:"requests"` // those that failed included
	Failed   map[string]int64 `json:"failed,omitempty"`
	// Repeated counts requests on a kept connection that ended without a byte
	// of the response, and which were asked again on another one, as browsers
	// do (RFC 9112 9.3.1): no failures, unless the second attempt is one.
	Repeated int64   `json:"repeated"`
	Connects int64   `json:"connects"` // of kept connections
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
}

// failed counts all failed requests.
func (w *Watched) failed() int64 {
	n := int64(0)
	for _, some := range w.Failed {
		n += some
	}
	return n
}

// serveWatch is the client. It prints a Watched as JSON.
func serveWatch(args []string) error {
	fs := pflag.NewFlagSet(watchCommand, pflag.ContinueOnError)
	seconds := fs.Float64("seconds", 1, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	target, err := url.Parse(fs.Arg(0))
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(1) // it is pinned to one CPU
	text, err := json.Marshal(watch(time.Duration(*seconds*float64(time.Second)), target))
	fmt.Println(string(text))
	return err
}

// watch asks until the time is over.
func watch(duration time.Duration, target *url.URL) Watched {
	until := time.Now().Add(duration)
	done := make(chan *watcher)
	for i := range watchKept + watchFresh {
		w := &watcher{target: target, want: backendBody(watchBytes), keep: i < watchKept}
		w.seen.Failed = map[string]int64{}
		go func() {
			w.run(until)
			done <- w
		}()
	}
	all := Watched{Failed: map[string]int64{}}
	var times []float64
	for range watchKept + watchFresh {
		w := <-done
		all.Requests += w.seen.Requests
		all.Repeated += w.seen.Repeated
		all.Connects += w.seen.Connects
		for kind, n := range w.seen.Failed {
			all.Failed[kind] += n
		}
		times = append(times, w.times...)
	}
	slices.Sort(times)
	if n := len(times); n > 0 {
		all.P50, all.P99, all.Max = times[n/2], times[n*99/100], times[n-1]
	}
	return all
}

// watcher is one connection after the other.
type watcher struct {
	target *url.URL
	want   []byte
	keep   bool

	conn  net.Conn // nil: none
	r     *bufio.Reader
	seen  Watched
	times []float64
}

func (w *watcher) run(until time.Time) {
	defer w.hangUp()
	// Not all connections ask at the same time.
	for due := time.Now().Add(rand.N(watchPause)); due.Before(until); due = due.Add(watchPause) {
		start := due
		if pause := time.Until(due); pause > 0 {
			time.Sleep(pause)
			start = time.Now() // waking up late is nobody's fault but ours
		}
		err := w.ask()
		w.seen.Requests++
		if err != nil {
			w.seen.Failed[kindOf(err)]++
			continue
		}
		w.times = append(w.times, float64(time.Since(start))/float64(time.Microsecond))
	}
}

// errUnanswered marks errors before the first byte of a response.
var errUnanswered = errors.New("no response")

// ask makes one request. An error says that it failed.
func (w *watcher) ask() error {
	if w.conn != nil && ended(w.conn) {
		w.hangUp()
	}
	kept := w.conn != nil
	err := w.once()
	if kept && errors.Is(err, errUnanswered) && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.seen.Repeated++
		err = w.once()
	}
	return err
}

// once asks on the connection, or on a new one.
func (w *watcher) once() (err error) {
	defer func() {
		if err != nil {
			w.hangUp()
		}
	}()
	connection := "keep-alive"
	if !w.keep {
		connection = "close"
	}
	if w.conn == nil {
		if w.conn, err = net.DialTimeout("tcp", w.target.Host, watchWithin); err != nil {
			return err
		}
		w.r = bufio.NewReader(w.conn)
		if w.keep {
			w.seen.Connects++
		}
	}
	if err := w.conn.SetDeadline(time.Now().Add(watchWithin)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", w.target.Path, w.target.Host, connection); err != nil {
		return fmt.Errorf("%w: %w", errUnanswered, err)
	}
	if _, err := w.r.Peek(1); err != nil {
		return fmt.Errorf("%w: %w", errUnanswered, err)
	}
	response, err := http.ReadResponse(w.r, nil)
	if err != nil {
		// A head that was cut within a line is told as a malformed one.
		_, more := w.r.Peek(1)
		return errors.Join(err, more)
	}
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return &statusError{response.StatusCode}
	case !bytes.Equal(body, w.want):
		return errWrongBytes
	}
	if response.Close {
		w.hangUp()
	}
	return nil
}

func (w *watcher) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close() // nothing is left to be sent
		w.conn = nil
	}
}

var errWrongBytes = errors.New("wrong bytes")

type statusError struct{ status int }

func (e *statusError) Error() string { return http.StatusText(e.status) }

// ended reports whether the peer has ended a connection that rests.
func ended(conn net.Conn) bool {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	var n int
	if controlErr := raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}); controlErr != nil {
		return true
	}
	return err != unix.EAGAIN || n > 0
}

// kindOf is the kind of failure that err is.
func kindOf(err error) string {
	var status *statusError
	switch {
	case errors.As(err, &status):
		return failedStatus
	case errors.Is(err, errWrongBytes):
		return failedBytes
	case errors.Is(err, os.ErrDeadlineExceeded):
		return failedTimeout
	case errors.Is(err, unix.ECONNREFUSED):
		return failedRefused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return failedReset
	case errors.Is(err, errUnanswered):
		return failedNone
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failedCut
	}
	fmt.Fprintln(os.Stderr, err)
	return failedOther
}
