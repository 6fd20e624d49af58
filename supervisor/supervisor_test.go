package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

func TestKilledWorkerIsReplacedAndItsQueueServed(t *testing.T) {
	r := startRig(t, nil)
	address := r.addresses()[0]
	for range 20 {
		ask(t, address)
	}
	before := r.Status()
	require.EqualValues(t, 20, before.Totals.Requests)

	old := r.pids()
	for _, pid := range old {
		stopProcess(t, pid)
	}
	var waiting []net.Conn
	for range 20 { // they end up in the accept queues
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer conn.Close()
		waiting = append(waiting, conn)
	}
	for _, pid := range old {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	for _, conn := range waiting {
		_, pid := answerOf(t, conn)
		require.NotContains(t, old, pid)
	}
	eventually(t, "two workers", func() bool { return len(r.running()) == 2 })
	after := r.Status()
	require.EqualValues(t, 40, after.Totals.Requests, "totals survive their workers")
	for _, w := range after.Workers {
		require.EqualValues(t, 1, w.Restarts)
		require.Equal(t, "killed by SIGKILL", w.LastDeath)
		require.NotContains(t, old, w.PID)
	}
}

func TestReload(t *testing.T) {
	r := startRig(t, nil)
	address := r.addresses()[0]
	pids := r.pids()
	r.setConfig(configText("127.0.0.1:0", "127.0.0.1:10"))
	applied, err := r.client.Reload()
	require.NoError(t, err)
	require.Equal(t, &control.Applied{Generation: 2, Before: 1, Workers: 2, Changes: &control.Changes{
		Changed: 1, Routes: []string{"~ *"}, Settings: []string{},
	}}, applied)
	for range 10 {
		g, pid := ask(t, address)
		require.EqualValues(t, 2, g)
		require.Contains(t, pids, pid)
	}
	unchanged := func() {
		t.Helper()
		for range 10 {
			g, _ := ask(t, address)
			require.EqualValues(t, 2, g)
		}
		require.EqualValues(t, 2, r.Status().Generation)
	}

	r.setConfig("{\n  \"root\": \"127.0.0.1:0\",\n  \"rootes\": {}\n}")
	_, err = r.client.Reload()
	require.ErrorIs(t, err, control.ErrConfig)
	require.ErrorContains(t, err, "cup.json:3:3: ")
	unchanged()
	require.Equal(t, "the file has changed since it was loaded", r.Status().Config.Drift)

	r.setConfig(configText("127.0.0.1:0", "refuse.test:80"))
	_, err = r.client.Reload()
	require.ErrorContains(t, err, "refused by the test")
	require.NotErrorIs(t, err, control.ErrConfig)
	unchanged()

	for change, text := range map[string]string{
		"admin.socket": strings.Replace(configText("127.0.0.1:0"), "{", `{"admin": {"socket": "/x"}, `, 1),
	} {
		r.setConfig(text)
		_, err = r.client.Reload()
		require.ErrorContains(t, err, change)
		require.ErrorContains(t, err, "cannot change")
		unchanged()
	}
	require.Equal(t, pids, r.pids(), "no worker was lost on the way")
}

func TestReloadThatKillsWorkersChangesNothing(t *testing.T) {
	r := startRig(t, nil)
	r.setConfig(configText("127.0.0.1:0", "die.test:80"))
	_, err := r.client.Reload()
	require.ErrorContains(t, err, "nothing was changed")
	require.ErrorContains(t, err, errGone.Error())
	eventually(t, "workers to come back", func() bool { return len(r.running()) == 2 })
	g, _ := ask(t, r.addresses()[0])
	require.EqualValues(t, 1, g)
}

func TestWorkerThatCannotFollowIsReplaced(t *testing.T) {
	r := startRig(t, nil)
	r.setConfig(configText("127.0.0.1:0", "stuck.test:80"))
	applied, err := r.client.Reload()
	require.NoError(t, err)
	for range 10 {
		g, _ := ask(t, r.addresses()[0])
		require.Equal(t, applied.Generation, g)
	}
}

func TestApplyIsShownAsDrift(t *testing.T) {
	r := startRig(t, nil)
	text := configText("127.0.0.1:0", "127.0.0.1:11")
	applied, err := r.client.Apply("new.json", []byte(text), control.ApplyDryRun)
	require.NoError(t, err)
	require.True(t, applied.DryRun)
	g, _ := ask(t, r.addresses()[0])
	require.EqualValues(t, 1, g)

	_, err = r.client.Apply("new.json", []byte("{"), control.ApplyInMemory)
	require.ErrorIs(t, err, control.ErrConfig)
	require.ErrorContains(t, err, "new.json:1:")

	_, err = r.client.Apply("new.json", []byte(text), control.ApplyInMemory)
	require.NoError(t, err)
	g, _ = ask(t, r.addresses()[0])
	require.EqualValues(t, 2, g)
	status, err := r.client.Status()
	require.NoError(t, err)
	require.Contains(t, status.Config.Drift, "applied from memory, differs from the file")
	inForce, err := r.client.Config()
	require.NoError(t, err)
	require.Equal(t, text, string(inForce))

	_, err = r.client.Reload()
	require.NoError(t, err)
	status, err = r.client.Status()
	require.NoError(t, err)
	require.Empty(t, status.Config.Drift)
	require.Equal(t, "file", status.Config.Source)
}

func TestSecondMasterIsRefused(t *testing.T) {
	r := startRig(t, nil)
	address := r.addresses()[0]
	_, err := listenOn(address, 1)
	require.EqualError(t, err, fmt.Sprintf("%s: another cloud-cup (pid %d) is listening there", address, os.Getpid()))

	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	_, err = listenOn(":"+port, 1)
	require.ErrorIs(t, err, syscall.EADDRINUSE, "an address that overlaps")

	_, err = newMaster(testOptions(r.path, testLog{t})).start()
	require.ErrorContains(t, err, fmt.Sprintf("in use by another cloud-cup (pid %d)", os.Getpid()))
}

func TestAnotherProgramOnThePort(t *testing.T) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, 0xf, 1) })
	}}
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0") // with SO_REUSEPORT
	require.NoError(t, err)
	defer l.Close()
	_, err = listenOn(l.Addr().String(), 1)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, "address already in use: another program")
}

