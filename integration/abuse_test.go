package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What each attack may cost.
const (
	abuseMemory    = 96 << 20                 // limits.memory
	abuseRSSPeak   = abuseMemory + (32 << 20) // of the worker, while it lasts
	abuseRSSLeft   = 32 << 20                 // more than before, when it is over: hot buffers and free lists
	idleWindow     = 200 * time.Millisecond
	idleShare      = 0.02 // of a processor, when nothing is to do
	spinShare      = 0.2  // of a processor, when nothing can be done
	abuseTime      = 20 * time.Second
	witnesses      = 2
	witnessMinimum = 10 // requests of others in the worst moment
)

// siege is a cup with one worker under attack. Route /calm/* leads to a backend
// that its witnesses use: clients that behave, and check every byte.
type siege struct {
	*cup
	testing *testing.T // the whole siege's
	calm    *backend
	victim  *backend // of route *; nil if it is not one of these
	worker  int      // process id
	seed    uint64

	files, masterFiles, rss int // before the attacks
}

// besiege starts a cup. backend is that of route *, empty for one that serves
// contents.
func besiege(t *testing.T, engine, backend string, more ...string) *siege {
	t.Helper()
	s := newSiege(t)
	s.begin(startCup(t, engine, s.config(backend, more...)))
	return s
}

func newSiege(t *testing.T) *siege {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("CUP_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "CUP_SEED")
	}
	t.Logf("CUP_SEED=%d", seed)
	return &siege{testing: t, calm: startBackend(t, "calm"), seed: seed}
}

func (s *siege) config(backend string, more ...string) string {
	if backend == "" {
		s.victim = startBackend(s.testing, "victim")
		backend = s.victim.addr
	}
	members := append([]string{
		`"root": "127.0.0.1:0"`, oneWorker, fmt.Sprintf(`"limits": {"memory": %d}`, abuseMemory),
		fmt.Sprintf(`"routes": {"/calm/*": {"backends": [{"host": %q}]}, "*": {"backends": [{"host": %q, "max_failure": 0}]}}`, s.calm.addr, backend),
	}, more...)
	return "{" + strings.Join(members, ",\n") + "}\n"
}

// begin warms c up and takes its measure.
func (s *siege) begin(c *cup) {
	s.cup, s.worker = c, c.workers()[0]
	w := s.witness()
	w.more(100)
	require.Empty(s.t, w.stop())
	eventually(s.t, "no connections after the first requests", func() bool { return s.status().Workers[0].Connections == 0 })
	s.awaitIdle()
	now := s.status().Workers[0]
	s.files, s.masterFiles = descriptors(s.t, s.worker)-int(now.BackendIdle), descriptors(s.t, s.pid())
	s.rss = rssBytes(s.t, s.worker)
}

// witness starts clients that behave.
func (s *siege) witness() *load {
	return startLoad(s.t, witnesses, func(worker, turn int) error {
		b, err := openBrowser(s.addr)
		if err != nil {
			return err
		}
		defer b.conn.Close()
		for i := range 3 {
			seed := int64(100*worker + 3*turn + i)
			if i == 1 {
				_, err = b.post("/calm", 10_000*(seed%7), seed, turn%2 == 0)
			} else {
				_, err = b.get("/calm", 10_000*(seed%7), seed, []string{"", "?chunked"}[turn%2])
			}
			if err != nil {
				return fmt.Errorf("witness, request %d: %w", i, err)
			}
		}
		return nil
	})
}

// attack makes an attack, while witnesses watch. The attack calls worst when
// it is at its height: then others must be served in time.
func (s *siege) attack(t *testing.T, attack func(t *testing.T, worst func())) {
	t.Helper()
	begin := time.Now()
	s.t = t
	// The peak of RSS starts anew (proc_pid_clear_refs(5)).
	require.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.worker), []byte("5"), 0))
	w := s.witness()
	called := false
	attack(t, func() {
		called = true
		w.more(witnessMinimum)
	})
	require.True(t, called, "the attack had no height")
	w.more(witnessMinimum)
	require.Empty(t, w.stop(), "errors of others")
	took := time.Since(begin)
	s.intact(t)
	t.Logf("attack %v, repair %v; peak RSS %.1f MiB, then %.1f MiB", took.Round(time.Millisecond),
		(time.Since(begin) - took).Round(time.Millisecond), float64(peakRSS(t, s.worker))/(1<<20), float64(rssBytes(t, s.worker))/(1<<20))
}

