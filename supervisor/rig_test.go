package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/stretchr/testify/require"
)

// The test binary is also its masters and workers: the programs that it starts
// find these variables set.
const (
	masterEnvironment = "SUPERVISOR_TEST_MASTER" // path of a configuration
	startEnvironment  = "SUPERVISOR_TEST_START"  // "refuse": workers do not start
)

func TestMain(m *testing.M) {
	if os.Getenv(control.WorkerEnvironment) != "" {
		os.Exit(testWorker())
	}
	if path := os.Getenv(masterEnvironment); path != "" {
		err := Run(testOptions(path, os.Stderr))
		if err != nil {
			fmt.Fprintln(os.Stderr, "master:", err)
		}
		os.Exit(ExitCode(err))
	}
	os.Exit(m.Run())
}

// testWorker speaks the worker's side of the control channel, and answers each
// connection with its generation and process id.
func testWorker() int {
	signal.Ignore(syscall.SIGTERM)
	channel, err := control.Inherited(control.FDChannel)
	if err != nil {
		return 90
	}
	page, err := shm.Map(control.FDCounters)
	if err != nil {
		return 91
	}
	counters := &page.Counters
	listeners := map[uint32]net.Listener{}
	var prepared *control.Payload
	silent := false // as a loop that spins
	for {
		msg, fd, err := channel.Receive()
		if err != nil {
			return 0 // the master is gone
		}
		ack := control.Message{Type: control.TypeAck, Seq: msg.Seq}
		payload, err := payloadOf(msg, fd)
		if err != nil {
			return 92
		}
		text := string(payload.Text)
		switch msg.Type {
		case control.TypeStart:
			if os.Getenv(startEnvironment) == "refuse" {
				ack.Error = "this worker does not want to"
				break
			}
			counters.Generation, counters.OldestGeneration = payload.Generation, payload.Generation
			silent = strings.Contains(text, "silent.test")
			ack.Engine = &control.Engine{Name: msg.Start.Engine, Detail: "test"}
		case control.TypeListen:
			if listeners[msg.Listener.ID], err = answerOn(fd, counters); err != nil {
				return 93
			}
		case control.TypeUnlisten:
			listeners[msg.Listener.ID].Close()
			delete(listeners, msg.Listener.ID)
		case control.TypePrepare:
			switch {
			case strings.Contains(text, "refuse.test"):
				ack.Error = "refused by the test"
			case strings.Contains(text, "die.test"):
				return 94
			}
			prepared = &payload
		case control.TypeCommit:
			if strings.Contains(string(prepared.Text), "stuck.test") && msg.Seq > 1 {
				ack.Error = "cannot follow"
				break
			}
			counters.Generation, counters.OldestGeneration = prepared.Generation, prepared.Generation
			silent = strings.Contains(string(prepared.Text), "silent.test")
		case control.TypeBeat:
			if silent {
				continue
			}
		case control.TypeDrain:
			for _, l := range listeners {
				l.Close()
			}
			return lastWords(channel, ack, counters)
		}
		if channel.Send(ack, -1) != nil {
			return 96
		}
	}
}

// lastWords acknowledge a drain and tell what it came to.
func lastWords(channel *control.Channel, ack control.Message, counters *shm.Counters) int {
	last := control.Message{Type: control.TypeDrained, Cut: int(counters.Connections)}
	if channel.Send(ack, -1) != nil || channel.Send(last, -1) != nil {
		return 95
	}
	return 0
}

// payloadOf reads what came with a message; nothing, if that is no payload.
func payloadOf(msg control.Message, fd int) (payload control.Payload, err error) {
	if fd < 0 || msg.Type == control.TypeListen {
		return payload, nil
	}
	text, err := sys.ReadSealed(fd)
	err = errors.Join(err, json.Unmarshal(text, &payload), syscall.Close(fd))
	return payload, err
}

