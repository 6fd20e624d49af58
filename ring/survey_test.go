package ring

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/loop"
)

// surveyed is a Survey on a thread of its own.
func surveyed() []Finding {
	done := make(chan []Finding)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- Survey(loop.NewPool(1 << 20))
	}()
	return <-done
}

// printSurvey is what a child that is refused something prints.
func printSurvey() {
	for _, f := range surveyed() {
		answer := "unknown"
		switch {
		case f.Has():
			answer = "yes"
		case f.Tried:
			answer = fmt.Sprintf("no %d", f.Errno)
		}
		fmt.Printf("%s: %s: %s\n", f.Name, answer, f.Cause)
	}
}

// What Open finds is what Survey says.
func TestSurveyAgreesWithOpen(t *testing.T) {
	e := newRig(t, Config{}, 1<<20)
	list := surveyed()
	byName := map[string]Finding{}
	for _, f := range list {
		byName[f.Name] = f
		require.NotEmpty(t, f.Since, f.Name)
		require.Equal(t, f.Errno == 0, f.Cause == "", "%+v", f)
	}
	best := byName["tier "+e.tier.text]
	require.True(t, best.Has(), "%+v", list)
	series := byName["multishot receive with a byte total"]
	require.Equal(t, e.multi, series.Has())
	require.Equal(t, e.pollAccept, byName["accept that waits before it looks"].Has())
	require.True(t, byName["io_uring_setup"].Has())
}

func TestSurveyOfRefusals(t *testing.T) {
	for _, c := range []struct {
		what        string
		has, hasNot []string
	}{
		{fmt.Sprintf("setup %d", syscall.EPERM), []string{
			"io_uring_setup: no 1: a seccomp filter", "SINGLE_ISSUER: unknown: \n", "io_uring_enter: unknown: \n",
			"tier B (cooperative task run): no 1: io_uring_setup: ",
		}, []string{": yes"}},
		{fmt.Sprintf("enter %d", syscall.ENOSYS), []string{
			"io_uring_setup: yes", "io_uring_enter: no 38: ", "io_uring receive: unknown", "no 38: io_uring_enter: no io_uring in this kernel",
		}, []string{"tier A (single issuer, deferred task run): yes"}},
		{fmt.Sprintf("register %d", syscall.EACCES), []string{
			"io_uring_setup: yes", "io_uring_register of the ring's descriptor: no 13: ", "io_uring_enter: unknown",
		}, nil},
	} {
		out := inChild(t, "survey "+c.what)
		for _, want := range c.has {
			require.Contains(t, out, want, c.what)
		}
		for _, not := range c.hasNot {
			require.NotContains(t, out, not, c.what)
		}
	}
}
