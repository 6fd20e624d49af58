package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"time"
)

// handshakesCommand runs this program as a client with TLS handshakes of a given
// kind, which wrk cannot. It makes a connection for each request but for
// handshakeOnce.
const handshakesCommand = "handshakes"

// Kinds of handshakes.
const (
	handshakeFull    = "full"    // X25519
	handshakeHybrid  = "hybrid"  // X25519MLKEM768 is preferred, X25519 is offered: what browsers do
	handshakeResumed = "resumed" // by tickets, X25519
	// One for each connection, before the time counts. The connection is kept,
	// and rests for keptPause between requests: so the client has time to
	// spare for handshakes beside it.
	handshakeOnce = "once"
)

const keptPause = 20 * time.Millisecond

// exchangeTimeout bounds a connection, from its begin to its end.
const exchangeTimeout = 10 * time.Second

// serveHandshakes is the client. It prints a Wrk as JSON.
func serveHandshakes(args []string) error {
	o := clientOptions{kind: handshakeFull}
	if err := o.parse(handshakesCommand, args); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1) // it is pinned to one CPU
	return printed(handshakes(o.kind, o.connections, o.length(), o.target))
}

// handshakes makes connections, as many at a time as told, until the time is
// over. A latency is that of a whole connection; that of a request if
// connections are kept.
func handshakes(kind string, connections int, duration time.Duration, target *url.URL) (Wrk, error) {
	began := time.Now()
	type share struct {
		times []float64
		bad   int64
		err   error
	}
	shares := make(chan share)
	for range connections {
		go func() {
			var s share
			if kind == handshakeOnce {
				s.times, s.err = keep(target, began.Add(duration))
				if s.err != nil {
					s.bad++
				}
				shares <- s
				return
			}
			config := clientTLS(tls.X25519)
			switch kind {
			case handshakeHybrid:
				config = clientTLS(tls.X25519MLKEM768, tls.X25519)
			case handshakeResumed:
				config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			for first := true; time.Since(began) < duration; first = false {
				start := time.Now()
				if err := exchange(config, target, kind == handshakeResumed && !first); err != nil {
					s.bad, s.err = s.bad+1, err
					continue
				}
				s.times = append(s.times, float64(time.Since(start))/float64(time.Microsecond))
			}
			shares <- s
		}()
	}
	var w Wrk
	var times []float64
	var last error
	for range connections {
		s := <-shares
		times = append(times, s.times...)
		w.ReadErrors += s.bad
		last = errors.Join(last, s.err)
	}
	if len(times) == 0 {
		return w, fmt.Errorf("no handshake went well: %w", last)
	}
	w.summarize(times, time.Since(began))
	return w, nil
}

// keep asks again and again on one connection, and returns the latencies in
// microseconds.
func keep(target *url.URL, until time.Time) ([]float64, error) {
	raw, err := net.Dial("tcp", target.Host)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	c := tls.Client(raw, clientTLS(tls.X25519))
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	var times []float64
	// Not all connections ask at the same time.
	for pause := rand.N(keptPause); time.Now().Before(until); pause = keptPause {
		time.Sleep(pause)
		start := time.Now()
		if err := request(raw, c, r, target, "keep-alive"); err != nil {
			return times, err
		}
		times = append(times, float64(time.Since(start))/float64(time.Microsecond))
	}
	return times, nil
}

// exchange makes one connection with one request.
func exchange(config *tls.Config, target *url.URL, resumes bool) error {
	raw, err := net.Dial("tcp", target.Host)
	if err != nil {
		return err
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	if err := request(raw, c, bufio.NewReader(c), target, "close"); err != nil {
		return err
	}
	state := c.ConnectionState()
	switch {
	case state.DidResume != resumes:
		return fmt.Errorf("resumed: %v, want %v", state.DidResume, resumes)
	case tls.CipherSuiteName(state.CipherSuite) != suite:
		return fmt.Errorf("%s, want %s", tls.CipherSuiteName(state.CipherSuite), suite)
	}
	return nil
}

// request asks once on c, which reads by r and lies over raw.
func request(raw net.Conn, c *tls.Conn, r *bufio.Reader, target *url.URL, connection string) error {
	if err := raw.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", target.Path, target.Host, connection); err != nil {
		return err
	}
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
