package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// refuseEnvironment makes a worker process one that io_uring is refused to.
const refuseEnvironment = "WORKER_TEST_REFUSE"

// The test binary is also the worker.
func TestMain(m *testing.M) {
	if Asked() {
		if os.Getenv(refuseEnvironment) != "" {
			if err := sys.RefuseCalls(sys.Refusal{Call: unix.SYS_IO_URING_SETUP, Errno: syscall.EPERM}); err != nil {
				panic(err)
			}
		}
		if file := os.Getenv(tryEnvironment); file != "" {
			tryWhenAsked(file)
		}
		os.Exit(Run(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	os.Exit(m.Run())
}

// rig is a worker process, with the test as its master.
type rig struct {
	t       *testing.T
	cmd     *exec.Cmd
	channel *control.Channel
	page    *shm.Page
	rows    *shm.Backends
	address string
	listen  *os.File // the listening socket
	seq     uint64
	log     *strings.Builder
}

func startRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, log: new(strings.Builder)}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	r.address = l.Addr().String()
	r.listen, err = l.(*net.TCPListener).File()
	require.NoError(t, err)
	var childEnd *os.File
	r.channel, childEnd, err = control.Pair()
	require.NoError(t, err)
	defer childEnd.Close()
	var fd int
	r.page, fd, err = shm.Create()
	require.NoError(t, err)
	counters := os.NewFile(uintptr(fd), "counters")
	defer counters.Close()
	r.rows, fd, err = shm.CreateBackends()
	require.NoError(t, err)
	backends := os.NewFile(uintptr(fd), "backends")
	defer backends.Close()

	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), control.WorkerEnvironment+"=0")
	r.cmd.ExtraFiles = []*os.File{childEnd, counters, backends}
	r.cmd.Stderr = r.log
	require.NoError(t, r.cmd.Start())
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.channel.Close()
		r.listen.Close() // a test may have done so
		require.NoError(t, errors.Join(r.page.Close(), r.rows.Close()))
		if t.Failed() {
			t.Log(r.log)
		}
	})
	return r
}

// call sends msg, with a payload if one is given, and returns the answer.
func (r *rig) call(msg control.Message, payload *control.Payload) (control.Message, error) {
	r.t.Helper()
	if payload == nil {
		return r.callWith(msg, -1)
	}
	text, err := json.Marshal(payload)
	require.NoError(r.t, err)
	fd, err := sys.SealedMemory("test", text)
	require.NoError(r.t, err)
	defer unix.Close(fd)
	return r.callWith(msg, fd)
}

// callWith sends msg with a descriptor, if it is not negative, and returns the
// answer.
func (r *rig) callWith(msg control.Message, fd int) (control.Message, error) {
	r.t.Helper()
	r.seq++
	msg.Seq = r.seq
	require.NoError(r.t, r.channel.Send(msg, fd))
	ack, _, err := r.channel.Receive()
	require.NoError(r.t, err)
	require.Equal(r.t, control.TypeAck, ack.Type)
	require.Equal(r.t, msg.Seq, ack.Seq)
	if ack.Error != "" {
		return ack, errors.New(ack.Error)
	}
	return ack, nil
}

func (r *rig) start(engine string, payload *control.Payload) (control.Message, error) {
	r.t.Helper()
	return r.startWith(engine, true, payload)
}

func (r *rig) startWith(engine string, required bool, payload *control.Payload) (control.Message, error) {
	r.t.Helper()
	ack, err := r.call(control.Message{Type: control.TypeStart, Start: &control.Start{Engine: engine, Required: required}}, payload)
	if err == nil {
		_, err = r.callWith(listen(7, r.address), int(r.listen.Fd()))
	}
	return ack, err
}

func listen(id uint32, address string) control.Message {
	return control.Message{Type: control.TypeListen, Listener: &control.Listener{ID: id, Address: address}}
}

func (r *rig) exitCode() int {
	r.t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(r.t, err)
	}
	return r.cmd.ProcessState.ExitCode()
}

