package supervisor

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// socketMode lets everybody connect to a unix socket, as nginx does: who may is
// a matter of the folder that it lies in.
const socketMode = 0o666

// file tells one file from another that takes its place; stat(2).
type file struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// fileAt is the file at path, the zero file if there is none.
func fileAt(path string) file {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return file{}
	}
	return file{uint64(st.Dev), st.Ino}
}

// bindUnix binds root, "unix:PATH" or "unix:@NAME": one socket for all
// workers, because such sockets have no SO_REUSEPORT. The file of a socket that
// nobody listens on is replaced.
func (set *socketSet) bindUnix(root string) (*group, error) {
	path := strings.TrimPrefix(root, "unix:")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	g := &group{root: root, address: root, shared: true, lockFD: -1}
	g.sockets = []*socket{set.newSocket(g, fd, 0)}
	if path[0] != '@' {
		g.lockFD, err = lockPath(path)
	}
	if err == nil {
		err = awaitSilence(path)
	}
	if err != nil {
		return nil, errors.Join(err, g.close())
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), g.close())
	}
	if path[0] != '@' {
		g.path, g.file = path, fileAt(path)
		if err := os.Chmod(path, socketMode); err != nil {
			return nil, errors.Join(err, g.close())
		}
	}
	return g, nil
}

// lockPath takes the lock of a path. Its name tells one folder from another of
// the same name, for programs with one network may see different files.
func lockPath(path string) (fd int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(path), &st); err != nil {
		return -1, &os.PathError{Op: "stat", Path: filepath.Dir(path), Err: err}
	}
	name := sha256.Sum256([]byte(filepath.Base(path)))
	return lockAddress(fmt.Sprintf("unix/%d:%d/%x", st.Dev, st.Ino, name[:8]))
}

// awaitSilence returns nil when a socket may be bound to path: nobody listens
// there, and no file is in the way. Who still listens may be the workers of a
// master that was killed; they stop as soon as they notice.
func awaitSilence(path string) error {
	for end := time.Now().Add(orphanWait); ; {
		who, err := listenerAt(path)
		switch {
		case err != nil:
			return err
		case who == "":
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%s is listening there", who)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// listenerAt names the program that listens at path; "" if there is none. A
// socket's file that nobody listens on is removed; any other file is an error.
func listenerAt(path string) (who string, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case err == nil:
		pid, _, err := sys.PeerOf(fd)
		return fmt.Sprintf("another program (pid %d)", pid), err
	case errors.Is(err, unix.EAGAIN):
		return "another program, whose accept queue is full,", nil
	case errors.Is(err, unix.ENOENT), path[0] == '@' && errors.Is(err, unix.ECONNREFUSED):
		return "", nil
	case !errors.Is(err, unix.ECONNREFUSED):
		return "", os.NewSyscallError("connect", err)
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if info.Mode().Type() != os.ModeSocket {
		return "", errors.New("a file that is no socket is there")
	}
	return "", os.Remove(path)
}

// removeFile removes the socket's file, unless another has taken its place.
func (g *group) removeFile() error {
	if g.path == "" || fileAt(g.path) != g.file {
		return nil
	}
	return os.Remove(g.path)
}
