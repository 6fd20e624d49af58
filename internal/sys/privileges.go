package sys

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ConfineThread takes all capabilities but keep (unix.CAP_*) from the calling
// thread, which must be locked to its goroutine, and lets nothing that it
// executes have more: no_new_privs is set, and the inheritable, ambient and
// bounding sets are emptied. The other threads of this process stay as they
// are. A program that this thread executes as another user, or after it was
// confined without keep, has no capabilities at all. capabilities(7).
func ConfineThread(keep ...int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, syscall.EINVAL) { // before Linux 4.3
		return os.NewSyscallError("prctl PR_CAP_AMBIENT", err)
	}
	for c := uintptr(0); ; c++ {
		// EINVAL ends the list; EPERM is for those without CAP_SETPCAP, who
		// are bounded by no_new_privs alone.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			break
		}
	}
	sets, err := capabilities()
	if err != nil {
		return err
	}
	var kept [2]uint32
	for _, c := range keep {
		kept[c/32] |= 1 << (c % 32)
	}
	for i := range sets {
		sets[i].Permitted &= kept[i]
		sets[i].Effective = sets[i].Permitted
		sets[i].Inheritable = 0
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}

// capabilities are the calling thread's, 32 a piece.
func capabilities() (sets [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return sets, os.NewSyscallError("capget", err)
	}
	return sets, nil
}

// Capabilities are those that the calling thread has or could give itself, as
// the bits of CapPrm in /proc/PID/status.
func Capabilities() (uint64, error) {
	sets, err := capabilities()
	return uint64(sets[0].Permitted) | uint64(sets[1].Permitted)<<32, err
}

// NoDump forbids others of the same user to look into this process: it makes no
// core dump, they cannot trace it, and its files in /proc belong to root
// (PR_SET_DUMPABLE, prctl(2)).
func NoDump() error {
	return os.NewSyscallError("prctl PR_SET_DUMPABLE", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// Restrictions of a process, as the kernel tells them of the calling thread.
type Restrictions struct {
	NoNewPrivs bool // PR_GET_NO_NEW_PRIVS
	Dumpable   bool // PR_GET_DUMPABLE
	Filtered   bool // a seccomp filter is in force (PR_GET_SECCOMP)
}

// ReadRestrictions asks the kernel. What it does not know is not there.
func ReadRestrictions() Restrictions {
	ask := func(option int) int {
		n, err := unix.PrctlRetInt(option, 0, 0, 0, 0)
		if err != nil {
			return 0
		}
		return n
	}
	return Restrictions{
		NoNewPrivs: ask(unix.PR_GET_NO_NEW_PRIVS) == 1,
		Dumpable:   ask(unix.PR_GET_DUMPABLE) != 0,
		Filtered:   ask(unix.PR_GET_SECCOMP) == unix.SECCOMP_MODE_FILTER,
	}
}

// RaiseLockLimit lets this process and its children lock as much memory as they
// like, if it may, else as much as it may (RLIMIT_MEMLOCK). Rings are charged
// against it for processes without CAP_IPC_LOCK.
func RaiseLockLimit() error {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
	if errors.Is(err, syscall.EPERM) { // without CAP_SYS_RESOURCE
		if err = unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil {
			limit.Cur = limit.Max
			err = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
		}
	}
	if err != nil {
		return fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	return nil
}
