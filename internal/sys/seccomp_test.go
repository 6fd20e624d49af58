package sys

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// childVariable in the environment makes the test binary the child of a test.
const childVariable = "CLOUD_CUP_SYS_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		refuseInChild()
		return
	}
	os.Exit(m.Run())
}

// refuseInChild prints what a thread that is older than the filter gets.
func refuseInChild() {
	ask, answer := make(chan bool), make(chan string)
	go func() {
		runtime.LockOSThread()
		<-ask
		_, err := unix.Getsid(0)
		_, again := unix.Getpgid(0)
		answer <- fmt.Sprint(err, ", ", again, ", ", unix.Getpid() > 0)
	}()
	err := RefuseCalls(Refusal{unix.SYS_GETSID, syscall.EACCES}, Refusal{unix.SYS_GETPGID, syscall.ENOSYS})
	ask <- true
	fmt.Print(err, ": ", <-answer)
}

func TestRefuseCalls(t *testing.T) {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childVariable+"=1")
	out, err := child.CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "<nil>: permission denied, function not implemented, true", string(out))
}
