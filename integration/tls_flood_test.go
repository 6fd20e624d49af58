package integration

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Clients that begin a handshake, or complete one, and do nothing more take
// neither time nor memory from others for long, with as little memory as there
// may be.
func TestTLSFlood(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker, `"limits": {"memory": "16MiB"}`,
			`"timeouts": {"client_head": "2m", "client_idle": "3s"}`)
		worker := c.workers()[0]
		visit := func() {
			b, err := openSecurely(c.addr, config)
			require.NoError(t, err)
			_, err = b.get("", 100, 1, "")
			require.NoError(t, err)
			require.NoError(t, b.conn.Close())
		}
		cost := func() time.Duration {
			const visits = 100
			before := processorTime(t, worker)
			for range visits {
				visit()
			}
			return (processorTime(t, worker) - before) / visits
		}
		gone := func() {
			t.Helper()
			eventually(t, "all of them to be gone", func() bool {
				w := c.status().Workers[0]
				return w.Connections == 0 && w.BuffersLent == 0
			})
		}
		visit()
		usual := cost()
		affordable := func(what string) {
			t.Helper()
			now := cost()
			t.Logf("%s: %v of the worker's time for a visit, %v before; RSS %.1f MiB", what, now, usual, float64(rssBytes(t, worker))/(1<<20))
			require.Less(t, now, 3*usual)
		}

		// 50 kB of a message of 60 kB, in records: nothing is whole.
		end := c.flood(pick(3000, 1500), func(conn net.Conn) { _, _ = conn.Write(longHello(60_000)[:50_000]) }) // it may be refused
		began := time.Now()
		visit()
		t.Logf("the first visit after long hellos took %v", time.Since(began))
		eventually(t, "some to be refused", func() bool { return c.status().Totals.Reasons["memory"] > 0 })
		end()
		gone()

		end = c.flood(3000, func(conn net.Conn) { _, _ = conn.Write(longHello(300)[:100]) })
		eventually(t, "all of them", func() bool { return c.status().Workers[0].Connections == 3000 })
		affordable("short hellos")
		end()
		gone()

		end = c.flood(pick(3000, 300), func(conn net.Conn) { _ = tls.Client(conn, config).Handshake() })
		affordable("sessions")
		gone() // by client_idle
		end()
	})
}

// flood opens n connections that begin something. end closes them.
func (c *cup) flood(n int, begin func(net.Conn)) (end func()) {
	c.t.Helper()
	conns := make([]net.Conn, n)
	require.NoError(c.t, crowd(n, 50, func(i int) (err error) {
		if conns[i], err = net.DialTimeout("tcp", c.addr, patience); err == nil {
			begin(conns[i])
		}
		return err
	}))
	return func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
}

// longHello is a handshake message of size bytes, in records: types and lengths
// (RFC 8446 4 and 5.1), no content.
func longHello(size int) (b []byte) {
	message := make([]byte, size)
	copy(message, []byte{1, byte(size >> 16), byte(size >> 8), byte(size)})
	for len(message) > 0 {
		n := min(len(message), 16<<10)
		b = append(append(b, 22, 3, 1, byte(n>>8), byte(n)), message[:n]...)
		message = message[n:]
	}
	return b
}
