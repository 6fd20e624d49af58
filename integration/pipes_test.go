package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The tests of this file are about bodies that go through pipes: large ones of
// known length, where neither side speaks TLS.

// pipedBytes is the length of a body that no socket's buffers hold.
const pipedBytes = 32 << 20

// gate is a backend that takes no request's body until it is opened.
type gate struct {
	addr   string
	open   chan struct{}
	bodies chan error // what came of each request's body: nil if it was the content
}

func startGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gate{addr: l.Addr().String(), open: make(chan struct{}), bodies: make(chan error, 100)}
	contents := &backend{name: "gate"}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			contents.ServeHTTP(w, r)
			return
		}
		<-g.open
		size, seed, err := contentOf(r.URL.Path)
		if err == nil {
			err = checkContent(r.Body, seed, size)
		}
		g.bodies <- err
		_, _ = io.WriteString(w, "ok") // the client knows by itself what it wants to hear
	})}
	go func() { _ = server.Serve(l) }() // until Close
	t.Cleanup(func() { server.Close() })
	return g
}

// transfers are a body in each direction that is under way: of the one the
// client reads no more for now, of the other the backend.
type transfers struct {
	gate     *gate
	down, up *browser
	content  *http.Response
	sent     chan error
}

// beginTransfers has c pass on both until nothing moves, in pipes.
func beginTransfers(t *testing.T, c *cup, g *gate) *transfers {
	t.Helper()
	worker := c.workers()[0]
	before := c.pipes(worker)
	x := &transfers{gate: g, down: browse(t, c.addr), up: browse(t, c.addr), sent: make(chan error, 1)}
	require.NoError(t, x.down.ask("GET", fmt.Sprintf("/%d/1", pipedBytes), ""))
	var err error
	x.content, err = x.down.response()
	require.NoError(t, err)
	require.NoError(t, x.up.ask("POST", fmt.Sprintf("/%d/2", pipedBytes), fmt.Sprintf("Content-Length: %d\r\n", pipedBytes)))
	go func() { x.sent <- x.up.sendContent(pipedBytes, 2, false) }()
	if before >= 0 {
		eventually(t, "a pipe for each direction", func() bool { return c.pipes(worker) >= before+4 })
	}
	return x
}

// pipes is the number of pipes' ends that a worker has, or -1 where nobody but
// root may look.
func (c *cup) pipes(worker int) int {
	c.t.Helper()
	if os.Geteuid() != 0 {
		return -1
	}
	return pipes(c.t, worker)
}

// finish lets both go on to their ends: every byte must be right.
func (x *transfers) finish(t *testing.T) {
	t.Helper()
	close(x.gate.open)
	require.NoError(t, checkContent(x.content.Body, 1, pipedBytes))
	require.NoError(t, <-x.sent)
	require.NoError(t, <-x.gate.bodies)
	resp, err := x.up.response()
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "ok", string(text))
	require.NoError(t, errors.Join(x.down.conn.Close(), x.up.conn.Close()))
}

// A reload, an upgrade, a stop and the master's death let bodies in pipes end.
func TestPipedBodiesOutlive(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for name, event := range map[string]func(*testing.T, *cup){
			"reload": func(t *testing.T, c *cup) {
				_, stderr, code := c.cupctl("reload")
				require.Zero(t, code, stderr)
			},
			"upgrade": func(t *testing.T, c *cup) {
				c.upgrade()
				_, err := c.await("draining after an upgrade")
				require.NoError(t, err)
			},
			"stop": func(t *testing.T, c *cup) {
				c.signal(syscall.SIGTERM)
				_, err := c.await("stopping")
				require.NoError(t, err)
			},
			"master killed": func(t *testing.T, c *cup) {
				c.signal(syscall.SIGKILL)
				require.Equal(t, -1, c.wait())
			},
		} {
			t.Run(name, func(t *testing.T) {
				g := startGate(t)
				c, _ := startFrom(t, engine, configOf([]string{g.addr}, oneWorker))
				x := beginTransfers(t, c, g)
				event(t, c)
				x.finish(t)
				switch name {
				case "upgrade", "stop":
					require.Zero(t, c.wait(), c.log.text())
				case "master killed":
					c.allGone()
				}
			})
		}
	})
}

