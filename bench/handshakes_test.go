package main

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Handshakes are of the kind that was asked for, or it is an error.
func TestHandshakes(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeCertificate(dir))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certificateFile), filepath.Join(dir, keyFile))
	require.NoError(t, err)
	groups := make(chan tls.CurveID, 100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case groups <- r.TLS.CurveID:
		default:
		}
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	target, err := url.Parse(server.URL + backendPath + "1")
	require.NoError(t, err)
	for kind, group := range map[string]tls.CurveID{
		handshakeFull: tls.X25519, handshakeHybrid: tls.X25519MLKEM768, handshakeResumed: tls.X25519,
		handshakeOnce: tls.X25519,
	} {
		w, err := handshakes(kind, 2, 100*time.Millisecond, target)
		require.NoError(t, err, kind)
		require.Zero(t, w.Errors(), kind)
		require.GreaterOrEqual(t, w.Requests, int64(2), kind)
		require.LessOrEqual(t, w.P50, w.P99, kind)
		require.Equal(t, group, <-groups, kind)
		for len(groups) > 0 {
			<-groups
		}
	}
	server.TLS.SessionTicketsDisabled = true
	w, err := handshakes(handshakeResumed, 1, 100*time.Millisecond, target)
	require.NoError(t, err)
	require.Positive(t, w.Errors())
}

func TestBesideTable(t *testing.T) {
	calm := pausing("calm", 0)
	r := &Results{Loads: []Load{plain("plain", 64, 100), calm, pausing("burst", handshakers)}, Programs: []Program{{Name: nameRing}}}
	for round, p99 := range [][2]float64{{100, 200}, {200, 500}, {100, 300}} {
		r.Runs = append(r.Runs,
			Run{Round: round, Load: "calm", Program: nameRing, Wrk: Wrk{Requests: 1, P99: p99[0]}},
			Run{Round: round, Load: "burst", Program: nameRing, Wrk: Wrk{Requests: 1, P99: p99[1]}, Beside: 5000})
	}
	var w strings.Builder
	r.writeBeside(&w)
	require.Contains(t, w.String(), "| burst | cloud-cup uring | 5000 | 300 (200-500) | 2.50 (2.00-3.00) |")
	require.Nil(t, r.calm(&calm))

	r.Loads = r.Loads[2:]
	w.Reset()
	r.writeBeside(&w)
	require.Empty(t, w.String())
}
