package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// serveTLS starts a net/http backend with TLS and returns it.
func serveTLS(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s
}

// serverTLS is a configuration for listeners, with the certificate of httptest,
// and what clients need to trust it.
func serverTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"http/1.1"}},
		&tls.Config{RootCAs: pool, ServerName: "example.com"}
}

// onListener is TLS on the port of a rig.
func onListener(c *tls.Config) map[string]*proxy.ListenerTLS {
	return map[string]*proxy.ListenerTLS{"listener": {Config: c}}
}

// startTLS is start with TLS on the listener. The client speaks it.
func startTLS(t *testing.T, engine string, routes []proxy.RouteSpec) (*rig, *http.Client) {
	t.Helper()
	server, client := serverTLS(t)
	r := start(t, engine, routes, func(s *proxy.Snapshot) { s.TLS = onListener(server) })
	transport := &http.Transport{TLSClientConfig: client}
	t.Cleanup(transport.CloseIdleConnections)
	return r, &http.Client{Transport: transport}
}

func TestTLSTransfers(t *testing.T) {
	data := random(6 << 20)
	each(t, func(t *testing.T, engine string) {
		r, client := startTLS(t, engine, to(serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				echo(w, r)
				return
			}
			var size int
			fmt.Sscanf(r.URL.Path, "/%d", &size)
			if r.URL.RawQuery == "chunked" {
				w.(http.Flusher).Flush()
			}
			w.Header().Set("X-Proto", r.Header.Get("X-Forwarded-Proto"))
			w.Write(data[:size])
		})))
		for _, size := range []int{0, 1, 1000, 16 << 10, 100_000, 6 << 20} {
			for _, query := range []string{"", "?chunked"} {
				res, err := client.Get(fmt.Sprintf("https://%s/%d%s", r.addr, size, query))
				require.NoError(t, err)
				got := readAll(t, res)
				require.True(t, got == string(data[:size]), "%d bytes of %d", len(got), size)
				if query == "" {
					require.Equal(t, "https", res.Header.Get("X-Proto"))
				}
			}
			res, err := client.Post("https://"+r.addr+"/", "application/octet-stream", bytes.NewReader(data[:size]))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d %x <nil>", size, sha256.Sum256(data[:size])), readAll(t, res))
		}
		require.EqualValues(t, 1, r.counted().Handshakes)
	})
}

// A response that ends with its connection ends with a close_notify; one that
// was cut does not.
func TestTLSCloseDelimited(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		for _, whole := range []bool{true, false} {
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			require.NoError(t, err)
			defer ln.Close()
			relayed := make(chan struct{})
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				conn.Read(make([]byte, 4096))
				conn.Write([]byte("HTTP/1.0 200 OK\r\n\r\nsome bytes"))
				if !whole {
					<-relayed // else the RST overtakes the bytes
					conn.(*net.TCPConn).SetLinger(0)
				}
			}()
			server, client := serverTLS(t)
			r := start(t, engine, to(ln.Addr().String()), func(s *proxy.Snapshot) {
				s.TLS = onListener(server)
			})
			conn, err := tls.Dial("tcp", r.addr, client)
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.Write([]byte("GET / HTTP/1.0\r\nHost: example.com\r\n\r\n"))
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			in := bufio.NewReader(conn)
			_, err = head(in)
			require.NoError(t, err)
			var got [len("some bytes")]byte
			_, err = io.ReadFull(in, got[:])
			require.NoError(t, err)
			require.Equal(t, "some bytes", string(got[:]))
			close(relayed)
			_, err = in.ReadByte()
			if whole {
				require.Equal(t, io.EOF, err)
			} else {
				require.Error(t, err)
				require.NotEqual(t, io.EOF, err)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			}
			conn.Close()
			r.stop()
		}
	})
}

func TestTLSRefusals(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r, client := startTLS(t, engine, to(serve(t, echo)))
		ask := func(text string) string {
			conn, err := net.Dial("tcp", r.addr)
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.Write([]byte(text))
			require.NoError(t, err)
			require.NoError(t, conn.(*net.TCPConn).CloseWrite())
			got, _ := io.ReadAll(conn) // what is no TLS may be cut
			return string(got)
		}
		got := ask("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		require.True(t, strings.HasPrefix(got, "HTTP/1.1 400 Bad Request\r\n"), "%q", got)
		require.Contains(t, got, "plain_http")
		require.Contains(t, got, "HTTPS")
		require.NotContains(t, ask("\x00\x01garbage, and more of it"), "HTTP")
		failed := r.counted().HandshakesFailed
		require.NotContains(t, ask(""), "HTTP")
		require.Equal(t, failed, r.counted().HandshakesFailed, "it has said nothing")

		old := client.Transport.(*http.Transport).TLSClientConfig.Clone()
		old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		_, err := tls.Dial("tcp", r.addr, old)
		require.ErrorContains(t, err, "protocol version", "the alert comes")

		res, err := client.Post("https://"+r.addr+"/", "text/plain", strings.NewReader("hello"))
		require.NoError(t, err)
		readAll(t, res)
		require.Equal(t, 200, res.StatusCode)
	})
}

