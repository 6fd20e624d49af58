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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pipes is the number of this process's descriptors that are pipes of a pool.
func pipes(t *testing.T) int {
	names, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		require.NoError(t, err)
		if size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil && size == loop.PipeBytes {
			n++
		}
	}
	return n
}

// Large bodies of known length go through pipes, where there are any, and
// arrive whole, in both directions and one after another on a connection.
func TestLargeBodies(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		before := pipes(t)
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			in := bufio.NewReader(c)
			for {
				req, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				b, err := io.ReadAll(req.Body)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(b))
				c.Write(b)
			}
		})
		r := start(t, engine, to(backend), nil)
		for _, bound := range []int{0, 1, 32} {
			r.onLoop(func() { r.pool.Pipes = bound })
			c := r.dial()
			in := bufio.NewReader(c)
			for i, n := range []int{3 << 20, 256 << 10, 100 << 10, 1<<20 + 1, 5 << 20} {
				body := stressBody(fmt.Sprint(bound, i), n)
				sent := make(chan error, 1)
				go func() {
					_, err := c.Write(fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", n, body))
					sent <- err
				}()
				res, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				got, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				require.NoError(t, <-sent)
				require.True(t, bytes.Equal(body, got))
			}
			if bound == 0 {
				require.Equal(t, before, pipes(t))
			}
		}
		require.Greater(t, pipes(t), before, "pipes were made")
		r.stop()
		require.Equal(t, before, pipes(t), "pipes were closed")
	})
}

// A client that takes the pages of a file more slowly than they come gets all of
// it: however a send of a pipe comes out, the rest follows when there is room.
func TestLargeFileSlowly(t *testing.T) {
	const size, times = 64 << 20, 6
	name := filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.WriteFile(name, random(size), 0o644))
	files := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) })
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(serve(t, files)), nil)
		for range times {
			res, err := http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			f, err := os.Create(name + " copied")
			require.NoError(t, err)
			n, err := io.Copy(f, res.Body)
			require.NoError(t, errors.Join(err, res.Body.Close(), f.Close()))
			require.EqualValues(t, size, n)
		}
	})
}

// The body of a request goes on to a backend with TLS, also if it comes before
// the connection to that is there.
func TestLargeBodyToTLS(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		id, err := newIdentity()
		require.NoError(t, err)
		got := make(chan []byte, 1)
		routes := to(scripted(t, func(_ int, c *net.TCPConn) {
			s := tls.Server(c, id.server())
			if req, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
				b, _ := io.ReadAll(req.Body)
				got <- b
				_, _ = io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			}
		}))
		routes[0].Backends[0].TLS = id.client()
		r := start(t, engine, routes, nil)
		body := stressBody("tls", 3<<20)
		res, err := http.Post("http://"+r.addr+"/", "text/plain", bytes.NewReader(body))
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
		require.True(t, bytes.Equal(body, <-got))
	})
}

// A body that was sent to a backend which turned out dead goes on to one that
// speaks TLS.
func TestLargeBodyRetriedWithTLS(t *testing.T) {
	data := random(3 << 20)
	dead, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, dead.Close())
	each(t, func(t *testing.T, engine string) {
		backend := serveTLS(t, echo)
		trusted := x509.NewCertPool()
		trusted.AddCert(backend.Certificate())
		routes := to(dead.Addr().String(), backend.Listener.Addr().String())
		routes[0].Backends[0].MaxFailure = 1000
		routes[0].Backends[1].TLS = &tls.Config{RootCAs: trusted, ServerName: "example.com"}
		r := start(t, engine, routes, nil)
		for range 4 {
			res, err := http.Post("http://"+r.addr+"/", "application/octet-stream", bytes.NewReader(data))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d %x <nil>", len(data), sha256.Sum256(data)), readAll(t, res))
		}
	})
}

// What a backend sends behind a large body is nobody's response.
func TestLargeBodyTooLong(t *testing.T) {
	const size = 300 << 10
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			for in := bufio.NewReader(c); ; {
				first, err := head(in)
				if err != nil {
					return
				}
				if strings.Contains(first, "/long") {
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", size, make([]byte, size))
				} else {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
				}
			}
		})
		r := start(t, engine, to(backend), nil)
		for range 20 {
			c := r.dial()
			_, err := io.WriteString(c, "GET /long HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
			in := bufio.NewReader(c)
			for _, want := range []string{string(make([]byte, size)), "right"} {
				res, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				require.True(t, readAll(t, res) == want)
			}
			require.NoError(t, c.Close())
		}
	})
}

// What came of a body that its backend breaks off is passed on, and the client
// can tell that it is not all.
func TestLargeBodyBrokenOff(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		const part = 1<<20 + 77
		body := stressBody("part", part)
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			if _, err := head(bufio.NewReader(c)); err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 10*part, body)
			}
		})
		r := start(t, engine, to(backend), nil)
		res, err := http.Get("http://" + r.addr + "/")
		require.NoError(t, err)
		got, err := io.ReadAll(res.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.True(t, bytes.Equal(body, got))
	})
}
