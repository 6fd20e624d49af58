package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// endlessly is a backend whose responses have no end, but for "/".
func endlessly(t *testing.T) string {
	return scripted(t, func(_ int, c *net.TCPConn) {
		for in := bufio.NewReader(c); ; {
			h, err := head(in)
			switch {
			case err != nil:
				return
			case strings.HasPrefix(h, "GET / "):
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			default:
				io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
				io.Copy(c, endless{})
				return
			}
		}
	})
}

// stall has clients that were accepted before ask all at once for more than they
// read. It returns when full says so.
func (r *rig) stall(clients int, full func() bool) {
	r.onLoop(r.proxy.StopRenewing) // nothing but this brings results
	conns := make([]net.Conn, clients)
	for i := range conns {
		conns[i] = r.dialLittle()
	}
	require.Eventually(r.t, func() bool { return r.counted().Connections >= uint64(clients) }, patience, time.Millisecond)
	for _, c := range conns {
		_, err := io.WriteString(c, "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(r.t, err)
	}
	require.Eventually(r.t, func() (is bool) {
		r.onLoop(func() { is = full() })
		return is
	}, patience, 10*time.Millisecond)
}

// getOn sends a request for little on c and wants it answered.
func (r *rig) getOn(c net.Conn) {
	r.t.Helper()
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	require.NoError(r.t, err)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(r.t, err)
	require.Equal(r.t, 200, res.StatusCode)
}

// Clients that stall all at once, and use up the memory, end when they have
// stalled for long enough, also if nothing at all happens until then.
func TestStalledAtOnce(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		const memory = 16 << 20
		r := start(t, engine, to(endlessly(t)), func(s *proxy.Snapshot) { s.Limits.Memory = memory })
		c := r.dial()
		r.getOn(c)
		r.stall(250, func() bool { return r.pool.Lent() > memory/100*95 || r.counters.Reasons[message.ReasonMemory] > 0 })
		r.getOn(c)
	})
}

// So do those that a new configuration leaves less memory than they use.
func TestStalledBeforeLessMemory(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		const memory = 16 << 20
		routes := to(endlessly(t))
		r := start(t, engine, routes, nil)
		c := r.dial()
		r.getOn(c)
		r.stall(100, func() bool { return r.pool.Lent() > memory && !r.proxy.Ticking() })
		s := snapshot(routes)
		s.Limits.Memory = memory
		require.NoError(t, proxy.Prepare(s))
		r.onLoop(func() { r.proxy.Apply(s) })
		lent := 0
		require.Eventually(t, func() bool {
			r.onLoop(func() { lent = r.pool.Lent() })
			return lent < memory
		}, patience, 10*time.Millisecond)
		r.getOn(c)
	})
}
