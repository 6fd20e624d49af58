package control

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (master, worker *Channel) {
	t.Helper()
	master, file, err := Pair()
	require.NoError(t, err)
	fd, err := unix.Dup(int(file.Fd()))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	worker, err = Inherited(fd)
	require.NoError(t, err)
	t.Cleanup(func() {
		master.Close()
		worker.Close()
	})
	return master, worker
}

func TestChannelCarriesMessagesAndDescriptors(t *testing.T) {
	master, worker := pair(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()

	sent := Message{Seq: 7, Type: TypeStart, Start: &Start{Slot: 1, Engine: "uring"}}
	require.NoError(t, master.Send(sent, int(w.Fd())))
	require.NoError(t, master.Send(Message{Seq: 8, Type: TypeSample}, -1))
	require.NoError(t, w.Close())

	got, fd, err := worker.Receive()
	require.NoError(t, err)
	sent.Version = ProtocolVersion
	require.Equal(t, sent, got)
	require.GreaterOrEqual(t, fd, 0)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC, "the descriptor must not leak into children")
	_, err = unix.Write(fd, []byte("hello"))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "hello", string(text))

	got, fd, err = worker.Receive()
	require.NoError(t, err)
	require.Equal(t, TypeSample, got.Type)
	require.Equal(t, -1, fd)
}

func TestChannelEnds(t *testing.T) {
	master, worker := pair(t)
	require.NoError(t, worker.Send(Message{Type: TypeAck, Seq: 1}, -1))
	require.NoError(t, worker.Close())
	m, _, err := master.Receive()
	require.NoError(t, err, "what was sent before the end still arrives")
	require.EqualValues(t, 1, m.Seq)
	_, _, err = master.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.Error(t, master.Send(Message{Type: TypeSample}, -1))
}

func TestChannelRefusesWhatItCannotCarry(t *testing.T) {
	master, worker := pair(t)
	err := master.Send(Message{Type: TypeAck, Error: strings.Repeat("x", MessageBytesMax)}, -1)
	require.ErrorContains(t, err, "are more than")
	require.NoError(t, master.Send(Message{Type: TypeAck, Error: strings.Repeat("x", MessageBytesMax-200)}, -1))
	_, _, err = worker.Receive()
	require.NoError(t, err)

	require.NoError(t, master.conn.Send([]byte(`{"version":99}`)))
	_, _, err = worker.Receive()
	require.ErrorContains(t, err, "version 99")
}

// A worker that does not read must not hold up the master.
func TestSendDoesNotWaitForever(t *testing.T) {
	master, _ := pair(t)
	m := Message{Type: TypeAck, Error: strings.Repeat("x", 32<<10)}
	var err error
	for range 100 {
		if err = master.Send(m, -1); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, unix.EAGAIN)
}

func TestInheritedRefusesOtherDescriptors(t *testing.T) {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(null)
	_, err = Inherited(null)
	require.Error(t, err)
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(stream[0])
	defer unix.Close(stream[1])
	_, err = Inherited(stream[0])
	require.ErrorContains(t, err, "another kind of socket")
}
