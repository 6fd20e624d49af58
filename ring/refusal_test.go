package ring

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// childVariable in the environment makes the test binary a child that is
// refused something and prints what Open says.
const childVariable = "CLOUD_CUP_RING_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childVariable); what != "" {
		openRefused(what)
		return
	}
	os.Exit(m.Run())
}

// openRefused prints errno and text of Open's error, or the engine's detail.
// what is "CALL ERRNO" for a seccomp filter, or "memlock BYTES"; behind
// "survey " it prints what Survey finds.
func openRefused(what string) {
	what, survey := strings.CutPrefix(what, "survey ")
	name, value, _ := strings.Cut(what, " ")
	number, err := strconv.Atoi(value)
	if err != nil {
		panic(err)
	}
	if name == "memlock" {
		becomeUnprivileged(uint64(number))
	} else {
		call := map[string]int{"setup": unix.SYS_IO_URING_SETUP, "enter": unix.SYS_IO_URING_ENTER, "register": unix.SYS_IO_URING_REGISTER}[name]
		if err := sys.RefuseCalls(sys.Refusal{Call: call, Errno: syscall.Errno(number)}); err != nil {
			panic(err)
		}
	}
	if survey {
		printSurvey()
		return
	}
	runtime.LockOSThread()
	e, err := Open(Config{Pool: loop.NewPool(1 << 20)})
	if err == nil {
		fmt.Print(e.Detail())
		return
	}
	var errno syscall.Errno
	fmt.Printf("%v %v %d %v", errors.Is(err, loop.ErrNotSupported), errors.As(err, &errno), errno, err)
}

// becomeUnprivileged leaves root for a user that has no other process, with a
// limit of lockable memory.
func becomeUnprivileged(memlock uint64) {
	const nobodyElse = 54321
	limit := unix.Rlimit{Cur: memlock, Max: memlock}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		panic(err)
	}
	if err := syscall.Setuid(nobodyElse); err != nil {
		panic(err)
	}
}

func inChild(t *testing.T, what string) string {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childVariable+"="+what)
	out, err := child.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

func TestRefusedBySeccomp(t *testing.T) {
	for _, c := range []struct {
		call  string
		errno syscall.Errno
		want  string
	}{
		{"setup", syscall.ENOSYS, "io_uring: io_uring_setup: function not implemented (no io_uring in this kernel, or gVisor, or a seccomp filter like Podman's): not supported here"},
		{"setup", syscall.EPERM, "io_uring: io_uring_setup: operation not permitted ("},
		{"setup", syscall.EACCES, "io_uring: io_uring_setup: permission denied (SELinux or a seccomp filter forbids it): not supported here"},
		{"setup", syscall.EINVAL, "io_uring: io_uring_setup: invalid argument (kernel older than Linux 5.19, or gVisor): not supported here"},
		{"register", syscall.EPERM, "io_uring: io_uring_register of the ring's descriptor: operation not permitted ("},
		{"enter", syscall.EPERM, "io_uring: io_uring_enter: operation not permitted ("},
		{"enter", syscall.ENOSYS, "io_uring: io_uring_enter: function not implemented ("},
		{"enter", syscall.EACCES, "io_uring: io_uring_enter: permission denied ("},
	} {
		t.Run(c.call+" "+c.errno.Error(), func(t *testing.T) {
			out := inChild(t, fmt.Sprintf("%s %d", c.call, c.errno))
			require.Contains(t, out, fmt.Sprintf("true true %d %s", c.errno, c.want))
			require.NotContains(t, out, "\n")
		})
	}
}

// Lockable memory is charged to unprivileged users. With too little for the
// usual ring a small one is opened, with none the limit is named.
func TestRefusedByMemlock(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	require.Contains(t, inChild(t, "memlock 65536"), "128 entries")
	require.Contains(t, inChild(t, "memlock 0"),
		fmt.Sprintf("true true %d io_uring: io_uring_setup: cannot allocate memory (RLIMIT_MEMLOCK, 0 KiB for all processes of this user, is too small)", syscall.ENOMEM))
}