// serverNamed is a backend that answers with its name.
func serverNamed(t *testing.T, name string) (host string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func payloadFor(generation uint64, host string, addresses map[string][]string) *control.Payload {
	b := &config.Backend{Host: host, MaxFailure: 5, Cooldown: 2 * time.Second}
	rows := map[string]int{}
	for i, addr := range control.BackendAddresses(host, addresses) {
		rows[control.BackendKey(addr, b)] = int(generation) + i
	}
	return &control.Payload{
		Rows: rows, RouteIndex: []int{0},
		Generation: generation, Name: "test.json", Dir: "/", Addresses: addresses,
		Text: fmt.Appendf(nil, `{"root": "127.0.0.1:1", "timeouts": {"drain": "2s"}, "routes": {"*": {"backends": [{"host": %q}]}}}`, host),
	}
}

func (r *rig) get() string {
	r.t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.address + "/")
	require.NoError(r.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return string(body)
}

func TestWorkerServesReloadsAndDrains(t *testing.T) {
	for _, engine := range EngineNames() {
		t.Run(engine, func(t *testing.T) {
			one, two := serverNamed(t, "one"), serverNamed(t, "two")
			r := startRig(t)
			ack, err := r.start(engine, payloadFor(1, one, nil))
			require.NoError(t, err)
			require.Equal(t, engine, ack.Engine.Name)
			require.Equal(t, "one", r.get())

			_, err = r.call(control.Message{Type: control.TypePrepare}, payloadFor(2, "two.test:80", map[string][]string{"two.test:80": {two}}))
			require.NoError(t, err)
			require.Equal(t, "one", r.get(), "prepared is not in force")
			_, err = r.call(control.Message{Type: control.TypeCommit, Generation: 3}, nil)
			require.ErrorContains(t, err, "generation 3 is not prepared")
			_, err = r.call(control.Message{Type: control.TypeCommit, Generation: 2}, nil)
			require.NoError(t, err)
			require.Equal(t, "two", r.get())

			_, err = r.call(control.Message{Type: control.TypePrepare}, payloadFor(4, one, nil))
			require.NoError(t, err)
			_, err = r.call(control.Message{Type: control.TypeAbort, Generation: 4}, nil)
			require.NoError(t, err)
			_, err = r.call(control.Message{Type: control.TypeCommit, Generation: 4}, nil)
			require.ErrorContains(t, err, "not prepared")
			bad := payloadFor(5, one, nil)
			bad.Text = []byte("{}")
			_, err = r.call(control.Message{Type: control.TypePrepare}, bad)
			require.ErrorContains(t, err, "test.json:1:1")
			require.Equal(t, "two", r.get())

			_, err = r.call(control.Message{Type: control.TypeSample}, nil)
			require.NoError(t, err)
			c := &r.page.Counters
			require.EqualValues(t, 2, c.Generation)
			require.EqualValues(t, 4, c.Requests)
			require.NotZero(t, c.HeapObjects)
			require.NotZero(t, c.Waits)
			require.NotZero(t, c.Goroutines)

			_, err = r.call(control.Message{Type: control.TypeDrain, Deadline: 2 * time.Second}, nil)
			require.NoError(t, err)
			last, _, err := r.channel.Receive()
			require.NoError(t, err)
			require.Equal(t, control.TypeDrained, last.Type)
			require.Zero(t, last.Cut)
			require.Zero(t, r.exitCode())
			require.NoError(t, r.listen.Close())
			_, err = net.Dial("tcp", r.address)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		})
	}
}

// A worker takes listeners and lets go of them while it serves.
func TestWorkerListens(t *testing.T) {
	for _, engine := range EngineNames() {
		t.Run(engine, func(t *testing.T) {
			r := startRig(t)
			_, err := r.start(engine, payloadFor(1, serverNamed(t, "one"), nil))
			require.NoError(t, err)
			path := filepath.Join(t.TempDir(), "cup.sock")
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			defer l.Close()
			other, err := l.(*net.UnixListener).File()
			require.NoError(t, err)
			defer other.Close()
			_, err = r.callWith(listen(8, "unix:"+path), int(other.Fd()))
			require.NoError(t, err)
			conn, err := net.Dial("unix", path)
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: cup.test\r\nConnection: close\r\n\r\n")
			require.NoError(t, err)
			answer, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.Contains(t, string(answer), "one")
			require.NoError(t, conn.Close())

			_, err = r.callWith(listen(8, "unix:"+path), int(other.Fd()))
			require.ErrorContains(t, err, "listener 8 is known already")
			_, err = r.callWith(listen(9, "unix:"+path), -1)
			require.ErrorContains(t, err, "listen without a listener")
			_, err = r.call(control.Message{Type: control.TypeRenew}, nil)
			require.NoError(t, err)
			unlisten := control.Message{Type: control.TypeUnlisten, Listener: &control.Listener{ID: 7, Empty: true}}
			_, err = r.call(unlisten, nil)
			require.NoError(t, err)
			_, err = r.call(unlisten, nil)
			require.ErrorContains(t, err, "there is no listener 7")
			require.NoError(t, r.listen.Close())
			_, err = net.Dial("tcp", r.address)
			require.ErrorIs(t, err, syscall.ECONNREFUSED, "nobody else has it")
			require.NoError(t, r.channel.Close())
			require.Zero(t, r.exitCode())
		})
	}
}

func TestWorkerCutsAtTheDeadline(t *testing.T) {
	for _, engine := range EngineNames() {
		t.Run(engine, func(t *testing.T) {
			r := startRig(t)
			begun, release := make(chan struct{}), make(chan struct{})
			slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				close(begun)
				<-release
			}))
			defer slow.Close()
			defer close(release)
			_, err := r.start(engine, payloadFor(1, slow.Listener.Addr().String(), nil))
			require.NoError(t, err)
			conn, err := net.Dial("tcp", r.address)
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: cup.test\r\n\r\n")
			require.NoError(t, err)
			<-begun
			_, err = r.call(control.Message{Type: control.TypeDrain, Deadline: 100 * time.Millisecond}, nil)
			require.NoError(t, err)
			last, _, err := r.channel.Receive()
			require.NoError(t, err)
			require.Equal(t, 1, last.Cut)
			require.Zero(t, r.exitCode())
		})
	}
}