// Clients that vanish at any byte of the handshake leave nothing.
func TestTLSVanishingClients(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r, client := startTLS(t, engine, to(serve(t, echo)))
		before := runtime.NumGoroutine()
		for i := range 100 {
			conn, err := net.Dial("tcp", r.addr)
			require.NoError(t, err)
			config := client.Transport.(*http.Transport).TLSClientConfig.Clone()
			err = tls.Client(&cutConn{Conn: conn, left: 20 * i}, config).Handshake()
			if i < 20 {
				require.Error(t, err)
			}
			conn.Close()
		}
		require.Eventually(t, func() bool { return r.counted().Connections == 0 }, patience, 10*time.Millisecond)
		for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(end), "goroutines: %d, %d before", runtime.NumGoroutine(), before)
		}
	})
}

// longHello is one handshake message of 60,000 bytes, of which the last records
// are missing: types and lengths (RFC 8446 4 and 5.1), no content.
func longHello() []byte {
	const record = 16 << 10
	long := []byte{22, 3, 1, record >> 8, 0, 1, 0, 60000 >> 8, 60000 & 0xff}
	long = append(long, make([]byte, record-4)...)
	for range 2 {
		long = append(long, 22, 3, 1, record>>8, 0)
		long = append(long, make([]byte, record)...)
	}
	return long
}

// What is kept of handshakes that do not end is bounded: the long ones fail, the
// first of them first, so that one that goes on is completed, with clients and
// with backends.
func TestTLSLongHandshakes(t *testing.T) {
	long := longHello()
	each(t, func(t *testing.T, engine string) {
		server, client := serverTLS(t)
		chain := server.Certificates[0]
		for length := 0; length < 200<<10; length += len(chain.Certificate[0]) { // TLS 1.3 allows 256 KiB
			chain.Certificate = append(chain.Certificate, chain.Certificate[0])
		}
		backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close") // each request has its handshake
			echo(w, r)
		}))
		backend.TLS = &tls.Config{Certificates: []tls.Certificate{chain}}
		backend.StartTLS()
		t.Cleanup(backend.Close)
		routes := append(to(serve(t, echo)), routeTo("/chain", backend.Listener.Addr().String()))
		routes[1].Backends[0].TLS = client
		r := start(t, engine, routes, func(s *proxy.Snapshot) {
			s.TLS = onListener(server)
			s.Limits.Memory = 32 << 20
		})
		begin := func(n int) (conns []net.Conn) {
			for range n {
				conn, err := net.Dial("tcp", r.addr)
				require.NoError(t, err)
				conns = append(conns, conn)
				_, _ = conn.Write(long) // one that is refused may be gone
			}
			return conns
		}
		ask := func(path string, status int) {
			transport := &http.Transport{TLSClientConfig: client, DisableKeepAlives: true}
			res, err := (&http.Client{Transport: transport}).Post("https://"+r.addr+path, "text/plain", strings.NewReader("hello"))
			require.NoError(t, err)
			body := readAll(t, res)
			require.Equal(t, status, res.StatusCode, body)
		}
		ask("/chain", 200)
		conns := begin(120) // 5.8 MB, of which 4 MB are kept
		require.Eventually(t, func() bool { return r.counted().HandshakesFailed > 0 }, patience, 10*time.Millisecond)
		require.Less(t, int(r.counted().HandshakesFailed), 120)
		ask("/", 200)
		require.Positive(t, r.counted().Reasons[message.ReasonMemory])
		conns[119].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := conns[0].Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		_, err = conns[119].Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		failed := r.counted().HandshakesFailed
		ask("/chain", 200)
		require.Greater(t, r.counted().HandshakesFailed, failed, "it takes the place of others")
		for _, conn := range conns {
			conn.Close()
		}
		require.Eventually(t, func() bool { return r.counted().Connections == 0 }, patience, 10*time.Millisecond)

		failed = r.counted().HandshakesFailed
		for _, conn := range begin(60) { // what the others held is given back
			defer conn.Close()
		}
		ask("/", 200)
		ask("/chain", 200)
		require.Equal(t, failed, r.counted().HandshakesFailed)
	})
}

