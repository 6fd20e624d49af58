package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests of the files events_* put the built programs under load while
// something happens to them: a reload, a death, a stop. What fails is counted by
// the clients: a status that was not expected, a wrong byte, a reset, a time-out,
// a connection that ended although nobody said so. Each logs a line that begins
// with "event:", from which the table of such a run is made.

// report logs what came of an event.
func report(t testing.TB, event string, format string, args ...any) {
	t.Helper()
	t.Logf("event: %s: %s", event, fmt.Sprintf(format, args...))
}

// residents are clients that keep one connection each through everything. One
// that loses its connection opens another, so that a loss counts once.
type residents struct {
	addr string
	open []*browser // by worker of a load; each is its goroutine's
}

// settle opens a connection for each of n residents.
func settle(t testing.TB, addr string, n int) *residents {
	t.Helper()
	r := &residents{addr: addr, open: make([]*browser, n)}
	for i := range r.open {
		r.open[i] = browse(t, addr)
	}
	t.Cleanup(func() {
		for _, b := range r.open {
			if b != nil {
				b.conn.Close()
			}
		}
	})
	return r
}

// errMoved says that a connection ended in order, but ended.
var errMoved = errors.New("the connection does not stay")

// request lets resident i make a request on its connection, which must stay.
func (r *residents) request(i int, make func(*browser) (answer, error)) (answer, error) {
	b := r.open[i]
	if b == nil {
		var err error
		if b, err = openBrowser(r.addr); err != nil {
			return answer{}, err
		}
		r.open[i] = b
	}
	a, err := make(b)
	if err == nil && a.closes {
		err = errMoved
	}
	if err != nil {
		b.conn.Close()
		r.open[i] = nil
	}
	return a, err
}

// inForce tells by which generations a request may be served: those from the
// one that was acknowledged when it began to the one that was asked for when it
// ended.
type inForce struct {
	acknowledged, asked atomic.Int64
	// upgrades: the old program, which drains, answers the last request of a
	// connection by what it had; it may have had it when the request before
	// was made.
	upgrades bool
}

// window returns the generations that may serve what began when the
// acknowledged one was from.
func (f *inForce) window(from int64) (first, last int64) { return from, f.asked.Load() }

// spread is the median and the greatest of times.
func spread(times []time.Duration) (median, most time.Duration) {
	if len(times) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2], sorted[len(sorted)-1]
}

// timed measures do.
func timed(do func()) time.Duration {
	begin := time.Now()
	do()
	return time.Since(begin)
}

// tunnel is an upgraded connection, like that of a WebSocket, to a backend's
// echo.
type tunnel struct {
	*browser
	backend string // at the other end
	next    uint64 // number of the next message
}

// messageMax bounds a message of a tunnel.
const messageMax = 4 << 10

// dig opens a tunnel for the length of the test.
func dig(t testing.TB, addr, target string) *tunnel {
	t.Helper()
	b := browse(t, addr)
	require.NoError(t, b.ask("GET", target, "Connection: Upgrade\r\nUpgrade: echo\r\n"))
	resp, err := http.ReadResponse(b.r, getRequest)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	return &tunnel{browser: b, backend: resp.Header.Get("X-Backend")}
}

// echo sends the next message and reads it back: its number, its length, and
// bytes that belong to that number.
func (u *tunnel) echo() error {
	size := 12 + int(u.next*997%(messageMax-12))
	out := make([]byte, size)
	binary.BigEndian.PutUint64(out, u.next)
	binary.BigEndian.PutUint32(out[8:], uint32(size))
	_, _ = io.ReadFull(content(int64(u.next), messageMax), out[12:]) // it has that many
	u.next++
	if err := u.conn.SetDeadline(time.Now().Add(requestTime)); err != nil {
		return err
	}
	if _, err := u.conn.Write(out); err != nil {
		return err
	}
	in := make([]byte, size)
	if _, err := io.ReadFull(u.r, in); err != nil {
		return fmt.Errorf("tunnel, message %d: %w", u.next-1, err)
	}
	if !slices.Equal(in, out) {
		return fmt.Errorf("tunnel: wrong bytes in message %d", u.next-1)
	}
	return nil
}

// startTunnels digs n tunnels and keeps messages going round in them.
func startTunnels(t testing.TB, addr, target string, n int) *load {
	t.Helper()
	all := make([]*tunnel, n)
	for i := range all {
		all[i] = dig(t, addr, target)
	}
	return startLoad(t, n, func(worker, _ int) error {
		time.Sleep(time.Millisecond) // a tunnel is seldom busy; not a wait for anything
		return all[worker].echo()
	})
}

// serveTunnel is the echo at the end of a tunnel.
func serveTunnel(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Backend: %s\r\n\r\n",
		w.Header().Get("X-Backend")); err != nil {
		return
	}
	_, _ = io.Copy(conn, rw) // until the other side leaves
}

// commandOf is the name of a process, as tools show it.
func commandOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(text)), err
}
