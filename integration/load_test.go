package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// Requests of every kind on many connections: no error, and every byte right.
func TestLoadHasNoErrors(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr, startBackend(t, "b").addr}))
		l := startLoad(t, pick(1000, 200), mixed(c.addr))
		l.more(pick[int64](10_000, 1000))
		if long() {
			<-time.After(30 * time.Second)
		}
		require.Empty(t, l.stop())
	})
}

// Serving keep-alive requests allocates nothing on the heap, nor does logging
// them.
func TestRequestsMakeNoHeapObjects(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		log := fmt.Sprintf(`"access_log": {"file": %q, "format": "json"}`, filepath.Join(t.TempDir(), "access.log"))
		c := startCup(t, engine, configOf([]string{startPlainBackend(t)}, oneWorker, log))
		const clients = 64
		conns := make([]*plainClient, clients)
		for i := range conns {
			conns[i] = newPlainClient(t, c.addr)
		}
		serve := func(requests int) {
			var wg sync.WaitGroup
			errs := make(chan error, clients)
			for _, p := range conns {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range requests / clients {
						if err := p.ask(); err != nil {
							errs <- err
							return
						}
					}
				}()
			}
			wg.Wait()
			close(errs)
			require.NoError(t, <-errs)
		}
		serve(10_000) // pools and tables grow to what this load needs
		requests := pick(100_000, 32_000)
		c.status()
		first := c.status()
		second := c.status() // what asking costs by itself
		serve(requests)
		last := c.status()
		require.EqualValues(t, requests, last.Totals.Requests-second.Totals.Requests)
		made := int64(last.Totals.HeapObjects - second.Totals.HeapObjects)
		asking := int64(second.Totals.HeapObjects - first.Totals.HeapObjects)
		t.Logf("%d heap objects for %d requests, %d of them by asking", made, requests, asking)
		require.LessOrEqual(t, made-asking, int64(100))
	})
}

// plainResponse is what a plain backend says to everything.
const plainResponse = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 5\r\n\r\nhello"

// startPlainBackend answers as fast as Go can.
func startPlainBackend(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go servePlain(conn)
		}
	}()
	return l.Addr().String()
}

func servePlain(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 4<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(line) == len("\r\n") {
			if _, err := io.WriteString(conn, plainResponse); err != nil {
				return
			}
		}
	}
}

// plainClient asks a plain backend through the proxy.
type plainClient struct {
	conn net.Conn
	buf  []byte
	want []byte // the response; set by the first
}

func newPlainClient(t testing.TB, addr string) *plainClient {
	return &plainClient{conn: dial(t, addr), buf: make([]byte, 4<<10)}
}

var plainRequest = []byte("GET /plain HTTP/1.1\r\nHost: cup.test\r\nUser-Agent: plain\r\nAccept: */*\r\n\r\n")

func (p *plainClient) ask() error {
	if _, err := p.conn.Write(plainRequest); err != nil {
		return err
	}
	n := 0
	for !bytes.HasSuffix(p.buf[:n], []byte("\r\n\r\nhello")) {
		k, err := p.conn.Read(p.buf[n:])
		if err != nil {
			return err
		}
		n += k
	}
	if p.want == nil {
		p.want = bytes.Clone(p.buf[:n])
	}
	if !bytes.Equal(p.buf[:n], p.want) {
		return fmt.Errorf("got %q, want %q", p.buf[:n], p.want)
	}
	return nil
}