// cutConn ends after a number of written bytes.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	c.left -= n
	if _, err := c.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	if n < len(b) {
		c.Conn.Close()
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func TestTLSBackend(t *testing.T) {
	data := random(3 << 20)
	each(t, func(t *testing.T, engine string) {
		backend := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				echo(w, r)
				return
			}
			w.Write(data)
		})
		pool := x509.NewCertPool()
		pool.AddCert(backend.Certificate())
		routes := to(backend.Listener.Addr().String())
		routes[0].Backends[0].TLS = &tls.Config{RootCAs: pool, ServerName: "example.com"}
		r := start(t, engine, routes, nil)
		for range 3 {
			res, err := http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			require.True(t, readAll(t, res) == string(data))
			res, err = http.Post("http://"+r.addr+"/", "application/octet-stream", bytes.NewReader(data))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d %x <nil>", len(data), sha256.Sum256(data)), readAll(t, res))
		}
		require.EqualValues(t, 1, r.counted().BackendConnects, "pooled")
	})
}

func TestTLSBackendThatIsNotTrusted(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		bad := serveTLS(t, echo)
		routes := to(bad.Listener.Addr().String())
		routes[0].Backends[0].TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
		r := start(t, engine, routes, nil)
		res, err := http.Post("http://"+r.addr+"/", "text/plain", strings.NewReader("secret"))
		require.NoError(t, err)
		require.Equal(t, 502, res.StatusCode)
		require.Contains(t, readAll(t, res), "backend_tls")
	})
}

// finConn tells a FIN from the end that TLS knows.
type finConn struct{ net.Conn }

var errFIN = errors.New("a FIN without close_notify")

func (c finConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		err = errFIN
	}
	return n, err
}

// A backend is told why we leave: whose certificate is refused gets an alert,
// and whose connection was idle for too long a close_notify.
func TestTLSBackendIsToldOfTheEnd(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		id, err := newIdentity()
		require.NoError(t, err)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config := id.server()
			config.MaxVersion = version
			ended := make(chan error, 1)
			addr := scripted(t, func(n int, c *net.TCPConn) {
				s := tls.Server(finConn{c}, config)
				in := bufio.NewReader(s)
				_, err := http.ReadRequest(in)
				if err == nil {
					_, _ = io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					_, err = in.ReadByte()
				}
				ended <- err
			})
			routes := to(addr)
			routes[0].Backends[0].TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
			r := start(t, engine, routes, nil)
			res, err := http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			require.Contains(t, readAll(t, res), "backend_tls")
			require.ErrorContains(t, <-ended, "remote error: tls: bad certificate")
			r.stop()

			routes[0].Backends[0].TLS = id.client()
			r = start(t, engine, routes, func(s *proxy.Snapshot) { s.Routes[0].Timeouts.BackendIdle = 100 * time.Millisecond })
			res, err = http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			require.Equal(t, 200, res.StatusCode)
			readAll(t, res)
			require.Equal(t, io.EOF, <-ended)
			r.stop()
		}
	})
}

// A kept connection to a backend that ends without an answer, with and without a
// close_notify, costs no request that may be sent again; one that half closes
// after its answer is not kept.
func TestTLSBackendThatHangsUp(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		id, err := newIdentity()
		require.NoError(t, err)
		for _, how := range []string{"notify", "fin", "half closed"} {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				config := id.server()
				config.MaxVersion = version
				addr := scripted(t, func(n int, c *net.TCPConn) {
					s := tls.Server(c, config)
					in := bufio.NewReader(s)
					for served := 0; ; served++ {
						if _, err := http.ReadRequest(in); err != nil {
							return
						}
						if served == 1 { // the second request gets no answer
							if how == "notify" {
								_ = s.CloseWrite()
							}
							return
						}
						_, _ = fmt.Fprintf(s, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n%10)
						if how == "half closed" {
							_ = s.CloseWrite()
							_, _ = io.Copy(io.Discard, in)
							return
						}
					}
				})
				routes := to(addr)
				routes[0].Backends[0].TLS = id.client()
				r := start(t, engine, routes, nil)
				for range 6 {
					res, err := http.Get("http://" + r.addr + "/")
					require.NoError(t, err)
					require.Equal(t, 200, res.StatusCode, how)
					readAll(t, res)
				}
				require.EqualValues(t, 6, r.counted().BackendConnects, how)
				r.stop()
			}
		}
	})
}

