package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// browser is a client on one connection that checks every byte that it gets.
type browser struct {
	conn duplex
	r    *bufio.Reader
	// since is the generation that was acknowledged when the last request
	// began; see town.visit.
	since int64
}

// requestTime bounds a request of a browser.
const requestTime = 30 * time.Second

func openBrowser(addr string) (*browser, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	return &browser{conn: conn.(*net.TCPConn), r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// browse opens a browser for the length of the test.
func browse(t testing.TB, addr string) *browser {
	t.Helper()
	b, err := openBrowser(addr)
	require.NoError(t, err)
	t.Cleanup(func() { b.conn.Close() })
	return b
}

// answer is a response whose body was right.
type answer struct {
	backend string // that made it
	closes  bool   // the connection ends with it
}

var getRequest = &http.Request{Method: http.MethodGet}

// get asks for a content. query is "", "?chunked" or "?close".
func (b *browser) get(folder string, size, seed int64, query string) (answer, error) {
	if err := b.ask("GET", fmt.Sprintf("%s/%d/%d%s", folder, size, seed, query), ""); err != nil {
		return answer{}, err
	}
	resp, err := b.response()
	if err != nil {
		return answer{}, err
	}
	if err := checkContent(resp.Body, seed, size); err != nil {
		return answer{}, err
	}
	return answer{resp.Header.Get("X-Backend"), resp.Close}, nil
}

// post sends a content.
func (b *browser) post(folder string, size, seed int64, chunked bool) (answer, error) {
	framing := fmt.Sprintf("Content-Length: %d\r\n", size)
	if chunked {
		framing = "Transfer-Encoding: chunked\r\n"
	}
	if err := b.ask("POST", fmt.Sprintf("%s/%d/%d", folder, size, seed), framing); err != nil {
		return answer{}, err
	}
	if err := b.sendContent(size, seed, chunked); err != nil {
		return answer{}, err
	}
	resp, err := b.response()
	if err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil || string(text) != "ok" {
		return answer{}, fmt.Errorf("answer to a post: %q, %w", text, err)
	}
	return answer{resp.Header.Get("X-Backend"), resp.Close}, nil
}

func (b *browser) sendContent(size, seed int64, chunked bool) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	from := content(seed, size)
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			p := (*buf)[:n]
			var sendErr error
			if chunked {
				_, sendErr = (&net.Buffers{fmt.Appendf(nil, "%x\r\n", n), p, []byte("\r\n")}).WriteTo(b.conn)
			} else {
				_, sendErr = b.conn.Write(p)
			}
			if sendErr != nil {
				return sendErr
			}
		}
		if err == io.EOF {
			break
		}
	}
	if chunked {
		_, err := b.conn.Write([]byte("0\r\n\r\n"))
		return err
	}
	return nil
}

// ask sends a request's head.
func (b *browser) ask(method, target, fields string) error {
	if err := b.conn.SetDeadline(time.Now().Add(pick(10*time.Minute, requestTime))); err != nil {
		return err
	}
	_, err := fmt.Fprintf(b.conn, "%s %s HTTP/1.1\r\nHost: cup.test\r\n%s\r\n", method, target, fields)
	return err
}

// response reads a response's head; it must be a 200.
func (b *browser) response() (*http.Response, error) {
	resp, err := http.ReadResponse(b.r, getRequest)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s %q: %w", resp.Status, text, errors.Join(errStatus, err))
	}
	return resp, nil
}

// errStatus is wrapped by errors that came as a response.
var errStatus = errors.New("not a 200")

// load is many browsers at work.
type load struct {
	t        testing.TB
	done     atomic.Int64   // requests that went well
	turns    []atomic.Int64 // of each goroutine
	stopping atomic.Bool
	wg       sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

// startLoad starts n goroutines that call work again and again until stop.
func startLoad(t testing.TB, n int, work func(worker, turn int) error) *load {
	t.Helper()
	l := &load{t: t, turns: make([]atomic.Int64, n)}
	for worker := range n {
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			for turn := 0; !l.stopping.Load(); turn++ {
				err := work(worker, turn)
				l.turns[worker].Add(1)
				if err != nil {
					l.mu.Lock()
					l.errs = append(l.errs, err)
					l.mu.Unlock()
					continue
				}
				l.done.Add(1)
			}
		}()
	}
	t.Cleanup(func() { l.stopping.Store(true); l.wg.Wait() })
	return l
}

// more waits until n more requests went well, or an error came.
func (l *load) more(n int64) {
	l.t.Helper()
	want, errs := l.done.Load()+n, len(l.errors())
	eventually(l.t, "more requests to be served", func() bool {
		return l.done.Load() >= want || len(l.errors()) > errs
	})
}

// renewed waits until nothing is under way any more that was when it was
// called.
func (l *load) renewed() {
	l.t.Helper()
	for i := range l.turns {
		turn := &l.turns[i]
		next := turn.Load() + 1
		eventually(l.t, "a request to end", func() bool { return turn.Load() >= next })
	}
}

func (l *load) errors() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errs[:len(l.errs):len(l.errs)]
}

// stop ends the load and returns what went wrong.
func (l *load) stop() []error {
	l.stopping.Store(true)
	l.wg.Wait()
	return l.errors()
}

// onePerConnection is work that opens a connection for each request.
func onePerConnection(addr string) func(worker, turn int) error {
	return func(worker, turn int) error {
		b, err := openBrowser(addr)
		if err != nil {
			return err
		}
		defer b.conn.Close()
		_, err = b.get("", 100, int64(worker*1000+turn), "")
		return err
	}
}

// mixed is work of every kind on one connection per goroutine.
func mixed(addr string) func(worker, turn int) error {
	var mu sync.Mutex
	open := map[int]*browser{}
	return func(worker, turn int) error {
		mu.Lock()
		b := open[worker]
		mu.Unlock()
		if b == nil {
			var err error
			if b, err = openBrowser(addr); err != nil {
				return err
			}
			mu.Lock()
			open[worker] = b
			mu.Unlock()
		}
		a, err := mixedRequest(b, worker+turn, int64(worker*7+turn))
		if err != nil || a.closes || turn%50 == 49 {
			b.conn.Close()
			mu.Lock()
			delete(open, worker)
			mu.Unlock()
		}
		return err
	}
}

// mixedRequest makes one request of many kinds.
func mixedRequest(b *browser, kind int, seed int64) (answer, error) {
	switch kind % 10 {
	case 0:
		return b.get("", 0, seed, "")
	case 1:
		return b.get("", 16<<10, seed, "")
	case 2:
		return b.get("", 5000, seed, "?chunked")
	case 3:
		return b.get("", 300_000, seed, "?chunked")
	case 4:
		return b.get("", 20_000, seed, "?close")
	case 5:
		return b.post("", 0, seed, false)
	case 6:
		return b.post("", 100_000, seed, false)
	case 7:
		return b.post("", 70_000, seed, true)
	case 8:
		return b.get("", 600_000, seed, "")
	}
	return b.get("", 100, seed, "")
}
