package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// secureBackend is a backend over TLS; it returns its port.
func secureBackend(t *testing.T, config *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(tls.NewListener(l, config)) }() // until Close
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// toSecure is a configuration with one backend over TLS.
func toSecure(port, members string) string {
	return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 1, "routes": {"*": {"backends": [
		{"host": "https://127.0.0.1:%s", "tls": {%s}}]}}}`, port, members)
}

// Only a backend that is who it should be gets requests, and a check tells the
// same cause as the log.
func TestTLSBackendVerified(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, strangers := newAuthority(t), newAuthority(t)
		good, client := a.issue("backend.test", nil), a.issue("cup", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})
		past := a.issue("backend.test", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		ca := fmt.Sprintf(`"ca_file": %q`, a.file)
		named := ca + `, "server_name": "backend.test"`
		for _, which := range []struct {
			name, members string
			pair          *pair
			auth          tls.ClientAuthType
			cause         string // in the log, of a 502
		}{
			{"by its address", ca, good, tls.NoClientCert, ""},
			{"by its name", named, good, tls.NoClientCert, ""},
			{"another name", ca + `, "server_name": "other.test"`, good, tls.NoClientCert, "is valid for backend.test, not other.test"},
			{"another authority", named, strangers.issue("backend.test", nil), tls.NoClientCert, "signed by unknown authority"},
			{"the system's authorities", "", good, tls.NoClientCert, "signed by unknown authority"},
			{"expired", named, past, tls.NoClientCert, "has expired"},
			{"no TLS", named, nil, tls.NoClientCert, "does not look like a TLS handshake"},
			{"client certificate", named + fmt.Sprintf(`, "certificate": %q, "key": %q`, client.crt, client.key), good, tls.RequireAndVerifyClientCert, ""},
			{"no client certificate", named, good, tls.RequireAndVerifyClientCert, "certificate required"},
		} {
			var served atomic.Int64
			serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served.Add(1)
				if r.TLS.ServerName == "" { // of an address there is none
					w.Header().Set("X-Nameless", "yes")
				}
			})
			var port string
			if which.pair != nil {
				port = secureBackend(t, &tls.Config{
					Certificates: []tls.Certificate{which.pair.Certificate}, ClientAuth: which.auth, ClientCAs: a.pool,
				}, serve)
			} else {
				_, port, _ = strings.Cut(startBackend(t, "plain").addr, ":")
			}
			c := startCup(t, engine, toSecure(port, which.members))
			res, text := exchangeOf(t, c.addr, nil, "POST / HTTP/1.1\r\nHost: cup.test\r\nContent-Length: 6\r\n\r\nsecret")
			if which.cause == "" {
				require.Equal(t, 200, res.StatusCode, which.name)
				require.EqualValues(t, 1, served.Load(), which.name)
				require.Equal(t, which.name == "by its address", res.Header.Get("X-Nameless") == "yes", which.name)
			} else {
				require.Zero(t, served.Load(), which.name)
				require.Contains(t, text, "502 Bad Gateway: backend_tls", which.name)
				told, err := c.await("TLS with a backend failed")
				require.NoError(t, err)
				require.Contains(t, told.Err, which.cause, which.name)
				require.Contains(t, told.line, "127.0.0.1:"+port)
			}
			for _, args := range [][]string{{"check"}, {"check", "--get", "/"}, {"check", "-b", "https://127.0.0.1:" + port}} {
				stdout, _, code := c.cupctl(args...)
				require.Equal(t, which.cause == "", code == 0, "%s: %v: %s", which.name, args, stdout)
				require.Contains(t, stdout, which.cause, "%s: %v", which.name, args)
			}
			c.stop()
		}
	})
}

// Connections to backends are kept, carry bodies of every kind on both versions,
// and their end is noticed.
func TestTLSBackendTransfers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		for _, version := range tlsVersions {
			back := startBackend(t, "a")
			port := secureBackend(t, &tls.Config{
				Certificates: []tls.Certificate{a.issue("backend.test", nil).Certificate}, MaxVersion: version,
			}, back)
			c := startCup(t, engine, toSecure(port, fmt.Sprintf(`"ca_file": %q`, a.file)))
			b := browse(t, c.addr)
			for i := range int64(20) {
				_, err := mixedRequest(b, int(i%4), i)
				require.NoError(t, err)
			}
			require.EqualValues(t, 1, c.status().Totals.BackendConnects)
			for _, query := range []string{"", "?chunked", "?close"} {
				_, err := b.get("", 50<<20, 3, query)
				require.NoError(t, err)
			}
			b = browse(t, c.addr)
			for _, chunked := range []bool{false, true} {
				_, err := b.post("", 20<<20, 5, chunked)
				require.NoError(t, err)
			}
			l := startLoad(t, 20, mixed(c.addr))
			l.more(pick[int64](10_000, 300))
			require.Empty(t, l.stop())
			c.stop()
		}
	})
}

// A backend's response that ends without a close_notify may be a part of it.
func TestTLSBackendTruncates(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		config := &tls.Config{Certificates: []tls.Certificate{a.issue("backend.test", nil).Certificate}}
		for _, how := range []struct {
			response string
			notify   bool // ends with a close_notify
			whole    bool
		}{
			{"HTTP/1.1 200 OK\r\n\r\nsome bytes", true, true},
			{"HTTP/1.1 200 OK\r\n\r\nsome bytes", false, false},
			{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome bytes", false, true}, // it tells its own end
			{"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nsome bytes", true, false},
			{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nsome bytes\r\n", true, false},
			{"HTTP/1.1 200 O", false, false},
		} {
			addr := startRaw(t, func(conn net.Conn) {
				s := tls.Server(conn, config)
				_, _ = s.Read(make([]byte, 4096))
				_, _ = io.WriteString(s, how.response)
				if how.notify {
					_ = s.CloseWrite()
				}
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
			})
			_, port, _ := strings.Cut(addr, ":")
			c := startCup(t, engine, toSecure(port, fmt.Sprintf(`"ca_file": %q`, a.file)))
			conn := dial(t, c.addr)
			_, err := io.WriteString(conn, "GET / HTTP/1.0\r\nHost: cup.test\r\n\r\n")
			require.NoError(t, err)
			got, err := io.ReadAll(conn)
			conn.Close()
			switch {
			case !strings.Contains(how.response, "\r\n\r\n"):
				require.NoError(t, err)
				require.Contains(t, string(got), " 502 Bad Gateway")
			case how.whole:
				require.NoError(t, err, how.response)
				require.True(t, strings.HasSuffix(string(got), "\r\n\r\nsome bytes"), "%q", got)
			case strings.Contains(how.response, "Length"):
				require.Contains(t, string(got), "Content-Length: 11\r\n")
			default:
				require.Error(t, err, how.response)
			}
			c.stop()
		}
	})
}