// That many handshakes wait is told, and that it is over.
func TestTLSStorm(t *testing.T) {
	ours, theirs := net.Pipe()
	go tls.Client(theirs, &tls.Config{InsecureSkipVerify: true}).Handshake()
	hello := make([]byte, 16<<10)
	n, err := ours.Read(hello)
	require.NoError(t, err)
	hello = hello[:n]
	require.NoError(t, ours.Close())
	each(t, func(t *testing.T, engine string) {
		r, _ := startTLS(t, engine, to("127.0.0.1:1"))
		told := make(chan bool, 16)
		r.proxy.Post(func() { r.proxy.OnStorm(func(on bool) { told <- on }) })
		var conns []net.Conn
		for range 250 {
			conn, err := net.Dial("tcp", r.addr)
			require.NoError(t, err)
			defer conn.Close()
			conns = append(conns, conn)
		}
		require.Eventually(t, func() bool { return r.counted().Connections == uint64(len(conns)) }, 20*time.Second, time.Millisecond)
		arrived := make(chan struct{})
		r.proxy.Post(func() { <-arrived })
		for _, conn := range conns {
			_, err := conn.Write(hello)
			require.NoError(t, err)
		}
		close(arrived)
		for _, want := range []bool{true, false} {
			select {
			case on := <-told:
				require.Equal(t, want, on)
			case <-time.After(30 * time.Second):
				require.FailNow(t, "not told", "%v", want)
			}
		}
	})
}

// gathered is a connection that holds back what is written, once it is told to.
type gathered struct {
	net.Conn
	hold bool
	held []byte
}

func (g *gathered) Write(b []byte) (int, error) {
	if !g.hold {
		return g.Conn.Write(b)
	}
	g.held = append(g.held, b...)
	return len(b), nil
}

// What a backend sends behind a response is nobody's response over TLS, too: in
// a record of its own, in one of which only a part has come, and behind what one
// receive took.
func TestTLSResponseTooLong(t *testing.T) {
	const surplus = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
	const overhead = 5 + 1 + 16 // of a record (RFC 8446 5.2)
	const plain = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
	each(t, func(t *testing.T, engine string) {
		id, err := newIdentity()
		require.NoError(t, err)
		config := id.server()
		config.SessionTicketsDisabled, config.DynamicRecordSizingDisabled = true, true
		for name, test := range map[string]struct {
			size int
			cut  int // so many bytes of the surplus come later
		}{
			"a record":               {1000, 0},
			"a record without end":   {1000, 1},
			"a header without end":   {1000, overhead + len(surplus) - 2},
			"the rest of a buffer":   {loop.HeadBytes - 2*overhead - len(plain) + len("%d") - len("32682"), 0},
			"more than a buffer":     {100_000, 0},
			"more, without its end":  {100_000, 3},
			"a large body and a bit": {1 << 20, overhead + len(surplus) - 5},
		} {
			t.Run(name, func(t *testing.T) {
				body := stressBody(name, test.size)
				backend := scripted(t, func(_ int, c *net.TCPConn) {
					g := &gathered{Conn: c}
					s := tls.Server(g, config)
					for in := bufio.NewReader(s); ; {
						first, err := head(in)
						if err != nil {
							return
						}
						c.Write(g.held)
						g.held, g.hold = nil, strings.Contains(first, "/long")
						if !g.hold {
							io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
							continue
						}
						s.Write(append(fmt.Appendf(nil, plain, len(body)), body...))
						io.WriteString(s, surplus)
						whole := len(g.held) - test.cut
						c.Write(g.held[:whole])
						g.held = g.held[whole:]
					}
				})
				routes := to(backend)
				routes[0].Backends[0].TLS = id.client()
				r := start(t, engine, routes, nil)
				for range 5 {
					c := r.dial()
					_, err := io.WriteString(c, "GET /long HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
					require.NoError(t, err)
					in := bufio.NewReader(c)
					for _, want := range []string{string(body), "right"} {
						res, err := http.ReadResponse(in, nil)
						require.NoError(t, err)
						require.True(t, readAll(t, res) == want)
					}
					require.NoError(t, c.Close())
				}
			})
		}
	})
}