// A worker serves what was asked and waits in its accept queue, then ends, when
// its master is gone; signals that are meant for the master do not matter.
func TestWorkerEndsWithItsMaster(t *testing.T) {
	r := startRig(t)
	_, err := r.start(EngineNames()[0], payloadFor(1, serverNamed(t, "one"), nil))
	require.NoError(t, err)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1} {
		require.NoError(t, r.cmd.Process.Signal(s))
	}
	require.Equal(t, "one", r.get())
	require.NoError(t, r.channel.Close())
	require.Zero(t, r.exitCode())
	require.Contains(t, r.log.String(), "the master is gone")
}

func TestWorkerSaysWhyItDoesNotStart(t *testing.T) {
	r := startRig(t)
	_, err := r.start("kqueue", payloadFor(1, "127.0.0.1:9", nil))
	require.ErrorContains(t, err, `there is no engine "kqueue"`)
	require.Equal(t, 1, r.exitCode())
}

// What the master could open, a worker may be refused later.
func TestWorkerThatIsRefusedItsEngine(t *testing.T) {
	t.Setenv(refuseEnvironment, "1")
	payload := payloadFor(1, serverNamed(t, "one"), nil)
	r := startRig(t)
	ack, err := r.startWith("uring", false, payload)
	require.NoError(t, err)
	require.Equal(t, "epoll", ack.Engine.Name)
	require.Contains(t, ack.Engine.Fallback, "io_uring_setup: operation not permitted")
	require.Equal(t, "one", r.get())
	require.NoError(t, r.channel.Close())
	require.Zero(t, r.exitCode())
	require.Contains(t, r.log.String(), ack.Engine.Fallback)

	r = startRig(t)
	_, err = r.startWith("uring", true, payload)
	require.EqualError(t, err, ack.Engine.Fallback)
	require.Equal(t, 1, r.exitCode())
}

func TestWorkerWithoutMaster(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), control.WorkerEnvironment+"=0")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Contains(t, string(out), "no master started this process")
}

