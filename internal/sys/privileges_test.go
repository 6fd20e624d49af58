package sys

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A confined thread has what it keeps, what it executes has nothing, and other
// threads have what they had.
func TestConfineThread(t *testing.T) {
	before, err := Capabilities()
	require.NoError(t, err)
	type outcome struct {
		kept  uint64
		r     Restrictions
		child string
		err   error
	}
	done := make(chan outcome)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		var o outcome
		if o.err = ConfineThread(unix.CAP_KILL); o.err == nil {
			o.r = ReadRestrictions()
			o.kept, o.err = Capabilities()
		}
		if o.err == nil && os.Geteuid() == 0 {
			o.err = ConfineThread()
		}
		if o.err == nil {
			var out []byte
			out, o.err = exec.Command("cat", "/proc/self/status").Output()
			o.child = string(out)
		}
		done <- o
	}()
	o := <-done
	require.NoError(t, o.err)
	require.Equal(t, before&(1<<unix.CAP_KILL), o.kept)
	require.True(t, o.r.NoNewPrivs)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		require.Contains(t, o.child, set+":\t"+strings.Repeat("0", 16)+"\n")
	}
	after, err := Capabilities()
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.False(t, ReadRestrictions().NoNewPrivs)
}
