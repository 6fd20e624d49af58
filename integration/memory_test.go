package integration

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// workerRSSMax is what each worker may take while it moves large bodies.
const workerRSSMax = 64 << 20

// Large bodies pass byte by byte the same, in little memory, also to a client
// that reads slowly.
func TestLargeTransfers(t *testing.T) {
	size := pick[int64](1<<30, 64<<20)
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		client := browse(t, c.addr)
		for _, query := range []string{"", "?chunked", "?close"} {
			_, err := client.get("", size, 3, query)
			require.NoError(t, err, "download %s", query)
		}
		for _, chunked := range []bool{false, true} {
			_, err := client.post("", size, 5, chunked)
			require.NoError(t, err, "upload, chunked: %v", chunked)
		}
		// A slow reader: it takes a piece with each tick.
		slow := browse(t, c.addr)
		slowSize := size / 8
		require.NoError(t, slow.ask("GET", fmt.Sprintf("/%d/7", slowSize), ""))
		resp, err := slow.response()
		require.NoError(t, err)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		require.NoError(t, checkContent(&pacedReader{resp.Body, tick}, 7, slowSize))
		peak := peakRSS(t, c.workers()[0])
		t.Logf("peak RSS of the worker: %.1f MiB", float64(peak)/(1<<20))
		require.Less(t, peak, workerRSSMax)
	})
}

// pacedReader reads once a tick.
type pacedReader struct {
	r    io.Reader
	tick *time.Ticker
}

func (p *pacedReader) Read(b []byte) (int, error) {
	<-p.tick.C
	return p.r.Read(b)
}

// peakRSS is the most memory that a process ever had.
func peakRSS(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			require.NoError(t, err)
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// Many clients that do not read their responses cost no more than
// limits.memory, and others are served meanwhile.
func TestSlowReaders(t *testing.T) {
	readers := pick(1000, 200)
	limit := pick(128<<20, 32<<20)
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker, fmt.Sprintf(`"limits": {"memory": %d}`, limit)))
		const size = 16 << 20 // more than the kernel's buffers hold
		var slow []*browser
		for i := range readers {
			s := browse(t, c.addr)
			require.NoError(t, s.ask("GET", fmt.Sprintf("/%d/%d", size, i), ""))
			slow = append(slow, s)
		}
		out := uint64(0)
		eventually(t, "all readers to be stalled", func() bool {
			now := c.status().Totals.BytesOut
			stalled := now > 0 && now == out
			out = now
			return stalled
		})
		other := browse(t, c.addr)
		for i := range 20 {
			_, err := other.get("", 20_000, int64(i), "")
			require.NoError(t, err)
		}
		w := c.status().Workers[0]
		rss := wholeRSS(t, w.PID)
		t.Logf("%d slow readers: %.1f MiB lent, RSS %.1f MiB", readers, float64(w.BuffersLent)/(1<<20), float64(rss)/(1<<20))
		require.LessOrEqual(t, int(w.BuffersLent), limit)
		require.Less(t, rss, limit+(32<<20))
		// The kernel's memory for TCP is short now as well, and with it comes
		// packet loss: most of them leave before some go on reading.
		whole, checked := 0, pick(20, 5)
		for _, s := range slow[checked:] {
			require.NoError(t, s.conn.Close())
		}
		for i := range slow[:checked] {
			require.NoError(t, slow[i].conn.SetDeadline(time.Now().Add(requestTime)))
			resp, err := slow[i].response()
			require.NoError(t, err)
			if err := checkContent(resp.Body, int64(i), size); err == nil {
				whole++
			} else {
				require.NotContains(t, err.Error(), "wrong bytes")
			}
		}
		// Only the limit may have ended some of them.
		cut := int(c.status().Totals.Reasons["memory"])
		require.GreaterOrEqual(t, whole+cut, checked)
		for _, s := range slow[:checked] {
			require.NoError(t, s.conn.Close())
		}
	})
}

// idlePerConnection is what an idle keep-alive connection may cost, in bytes.
const idlePerConnection = 1 << 10

// Idle keep-alive connections cost next to nothing, and others are served.
func TestIdleConnections(t *testing.T) {
	count := pick(10_000, 2000)
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		warm := startLoad(t, 20, onePerConnection(c.addr))
		warm.more(500)
		require.Empty(t, warm.stop())
		pid := c.workers()[0]
		before := rssBytes(t, pid)

		// Descriptors are scarce: the clients live in a process of their own.
		child := exec.Command("/proc/self/exe", c.addr, strconv.Itoa(count))
		child.Env = append(os.Environ(), childVariable+"=idle")
		child.Stderr = os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		stdin, err := child.StdinPipe()
		require.NoError(t, err)
		stdout, err := child.StdoutPipe()
		require.NoError(t, err)
		started := make(chan error)
		starter <- func() { started <- child.Start() }
		require.NoError(t, <-started)
		lines := bufio.NewReader(stdout)
		require.Equal(t, "connected", readLine(t, lines))

		require.EqualValues(t, count, c.status().Workers[0].Connections)
		grown := rssBytes(t, pid) - before
		t.Logf("%d idle connections: %d bytes of RSS each", count, grown/count)
		// The Go heap grows in steps.
		require.LessOrEqual(t, grown, count*idlePerConnection+(1<<20))
		other := browse(t, c.addr)
		for i := range 100 {
			_, err := other.get("", 20_000, int64(i), "")
			require.NoError(t, err)
		}
		// All of them are still there, and of use.
		_, err = io.WriteString(stdin, "again\n")
		require.NoError(t, err)
		require.Equal(t, "served", readLine(t, lines))
		require.NoError(t, stdin.Close())
		require.NoError(t, child.Wait())
	})
}

// idleClients is the helper process of TestIdleConnections: it opens many
// connections, makes a request on each, waits, and makes another one.
func idleClients() error {
	addr := os.Args[1]
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	all := make([]*browser, count)
	for i := range all {
		if all[i], err = openBrowser(addr); err != nil {
			return err
		}
		all[i].r = bufio.NewReaderSize(all[i].conn, 512)
		if _, err := all[i].get("", 100, int64(i), ""); err != nil {
			return err
		}
	}
	fmt.Println("connected")
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	for i, b := range all {
		if _, err := b.get("", 100, int64(i), ""); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	fmt.Println("served")
	_, err = in.ReadString('\n') // until the parent has seen it
	if err != io.EOF {
		return err
	}
	return nil
}
