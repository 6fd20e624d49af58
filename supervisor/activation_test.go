package supervisor

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listenerFD is a copy of the descriptor of a socket that l listens on.
func listenerFD(t *testing.T, l net.Listener) int {
	t.Helper()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	require.NoError(t, err)
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	require.NoError(t, err)
	return fd
}

func TestAdopt(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "cup.sock")
	local, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer local.Close()
	roots := []string{"127.0.0.1:0", "unix:" + path, tcp.Addr().String()}

	var set socketSet
	require.NoError(t, set.adopt(roots, []int{listenerFD(t, local), listenerFD(t, tcp)}))
	change, err := set.prepare(roots, 3)
	require.NoError(t, err)
	_, err = change.commit()
	require.NoError(t, err)
	require.Equal(t, roots[1:], set.addresses()[1:])
	require.Len(t, set.groups[2].sockets, 3, "others are bound beside the one that was handed over")
	require.False(t, set.groups[2].shared)
	require.True(t, set.groups[1].shared)
	_, err = listenOn(tcp.Addr().String(), 1)
	require.ErrorContains(t, err, "another cloud-cup")
	require.NoError(t, set.close())
	_, err = os.Stat(path)
	require.NoError(t, err, "the file is the service manager's")

	for _, l := range []net.Listener{tcp, local} {
		err = set.adopt([]string{":80"}, []int{listenerFD(t, l)})
		require.ErrorContains(t, err, l.Addr().String()+` is not an address of root, which has [":80"]`)
	}
	conn, err := net.Dial("tcp", tcp.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).File()
	require.NoError(t, err)
	defer raw.Close()
	require.ErrorContains(t, set.adopt([]string{":80"}, []int{int(raw.Fd())}), "it does not listen")
	require.ErrorIs(t, set.adopt([]string{":80"}, []int{1000}), unix.EBADF)

	all, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	defer all.Close()
	_, port, err := net.SplitHostPort(all.Addr().String())
	require.NoError(t, err)
	root, err := listeningOn(listenerFD(t, all))
	require.NoError(t, err)
	require.Contains(t, []string{":" + port, "0.0.0.0:" + port}, root, "the second where there is no IPv6")
}

func TestActivatedDescriptors(t *testing.T) {
	for _, c := range []struct{ pid, fds, err string }{
		{pid: "", fds: ""},
		{pid: "1", fds: "3"},
		{pid: "self", fds: "0"},
		{pid: "self", fds: "-1", err: "LISTEN_FDS"},
	} {
		if c.pid == "self" {
			c.pid = strconv.Itoa(os.Getpid())
		}
		t.Setenv("LISTEN_PID", c.pid)
		t.Setenv("LISTEN_FDS", c.fds)
		t.Setenv("LISTEN_FDNAMES", "x")
		fds, err := activatedFDs()
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
		} else {
			require.NoError(t, err)
		}
		require.Empty(t, fds)
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_, set := os.LookupEnv(name)
			require.False(t, set, "no child may take it for its own")
		}
	}
}

// What one set exports another imports, with addresses, files and locks.
func TestSocketsChangeMasters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cup.sock")
	roots := []string{"127.0.0.1:0", "unix:" + path}
	var old socketSet
	change, err := old.prepare(roots, 2)
	require.NoError(t, err)
	_, err = change.commit()
	require.NoError(t, err)

	groups, fds := old.export()
	require.Len(t, fds, 1+2+1+1)
	for i, fd := range fds {
		fds[i], err = unix.Dup(fd) // as a message does
		require.NoError(t, err)
	}
	set, err := importSockets(groups, fds)
	require.NoError(t, err)
	require.Equal(t, old.addresses(), set.addresses())
	old.disown()
	require.NoError(t, old.close())

	change, err = set.prepare(roots, 3)
	require.NoError(t, err)
	removed, err := change.commit()
	require.NoError(t, err)
	require.Empty(t, removed)
	require.Len(t, set.groups[0].sockets, 3)
	address := set.addresses()[0]
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	conn, err = net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, err = listenOn(address, 1)
	require.ErrorContains(t, err, "another cloud-cup")
	require.NoError(t, set.close())
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	g, err := listenOn(address, 1)
	require.NoError(t, err)
	require.NoError(t, g.close())

	_, err = importSockets(groups, nil)
	require.Error(t, err)
}

// A socket that another user made can be joined by none of ours: all workers
// share it.
func TestActivatedSocketOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.Setfsuid(65534)) // whose a socket is; of this thread alone
	defer func() { require.NoError(t, unix.Setfsuid(0)) }()
	var set socketSet
	roots := []string{l.Addr().String()}
	require.NoError(t, set.adopt(roots, []int{listenerFD(t, l)}))
	change, err := set.prepare(roots, 3)
	require.NoError(t, err)
	_, err = change.commit()
	require.NoError(t, err)
	require.True(t, set.groups[0].shared)
	require.Len(t, set.groups[0].sockets, 1)
	require.NoError(t, set.close())
}
