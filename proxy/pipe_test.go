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

// Heads of responses that are too long, and what ends the chunks of one.
const (
	lengthHead  = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
	chunkedHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n"
	chunksEnd   = "\r\n0\r\n\r\n"
)

// talkative is a backend that answers "/long" with a body in parts, each sent on a
// word that the one before was received, and with another response behind it.
func talkative(t *testing.T, format string, body []byte, parts []int, next <-chan bool) string {
	text := fmt.Appendf(nil, format, len(body))
	var pieces [][]byte
	for _, n := range parts {
		pieces = append(pieces, append(text, body[:n]...))
		text, body = nil, body[n:]
	}
	last := &pieces[len(pieces)-1]
	if format == chunkedHead {
		*last = append(*last, chunksEnd...)
	}
	*last = append(*last, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"...)
	return scripted(t, func(_ int, c *net.TCPConn) {
		for in := bufio.NewReader(c); ; {
			first, err := head(in)
			if err != nil {
				return
			}
			if !strings.Contains(first, "/long") {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
				continue
			}
			for _, p := range pieces {
				c.Write(p)
				<-next
			}
		}
	})
}

// What a backend sends behind a response is nobody's response, also if the last
// receive took no byte of it.
func TestResponseTooLong(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		for name, test := range map[string]struct {
			head  string
			parts []int // of the body; the first comes with the head
		}{
			"head and body fill a buffer":   {lengthHead, []int{loop.HeadBytes - len(lengthHead) + len("%d") - len("32726")}},
			"head and chunks fill a buffer": {chunkedHead, []int{loop.HeadBytes - len(chunkedHead) + len("%x") - len("7fc4") - len(chunksEnd)}},
			"a body fills a buffer":         {lengthHead, []int{0, loop.HeadBytes}},
			"the rest fills a buffer":       {lengthHead, []int{loop.MultiBytes, loop.HeadBytes}},
			"pipe":                          {lengthHead, []int{0, 300 << 10}},
			"pipes":                         {lengthHead, []int{0, 5 << 20}},
			"the rest fills a pipe":         {lengthHead, []int{loop.MultiBytes, loop.PipeBytes}},
		} {
			t.Run(name, func(t *testing.T) {
				total := 0
				for _, n := range test.parts {
					total += n
				}
				body, next := stressBody(name, total), make(chan bool, len(test.parts))
				r := start(t, engine, to(talkative(t, test.head, body, test.parts, next)), nil)
				for range 5 {
					c := r.dial()
					_, err := io.WriteString(c, "GET /long HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
					require.NoError(t, err)
					in := bufio.NewReader(c)
					res, err := http.ReadResponse(in, nil)
					require.NoError(t, err)
					rest := body
					for _, n := range test.parts {
						got := make([]byte, n)
						_, err := io.ReadFull(res.Body, got)
						require.NoError(t, err)
						require.True(t, bytes.Equal(rest[:n], got))
						rest = rest[n:]
						next <- true
					}
					require.Empty(t, readAll(t, res))
					res, err = http.ReadResponse(in, nil)
					require.NoError(t, err)
					require.Equal(t, "right", readAll(t, res))
					require.NoError(t, c.Close())
				}
			})
		}
	})
}

// A request behind a large body is served, in order, however the body came.
func TestLargeBodiesPipelined(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(serve(t, echo)), nil)
		for _, bound := range []int{32, 0} {
			r.onLoop(func() { r.pool.Pipes = bound })
			c := r.dial()
			sizes := []int{300 << 10, 1 << 20, loop.PipeBytes, loop.PipeBytes, 1, loop.HeadBytes, loop.BodyBytes + 1}
			var all bytes.Buffer
			var want []string
			for i, n := range sizes {
				body := stressBody(fmt.Sprint(bound, i), n)
				fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", n, body)
				want = append(want, fmt.Sprintf("%d %x <nil>", n, sha256.Sum256(body)))
			}
			all.WriteString("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
			want = append(want, fmt.Sprintf("0 %x <nil>", sha256.Sum256(nil)))
			sent := make(chan error, 1)
			go func() {
				_, err := c.Write(all.Bytes())
				sent <- err
			}()
			in := bufio.NewReader(c)
			for i := range want {
				res, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				require.Equal(t, want[i], readAll(t, res), "request %d", i)
			}
			require.NoError(t, <-sent)
		}
	})
}

