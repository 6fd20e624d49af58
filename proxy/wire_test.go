package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// patience bounds every wait of a test.
const patience = 30 * time.Second

// dial connects to the rig.
func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	require.NoError(r.t, err)
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patience)))
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// dialLittle connects to the rig with a receive buffer that holds little.
func (r *rig) dialLittle() net.Conn {
	r.t.Helper()
	little := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) }), err)
	}}
	c, err := little.Dial("tcp", r.addr)
	require.NoError(r.t, err)
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patience)))
	r.t.Cleanup(func() { c.Close() })
	return c
}

// scripted is a backend that serves each connection with f, numbered from 0.
func scripted(t *testing.T, f func(n int, c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(n, c.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().String()
}

// head reads up to the end of a head and returns it.
func head(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

func TestPipelining(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "0") {
				time.Sleep(10 * time.Millisecond) // answers must not overtake this one
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s", r.URL.Path, body)
		})
		r := start(t, engine, to(backend), nil)
		var all strings.Builder
		const requests = 50
		for i := range requests {
			if i%3 == 1 {
				fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", i)
			} else {
				fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
			}
		}
		for _, piece := range []int{all.Len(), 1000, 1} {
			c := r.dial()
			go func() {
				text := all.String()
				for len(text) > 0 {
					n := min(piece, len(text))
					if _, err := io.WriteString(c, text[:n]); err != nil {
						return
					}
					text = text[n:]
				}
			}()
			in := bufio.NewReader(c)
			for i := range requests {
				res, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				want := fmt.Sprintf("/%d ", i)
				if i%3 == 1 {
					want += "body"
				}
				require.Equal(t, want, readAll(t, res))
			}
			c.Close()
		}
	})
}

func TestHalfClosedClient(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Contains(t, string(all), "200 OK")
		require.Contains(t, string(all), "hello")
	})
}

func TestEarlyResponse(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			if _, err := head(bufio.NewReader(c)); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope")
			io.Copy(io.Discard, c)
		})
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
		require.NoError(t, err)
		part := make([]byte, 1000)
		_, err = c.Write(part)
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		require.Equal(t, 403, res.StatusCode)
		require.Equal(t, "nope", readAll(t, res))
		for range 200 { // what it still sends must not bring a RST
			if _, err := c.Write(part); err != nil {
				t.Fatal("the connection was reset:", err)
			}
		}
		n, err := c.Read(part)
		require.Equal(t, io.EOF, err, "read %d bytes", n)
	})
}

func TestStaleConnection(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		var heads atomic.Int32
		backend := scripted(t, func(n int, c *net.TCPConn) {
			in := bufio.NewReader(c)
			for i := 0; ; i++ {
				h, err := head(in)
				if err != nil {
					return
				}
				heads.Add(1)
				if n == 0 && i == 1 {
					return // it dies with the second request
				}
				body := strings.Fields(h)[1]
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
		})
		for _, method := range []string{"GET", "POST"} {
			t.Run(method, func(t *testing.T) {
				r := start(t, engine, to(backend), nil)
				heads.Store(0)
				res, err := http.Get("http://" + r.addr + "/1")
				require.NoError(t, err)
				require.Equal(t, "/1", readAll(t, res))
				req, err := http.NewRequest(method, "http://"+r.addr+"/2", nil)
				require.NoError(t, err)
				res, err = http.DefaultClient.Do(req)
				require.NoError(t, err)
				body := readAll(t, res)
				if method == "GET" {
					require.Equal(t, "/2", body)
					require.EqualValues(t, 3, heads.Load())
					require.EqualValues(t, 1, r.counted().Retries)
				}
			})
		}
	})
}

func TestPostIsNotRepeated(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		var heads atomic.Int32
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			if _, err := head(bufio.NewReader(c)); err == nil {
				heads.Add(1)
			}
		})
		r := start(t, engine, to(backend, backend), nil)
		res, err := http.Post("http://"+r.addr+"/", "text/plain", strings.NewReader("once"))
		require.NoError(t, err)
		require.Equal(t, 502, res.StatusCode)
		require.Contains(t, readAll(t, res), "backend_reset")
		require.EqualValues(t, 1, heads.Load())
	})
}

func TestFailover(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		alive := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		r := start(t, engine, to("127.0.0.1:1", alive, "127.0.0.1:2"), nil)
		for i := range 100 {
			res, err := http.Post("http://"+r.addr+"/", "text/plain", strings.NewReader(fmt.Sprint("body ", i)))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint("body ", i), readAll(t, res))
		}
	})
}

