package worker

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What is reported is what works here.
func TestExamine(t *testing.T) {
	r := Examine()
	require.Len(t, r.Engines, len(engines))
	require.NotEmpty(t, r.Features)
	for i, e := range r.Engines {
		_, err := Probe(engines[i].name)
		require.Equal(t, err == nil, e.Answer == control.AnswerYes, "%+v", e)
		require.NotEmpty(t, e.Detail)
	}
	require.Equal(t, r.Engines[0].Answer != control.AnswerYes, len(r.Advice) > 0)
	names := map[string]bool{}
	for _, f := range r.Facts {
		require.NotEmpty(t, f.Value, f.Name)
		names[f.Name] = true
	}
	for _, want := range []string{"kernel", "sysctl", "seccomp", "memlock", "container", "user"} {
		require.True(t, names[want], want)
	}
}

// What to change follows from the errno and what is around.
func TestAdvice(t *testing.T) {
	for _, c := range []struct {
		errno  syscall.Errno
		around around
		want   string
	}{
		{syscall.EPERM, around{disabled: "0", seccomp: "2"}, "--security-opt seccomp="},
		{syscall.EPERM, around{}, "--security-opt seccomp="},
		{syscall.EPERM, around{disabled: "0", seccomp: "0"}, "security modules"},
		{syscall.EPERM, around{disabled: "2"}, "kernel.io_uring_disabled=0"},
		{syscall.EPERM, around{disabled: "1"}, "kernel.io_uring_group="},
		{syscall.ENOSYS, around{seccomp: "2"}, "SystemCallFilter="},
		{syscall.ENOSYS, around{seccomp: "0"}, "CONFIG_IO_URING"},
		{syscall.EACCES, around{}, "SELinux"},
		{syscall.ENOMEM, around{}, "LimitMEMLOCK="},
		{syscall.EINVAL, around{}, "Linux 5.19"},
		{syscall.EMFILE, around{}, "LimitNOFILE="},
		{syscall.EIO, around{}, "report"},
	} {
		advice := c.around.advice(fmt.Errorf("io_uring: step: %w: %w", c.errno, loop.ErrNotSupported))
		require.Contains(t, strings.Join(advice, "\n"), c.want, "%v %+v", c.errno, c.around)
	}
}

func TestSurroundings(t *testing.T) {
	var a around
	a.status("Name:\tx\nVmLck:\t     12 kB\nCapEff:\t0000000000004000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n")
	require.Equal(t, around{locked: "12 kB", ipcLock: true, noNewPrivs: "1", seccomp: "2", filters: "3"}, a)
	require.True(t, a.filtered())
	fact := func(a around, name string) string {
		for _, f := range a.facts() {
			if f.Name == name {
				return f.Value
			}
		}
		return ""
	}
	require.Contains(t, fact(a, "seccomp"), "calls: 3; no_new_privs is 1")
	require.Contains(t, fact(a, "memlock"), "CAP_IPC_LOCK")
	require.Contains(t, fact(around{memlock: 8 << 20}, "memlock"), "8192 KiB for all processes of user")
	require.Contains(t, fact(around{memlock: unix.RLIM_INFINITY}, "memlock"), "no limit;")
	require.Contains(t, fact(around{}, "seccomp"), "could not tell")
	require.Contains(t, fact(around{disabled: "1", group: "12"}, "sysctl"), "only the group 12")
	require.Contains(t, fact(around{disabled: "2"}, "sysctl"), "nobody")
}