// What came of a body that its backend breaks off is passed on, and the client
// can tell that it is not all. A reset may take back what was not read yet.
func TestLargeBodyBrokenOff(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		for _, size := range []struct{ part, whole int }{
			{1<<20 + 77, 10 << 20}, {0, 300 << 10}, {300<<10 - 1, 300 << 10}, {loop.PipeBytes, loop.PipeBytes + 1},
		} {
			body := stressBody(fmt.Sprint("part", size.part), size.part)
			for _, reset := range []bool{false, true} {
				seen := make(chan bool) // the response's head
				backend := scripted(t, func(_ int, c *net.TCPConn) {
					if _, err := head(bufio.NewReader(c)); err == nil {
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size.whole, body)
					}
					<-seen
					if reset {
						c.SetLinger(0)
					}
				})
				r := start(t, engine, to(backend), nil)
				res, err := http.Get("http://" + r.addr + "/")
				require.NoError(t, err)
				close(seen)
				got, err := io.ReadAll(res.Body)
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				require.True(t, bytes.HasPrefix(body, got))
				if !reset {
					require.Len(t, got, size.part)
				}
			}
		}
	})
}

// A client that leaves in the middle of its large body leaves the backend with a
// part of it that looks like one, and nothing in a pipe for anybody else.
func TestLargeBodyOfClientGone(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		const size = 8 << 20
		type upload struct {
			n   int64
			err error
		}
		began, uploads := make(chan bool, 1), make(chan upload, 1)
		r := start(t, engine, to(serve(t, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				w.Write(make([]byte, 1<<20))
				return
			}
			began <- true
			n, err := io.Copy(io.Discard, req.Body)
			uploads <- upload{n, err}
		})), nil)
		for _, part := range []int{1000, 300 << 10, size - 1} {
			for _, reset := range []bool{false, true} {
				c := r.dial()
				_, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, bytes.Repeat([]byte("x"), part))
				require.NoError(t, err)
				<-began
				if reset {
					require.NoError(t, c.SetLinger(0))
				}
				require.NoError(t, c.Close())
				got := <-uploads
				require.Error(t, got.err)
				require.LessOrEqual(t, got.n, int64(part))
				res, err := http.Get("http://" + r.addr + "/")
				require.NoError(t, err)
				require.True(t, readAll(t, res) == string(make([]byte, 1<<20)))
			}
		}
	})
}

// A backend that has answered takes no more of a large body: the client gets the
// answer, whether the backend goes on reading, ends, or resets.
func TestLargeBodyAnsweredEarly(t *testing.T) {
	const answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nnope"
	each(t, func(t *testing.T, engine string) {
		for _, how := range []string{"reads on", "ends", "resets"} {
			backend := scripted(t, func(_ int, c *net.TCPConn) {
				in := bufio.NewReader(c)
				if _, err := head(in); err != nil {
					return
				}
				io.CopyN(io.Discard, in, 100<<10)
				io.WriteString(c, answer)
				switch how { // else what is unread makes it a reset
				case "reads on":
					io.Copy(io.Discard, c)
				case "ends":
					c.CloseWrite()
					io.Copy(io.Discard, c)
				}
			})
			r := start(t, engine, to(backend), nil)
			for range 5 {
				c := r.dial()
				_, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", 8<<20, make([]byte, 900<<10))
				require.NoError(t, err, how)
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err, how)
				require.Equal(t, 413, res.StatusCode, how)
				require.Equal(t, "nope", readAll(t, res), how)
				n, err := c.Read(make([]byte, 1))
				require.Equal(t, io.EOF, err, "%s: read %d bytes", how, n)
				require.NoError(t, c.Close())
			}
		}
	})
}

// Large bodies move in both directions of an exchange at a time.
func TestLargeBodiesBothWays(t *testing.T) {
	const size = 8 << 20
	eachFaulty(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			for in := bufio.NewReader(c); ; {
				if _, err := head(in); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
				if n, _ := io.CopyN(c, in, size); n < size {
					return
				}
			}
		})
		r := start(t, engine, to(backend), nil)
		for i := range 3 {
			// With faults, connections break.
			body := stressBody(fmt.Sprint(i), size)
			c := r.dial()
			go func() {
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size)
				c.Write(body)
			}()
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if !strings.HasPrefix(engine, "faulty") {
				require.NoError(t, err)
			} else if err != nil || res.StatusCode != 200 {
				continue
			}
			got, err := io.ReadAll(res.Body)
			if !strings.HasPrefix(engine, "faulty") {
				require.NoError(t, err)
			}
			require.Equal(t, err == nil, len(got) == size)
			require.True(t, bytes.HasPrefix(body, got))
			c.Close()
		}
	})
}
