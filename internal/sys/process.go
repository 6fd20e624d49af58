package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewMemory makes a memory file of size bytes (memfd_create(2)) that does not
// outlive its descriptors. The descriptor is close-on-exec.
func NewMemory(name string, size int) (fd int, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size of memory file: %w", err)
	}
	return fd, nil
}

const sealsAll = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// SealedMemory makes a memory file with the content, which nobody can change
// any more.
func SealedMemory(name string, content []byte) (fd int, err error) {
	fd, err = NewMemory(name, 0)
	if err != nil {
		return -1, err
	}
	for rest := content; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return -1, fmt.Errorf("write memory file: %w", err)
		}
		rest = rest[max(n, 0):]
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealsAll); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal memory file: %w", err)
	}
	return fd, nil
}

// ReadSealed returns the content of a memory file made by SealedMemory. A file
// that could still change is an error. fd stays open.
func ReadSealed(fd int) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("read seals of memory file: %w", err)
	}
	if seals&sealsAll != sealsAll {
		return nil, errors.New("memory file is not sealed")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("size of memory file: %w", err)
	}
	content := make([]byte, st.Size)
	for off := 0; off < len(content); {
		n, err := unix.Pread(fd, content[off:], int64(off))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("read memory file: %w", err)
		case n == 0:
			return nil, io.ErrUnexpectedEOF
		}
		off += max(n, 0)
	}
	return content, nil
}

// SizeOf is the size of a T in bytes. T may be too large for a variable.
func SizeOf[T any]() int { return int(unsafe.Sizeof(*(*T)(nil))) }

// MapShared maps the memory file fd as a T that all who map it share. T has no
// pointers. A file smaller than T is an error, for touching it would end the
// process (SIGBUS). fd may be closed afterwards.
func MapShared[T any](fd int) (*T, error) {
	size := SizeOf[T]()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("size of shared memory: %w", err)
	}
	if st.Size < int64(size) {
		return nil, fmt.Errorf("shared memory has %d bytes, want %d", st.Size, size)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared memory: %w", err)
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(mem))), nil
}

// UnmapShared ends a mapping of MapShared. page must not be touched any more.
func UnmapShared[T any](page *T) error {
	mem := unsafe.Slice((*byte)(unsafe.Pointer(page)), unsafe.Sizeof(*page))
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("unmap shared memory: %w", err)
	}
	return nil
}

// RaiseFileLimit raises the soft limit of open files to the hard one and
// returns it (RLIMIT_NOFILE, getrlimit(2)).
func RaiseFileLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	if limit.Cur < limit.Max {
		limit.Cur = limit.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return 0, fmt.Errorf("raise the limit of open files: %w", err)
		}
	}
	return limit.Cur, nil
}

// PeerOf returns who is at the other end of a unix socket (SO_PEERCRED,
// unix(7)); for a connection to a listener, who called listen.
func PeerOf(fd int) (pid, uid int, err error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, os.NewSyscallError("SO_PEERCRED", err)
	}
	return int(cred.Pid), int(cred.Uid), nil
}

// PeerGroups returns the groups of who is at the other end of a unix socket,
// the first of them its primary one (SO_PEERGROUPS, Linux 4.13, unix(7)).
func PeerGroups(fd int) ([]int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("SO_PEERCRED", err)
	}
	groups := []int{int(cred.Gid)}
	ids := make([]uint32, 32)
	for {
		size := uint32(len(ids)) * uint32(unsafe.Sizeof(ids[0]))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
		count := int(size) / int(unsafe.Sizeof(ids[0]))
		switch {
		case errno == unix.ERANGE && count > len(ids):
			ids = make([]uint32, count) // NGROUPS_MAX bounds it
		case errno != 0:
			return nil, os.NewSyscallError("SO_PEERGROUPS", errno)
		default:
			for _, id := range ids[:count] {
				groups = append(groups, int(id))
			}
			return groups, nil
		}
	}
}

// The si_code of a child that was stopped by a signal (CLD_STOPPED of
// <asm-generic/siginfo.h>).
const childStopped = 5

// Stopped reports whether pid, a child of this process, is stopped by a signal
// (SIGSTOP, SIGTSTP; waitid(2)). It does not get in the way of a wait for its
// end.
func Stopped(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Code == childStopped
}