// A backend of three that dies and comes back is noticed by no client, and
// shares are even again.
func TestBackendDiesAndComesBack(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		var backends []*backend
		var hosts string
		for _, name := range []string{"a", "b", "c"} {
			b := startBackend(t, name)
			backends = append(backends, b)
			hosts += fmt.Sprintf(`, {"host": %q, "max_failure": 3, "cooldown": "200ms"}`, b.addr)
		}
		c := startCup(t, engine, fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 1, "routes": {"*": {"backends": [%s]}}}`, hosts[2:]))
		var open sync.Map
		l := startLoad(t, 50, func(worker, turn int) error {
			b, _ := open.Load(worker)
			if b == nil {
				opened, err := openBrowser(c.addr)
				if err != nil {
					return err
				}
				open.Store(worker, opened)
				b = opened
			}
			_, err := b.(*browser).get("", 1000, int64(turn), "")
			return err
		})
		for range pick(10, 2) {
			l.more(1000)
			backends[1].kill()
			l.more(2000)
			backends[1].back(t)
			before := backends[1].served.Load()
			eventually(t, "the backend to get requests again", func() bool { return backends[1].served.Load() > before+100 })
		}
		require.Empty(t, l.stop(), "errors of GET")

		for _, b := range backends {
			b.served.Store(0)
		}
		b := browse(t, c.addr)
		for i := range 300 {
			_, err := b.get("", 10, int64(i), "")
			require.NoError(t, err)
		}
		for _, b := range backends {
			require.InDelta(t, 100, b.served.Load(), 10, "share of %s", b.name)
		}
	})
}

// After much of everything the processes are what they were.
func TestNothingLeaks(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr, refusingPort(t)}, `"workers": 2`, `"timeouts": {"backend_idle": "300ms"}`))
		pipesOf := func() (n int) {
			for _, pid := range c.workers() {
				n += pipes(t, pid)
			}
			return n
		}
		pipesBefore := pipesOf()
		much := func() {
			l := startLoad(t, 100, mixed(c.addr))
			rude := startLoad(t, 10, func(_, turn int) error { return behaveBadly(c.addr, turn) })
			l.more(pick[int64](20_000, 1500))
			require.Empty(t, rude.stop())
			require.Empty(t, l.stop())
			_, _, code := c.cupctl("reload")
			require.Zero(t, code)
			eventually(t, "idle workers", func() bool {
				for _, w := range c.status().Workers {
					if w.Connections+w.BackendIdle+w.BuffersLent > 0 {
						return false
					}
				}
				// Those of large bodies stay a while for the next ones.
				return pipesOf() == pipesBefore
			})
		}
		much()
		before := measure(t, c)
		for range pick(10, 2) {
			much()
		}
		after := measure(t, c)
		for i, b := range before {
			a := after[i]
			t.Logf("process %d: %+v, then %+v", i, b, a)
			require.LessOrEqual(t, a.descriptors, b.descriptors+b.loose, "descriptors of process %d", i)
			// One more may be answering the master at this moment.
			require.LessOrEqual(t, a.goroutines, b.goroutines+b.loose+1, "goroutines of process %d", i)
			require.Less(t, a.rss, b.rss+b.rss/4+(4<<20), "memory of process %d", i)
		}
	})
}

// footprint is what a process holds.
type footprint struct {
	rss, descriptors, goroutines int
	loose                        int // by which counts may differ
}

// measure looks at the master, then at each worker.
func measure(t *testing.T, c *cup) []footprint {
	t.Helper()
	s := c.status()
	// The admin socket's connection of an earlier question may not be closed yet.
	all := []footprint{{rss: rssBytes(t, c.pid()), descriptors: descriptors(t, c.pid()), loose: 2}}
	for _, w := range s.Workers {
		require.Equal(t, control.WorkerRunning, w.State)
		all = append(all, footprint{
			rss: rssBytes(t, w.PID), descriptors: descriptors(t, w.PID),
			goroutines: int(w.Goroutines),
		})
	}
	return all
}

// behaveBadly is a client that makes trouble of one kind.
func behaveBadly(addr string, kind int) error {
	b, err := openBrowser(addr)
	if err != nil {
		return err
	}
	defer b.conn.Close()
	// What is sent may be refused at any place: only connecting must work.
	switch kind % 6 {
	case 0: // goes away in the middle of a response
		_ = b.ask("GET", "/5000000/1", "")
		_, _ = b.r.Peek(1)
	case 1: // resets in the middle of its body
		_ = b.ask("POST", "/5000000/1", "Content-Length: 5000000\r\n")
		_ = b.sendContent(100_000, 1, false)
		_ = b.conn.SetLinger(0)
	case 2: // speaks something else
		_, _ = b.conn.Write(bytes.Repeat([]byte("\x16\x03\x01"), 3000))
		_, _ = io.Copy(io.Discard, b.r)
	case 3: // says nothing
	case 4: // half a head
		_, _ = b.conn.Write([]byte("GET / HTTP/1.1\r\nHos"))
	case 5: // sends a bad chunk
		_ = b.ask("POST", "/5/1", "Transfer-Encoding: chunked\r\n")
		_, _ = b.conn.Write([]byte("zzz\r\n"))
		resp, err := http.ReadResponse(b.r, nil)
		if err == nil && resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusBadGateway {
			return fmt.Errorf("a bad chunk: %s", resp.Status)
		}
	}
	return nil
}