// intact checks that everything is as it was before the attack.
func (s *siege) intact(t *testing.T) {
	t.Helper()
	last := s.status().Workers[0]
	state := func() string {
		last = s.status().Workers[0]
		return fmt.Sprintf("%d connections, %d descriptors (%d before) of which %d to backends, %d bytes lent, RSS %d (%d)",
			last.Connections, descriptors(t, s.worker), s.files, last.BackendIdle, last.BuffersLent, rssBytes(t, s.worker), s.rss)
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		require.Equal(t, []int{s.worker}, s.workers(), "a worker died; log:\n%s", s.log.text())
		text := state()
		if last.Connections == 0 && descriptors(t, s.worker) <= s.files+int(last.BackendIdle) &&
			last.BuffersLent == 0 && rssBytes(t, s.worker) <= s.rss+abuseRSSLeft {
			break
		}
		require.True(t, time.Now().Before(end), "not as before: %s", text)
	}
	require.Zero(t, last.Restarts)
	require.Empty(t, last.LastDeath)
	require.Zero(t, last.Quarantined, s.log.text())
	require.LessOrEqual(t, descriptors(t, s.pid()), s.masterFiles+2, "descriptors of the master")
	require.Less(t, peakRSS(t, s.worker), abuseRSSPeak)
	b, err := openBrowser(s.addr)
	require.NoError(t, err)
	_, err = b.get("/calm", 100_000, 5, "")
	require.NoError(t, err)
	require.NoError(t, b.conn.Close())
	s.awaitIdle()
}

// awaitIdle waits until the worker uses next to no time.
func (s *siege) awaitIdle() {
	s.t.Helper()
	eventually(s.t, "an idle worker", func() bool { return s.share(idleWindow) < idleShare })
}

// share is what the worker takes of one processor while d passes.
func (s *siege) share(d time.Duration) float64 {
	s.t.Helper()
	before, begin := processorTime(s.t, s.worker), time.Now()
	time.Sleep(d)
	return float64(processorTime(s.t, s.worker)-before) / float64(time.Since(begin))
}

// processorTime is what the threads of a process have used.
func processorTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	total := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended
		}
		require.NoError(t, err)
		ns, err := strconv.Atoi(strings.Fields(string(text))[0])
		require.NoError(t, err)
		total += ns
	}
	return time.Duration(total)
}

// open connects n times.
func (s *siege) open(t *testing.T, n int) []*net.TCPConn {
	t.Helper()
	conns := make([]*net.TCPConn, n)
	require.NoError(t, crowd(n, 1, func(i int) (err error) {
		conns[i], err = s.tinyDial()
		return err
	}))
	return conns
}

// tinyDial connects with little room for what comes back.
func (s *siege) tinyDial() (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
		}), err)
	}}
	conn, err := d.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), conn.SetDeadline(time.Now().Add(abuseTime))
}

// crowd calls do for each number below n, at of them at the same time, and
// returns the first error.
func crowd(n, at int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for range at {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					errs <- fmt.Errorf("number %d: %w", i, err)
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// reset ends a connection with a RST.
func reset(conn *net.TCPConn) error { return errors.Join(conn.SetLinger(0), conn.Close()) }

// closeAll ends connections, each second one with a RST.
func closeAll(conns []*net.TCPConn) error {
	return crowd(len(conns), len(conns), func(i int) error {
		if i%2 == 0 {
			return reset(conns[i])
		}
		return conns[i].Close()
	})
}

// Clients that only hold or break connections harm nobody else.
func TestAbuseOfConnections(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := besiege(t, engine, "")
		for _, a := range []struct {
			name   string
			attack func(t *testing.T, worst func())
		}{
			{"reset in the middle of a response", s.resetInResponse},
			{"opened and reset at once", s.openedAndReset},
			{"idle", s.idleCrowd},
			{"large heads", s.largeHeads},
			{"pipelined and not read", s.pipelined},
		} {
			t.Run(a.name, func(t *testing.T) { s.attack(t, a.attack) })
		}
		s.t = t
	})
}

func (s *siege) resetInResponse(t *testing.T, worst func()) {
	conns := s.open(t, 500)
	require.NoError(t, crowd(len(conns), len(conns), func(i int) error {
		target := fmt.Sprintf("/%d/%d%s", 2<<20, i, []string{"", "?chunked", "?close"}[i%3])
		if _, err := fmt.Fprintf(conns[i], "GET %s HTTP/1.1\r\nHost: cup.test\r\n\r\n", target); err != nil {
			return err
		}
		var some [100]byte
		_, err := io.ReadFull(conns[i], some[:])
		if err == nil && !bytes.HasPrefix(some[:], []byte("HTTP/1.1 200 ")) {
			err = fmt.Errorf("got %q", some)
		}
		return err
	}))
	worst()
	require.NoError(t, crowd(len(conns), len(conns), func(i int) error { return reset(conns[i]) }))
}