// A worker that is killed cuts bodies in pipes, and both sides can tell; the next
// one serves.
func TestPipedBodiesOfKilledWorker(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		g := startGate(t)
		c := startCup(t, engine, configOf([]string{g.addr}, oneWorker))
		x := beginTransfers(t, c, g)
		pid := c.workers()[0]
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		requireCut(t, checkContent(x.content.Body, 1, pipedBytes))
		require.Error(t, <-x.sent)
		close(g.open)
		requireCut(t, <-g.bodies)
		c.replaced(0, pid)
		b := browse(t, c.addr)
		_, err := b.get("", pipedBytes, 3, "")
		require.NoError(t, err)
		_, err = b.post("", pipedBytes, 4, false)
		require.NoError(t, err)
	})
}

// requireCut checks that content ended too early and was right up to there.
func requireCut(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
}

// A tunnel on connections, of client and backend, that have carried bodies in
// pipes.
func TestTunnelBehindPipedBodies(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, oneWorker))
		b := browse(t, c.addr)
		_, err := b.get("", 1<<20, 1, "")
		require.NoError(t, err)
		_, err = b.post("", 1<<20, 2, false)
		require.NoError(t, err)
		require.NoError(t, b.ask("GET", "/tunnel", "Connection: Upgrade\r\nUpgrade: echo\r\n"))
		resp, err := http.ReadResponse(b.r, getRequest)
		require.NoError(t, err)
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
		require.EqualValues(t, 1, c.status().Totals.BackendConnects)
		u := tunnel{browser: b}
		for range 100 {
			require.NoError(t, u.echo())
		}
		require.NoError(t, b.conn.Close())
	})
}

// largeBodies is work of large bodies in both directions, each on a connection of
// its own.
func largeBodies(addr string) func(worker, turn int) error {
	return func(worker, turn int) error {
		b, err := openBrowser(addr)
		if err != nil {
			return err
		}
		defer b.conn.Close()
		size, seed := int64(256<<10+turn*100_003), int64(worker*100+turn)
		if _, err := b.get("", size, seed, ""); err != nil {
			return err
		}
		_, err = b.post("", size, seed+1, false)
		return err
	}
}

// Where descriptors are too few for pipes, from the start or at a moment, large
// bodies go through buffers.
func TestLargeBodiesWithFewDescriptors(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		dir := t.TempDir()
		file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
		require.NoError(t, os.WriteFile(file, []byte(configOf([]string{startBackend(t, "a").addr}, oneWorker)), 0o600))
		for _, limit := range []int{63, 256} {
			c, err := launch(t, file, socket, exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh",
				program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file))
			require.NoError(t, err)
			worker := c.workers()[0]
			before := c.pipes(worker)
			if limit == 256 {
				// What is open is served, and nothing else can be opened.
				b := browse(t, c.addr)
				_, err := b.get("", 100, 1, "")
				require.NoError(t, err)
				var all unix.Rlimit
				require.NoError(t, unix.Prlimit(worker, unix.RLIMIT_NOFILE, nil, &all))
				require.NoError(t, unix.Prlimit(worker, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: all.Max}, nil))
				for i := range int64(4) {
					_, err := b.get("", 3<<20, i, "")
					require.NoError(t, err)
					_, err = b.post("", 3<<20, i, false)
					require.NoError(t, err)
				}
				require.Equal(t, before, c.pipes(worker))
				require.NoError(t, unix.Prlimit(worker, unix.RLIMIT_NOFILE, &all, nil))
				require.NoError(t, b.conn.Close())
			} else {
				l := startLoad(t, 6, largeBodies(c.addr))
				l.more(50)
				require.Empty(t, l.stop())
				require.Equal(t, before, c.pipes(worker))
			}
			c.stop()
		}
	})
}

