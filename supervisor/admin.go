package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// adminServer answers cupctl over a unix socket. A nil *adminServer is one that
// is switched off.
type adminServer struct {
	path     string
	group    int // whose members are served, or noGroup
	listener *net.UnixListener
	http     http.Server

	mu      sync.Mutex
	strange map[net.Conn]struct{} // connections of those who are not served
}

// strangersMax bounds the connections of those who are not served; further
// ones are closed at once. Were the socket's mode opened to them, they could
// use up the master's descriptors otherwise.
const strangersMax = 16

// noGroup is the group of an admin socket that only its user may use.
const noGroup = -1

// Deadlines of a connection to the admin socket: a client that is slow or
// stuck holds up nobody, and not for ever. A reload takes its time between
// request and answer.
const (
	adminHeadTimeout   = 10 * time.Second
	adminReadTimeout   = 30 * time.Second
	adminAnswerTimeout = 3 * time.Minute
	adminIdleTimeout   = time.Minute
	adminEndTimeout    = time.Second // after all else has ended
)

// listenAdmin makes the admin socket that flags and configuration ask for.
func (m *Master) listenAdmin(g *generation) (*adminServer, error) {
	path := g.cfg.Admin.Socket
	if m.options.Admin != "" {
		path = m.options.Admin
	}
	if path == AdminOff {
		return nil, nil
	}
	path = strings.TrimPrefix(path, "unix:")
	if path == "" {
		path = control.DefaultSocket()
	}
	group, err := groupID(g.cfg.Admin.Group)
	if err != nil {
		return nil, fmt.Errorf("admin.group: %w", err)
	}
	listener, err := m.before.adoptAdmin(path, group)
	if listener == nil && err == nil {
		listener, err = listenSocket(path, group)
	}
	if err != nil && m.options.AdminOptional {
		m.log.Warn("no admin socket", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	a := &adminServer{path: path, group: group, listener: listener, strange: map[net.Conn]struct{}{}}
	a.http = http.Server{
		Handler:           a.onlyForPeers(m.log, m.adminHandler()),
		ReadHeaderTimeout: adminHeadTimeout,
		ReadTimeout:       adminReadTimeout,
		WriteTimeout:      adminAnswerTimeout,
		IdleTimeout:       adminIdleTimeout,
		MaxHeaderBytes:    64 << 10,
		ConnContext:       rememberPeer,
		ConnState:         a.boundStrangers,
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	return a, nil
}

// groupID is the number of a group that is named, or written as a number;
// noGroup for none.
func groupID(name string) (int, error) {
	if name == "" {
		return noGroup, nil
	}
	if gid, err := strconv.ParseUint(name, 10, 32); err == nil {
		return int(gid), nil
	}
	found, err := user.LookupGroup(name)
	if err != nil {
		return noGroup, fmt.Errorf("%w (groups that are not in /etc/group go by their number)", err)
	}
	return strconv.Atoi(found.Gid)
}

// listenSocket listens at path and replaces a socket that nobody listens on.
// Only this user, the group and root get at it.
func listenSocket(path string, group int) (*net.UnixListener, error) {
	if err := makeSocketFolder(path, group); err != nil {
		return nil, err
	}
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	listener, err := net.ListenUnix("unix", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(addr); err != nil {
			return nil, err
		}
		listener, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if group != noGroup {
		mode = 0o660
		err = os.Chown(path, -1, group)
	}
	// The group first: no other one gets the wider mode.
	if err = errors.Join(err, os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// makeSocketFolder makes the folder of the socket. One that it made, or that
// is kept for this purpose, is open to the group.
func makeSocketFolder(path string, group int) error {
	dir := filepath.Dir(path)
	_, err := os.Stat(dir)
	ours := errors.Is(err, os.ErrNotExist) || path == control.DefaultSocket()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if !ours || group == noGroup {
		return nil
	}
	return os.Chown(dir, -1, group)
}

// removeStale removes the socket of a master that is gone.
func removeStale(addr *net.UnixAddr) error {
	info, err := os.Lstat(addr.Name)
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", addr.Name)
	}
	conn, err := net.DialUnix("unix", nil, addr)
	if err == nil {
		defer conn.Close()
		pid, _, _, err := peerOf(conn)
		if err != nil {
			return err
		}
		return fmt.Errorf("%s is in use by another cloud-cup (pid %d): give this one its own with --admin unix:PATH", addr.Name, pid)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(addr.Name)
}

// serve answers from now on; callers before that wait.
func (a *adminServer) serve() {
	if a == nil {
		return
	}
	// It returns when close is called, and an admin socket that failed
	// otherwise must not end the traffic.
	go func() { _ = a.http.Serve(a.listener) }()
}

// name is the socket's path, for the log.
func (a *adminServer) name() string {
	if a == nil {
		return AdminOff
	}
	return a.path
}

// finish takes no more questions, and lets answers under way end for a moment.
func (a *adminServer) finish() {
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminEndTimeout)
	defer cancel()
	// Who is still not answered then is cut by close.
	_ = a.http.Shutdown(ctx)
}

// close removes the socket and ends its connections.
func (a *adminServer) close() error {
	if a == nil {
		return nil
	}
	// Serve may not have been called: the listener is closed in any case.
	return errors.Join(a.http.Close(), ignoreClosed(a.listener.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// peerKey is the context key of a connection's peer.
type peerKey struct{}

// peer is who is at the other end of a connection.
type peer struct {
	uid    int // -1 if the kernel does not tell
	groups []int
}

// rememberPeer notes who is at the other end.
func rememberPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerAt(conn))
}

// peerAt is who is at the other end of conn.
func peerAt(conn net.Conn) peer {
	if c, ok := conn.(*net.UnixConn); ok {
		if _, uid, groups, err := peerOf(c); err == nil {
			return peer{uid, groups}
		}
	}
	return peer{uid: -1}
}

// boundStrangers keeps strangersMax.
func (a *adminServer) boundStrangers(conn net.Conn, state http.ConnState) {
	if state == http.StateNew && a.mayControl(peerAt(conn)) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch state {
	case http.StateNew:
		a.strange[conn] = struct{}{}
		if len(a.strange) > strangersMax {
			_ = conn.Close() // its end is seen by who serves it
		}
	case http.StateClosed:
		delete(a.strange, conn)
	}
}

// peerFrom is what rememberPeer noted.
func peerFrom(ctx context.Context) peer {
	if who, ok := ctx.Value(peerKey{}).(peer); ok {
		return who
	}
	return peer{uid: -1}
}

// peerOf returns the process, the user and all groups at the other end of conn.
func peerOf(conn *net.UnixConn) (pid, uid int, groups []int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		if pid, uid, err = sys.PeerOf(int(fd)); err == nil {
			groups, err = sys.PeerGroups(int(fd))
		}
	})
	return pid, uid, groups, errors.Join(controlErr, err)
}

// mayControl reports whether the peer is served, whatever the socket's mode
// says: root, the master's own user, and members of the group that the
// configuration names.
func (a *adminServer) mayControl(who peer) bool {
	return who.uid == 0 || who.uid == os.Geteuid() || a.group != noGroup && slices.Contains(who.groups, a.group)
}
