package worker

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// refused are the calls that no worker needs once it serves, and that who took
// it over would need first: other programs, other processes, other rings, files.
// What a worker uses was opened before, or comes from the master as a
// descriptor.
func refused() []sys.Refusal {
	calls := append(sys.OpenCalls(),
		unix.SYS_EXECVE, unix.SYS_EXECVEAT,
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
		unix.SYS_IO_URING_SETUP, unix.SYS_BPF, unix.SYS_USERFAULTFD, unix.SYS_PERF_EVENT_OPEN,
	)
	list := make([]sys.Refusal, 0, len(calls))
	for _, c := range calls {
		list = append(list, sys.Refusal{Call: c, Errno: syscall.EPERM})
	}
	return list
}

// confine gives up for good what serving does not need. The privileges of the
// process are gone already: the master starts it without. A kernel without
// seccomp keeps nobody from serving: that is logged and shown. On the loop's
// thread.
func (w *worker) confine() {
	// The time zone is in a file, which the log would read with its next line.
	_, _ = time.Now().Zone()
	filter := sys.RefuseCalls(refused()...)
	r := sys.ReadRestrictions()
	// Neither can fail for the calling thread.
	capabilities, _ := sys.Capabilities()
	groups, _ := os.Getgroups()
	w.held = control.Guard{
		UID: os.Getuid(), GID: os.Getgid(), Groups: groups,
		Capabilities: fmt.Sprintf("%x", capabilities),
		NoNewPrivs:   r.NoNewPrivs, Dumpable: r.Dumpable, Seccomp: r.Filtered,
	}
	if filter != nil {
		w.log.Warn("this kernel lets a worker open files and execute programs", "err", filter)
		w.held.SeccompError = filter.Error()
	}
}

// guard tells what holds this process back. On the loop's thread.
func (w *worker) guard() *control.Guard {
	g := w.held
	if w.cpu >= 0 {
		cpu := w.cpu
		g.CPU = &cpu
	}
	return &g
}

// pin binds the loop's thread to the CPU of its slot: number i of the CPUs that
// the process may use, beginning anew after the last; or, with on false, sets
// it free again. The other threads, which build snapshots, keep all CPUs. On
// the loop's thread.
func (w *worker) pin(on bool) {
	if on == (w.cpu >= 0) {
		return
	}
	cpu, set := -1, w.cpus
	if on {
		cpu = nthCPU(&w.cpus, w.slot%max(1, w.cpus.Count()))
		set.Zero()
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		w.log.Warn("the loop cannot be pinned", "cpu", cpu, "err", os.NewSyscallError("sched_setaffinity", err))
		return
	}
	w.cpu = cpu
}

// nthCPU is number n, from 0, of the CPUs in set.
func nthCPU(set *unix.CPUSet, n int) int {
	for cpu := 0; ; cpu++ {
		if set.IsSet(cpu) {
			if n == 0 {
				return cpu
			}
			n--
		}
	}
}
