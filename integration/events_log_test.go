package integration

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Nobody reads the programs' own log any more, and its pipe is full: requests
// are served, reloads take effect, and the dead are replaced all the same.
func TestEventStuckLogReader(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		c.log.reading.Lock()
		defer c.log.reading.Unlock()
		l := startLoad(t, 8, onePerConnection(c.addr))
		// The pipe holds 64 KiB.
		const reloads = 500
		for g := int64(1); g <= reloads; g++ {
			c.write(w.config(g))
			_, err := c.admin.Reload()
			require.NoError(t, err, "reload %d", g)
		}
		for i, pid := range c.workers() {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			eventually(t, "a new worker", func() bool {
				s := c.status()
				return s.Workers[i].State == "running" && s.Workers[i].PID != pid
			})
		}
		l.renewed()
		lost := len(l.errors())
		l.more(100)
		failed := l.stop()
		report(t, "the log's reader is stuck, "+engine, "%d failed of %d requests besides those of 2 killed workers; %d reloads",
			len(failed)-lost, l.done.Load(), reloads)
		require.Len(t, failed, lost)
		a, err := browse(t, c.addr).get(fmt.Sprintf("/only-%d", reloads), 100, 1, "")
		require.NoError(t, err)
		require.Equal(t, w.turn(reloads).name, a.backend)
	})
}
