package integration

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Nobody reads the programs' own log any more, and its pipe is full: requests
// are served, reloads take effect, and the dead are replaced all the same.
func TestEventStuckLogReader(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 2)
		c := startCup(t, engine, w.config(0))
		shortenPipe(t, fmt.Sprintf("/proc/%d/fd/2", c.pid()))
		c.log.reading.Lock()
		defer c.log.reading.Unlock()
		l := startLoad(t, 8, onePerConnection(c.addr))
		reloads := pick[int64](1000, 50) // each logs a line
		for g := int64(1); g <= reloads; g++ {
			c.write(w.config(g))
			_, err := c.admin.Reload()
			require.NoError(t, err, "reload %d", g)
		}
		for slot := range c.workers() {
			c.kill(slot)
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

// shortenPipe makes a pipe hold a page and no more.
func shortenPipe(t testing.TB, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	require.NoError(t, err)
}
