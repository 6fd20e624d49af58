package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// programs is the folder of the programs under test.
var programs string

// childVariable in the environment makes the test binary a helper process: one
// that stands for many clients, or one that starts another under a filter.
const childVariable = "CLOUD_CUP_INTEGRATION_CHILD"

// children are what the test binary can be instead, by childVariable.
var children = map[string]func() error{
	"idle":     idleClients,
	"refuse":   refuseAndExecute,
	"pipes":    takePipePages,
	"stranger": becomeStranger,

	"unprivileged": executeUnprivileged,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(buildAndRun(m))
}

// buildAndRun builds both programs as they are shipped, once for all tests.
func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cloud-cup-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Other users execute them too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-o", dir, "../cmd/cloud-cup", "../cmd/cupctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	programs = dir
	return m.Run()
}

// long reports whether the long forms are asked for.
func long() bool { return os.Getenv("CUP_LONG") == "1" }

// pick is the long form's value or the short form's.
func pick[T any](longValue, shortValue T) T {
	if long() {
		return longValue
	}
	return shortValue
}

// eachEngine runs test for each engine, or for the one that CUP_IO names.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	t.Helper()
	engines := []string{"uring", "epoll"}
	if one := os.Getenv("CUP_IO"); one != "" {
		require.Contains(t, engines, one, "CUP_IO")
		engines = []string{one}
	}
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// patience bounds every wait for an event.
const patience = 60 * time.Second

// eventually waits for something that nobody announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		require.True(t, time.Now().Before(end), "waited too long for: %s", what)
		time.Sleep(2 * time.Millisecond)
	}
}

// program is the path of a built program.
func program(name string) string { return filepath.Join(programs, name) }

// starter starts processes from one thread that never ends: they are killed
// when that thread ends, which is when this process does, however it ends.
var starter = func() chan func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
}()