func TestOpenEngineFallsBackUnlessRequired(t *testing.T) {
	o, err := openEngine("kqueue", false, probeBytes)
	require.NoError(t, err)
	require.NoError(t, o.engine.Close())
	require.NoError(t, o.pool.Close())
	require.Contains(t, o.fallback, "kqueue cannot be used")
	_, err = openEngine("kqueue", true, probeBytes)
	require.Error(t, err)
}

func TestSnapshot(t *testing.T) {
	text := []byte(`{
		"root": "127.0.0.1:1",
		"timeouts": {"response": "7s"},
		"limits": {"body_bytes": "1KiB", "connections": 100000},
		"routes": {
			"*": {"backends": [{"host": "127.0.0.1:81", "max_failure": 3, "cooldown": "9s"}, {"host": "unix:x.sock"}]},
			"a.test/b/*": {"backends": [{"host": "name.test:80"}, {"host": "gone.test:80"}], "timeouts": {"response": "8s"}}
		}
	}`)
	cfg, err := config.Parse("x", text, "/dir")
	require.NoError(t, err)
	key := func(addr string, route, backend int) string {
		return control.BackendKey(addr, &cfg.Routes[route].Backends[backend])
	}
	p := &control.Payload{
		Generation: 5, Addresses: map[string][]string{"name.test:80": {"10.0.0.1:80", "[fd00::1]:80"}},
		RouteIndex: []int{7, 3},
		Rows: map[string]int{
			key("127.0.0.1:81", 0, 0): 40, key("unix:/dir/x.sock", 0, 1): 41,
			key("10.0.0.1:80", 1, 0): 42, key("[fd00::1]:80", 1, 0): 43,
		},
	}
	s, err := newSnapshot(cfg, p, 70)
	require.NoError(t, err)
	require.EqualValues(t, 5, s.Generation)
	require.Equal(t, 70, s.Limits.Connections, "as many as descriptors allow")
	require.EqualValues(t, 1024, s.Limits.BodyBytes)
	require.Equal(t, 7*time.Second, s.Timeouts.Response)
	require.Equal(t, cfg.Timeouts.BackendIdle, s.Timeouts.BackendIdle)
	require.Len(t, s.Routes, 2)
	star, named := s.Routes[0], s.Routes[1]
	require.Equal(t, "*", star.Pattern)
	require.Equal(t, 3, star.Backends[0].MaxFailure)
	require.Equal(t, 9*time.Second, star.Backends[0].Cooldown)
	at := func(text string, row int) proxy.BackendAddr {
		return proxy.BackendAddr{Addr: loop.Addr{AddrPort: netip.MustParseAddrPort(text)}, Row: row}
	}
	require.Equal(t, 7, star.Index)
	require.Equal(t, 3, named.Index)
	require.Equal(t, []proxy.BackendAddr{at("127.0.0.1:81", 40)}, star.Backends[0].Addrs)
	require.Equal(t, []proxy.BackendAddr{{Addr: loop.Addr{Path: "/dir/x.sock"}, Row: 41}}, star.Backends[1].Addrs)
	require.Equal(t, 8*time.Second, named.Timeouts.Response)
	require.Equal(t, []proxy.BackendAddr{at("10.0.0.1:80", 42), at("[fd00::1]:80", 43)}, named.Backends[0].Addrs)
	require.Empty(t, named.Backends[1].Addrs)

	delete(p.Rows, key("10.0.0.1:80", 1, 0))
	_, err = newSnapshot(cfg, p, 70)
	require.ErrorContains(t, err, "backend name.test:80 (10.0.0.1:80) has no row")
	p.Addresses["name.test:80"] = []string{"nonsense"}
	_, err = newSnapshot(cfg, p, 70)
	require.ErrorContains(t, err, "name.test:80")
}

func TestConnectionsLeaveDescriptorsToBackends(t *testing.T) {
	for _, c := range []struct {
		files uint64
		want  int
	}{{0, 16}, {64, 16}, {256, 108}, {1024, 480}, {1<<64 - 1, 1 << 30}} {
		require.Equal(t, c.want, connectionsFor(c.files), "limit %d", c.files)
	}
}