func (s *siege) openedAndReset(t *testing.T, worst func()) {
	half := func() {
		conns := s.open(t, 500)
		for i, conn := range conns {
			switch i % 4 {
			case 1: // a request
				_, _ = io.WriteString(conn, "GET /100000/1 HTTP/1.1\r\nHost: cup.test\r\n\r\n")
			case 2: // a part of one
				_, _ = io.WriteString(conn, "POST /100000/1 HTTP/1.1\r\nHost: cup.test\r\nContent-Length: 100000\r\n\r\nabc")
			case 3: // a FIN before
				_ = conn.CloseWrite()
			}
		}
		require.NoError(t, crowd(len(conns), len(conns), func(i int) error { return reset(conns[i]) }))
	}
	half()
	worst()
	// Now those that were reset before they were accepted.
	freeze(t, s.worker)
	half()
	require.NoError(t, syscall.Kill(s.worker, syscall.SIGCONT))
}

func (s *siege) idleCrowd(t *testing.T, worst func()) {
	const count = 5000
	conns := s.open(t, count)
	eventually(t, "all idle connections", func() bool { return s.status().Workers[0].Connections >= count })
	grown := rssBytes(t, s.worker) - s.rss
	t.Logf("%d bytes of RSS for each idle connection", grown/count)
	require.Less(t, grown, 2*count*idlePerConnection+abuseRSSLeft)
	worst()
	require.NoError(t, closeAll(conns))
}

// largeHeads sends heads of 1 MiB: a line, many lines, a target. Each is
// refused with its own status, which the client can read.
func (s *siege) largeHeads(t *testing.T, worst func()) {
	const size = 1 << 20
	shapes := []struct {
		head string
		want string
	}{
		{"GET /1/1 HTTP/1.1\r\nHost: cup.test\r\nX: " + strings.Repeat("x", size), "431"},
		{"GET /1/1 HTTP/1.1\r\nHost: cup.test\r\n" + strings.Repeat("X: 2345678\r\n", size/12), "431"},
		{"GET /" + strings.Repeat("x", size) + " HTTP/1.1\r\n", "414"},
		{strings.Repeat("x", size), ""},
	}
	conns := s.open(t, 200)
	done := make(chan error, 1)
	go func() {
		done <- crowd(len(conns), len(conns), func(i int) error {
			conn, shape := conns[i], shapes[i%len(shapes)]
			// Beyond a bound it is not read to its end: only the answer counts.
			_, sendErr := io.WriteString(conn, shape.head)
			text, err := io.ReadAll(conn)
			closeErr := conn.Close()
			if err != nil && !errors.Is(err, syscall.ECONNRESET) || closeErr != nil {
				return errors.Join(sendErr, err, closeErr)
			}
			if !strings.HasPrefix(string(text), "HTTP/1.1 4") || !strings.HasPrefix(string(text)[len("HTTP/1.1 "):], shape.want) {
				return fmt.Errorf("got %.40q, want a %s; sent: %w, received: %w", text, shape.want, sendErr, err)
			}
			return nil
		})
	}()
	worst()
	require.NoError(t, <-done)
}

// pipelined sends many requests and does not read: one client goes away, one
// reads everything later.
func (s *siege) pipelined(t *testing.T, worst func()) {
	const count = 20_000
	served := s.victim.served.Load()
	var all strings.Builder
	for i := range count {
		fmt.Fprintf(&all, "GET /%d/%d HTTP/1.1\r\nHost: cup.test\r\n\r\n", i%100, i)
	}
	conns := s.open(t, 2)
	sent := make(chan error, len(conns))
	for _, conn := range conns {
		go func() {
			_, err := io.WriteString(conn, all.String())
			sent <- err
		}()
	}
	seen := int64(0)
	eventually(t, "the pipelines to be stuck", func() bool {
		before := seen
		time.Sleep(20 * time.Millisecond)
		seen = s.victim.served.Load() - served
		return seen > 0 && seen == before
	})
	require.Less(t, seen, int64(2*count), "all was answered: the client's buffers are too large for this test")
	worst()
	require.NoError(t, reset(conns[1]))
	r := bufio.NewReader(conns[0])
	for i := range count {
		resp, err := http.ReadResponse(r, getRequest)
		require.NoError(t, err, "response %d", i)
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.NoError(t, checkContent(resp.Body, int64(i), int64(i%100)))
	}
	require.NoError(t, conns[0].Close())
	<-sent
	<-sent
}

// Clients that send a byte now and then are told that it takes too long.
func TestAbuseOfPatience(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := besiege(t, engine, "", `"timeouts": {"client_head": "2s", "client_body": "2s"}`)
		const head = "POST /100/1 HTTP/1.1\r\nHost: cup.test\r\nContent-Length: 100000\r\n\r\n"
		for name, first := range map[string]string{"head": head[:len(head)-10], "body": head} {
			t.Run(name, func(t *testing.T) {
				s.attack(t, func(t *testing.T, worst func()) { s.slowloris(t, first, worst) })
			})
		}
		s.t = t
	})
}

