package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/proxy"
)

// memoryLogs keeps what is logged.
type memoryLogs struct {
	mu     sync.Mutex
	text   map[string]*bytes.Buffer
	opened map[string]int // times that it was opened, without those that it was closed
}

func newMemoryLogs() *memoryLogs {
	return &memoryLogs{text: map[string]*bytes.Buffer{}, opened: map[string]int{}}
}

// Open starts a writer into memory, which allocates little.
func (m *memoryLogs) Open(file string) *accesslog.Buffer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text[file] == nil {
		m.text[file] = bytes.NewBuffer(make([]byte, 0, 4<<20))
	}
	b := accesslog.NewBuffer()
	m.opened[file]++
	go func() {
		for lines := range b.Full() {
			m.mu.Lock()
			m.text[file].Write(lines)
			m.mu.Unlock()
			b.Done(lines, len(lines))
		}
	}()
	return b
}

func (m *memoryLogs) Close(file string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened[file]--
}

// isOpen reports whether the file is open.
func (m *memoryLogs) isOpen(file string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opened[file] == 1
}

// lines waits for n lines in the file and returns them.
func (r *rig) lines(file string, n int) []string {
	r.t.Helper()
	var text string
	require.Eventually(r.t, func() bool {
		r.onLoop(func() { r.proxy.FlushLogs() })
		r.logs.mu.Lock()
		defer r.logs.mu.Unlock()
		if b := r.logs.text[file]; b != nil {
			text = b.String()
		}
		return strings.Count(text, "\n") >= n
	}, 20*time.Second, time.Millisecond, "%d lines in %s", n, file)
	lines := strings.SplitAfter(text, "\n")
	require.Len(r.t, lines, n+1, text)
	return lines[:n]
}

// logged is routes with a log.
func logged(file string, routes []proxy.RouteSpec) []proxy.RouteSpec {
	for i := range routes {
		routes[i].Log = proxy.LogSpec{File: file, Format: accesslog.Cup}
		routes[i].RequestID = true
	}
	return routes
}

// send writes a request and returns all that comes until the connection ends.
func (r *rig) send(text string) string {
	r.t.Helper()
	c := r.dial()
	_, err := io.WriteString(c, text)
	require.NoError(r.t, err)
	require.NoError(r.t, c.CloseWrite())
	all, _ := io.ReadAll(c) // a reset is an answer, too
	return string(all)
}

func TestLogLines(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			for in := bufio.NewReader(c); ; {
				req, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				io.Copy(io.Discard, req.Body)
				switch req.URL.Path {
				case "/cut":
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal")
					return
				case "/bad":
					fmt.Fprintf(c, "nonsense\r\n\r\n")
					return
				}
				body := "hello"
				if req.Method == "HEAD" {
					body = ""
				}
				fmt.Fprintf(c, "HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n%s", body)
			}
		})
		routes := append(to(backend), routeTo("/none"))
		routes[1].Backends = []proxy.BackendSpec{{Host: "gone.test:80", Weight: 1}}
		routes[0].Limits.BodyBytes = 100
		r := start(t, engine, logged("x", routes), func(s *proxy.Snapshot) {
			s.Log = proxy.LogSpec{File: "x", Format: accesslog.Cup}
			s.Routes[0].Limits.BodyBytes = 100
		})
		n := 0
		for _, c := range []struct{ request, want string }{
			{"GET /a?b=c HTTP/1.1\r\nHost: x\r\nReferer: http://r/\r\nuser-AGENT: me \"too\"\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n",
				`^127\.0\.0\.1 - - \[.*\] "GET /a\?b=c HTTP/1\.1" 201 5 "http://r/" "me \\x22too\\x22" total=\d\.\d{6} connect=\d\.\d{6} head=\d\.\d{6} own=\S+ in=0 ` +
					`route="\*" backend="127\.0\.0\.1:\d+" attempts=1 reason=- id="mine" tls=- suite=- sni="-" resumed=- slot=0 engine=\w+$`},
			{"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", `"POST / HTTP/1\.0" 201 5 .* in=3 .* id="[0-9a-f]{32}" `},
			{"HEAD /h HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", `"HEAD /h HTTP/1\.1" 201 0 `},
			{"GET /cut HTTP/1.1\r\nHost: x\r\n\r\n", `"GET /cut HTTP/1\.1" 200 3 .* reason=backend_reset`},
			{"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n", `"GET /bad HTTP/1\.1" 502 \d\d .* head=- .*reason=backend_malformed`},
			{"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", `"GET /none HTTP/1\.1" 503 \d\d .* connect=- head=- .* route="/none" backend="-" attempts=0 reason=backend_unresolved`},
			{"PUT /big HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", `"PUT /big HTTP/1\.1" 413 \d+ .* reason=body_too_large`},
			{"GET / HTTP/1.1\r\nHost : x\r\n\r\n", `"GET / HTTP/1\.1" 400 \d+ "-" "-" .* route="-" backend="-" attempts=0 reason=bad_request id="-"`},
			{"\x16\x03\x01\"\x00\r\n\r\n", `"\\x16\\x03\\x01\\x22\\x00" 400 `},
			{"GET /" + strings.Repeat("l", 9000) + " HTTP/1.1\r\nHost: x\r\n\r\n", `"GET /l+\.\.\.( HTTP/1\.1)?" 414`},
			{"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n", `"CONNECT x:1 HTTP/1\.1" 501 `},
		} {
			r.send(c.request)
			n++
			last := strings.TrimSuffix(r.lines("x", n)[n-1], "\n")
			require.Regexp(t, c.want, last, "%.60q", c.request)
		}
		r.send("") // nobody asked for anything
		r.send("GET / HT")
		r.lines("x", n)
		require.Zero(t, r.counted().LogDropped)
	})
}

