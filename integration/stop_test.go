package integration

import (
	"context"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// adminGet asks the admin socket for a path.
func (c *cup) adminGet(path string) (status int, body string) {
	c.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		},
	}}
	resp, err := client.Get("http://cloud-cup" + path)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp.StatusCode, string(text)
}

// Readiness goes first; for the delay everything else goes on, killed workers
// are replaced, too. What is under way gets its answer, an idle connection an
// end.
func TestReadinessGoesFirst(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker, `"timeouts": {"drain_delay": "3s"}`))
		status, body := c.adminGet("/readyz")
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "ready\n", body)
		kept := browse(t, c.addr)
		_, err := kept.get("", 100, 1, "")
		require.NoError(t, err)

		c.signal(syscall.SIGTERM)
		_, err = c.await("stopping")
		require.NoError(t, err)
		status, body = c.adminGet("/readyz")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, "stopping\n", body)
		require.True(t, c.status().Draining)
		a, err := kept.get("", 100, 2, "")
		require.NoError(t, err)
		require.False(t, a.closes, "the drain has not begun")
		late := browse(t, c.addr)
		require.NoError(t, late.ask("POST", "/5/1", "Content-Length: 5\r\nExpect: 100-continue\r\n"))
		interim, err := http.ReadResponse(late.r, getRequest)
		require.NoError(t, err)
		require.Equal(t, http.StatusContinue, interim.StatusCode, "the backend has the request")

		_, err = kept.r.ReadByte()
		require.ErrorIs(t, err, io.EOF, "the drain begins")
		_, err = net.Dial("tcp", c.addr)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.NoError(t, late.sendContent(5, 1, false))
		resp, err := late.response()
		require.NoError(t, err)
		require.True(t, resp.Close, "the last response says so")
		require.Zero(t, c.wait())
		c.allGone()
	})
}

// Nothing to wait for: the end comes at once. Idle connections of clients that
// do not close their side cost a grace and no more.
func TestStopDoesNotDawdle(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		took := func(prepare func(c *cup)) time.Duration {
			c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
			prepare(c)
			begin := time.Now()
			c.signal(syscall.SIGTERM)
			require.Zero(t, c.wait())
			c.allGone()
			return time.Since(begin)
		}
		var nothing, idle time.Duration
		for range 5 { // a busy machine may make it late, but not always
			nothing = took(func(*cup) {})
			idle = took(func(c *cup) {
				for i := range 10 {
					_, err := browse(t, c.addr).get("", 100, int64(i), "")
					require.NoError(t, err)
					dial(t, c.addr)
				}
			})
			t.Logf("stopped after %v without connections, after %v with idle ones", nothing, idle)
			if nothing < time.Second && idle < nothing+2500*time.Millisecond {
				return
			}
		}
		require.Less(t, nothing, time.Second)
		require.Less(t, idle, nothing+2500*time.Millisecond)
	})
}

// A tunnel gets the drain's deadline, and is cut then.
func TestTunnelGetsTheDeadline(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker, `"timeouts": {"drain": "2s"}`))
		u := dig(t, c.addr, "/tunnel")
		require.NoError(t, u.echo())
		begin := time.Now()
		c.signal(syscall.SIGTERM)
		_, err := c.await("stopping")
		require.NoError(t, err)
		require.NoError(t, u.echo(), "while it drains")
		_, err = u.r.ReadByte()
		require.Error(t, err)
		require.GreaterOrEqual(t, time.Since(begin), 2*time.Second)
		require.Equal(t, 3, c.wait())
	})
}