func (s *siege) slowloris(t *testing.T, first string, worst func()) {
	conns := s.open(t, 200)
	done := make(chan error, 1)
	go func() {
		done <- crowd(len(conns), len(conns), func(i int) error {
			conn := conns[i]
			if _, err := io.WriteString(conn, first); err != nil {
				return err
			}
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				var b [1]byte
				_, _ = conn.Read(b[:]) // what it is, is read below
				if b[0] != 'H' {
					_ = conn.Close()
				}
			}()
			for n := 0; ; n++ {
				select {
				case <-tick.C:
					if _, err := conn.Write([]byte("x")); err != nil {
						return fmt.Errorf("byte %d: %w", n, err)
					}
					continue
				case <-answered:
				}
				break
			}
			text, err := io.ReadAll(conn)
			if err != nil || !bytes.HasPrefix(text, []byte("TTP/1.1 408 ")) || !bytes.Contains(text, []byte("client_timeout")) {
				return fmt.Errorf("got %q, %w", text, err)
			}
			return conn.Close()
		})
	}()
	worst()
	require.NoError(t, <-done)
}

// With few descriptors, clients wait for their turn: all are served.
func TestAbuseWithFewDescriptors(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := newSiege(t)
		dir := t.TempDir()
		file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
		require.NoError(t, os.WriteFile(file, []byte(s.config("")), 0o600))
		c, err := launch(t, file, socket, exec.Command("sh", "-c", `ulimit -n 256; exec "$@"`, "sh",
			program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file))
		require.NoError(t, err)
		s.begin(c)
		t.Run("waiting", func(t *testing.T) { s.attack(t, s.takeTurns) })
		t.Run("exhausted", func(t *testing.T) {
			s.t = t
			s.storm(t)
			s.exhaust(t)
			s.intact(t)
		})
		s.t = t
	})
}

// takeTurns opens many more connections than descriptors allow. Those that are
// not accepted yet are served when others have gone.
func (s *siege) takeTurns(t *testing.T, worst func()) {
	conns := s.open(t, 600)
	eventually(t, "as many connections as descriptors allow", func() bool { return s.status().Workers[0].Connections >= 100 })
	require.Less(t, s.share(time.Second), spinShare, "of a processor while nothing happens")
	require.Less(t, s.status().Workers[0].Connections, uint64(256))
	require.NoError(t, crowd(len(conns), 20, func(i int) error { return s.turn(conns[i], i) }))
	worst()
}

// turn makes a request on conn and closes it.
func (s *siege) turn(conn *net.TCPConn, i int) error {
	b := &browser{conn: conn, r: bufio.NewReader(conn)}
	_, err := b.get("", 5000, int64(i), []string{"", "?chunked"}[i%2])
	return errors.Join(err, conn.Close())
}

// storm is the same with all requests at once: there are fewer descriptors for
// backends than exchanges, and who gets none is told so.
func (s *siege) storm(t *testing.T) {
	conns := s.open(t, 600)
	var refused atomic.Int64
	require.NoError(t, crowd(len(conns), len(conns), func(i int) error {
		err := s.turn(conns[i], i)
		if errors.Is(err, errStatus) && strings.Contains(err.Error(), "503 Service Unavailable: memory") {
			refused.Add(1)
			return nil
		}
		return err
	}))
	t.Logf("%d of %d had no descriptor for a backend", refused.Load(), len(conns))
	require.Less(t, refused.Load(), int64(len(conns)*3/4))
}

// exhaust takes the worker's last descriptors away: accepting pauses, what is
// open goes on, and later all are served.
func (s *siege) exhaust(t *testing.T) {
	open := browse(t, s.addr)
	_, err := open.get("/calm", 100, 1, "")
	require.NoError(t, err)
	var before unix.Rlimit
	require.NoError(t, unix.Prlimit(s.worker, unix.RLIMIT_NOFILE, nil, &before))
	few := before
	few.Cur = 3
	require.NoError(t, unix.Prlimit(s.worker, unix.RLIMIT_NOFILE, &few, nil))
	paused := s.status().Totals.AcceptPaused
	conns := s.open(t, 100)
	eventually(t, "accepting to pause", func() bool { return s.status().Totals.AcceptPaused > paused+1 })
	share := s.share(time.Second)
	t.Logf("%.1f %% of a processor without descriptors", 100*share)
	require.Less(t, share, spinShare)
	_, err = open.get("/calm", 100, 2, "")
	require.NoError(t, err, "on a connection that is open")
	require.NoError(t, unix.Prlimit(s.worker, unix.RLIMIT_NOFILE, &before, nil))
	require.NoError(t, crowd(len(conns), 20, func(i int) error { return s.turn(conns[i], i) }))
	require.NoError(t, open.conn.Close())
}