// Long fields are cut, and stay what they are.
func TestLogKeepsBoundedHeads(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, logged("x", to(serve(t, echo))), nil)
		long := strings.Repeat("a", 5000)
		r.send("GET /" + long + " HTTP/1.1\r\nHost: x\r\nReferer: " + long + "\r\nUser-Agent: " + long + "\r\nX-Request-Id: " + long + "\r\nConnection: close\r\n\r\n")
		m := regexp.MustCompile(`"GET (/a+\.\.\.) HTTP/1.1" 200 \d+ "(a+\.\.\.)" "(a+\.\.\.)" .* id="(a+\.\.\.)"`).FindStringSubmatch(r.lines("x", 1)[0])
		require.NotNil(t, m)
		require.Len(t, m[1], accesslog.TargetMax)
		require.Len(t, m[2], accesslog.RefererMax)
		require.Len(t, m[3], accesslog.UserAgentMax)
		require.Len(t, m[4], accesslog.RequestIDMax)
	})
}

// A tunnel's line comes at its end, and has its bytes.
func TestLogOfTunnel(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, logged("x", to(switching(t, "websocket"))), nil)
		c := r.dial()
		_, err := io.WriteString(c, upgradeHead)
		require.NoError(t, err)
		in := bufio.NewReader(c)
		_, err = head(in)
		require.NoError(t, err)
		_, err = io.WriteString(c, "twelve bytes")
		require.NoError(t, err)
		_, err = io.ReadFull(in, make([]byte, len("hellotwelve bytes")))
		require.NoError(t, err)
		r.onLoop(func() { r.proxy.FlushLogs() })
		require.NoError(t, c.CloseWrite())
		_, err = io.ReadAll(in)
		require.NoError(t, err)
		require.Regexp(t, `"GET /chat HTTP/1\.1" 101 17 .* in=12 .* reason=- `, r.lines("x", 1)[0])
	})
}

// An exchange under way ends in the log that its route had when it began; a log
// that nothing names closes after the last of them.
func TestLogsFollowTheSnapshot(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		let := make(chan struct{})
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				<-let
			}
			echo(w, r)
		})
		r := start(t, engine, logged("old", to(backend)), nil)
		done := make(chan string)
		go func() { done <- r.send("GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") }()
		require.Eventually(t, func() bool { return r.counted().BackendConnects == 1 }, 20*time.Second, time.Millisecond)

		next := snapshot(logged("new", to(backend)))
		next.Generation = 2
		require.NoError(t, proxy.Prepare(next))
		r.onLoop(func() { r.proxy.Apply(next) })
		require.True(t, r.logs.isOpen("old"))
		r.send("GET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.Contains(t, r.lines("new", 1)[0], "GET /2 ")
		close(let)
		require.Contains(t, <-done, "200 OK")
		require.Contains(t, r.lines("old", 1)[0], "GET /wait ")
		r.onLoop(func() { r.proxy.FlushLogs() })
		require.False(t, r.logs.isOpen("old"))

		again := snapshot(logged("old", to(backend)))
		again.Generation = 3
		require.NoError(t, proxy.Prepare(again))
		r.onLoop(func() {
			r.proxy.Apply(again)
			r.proxy.FlushLogs()
		})
		require.False(t, r.logs.isOpen("new"))
		r.send("GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.Contains(t, r.lines("old", 2)[1], "GET /3 ")
	})
}