func TestTruncation(t *testing.T) {
	responses := map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
		"junk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n",
	}
	each(t, func(t *testing.T, engine string) {
		for name, text := range responses {
			backend := scripted(t, func(_ int, c *net.TCPConn) {
				if _, err := head(bufio.NewReader(c)); err == nil {
					io.WriteString(c, text)
				}
			})
			r := start(t, engine, to(backend), nil)
			res, err := http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			b, err := io.ReadAll(res.Body)
			if name != "junk" { // what came with the junk may be lost
				require.Equal(t, "part", string(b), name)
			}
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, name)
		}
	})
}

func TestTruncationUntilClose(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			if _, err := head(bufio.NewReader(c)); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
			}
		})
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.0\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		_, err = io.ReadAll(c)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

// A response that ends with its connection is not whole if that was reset, even
// if a send of the request's body is the first to learn of it.
func TestTruncationWhileSending(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		for i := range 10 {
			seen := make(chan bool)
			backend := scripted(t, func(_ int, c *net.TCPConn) {
				if _, err := head(bufio.NewReader(c)); err == nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\npart")
					<-seen
					c.SetLinger(0)
				}
			})
			r := start(t, engine, to(backend), nil)
			r.onLoop(func() { r.pool.Pipes = i % 2 * loop.PipesMax })
			c := r.dial()
			go func() { // until the connection ends
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 1<<30)
				for b := make([]byte, 1<<20); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			_, err = io.ReadFull(res.Body, make([]byte, len("part")))
			require.NoError(t, err)
			sent := uint64(0)
			require.Eventually(t, func() bool { // it waits for room
				before := sent
				sent = r.counted().BytesIn
				return sent == before && sent > 1<<20
			}, patience, 20*time.Millisecond)
			close(seen)
			_, err = io.ReadAll(res.Body)
			require.Error(t, err)
			r.stop()
		}
	})
}

func TestTimeouts(t *testing.T) {
	short := func(s *proxy.Snapshot) {
		s.Timeouts = proxy.Timeouts{
			ClientHead: 100 * time.Millisecond, ClientBody: 150 * time.Millisecond, ClientIdle: 200 * time.Millisecond,
			Connect: 100 * time.Millisecond, Response: 150 * time.Millisecond, BackendIdle: 50 * time.Millisecond,
		}
		s.Routes[0].Timeouts = s.Timeouts
	}
	each(t, func(t *testing.T, engine string) {
		silent := scripted(t, func(_ int, c *net.TCPConn) { io.Copy(io.Discard, c) })
		for _, test := range []struct {
			name, request, want string
			reason              message.Reason
		}{
			{"idle", "", "", message.ReasonNone},
			{"head", "GET / HTTP/1.1\r\nHost:", "408 Request Timeout: client_timeout", message.ReasonClientTimeout},
			{"body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc", "408 Request Timeout: client_timeout",
				message.ReasonClientTimeout},
			{"response", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "504 Gateway Timeout: backend_timeout",
				message.ReasonBackendTimeout},
		} {
			r := start(t, engine, to(silent), short)
			c := r.dial()
			begun := time.Now()
			_, err := io.WriteString(c, test.request)
			require.NoError(t, err)
			if test.name == "response" {
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err)
				require.Contains(t, readAll(t, res), test.want)
			} else {
				all, err := io.ReadAll(c)
				require.NoError(t, err, test.name)
				require.Contains(t, string(all), test.want)
			}
			require.Less(t, time.Since(begun), patience, test.name)
			require.GreaterOrEqual(t, time.Since(begun), 100*time.Millisecond, test.name)
			if test.reason != message.ReasonNone {
				require.EqualValues(t, 1, r.counted().Reasons[test.reason], test.name)
			}
		}
	})
}

// A client that has said that its request is the last is not waited for: its
// connection is closed before it closes its side. Others are, so that no RST
// overtakes their response.
func TestLastRequestIsNotWaitedFor(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			for in := bufio.NewReader(c); ; {
				if _, err := head(in); err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		r := start(t, engine, to(backend), nil)
		for _, test := range []struct {
			request string
			waited  bool
		}{
			{"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false},
			{"GET / HTTP/1.0\r\nHost: a\r\n\r\n", false},
			{"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n", true},
			{"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", true},
		} {
			c := r.dial()
			_, err := io.WriteString(c, test.request)
			require.NoError(t, err)
			all, err := io.ReadAll(c)
			require.NoError(t, err, test.request)
			require.True(t, strings.HasSuffix(string(all), "ok"), test.request)
			if test.waited {
				require.EqualValues(t, 1, r.counted().Connections, test.request)
				require.NoError(t, c.CloseWrite())
			}
			require.Eventually(t, func() bool { return r.counted().Connections == 0 }, patience, time.Millisecond, test.request)
			require.NoError(t, c.Close())
		}
	})
}