// A user whose pipes hold as many pages as they may (pipe-user-pages-soft,
// pipe(7)) gets none for bodies: they go through buffers, until there are pipes
// again.
func TestLargeBodiesWithoutPipePages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the pages would be missing to everything else that this user runs")
	}
	eachEngine(t, func(t *testing.T, engine string) {
		a := startBackend(t, "a")
		c, uid := asNobody(t, engine, lockableDefault, configOf([]string{a.addr}, oneWorker))
		worker := c.workers()[0]
		before := c.pipes(worker)
		giveBack := holdPipePages(t, uid)
		l := startLoad(t, 6, largeBodies(c.addr))
		l.more(20)
		require.Empty(t, l.stop())
		require.Equal(t, before, c.pipes(worker))
		giveBack()
		l = startLoad(t, 6, largeBodies(c.addr))
		eventually(t, "pipes", func() bool { return c.pipes(worker) > before })
		require.Empty(t, l.stop())
	})
}

// holdPipePages has another process of the user hold all the pages that its pipes
// may have, until the function that it returns is called.
func holdPipePages(t *testing.T, uid int) (giveBack func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"=pipes")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Pdeathsig: syscall.SIGKILL,
	}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	started := make(chan error)
	starter <- func() { started <- cmd.Start() }
	require.NoError(t, <-started)
	t.Cleanup(func() { _ = in.Close() }) // again
	line := make([]byte, len("full\n"))
	_, err = io.ReadFull(out, line)
	require.NoError(t, err)
	require.Equal(t, "full\n", string(line))
	return func() {
		require.NoError(t, in.Close())
		require.NoError(t, cmd.Wait())
	}
}

// takePipePages makes pipes as large as a user may until no more pages are to be
// had, says so, and keeps them until the end of its input.
func takePipePages() error {
	text, err := os.ReadFile("/proc/sys/fs/pipe-max-size")
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(string(text[:len(text)-1]))
	if err != nil {
		return err
	}
	for least := 2 * os.Getpagesize(); size > least; { // what every pipe gets
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("pipe2", err)
		}
		for ; size > least; size /= 2 {
			_, err := unix.FcntlInt(uintptr(ends[0]), unix.F_SETPIPE_SZ, size)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EPERM) {
				return os.NewSyscallError("fcntl F_SETPIPE_SZ", err)
			}
		}
	}
	fmt.Println("full")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// unixConn is a client's connection to a unix socket.
type unixConn struct{ *net.UnixConn }

func (unixConn) SetLinger(int) error { return nil } // TCP alone has that

// Large bodies go through pipes between sockets of both kinds, however slowly they
// are read.
func TestLargeBodiesOverUnixSockets(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, path := startBackend(t, "a"), filepath.Join(t.TempDir(), "backend.sock")
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		go func() { _ = a.server.Serve(l) }() // until kill
		c := startCup(t, engine, fmt.Sprintf(`{"root": ["127.0.0.1:0", "unix:cup.sock"], "workers": 1, "routes": {
			"*": {"backends": [{"host": "unix:%s"}]}, "/tcp/*": {"backends": [{"host": %q}]}}}`, path, a.addr))
		conn, err := net.Dial("unix", filepath.Join(filepath.Dir(c.file), "cup.sock"))
		require.NoError(t, err)
		local := unixConn{conn.(*net.UnixConn)}
		for _, b := range []*browser{browse(t, c.addr), {conn: local, r: bufio.NewReader(local)}} {
			for i, folder := range []string{"", "/tcp", "", "/tcp"} {
				size := int64(256<<10 + i*1_000_003)
				_, err := b.get(folder, size, 1, "")
				require.NoError(t, err)
				_, err = b.post(folder, size, 2, false)
				require.NoError(t, err)
			}
			for _, folder := range []string{"", "/tcp"} {
				require.NoError(t, b.ask("GET", folder+"/4000000/3", ""))
				resp, err := b.response()
				require.NoError(t, err)
				tick := time.NewTicker(time.Millisecond)
				require.NoError(t, checkContent(&pacedReader{resp.Body, tick}, 3, 4_000_000))
				tick.Stop()
			}
			require.NoError(t, b.conn.Close())
		}
		require.EqualValues(t, 2, c.status().Totals.BackendConnects)
	})
}
