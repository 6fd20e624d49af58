package sys

import (
	"bytes"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A sealed file sent over a packet socket is read by its receiver, and nobody
// can write it any more.
func TestPacketCarriesSealedFile(t *testing.T) {
	a, file, err := PacketPair()
	require.NoError(t, err)
	defer a.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	b, err := NewPacketConn(fd)
	require.NoError(t, err)

	content := bytes.Repeat([]byte("cup"), 1<<20)
	m, err := SealedMemory("test", content)
	require.NoError(t, err)
	_, err = unix.Pwrite(m, []byte("x"), 0)
	require.ErrorIs(t, err, syscall.EPERM)
	require.NoError(t, a.Send([]byte("one"), m, m))
	require.NoError(t, a.Send([]byte("two")))
	require.NoError(t, unix.Close(m))

	buf := make([]byte, 64)
	n, fds, err := b.Recv(buf)
	require.NoError(t, err)
	require.Equal(t, "one", string(buf[:n]))
	require.Len(t, fds, 2)
	require.NoError(t, unix.Close(fds[1]))
	flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.Equal(t, unix.FD_CLOEXEC, flags)
	data, err := ReadSealed(fds[0])
	require.NoError(t, err)
	require.Equal(t, content, data)
	require.NoError(t, unix.Close(fds[0]))

	n, fds, err = b.Recv(buf)
	require.NoError(t, err)
	require.Equal(t, "two", string(buf[:n]))
	require.Empty(t, fds)

	// A receiver that waits is woken by a message, and by the end.
	type result struct {
		n   int
		err error
	}
	results := make(chan result)
	go func() {
		for range 2 {
			n, _, err := b.Recv(buf)
			results <- result{n, err}
		}
	}()
	require.NoError(t, a.Send([]byte("four")))
	require.Equal(t, result{n: 4}, <-results)
	require.NoError(t, a.Close())
	require.Equal(t, result{err: io.EOF}, <-results)
	require.ErrorIs(t, b.Send([]byte("x")), syscall.EPIPE)
	require.NoError(t, b.Close())
}

func TestPacketLimits(t *testing.T) {
	a, file, err := PacketPair()
	require.NoError(t, err)
	defer a.Close()
	defer file.Close()

	require.ErrorIs(t, a.Send(nil), syscall.EINVAL)
	require.ErrorIs(t, a.Send(make([]byte, 1<<20)), syscall.EMSGSIZE)
	for err == nil { // nobody reads: sending never blocks
		err = a.Send(make([]byte, 32<<10))
	}
	require.ErrorIs(t, err, syscall.EAGAIN)

	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	b, err := NewPacketConn(fd)
	require.NoError(t, err)
	defer b.Close()
	_, _, err = b.Recv(make([]byte, 100))
	require.ErrorIs(t, err, syscall.EMSGSIZE)
}