func TestListenFamilies(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here: ", err)
	} else {
		l.Close()
	}
	all, err := listenOn(":0", 2)
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(all.address)
	require.NoError(t, err)
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
		require.NoError(t, err)
		conn.Close()
	}
	require.NoError(t, all.close())

	var both socketSet
	change, err := both.prepare([]string{":" + port, "127.0.0.1:" + port}, 2)
	require.NoError(t, err, "addresses of ours may overlap")
	require.NoError(t, change.abort())

	six, err := listenOn("[::1]:0", 1)
	require.NoError(t, err)
	require.NoError(t, six.close())
	any6, err := listenOn("[::]:"+port, 1)
	require.NoError(t, err)
	defer any6.close()
	any4, err := listenOn("0.0.0.0:"+port, 1)
	require.NoError(t, err, "an IPv6 address leaves IPv4 to others")
	require.NoError(t, any4.close())
}

func TestStop(t *testing.T) {
	r := startRig(t, nil)
	pids, address := r.pids(), r.addresses()[0]
	r.signals <- syscall.SIGTERM
	require.NoError(t, <-r.done)
	for _, pid := range pids {
		require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	}
	_, err := net.Dial("tcp", address)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestStopAcceptsUntilTheDelayIsOver(t *testing.T) {
	delayed := strings.Replace(configText("127.0.0.1:0"), `"drain": `, `"drain_delay": "1h", "drain": `, 1)
	r := startRig(t, func(o *Options, _ *Master) { require.NoError(t, os.WriteFile(o.Path, []byte(delayed), 0o600)) })
	r.signals <- syscall.SIGTERM
	for len(r.signals) > 0 {
		runtime.Gosched() // until it is taken
	}
	ask(t, r.addresses()[0])
	r.signals <- syscall.SIGHUP // means nothing any more
	r.signals <- syscall.SIGTERM
	require.Equal(t, exitCut, ExitCode(<-r.done), "a second signal ends it at once")
	_, err := net.Dial("tcp", r.addresses()[0])
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestStopReportsWhatWasCut(t *testing.T) {
	r := startRig(t, nil)
	r.mu.Lock()
	r.slots[0].in.page.Counters.Connections = 3 // the test's worker says it cut them
	r.mu.Unlock()
	r.signals <- syscall.SIGINT
	err := <-r.done
	require.Equal(t, exitCut, ExitCode(err))
}

func TestWorkerThatDoesNotDrainIsKilled(t *testing.T) {
	r := startRig(t, nil)
	pids := r.pids()
	stopProcess(t, pids[0])
	r.signals <- syscall.SIGTERM
	eventually(t, "the other worker to end", func() bool { return errors.Is(syscall.Kill(pids[1], 0), syscall.ESRCH) })
	r.signals <- syscall.SIGTERM
	require.Equal(t, exitCut, ExitCode(<-r.done))
	require.ErrorIs(t, syscall.Kill(pids[0], 0), syscall.ESRCH)
}

func TestWorkersThatDoNotStart(t *testing.T) {
	t.Setenv(startEnvironment, "refuse")
	path := writeConfig(t, configText("127.0.0.1:0"))
	_, err := newMaster(testOptions(path, testLog{t})).start()
	require.ErrorContains(t, err, "this worker does not want to")
	require.Equal(t, exitFailed, ExitCode(err))
	_, err = os.Stat(filepath.Join(filepath.Dir(path), "admin.sock"))
	require.ErrorIs(t, err, os.ErrNotExist, "nothing is left behind")
}

// A slot whose workers die at once waits longer and longer, and is back once
// they live.
func TestCrashLoop(t *testing.T) {
	r := startRig(t, nil)
	os.Setenv(startEnvironment, "refuse")
	defer os.Unsetenv(startEnvironment)
	victim := r.Status().Workers[1].PID
	require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
	var w control.WorkerStatus
	eventually(t, "the slot to wait", func() bool {
		w = r.Status().Workers[1]
		return w.State == control.WorkerWaiting
	})
	require.EqualValues(t, freeDeaths, w.Restarts)
	require.Contains(t, w.LastDeath, "this worker does not want to")
	require.Zero(t, w.PID)
	os.Unsetenv(startEnvironment)
	eventually(t, "the slot to be back", func() bool { return len(r.running()) == 2 })
}

func TestEngineChoice(t *testing.T) {
	refused := errors.New("io_uring_setup: operation not permitted")
	probe := func(engine string) (string, error) {
		if engine == EngineRing {
			return "", refused
		}
		return "detail", nil
	}
	var log strings.Builder
	status, err := chooseEngine(EngineAuto, probe, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	require.Equal(t, control.EngineStatus{Asked: "auto", Used: "epoll", Detail: "detail", Fallback: refused.Error()}, status)

	_, err = chooseEngine(EngineRing, probe, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, refused)
	require.Contains(t, log.String(), err.Error(), "both ways say the same")
	_, err = chooseEngine(EngineEpoll, probe, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
}

func TestNamesAreResolvedAgain(t *testing.T) {
	var answer atomic.Value
	answer.Store("10.0.0.1")
	r := startRig(t, func(_ *Options, m *Master) {
		m.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			if text := answer.Load().(string); text != "" {
				return []netip.Addr{netip.MustParseAddr(text)}, nil
			}
			return nil, errors.New("no such host")
		}
	})
	backends := func() []control.BackendStatus { return r.Status().Backends }
	r.setConfig(configText("127.0.0.1:0", "db.test:80", "127.0.0.1:9"))
	_, err := r.Reload()
	require.NoError(t, err)
	like := control.BackendStatus{
		Routes: 1, State: control.BackendEnabled, Weights: []int{1}, Health: control.HealthUp, Requests: map[string]uint64{},
	}
	fixed, named := like, like
	fixed.Host, fixed.Addresses = "127.0.0.1:9", []string{"127.0.0.1:9"}
	named.Host, named.Addresses = "db.test:80", []string{"10.0.0.1:80"}
	require.Equal(t, []control.BackendStatus{fixed, named}, backends())

	require.True(t, r.refreshAddresses())
	require.EqualValues(t, 2, r.Status().Generation, "nothing changed")

	answer.Store("10.0.0.2")
	require.True(t, r.refreshAddresses())
	require.Equal(t, []string{"10.0.0.2:80"}, backends()[1].Addresses)
	g, _ := ask(t, r.addresses()[0])
	require.EqualValues(t, 3, g)

	answer.Store("")
	require.False(t, r.refreshAddresses())
	require.Equal(t, []string{"10.0.0.2:80"}, backends()[1].Addresses, "a failing name server takes no backend out")
	require.Equal(t, "no such host", backends()[1].Error)
}

func TestSlowNamesDoNotStopAStart(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	g, err := parse("x", []byte(configText("127.0.0.1:0", "slow.test:80")), "/", sourceFile)
	require.NoError(t, err)
	g.resolve(func(context.Context, string, string) ([]netip.Addr, error) {
		<-release // after the test
		return nil, nil
	}, nil)
	require.Equal(t, map[string][]string{"slow.test:80": nil}, g.addresses)
}

func TestBackoff(t *testing.T) {
	require.Zero(t, backoff(1))
	require.Zero(t, backoff(freeDeaths))
	require.Equal(t, backoffFirst, backoff(freeDeaths+1))
	require.Equal(t, 2*backoffFirst, backoff(freeDeaths+2))
	require.Equal(t, backoffMax, backoff(1000))
}

func TestCPUQuota(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o600))
	}
	require.Zero(t, cpuQuota(root, "0::/a/b\n"))
	write("a/b/cpu.max", "max 100000\n")
	require.Zero(t, cpuQuota(root, "0::/a/b\n"))
	write("a/cpu.max", "150000 100000\n")
	require.Equal(t, 2, cpuQuota(root, "0::/a/b\n"), "a parent's bound, rounded up")
	write("a/b/cpu.max", "50000 100000\n")
	require.Equal(t, 1, cpuQuota(root, "0::/a/b\n"))
	write("cpu/c/cpu.cfs_quota_us", "300000\n")
	write("cpu/c/cpu.cfs_period_us", "100000\n")
	require.Equal(t, 3, cpuQuota(root, "5:memory:/c\n4:cpu,cpuacct:/c\n"))
	write("cpu/c/cpu.cfs_quota_us", "-1\n")
	require.Zero(t, cpuQuota(root, "4:cpu,cpuacct:/c\n"))
}

// Killing the master ends its workers, and the next master starts at once.
func TestMasterKilled(t *testing.T) {
	g, err := listenOn("127.0.0.1:0", 1)
	require.NoError(t, err)
	address := g.address
	require.NoError(t, g.close())
	path := writeConfig(t, configText(address))

	start := func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), masterEnvironment+"="+path)
		log, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			t.Log(lines.Text())
			if strings.Contains(lines.Text(), "msg=ready") {
				go io.Copy(io.Discard, log)
				return cmd
			}
		}
		require.Fail(t, "the master ended", "%v", cmd.Wait())
		return nil
	}
	first := start()
	_, worker := ask(t, address)
	require.NoError(t, first.Process.Kill())
	_, err = first.Process.Wait()
	require.NoError(t, err)
	second := start()
	_, other := ask(t, address)
	require.NotEqual(t, worker, other)
	eventually(t, "the orphan to end", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", worker))
		return err != nil || strings.Contains(string(text), ") Z ") // whoever inherits it may reap it late
	})
	require.NoError(t, second.Process.Signal(syscall.SIGTERM))
	state, err := second.Process.Wait()
	require.NoError(t, err)
	require.Zero(t, state.ExitCode())
}
