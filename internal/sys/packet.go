package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// FDsMax bounds the descriptors of one message (SCM_MAX_FD of the kernel).
const FDsMax = 253

// PacketConn is one end of a connected AF_UNIX SOCK_SEQPACKET socket: messages
// arrive whole, in order, and may carry descriptors. One goroutine may send
// while another receives.
type PacketConn struct {
	file *os.File
	raw  syscall.RawConn
	oob  []byte // of the receiving goroutine
}

// PacketPair returns two connected ends, both close-on-exec. The second is a
// file to be inherited by a child (exec.Cmd.ExtraFiles), which makes a
// PacketConn of it with NewPacketConn; close it after the child's start.
func PacketPair() (*PacketConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	other := os.NewFile(uintptr(fds[1]), "packet")
	c, err := NewPacketConn(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, other.Close())
	}
	return c, other, nil
}

// NewPacketConn takes over a descriptor: it becomes close-on-exec,
// non-blocking, and is closed with the PacketConn or on error.
func NewPacketConn(fd int) (*PacketConn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), os.NewSyscallError("close", unix.Close(fd)))
	}
	f := os.NewFile(uintptr(fd), "packet")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &PacketConn{file: f, raw: raw}, nil
}

// Close closes the descriptor and ends a waiting Recv with os.ErrClosed.
func (c *PacketConn) Close() error { return c.file.Close() }

// Send sends one message with copies of the descriptors. It never waits: the
// error is EAGAIN when the peer does not read, EPIPE when it is gone, and
// EMSGSIZE beyond about 200 KiB. An empty message cannot be told from the end
// of the stream: data must not be empty.
func (c *PacketConn) Send(data []byte, fds ...int) error {
	if len(data) == 0 {
		return fmt.Errorf("send: an empty message means the end: %w", syscall.EINVAL)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var sent error
	err := c.raw.Control(func(fd uintptr) {
		for {
			sent = unix.Sendmsg(int(fd), data, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if sent != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", sent)
}

// Recv waits for one message and returns its length in buf and its
// descriptors (close-on-exec), which the caller owns. The end of the stream is
// io.EOF. A message that does not fit is lost with its descriptors and is
// EMSGSIZE. The goroutine waits, not the thread.
func (c *PacketConn) Recv(buf []byte) (n int, fds []int, err error) {
	if c.oob == nil {
		c.oob = make([]byte, unix.CmsgSpace(4*FDsMax))
	}
	var oobn, flags int
	var got error
	err = c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, got = unix.Recvmsg(int(fd), buf, c.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if got != unix.EINTR {
				return got != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return 0, nil, err
	}
	if got != nil {
		return 0, nil, os.NewSyscallError("recvmsg", got)
	}
	if fds, err = rights(c.oob[:oobn]); err != nil {
		return 0, nil, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		for _, fd := range fds {
			_ = unix.Close(fd) // it was never ours to use
		}
		return 0, nil, os.NewSyscallError("recvmsg", unix.EMSGSIZE)
	}
	if n == 0 && oobn == 0 {
		return 0, nil, io.EOF
	}
	return n, fds, nil
}

// rights takes the descriptors out of a control message.
func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
