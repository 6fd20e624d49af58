package sys

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Refusal is a system call that gets an errno instead of being made.
type Refusal struct {
	Call  int // unix.SYS_*
	Errno syscall.Errno
}

// OpenCalls are the system calls that open files by their names.
func OpenCalls() []int {
	return append([]int{unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_OPEN_BY_HANDLE_AT}, oldCalls...)
}

// Offsets in struct seccomp_data of <linux/seccomp.h>.
const (
	seccompNr   = 0
	seccompArch = 4
)

// x32Calls is where the numbers of the x32 ABI begin, which has the same
// architecture as amd64 (__X32_SYSCALL_BIT).
const x32Calls = 0x40000000

// RefuseCalls makes the kernel refuse the calls to all threads of this process
// and to its children, for good. Calls by another ABI get ENOSYS. It sets
// no_new_privs, without which the kernel demands privileges. seccomp(2).
func RefuseCalls(refusals ...Refusal) error {
	program := seccompProgram(refusals)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	r, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if r != 0 { // the thread that has a filter of its own
		return os.NewSyscallError("seccomp", syscall.ESRCH)
	}
	return nil
}

// seccompProgram assembles the filter, in the classic BPF of <linux/filter.h>.
func seccompProgram(refusals []Refusal) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// jump skips one instruction if the comparison does not hold.
	jump := func(comparison uint16, k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | comparison, Jf: 1, K: k}
	}
	refuse := func(errno syscall.Errno) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	p := []unix.SockFilter{
		load(seccompArch),
		{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, Jt: 1, K: auditArch},
		refuse(syscall.ENOSYS),
		load(seccompNr),
		jump(unix.BPF_JGE, x32Calls),
		refuse(syscall.ENOSYS),
	}
	for _, r := range refusals {
		p = append(p, jump(unix.BPF_JEQ, uint32(r.Call)), refuse(r.Errno))
	}
	return append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}
