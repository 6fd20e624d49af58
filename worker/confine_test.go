package worker

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tryEnvironment makes a worker process one that is taken over: on SIGWINCH,
// which workers leave alone, it tries what a worker must not be able to do,
// prints what came of it, and ends with status 42. Its value is the file that
// it tries to open.
const tryEnvironment = "WORKER_TEST_TRY"

// tries are what the worker must not be able to do.
var tries = []struct {
	name string
	do   func(file string) error
}{
	{"open", func(file string) error { return closeAfter(unix.Open(file, unix.O_RDONLY, 0)) }},
	{"openat2", func(file string) error {
		return closeAfter(unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{Flags: unix.O_RDONLY}))
	}},
	{"create", func(file string) error { return os.WriteFile(file+".new", nil, 0o600) }},
	{"execve", func(string) error { return syscall.Exec("/proc/self/exe", []string{"exe"}, nil) }},
	{"start a program", func(string) error { return exec.Command("/proc/self/exe").Run() }},
	{"ptrace", func(string) error { return unix.PtraceSeize(os.Getppid()) }},
	{"process_vm_readv", func(string) error {
		_, err := unix.ProcessVMReadv(os.Getppid(), nil, nil, 0)
		return err
	}},
	{"io_uring_setup", func(string) error {
		_, err := Probe("uring")
		return err
	}},
}

func closeAfter(fd int, err error) error {
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// tryWhenAsked waits for the signal beside a worker that serves.
func tryWhenAsked(file string) {
	fmt.Fprintln(os.Stderr, "before:", tries[0].do(file))
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGWINCH)
	go func() {
		runtime.LockOSThread()
		<-asked
		for _, try := range tries {
			fmt.Fprintf(os.Stderr, "%s: %v\n", try.name, try.do(file))
		}
		os.Exit(42)
	}()
}

// Who takes a worker over cannot read a key, execute, trace, or make a ring.
func TestTakenOverWorkerIsConfined(t *testing.T) {
	for _, engine := range EngineNames() {
		t.Run(engine, func(t *testing.T) {
			key := filepath.Join(t.TempDir(), "key.pem")
			require.NoError(t, os.WriteFile(key, []byte("secret"), 0o600))
			t.Setenv(tryEnvironment, key)
			r := startRig(t)
			ack, err := r.start(engine, payloadFor(1, serverNamed(t, "a"), nil))
			require.NoError(t, err)
			require.True(t, ack.Guard.Seccomp, ack.Guard.SeccompError)
			require.True(t, ack.Guard.NoNewPrivs)
			require.False(t, ack.Guard.Dumpable)
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGWINCH))
			require.Equal(t, 42, r.exitCode())
			lines := strings.Split(r.log.String(), "\n")
			require.Contains(t, lines, "before: <nil>", "what it could do before it served")
			for _, try := range tries {
				found := 0
				for _, line := range lines {
					if strings.HasPrefix(line, try.name+": ") {
						found++
						require.Contains(t, line, "operation not permitted")
					}
				}
				require.Equal(t, 1, found, "%s in\n%s", try.name, r.log)
			}
			_, err = os.Stat(key + ".new")
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

// The loop goes to the CPU of its slot, and leaves it, as configurations say.
func TestPin(t *testing.T) {
	var own unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &own))
	r := startRig(t)
	host := serverNamed(t, "a")
	pinned := payloadFor(1, host, nil)
	pinned.Text = []byte(strings.Replace(string(pinned.Text), "{", `{"pin": true, `, 1))
	ack, err := r.start("epoll", pinned)
	require.NoError(t, err)
	require.NotNil(t, ack.Guard.CPU)
	require.Equal(t, nthCPU(&own, 0), *ack.Guard.CPU)
	var set unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(r.cmd.Process.Pid, &set)) // of the first thread
	require.Equal(t, 1, set.Count())
	require.True(t, set.IsSet(*ack.Guard.CPU))

	_, err = r.call(control.Message{Type: control.TypePrepare}, payloadFor(2, host, nil))
	require.NoError(t, err)
	ack, err = r.call(control.Message{Type: control.TypeCommit, Generation: 2}, nil)
	require.NoError(t, err)
	require.Nil(t, ack.Guard.CPU)
	require.NoError(t, unix.SchedGetaffinity(r.cmd.Process.Pid, &set))
	require.Equal(t, own, set)
}

func TestNthCPU(t *testing.T) {
	var set unix.CPUSet
	for _, cpu := range []int{1, 4, 67} {
		set.Set(cpu)
	}
	for n, cpu := range []int{1, 4, 67} {
		require.Equal(t, cpu, nthCPU(&set, n))
	}
}
