package integration

import (
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TERM under load: exchanges under way are finished in both directions, slow
// ones too, tunnels live on meanwhile, and the exit is clean.
func TestEventTerm(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		var stopping atomic.Bool
		l := startLoad(t, pick(256, 64), func(worker, turn int) error {
			late := stopping.Load()
			visitor, err := openBrowser(c.addr)
			for i := 0; err == nil && i < 1+worker%4; i++ {
				var a answer
				if a, err = visitor.get("", 1000, int64(turn), ""); a.closes {
					break
				}
			}
			if visitor != nil {
				visitor.conn.Close()
			}
			if (late || stopping.Load()) && refusedToServe(err) {
				return nil
			}
			return err
		})
		slow, half, closing := browse(t, c.addr), browse(t, c.addr), dig(t, c.addr, "/tunnel")
		const size = 8 << 20
		require.NoError(t, slow.ask("GET", "/8388608/1", ""))
		resp, err := slow.response()
		require.NoError(t, err)
		require.NoError(t, half.ask("POST", "/100000/2", "Content-Length: 100000\r\n"))
		body := content(2, 100_000)
		_, err = io.CopyN(half.conn, body, 50_000)
		require.NoError(t, err)
		require.NoError(t, closing.echo())
		l.more(200)

		stopping.Store(true)
		begin := time.Now()
		c.signal(syscall.SIGTERM)
		_, err = c.await("stopping")
		require.NoError(t, err)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		require.NoError(t, checkContent(&pacedReader{resp.Body, tick}, 1, size), "a response that is read slowly")
		_, err = io.Copy(half.conn, body)
		require.NoError(t, err)
		resp, err = half.response()
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "ok", string(text), "a request that was half sent")
		require.NoError(t, closing.echo(), "a tunnel")
		for _, b := range []*browser{slow, half, closing.browser} {
			require.NoError(t, b.conn.Close())
		}
		code := c.wait()
		took := time.Since(begin)
		failed := l.stop()
		report(t, "TERM under load, "+engine, "%d failed of %d requests, exit status %d after %v",
			len(failed), l.done.Load(), code, took.Round(time.Millisecond))
		require.Empty(t, failed)
		require.Zero(t, code, c.log.text())
		c.allGone()
	})
}

// refusedToServe reports whether err says that nobody listened, or stopped to
// at that moment.
func refusedToServe(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