// answerOn answers the connections to a listening socket, which it takes over.
func answerOn(fd int, counters *shm.Counters) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err == nil {
		go answerAll(l, counters)
	}
	return l, err
}

func answerAll(l net.Listener, counters *shm.Counters) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		counters.Requests++
		fmt.Fprintf(conn, "%d %d\n", counters.Generation, os.Getpid())
		conn.Close()
	}
}

func testOptions(path string, log io.Writer) Options {
	return Options{
		Path: path, Engine: EngineAuto, Workers: 2, Version: "v-test",
		Admin:   "unix:" + filepath.Join(filepath.Dir(path), "admin.sock"),
		Log:     slog.New(slog.NewTextHandler(log, nil)),
		Probe:   func(engine string) (string, error) { return "probed " + engine, nil },
		Examine: func() *control.IOReport { return &control.IOReport{Advice: []string{"examined"}} },
		Reasons: []string{"none", "bad_request"},
	}
}

// configText is a configuration that listens on root and names the backends.
func configText(root string, backends ...string) string {
	if len(backends) == 0 {
		backends = []string{"127.0.0.1:9"}
	}
	var list []string
	for _, b := range backends {
		list = append(list, fmt.Sprintf(`{"host": %q}`, b))
	}
	return fmt.Sprintf(`{"root": %q, "timeouts": {"drain": "1s"}, "routes": {"*": {"backends": [%s]}}}`,
		root, strings.Join(list, ", "))
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cup.json")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// rig is a master in this process, with its workers in their own.
type rig struct {
	*Master
	t       *testing.T
	path    string
	client  *control.Client
	signals chan os.Signal
	done    chan error
}

func startRig(t *testing.T, change func(*Options, *Master)) *rig {
	t.Helper()
	path := writeConfig(t, configText("127.0.0.1:0"))
	o := testOptions(path, testLog{t})
	m := newMaster(o)
	m.lookup = func(context.Context, string, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if change != nil {
		change(&m.options, m)
	}
	admin, err := m.start()
	require.NoError(t, err)
	r := &rig{
		Master: m, t: t, path: path, client: control.NewClient(o.Admin),
		signals: m.signals, done: make(chan error, 1),
	}
	go func() { r.done <- m.obey(r.signals) }()
	t.Cleanup(func() {
		if !m.isStopping() {
			r.signals <- syscall.SIGTERM
			require.NoError(t, <-r.done)
		}
		require.NoError(t, admin.close())
	})
	return r
}

// testLog writes log lines to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// ask connects once and returns the generation and the process that answered.
func ask(t *testing.T, address string) (generation uint64, pid int) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	require.NoError(t, err)
	defer conn.Close()
	return answerOf(t, conn)
}

func answerOf(t *testing.T, conn net.Conn) (generation uint64, pid int) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	text, err := io.ReadAll(conn)
	require.NoError(t, err)
	g, p, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	require.True(t, ok, "answer %q", text)
	generation, err = strconv.ParseUint(g, 10, 64)
	require.NoError(t, err)
	pid, err = strconv.Atoi(p)
	require.NoError(t, err)
	return generation, pid
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		require.True(t, time.Now().Before(end), "waited too long for: %s", what)
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *rig) pids() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []int
	for _, s := range r.slots {
		if s.in != nil {
			list = append(list, s.in.pid)
		}
	}
	return list
}

// setConfig replaces the file.
func (r *rig) setConfig(text string) {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile(r.path, []byte(text), 0o600))
}

// stopProcess returns when the process does nothing any more.
func stopProcess(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, "the process to stop", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(text), ") ")
		return strings.HasPrefix(rest, "T")
	})
}

// listenOn listens on root as a master of its own would.
func listenOn(root string, slots int) (*group, error) {
	var set socketSet
	change, err := set.prepare([]string{root}, slots)
	if err != nil {
		return nil, err
	}
	if _, err := change.commit(); err != nil {
		return nil, errors.Join(err, change.abort())
	}
	return set.groups[0], nil
}
