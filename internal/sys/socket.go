package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file work on non-blocking sockets and so never sleep: they
// skip the scheduler (RawSyscall), which saves about 50 ns each, retry EINTR,
// and allocate nothing.

// Socket makes a non-blocking, close-on-exec stream socket of the family;
// TCP_NODELAY is set for TCP, because we write whole messages. local is for one
// whose connection will stay on this host: see SetLocal.
func Socket(family int, local bool) (int32, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	if family != unix.AF_UNIX {
		one := int32(1)
		_, _, errno = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY,
			uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one), 0)
		if errno != 0 {
			Close(int32(fd))
			return -1, errno
		}
	}
	if local {
		_ = SetLocal(int32(fd)) // without it bodies cost more, where the host's choice paces
	}
	return int32(fd), 0
}

// localControl is the congestion control of connections that stay on this host.
// There is no path whose capacity it had to find, and no loss: reno, which
// every kernel has and everybody may choose, then sends what there is. One that
// paces (bbr, the default of many hosts) does so on the loopback, too: a timer
// and its interrupt for each 64 KiB, a third of the CPU time of a large body.
var localControl = [...]byte{'r', 'e', 'n', 'o'}

// SetLocal prepares a TCP socket, or a listener for those that it will accept,
// for connections that stay on this host (TCP_CONGESTION, tcp(7)).
func SetLocal(fd int32) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION,
		uintptr(unsafe.Pointer(&localControl)), unsafe.Sizeof(localControl), 0)
	return errno
}

// Connect is connect(2) to the address of the given length. EINPROGRESS means
// that it goes on: writable then, with SocketError as its result.
func Connect(fd int32, a *Sockaddr, length uint32) syscall.Errno {
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(a)), uintptr(length))
		if errno != syscall.EINTR {
			return errno
		}
	}
}

// Accept is accept4(2): the descriptor is non-blocking and close-on-exec, and
// the peer's address is written to a.
func Accept(fd int32, a *Sockaddr) (int32, syscall.Errno) {
	for {
		length := uint32(SockaddrBytes)
		n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(a)),
			uintptr(unsafe.Pointer(&length)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno == 0 {
			return int32(n), 0
		}
		if errno != syscall.EINTR {
			return -1, errno
		}
	}
}

// Recv is recv(2) with MSG_DONTWAIT into b, which is not empty.
func Recv(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// Splice moves at most n bytes between a socket and a pipe, neither of which
// may block, without copying them (splice(2)).
func Splice(from, to int32, n int) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n),
			unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// Send is send(2) of b with MSG_DONTWAIT and MSG_NOSIGNAL.
func Send(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// sendVecsMax is how many pieces one SendVecs takes.
const sendVecsMax = 16

// SendVecs is sendmsg(2) of at most 16 pieces after skip bytes of them, with
// MSG_DONTWAIT and MSG_NOSIGNAL.
func SendVecs(fd int32, vecs [][]byte, skip int) (int, syscall.Errno) {
	var iov [sendVecsMax]unix.Iovec
	n := 0
	for _, v := range vecs {
		if skip >= len(v) {
			skip -= len(v)
			continue
		}
		if n == sendVecsMax {
			break
		}
		v = v[skip:]
		skip = 0
		iov[n].Base = unsafe.SliceData(v)
		iov[n].SetLen(len(v))
		n++
	}
	msg := unix.Msghdr{Iov: &iov[0]}
	msg.SetIovlen(n)
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// Shutdown is shutdown(2).
func Shutdown(fd int32, how int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return errno
}

// Close is close(2). On Linux the descriptor is free whatever it returns.
func Close(fd int32) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return errno
}

// SocketError takes the pending error of a socket (SO_ERROR, socket(7)): after
// a connect, its result.
func SocketError(fd int32) syscall.Errno {
	var value int32
	length := uint32(unsafe.Sizeof(value))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(value)
}

// Unsent is the number of bytes of a socket that the peer's kernel has not
// acknowledged (SIOCOUTQ: tcp(7), unix(7)), or -1 if the kernel does not tell.
func Unsent(fd int32) int {
	var n int32
	_, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return -1
	}
	return int(n)
}

// Dead reports whether a TCP connection is no more (TCP_INFO, whose first byte
// is the state: tcp(7)).
func Dead(fd int32) bool {
	const tcpClose = 7 // TCP_CLOSE of <net/tcp_states.h>
	var state uint8
	length := uint32(unsafe.Sizeof(state))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&state)), uintptr(unsafe.Pointer(&length)), 0)
	return errno == 0 && state == tcpClose
}

// SetAbort makes the coming close(2) of a stream socket end the connection with
// a RST instead of a FIN (SO_LINGER with no time: socket(7)).
func SetAbort(fd int32) syscall.Errno {
	linger := unix.Linger{Onoff: 1}
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	return errno
}

// PollNow is poll(2) without waiting. A signal, such as the one with which Go
// preempts a goroutine, ends even that with EINTR: it is tried again.
func PollNow(fds []unix.PollFd) syscall.Errno {
	for {
		var none unix.Timespec // the kernel writes what is left of it
		_, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
			uintptr(unsafe.Pointer(&none)), 0, 0, 0)
		if errno != syscall.EINTR {
			return errno
		}
	}
}

// Quiet reports whether a receive from a stream socket would have to wait: there
// are no bytes, urgent ones among them, and neither the peer's end nor an error
// (poll(2)).
func Quiet(fd int32) bool {
	one := [1]unix.PollFd{{Fd: fd, Events: unix.POLLIN | unix.POLLPRI | unix.POLLRDHUP}}
	return PollNow(one[:]) == 0 && one[0].Revents == 0
}

// EventFD makes an event counter, close-on-exec (eventfd(2)). If it is
// nonblocking, no read of it sleeps.
func EventFD(nonblocking bool) (int32, syscall.Errno) {
	flags := uintptr(unix.EFD_CLOEXEC)
	if nonblocking {
		flags |= unix.EFD_NONBLOCK
	}
	fd, _, errno := syscall.RawSyscall(unix.SYS_EVENTFD2, 0, flags, 0)
	if errno != 0 {
		return -1, errno
	}
	return int32(fd), 0
}

// SignalEvent adds one to an event counter, which wakes who waits for it.
func SignalEvent(fd int32) syscall.Errno {
	one := uint64(1)
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
		if errno != syscall.EINTR {
			return errno
		}
	}
}