func TestClientGone(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		gone := make(chan error, 1)
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			in := bufio.NewReader(c)
			if _, err := head(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
			c.SetDeadline(time.Now().Add(patience))
			_, err := io.Copy(c, endless{})
			gone <- err
		})
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 100000))
		require.NoError(t, err)
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
		err = <-gone
		require.Error(t, err, "the backend's connection stays open")
		require.NotContains(t, err.Error(), "timeout")
	})
}

// endless reads as zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestSlowReader(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		const size = 64 << 20
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			if _, err := head(bufio.NewReader(c)); err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
				io.Copy(c, io.LimitReader(endless{}, size))
			}
		})
		r := start(t, engine, to(backend), func(s *proxy.Snapshot) { s.Limits.Memory = 16 << 20 })
		conns := make([]*net.TCPConn, 40)
		for i := range conns {
			conns[i] = r.dial()
			require.NoError(t, conns[i].SetReadBuffer(64<<10))
			_, err := io.WriteString(conns[i], "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
		}
		// All but one do not read; the one gets everything.
		res, err := http.ReadResponse(bufio.NewReaderSize(conns[0], 1<<16), nil)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		var lent int
		r.onLoop(func() { lent = r.pool.Lent() })
		require.LessOrEqual(t, lent, 16<<20)
		for _, c := range conns {
			c.Close()
		}
	})
}

func TestDrain(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		begun, finish := make(chan bool), make(chan bool)
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				begun <- true
				<-finish
			}
			fmt.Fprint(w, "done")
		})
		r := start(t, engine, to(backend), nil)
		busy, idle, second := r.dial(), r.dial(), r.dial()
		_, err := io.WriteString(busy, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		<-begun
		for _, c := range []*net.TCPConn{idle, second} {
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, "done", readAll(t, res))
		}
		r.onLoop(func() { r.proxy.Drain(patience, time.Second) })
		// A request that is on its way is answered, and the connection then ends.
		_, err = io.WriteString(second, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(second), nil)
		require.NoError(t, err)
		require.True(t, res.Close)
		require.Equal(t, "done", readAll(t, res))
		n, err := idle.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err, n)
		finish <- true
		res, err = http.ReadResponse(bufio.NewReader(busy), nil)
		require.NoError(t, err)
		require.Equal(t, "done", readAll(t, res))
		for _, c := range []*net.TCPConn{busy, idle, second} {
			c.Close()
		}
		<-r.done
		require.Zero(t, r.cut)
	})
}

func TestDrainDeadline(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		begun := make(chan bool, 1)
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			head(bufio.NewReader(c))
			begun <- true
			io.Copy(io.Discard, c)
		})
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		<-begun
		r.proxy.Post(func() { r.proxy.Drain(50*time.Millisecond, time.Second) })
		<-r.done
		require.Equal(t, 1, r.cut)
	})
}

func TestApply(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		one := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "one") })
		two := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "two") })
		r := start(t, engine, to(one), nil)
		c := r.dial()
		in := bufio.NewReader(c)
		get := func() string {
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
			res, err := http.ReadResponse(in, nil)
			require.NoError(t, err)
			return readAll(t, res)
		}
		for i := range 10 {
			want, addr := "one", one
			if i%2 == 1 {
				want, addr = "two", two
			}
			s := snapshot(to(addr))
			s.Generation = uint64(i + 2)
			require.NoError(t, proxy.Prepare(s))
			r.onLoop(func() { r.proxy.Apply(s) })
			for range 3 {
				require.Equal(t, want, get())
			}
		}
		c.Close()
	})
}

// What will never be a whole request does not cut the response before it.
func TestHalfRequestBehindARequest(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		body := strings.Repeat("z", 4<<20)
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
		r := start(t, engine, to(backend), nil)
		for _, half := range []string{
			"\r\n",
			"GET /x",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
		} {
			c := r.dial()
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"+half)
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, len(body), len(readAll(t, res)), "%q", half)
		}
	})
}
