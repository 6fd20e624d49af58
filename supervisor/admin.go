package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// configBytesMax bounds a configuration sent over the admin socket.
const configBytesMax = 16 << 20

// adminServer answers cupctl over a unix socket. A nil *adminServer is one that
// is switched off.
type adminServer struct {
	path     string
	listener *net.UnixListener
	http     http.Server
}

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
	listener, err := listenSocket(path)
	if err != nil && m.options.AdminOptional {
		m.log.Warn("no admin socket", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	a := &adminServer{path: path, listener: listener}
	a.http = http.Server{
		Handler:           m.adminHandler(),
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext:       rememberPeer,
	}
	return a, nil
}

// listenSocket listens at path and replaces a socket that nobody listens on.
// Only this user and root get at it.
func listenSocket(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
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
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
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
		pid, _, err := peerOf(conn)
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

// peerKey is the context key of a connection's uid.
type peerKey struct{}

// rememberPeer notes who is at the other end, -1 if the kernel does not tell.
func rememberPeer(ctx context.Context, conn net.Conn) context.Context {
	uid := -1
	if c, ok := conn.(*net.UnixConn); ok {
		if _, peer, err := peerOf(c); err == nil {
			uid = peer
		}
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// peerOf returns the process and the user at the other end of conn.
func peerOf(conn *net.UnixConn) (pid, uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	controlErr := raw.Control(func(fd uintptr) { pid, uid, err = sys.PeerOf(int(fd)) })
	return pid, uid, errors.Join(controlErr, err)
}

// adminHandler is the API. Whatever the socket's mode says, only root and the
// master's own user are served.
func (m *Master) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, m.Status())
	})
	mux.HandleFunc("GET /v1/stats", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, m.Stats())
	})
	mux.HandleFunc("GET /v1/errors", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, m.Errors())
	})
	mux.Handle("GET /metrics", m.scraper)
	mux.HandleFunc("GET /readyz", m.answerReady)
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, control.VersionInfo{Version: m.options.Version})
	})
	mux.HandleFunc("GET /v1/config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		// The client sees a text that is cut short by itself.
		_, _ = w.Write(m.generation().text)
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		applied, err := m.Reload()
		m.outcome(w, r, "reload", applied, err)
	})
	mux.HandleFunc("POST /v1/config", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, configBytesMax))
		if err != nil {
			m.outcome(w, r, "apply", nil, err)
			return
		}
		name := r.URL.Query().Get("name")
		if name == "" {
			name = "config"
		}
		dryRun := r.URL.Query().Get("dry_run") == "1"
		applied, err := m.ApplyText(name, text, dryRun)
		m.outcome(w, r, "apply", applied, err)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(peerKey{}).(int)
		if !ok || uid != 0 && uid != os.Geteuid() {
			m.log.Warn("admin socket", "denied_uid", uid)
			answer(w, http.StatusForbidden, control.Failure{Error: fmt.Sprintf("user %d may not control this cloud-cup", uid)})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// answerReady tells load balancers and the like whether to send requests here.
func (m *Master) answerReady(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := m.unready()
	if text != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		text = "ready"
	}
	// A client that went away has its answer.
	_, _ = io.WriteString(w, text+"\n")
}

// outcome answers a request to change something, and logs who asked.
func (m *Master) outcome(w http.ResponseWriter, r *http.Request, what string, applied *control.Applied, err error) {
	uid, _ := r.Context().Value(peerKey{}).(int)
	if err == nil {
		m.log.Info("admin socket", "did", what, "uid", uid, "generation", applied.Generation, "dry_run", applied.DryRun)
		answer(w, http.StatusOK, applied)
		return
	}
	status := http.StatusConflict
	var invalid config.Errors
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &invalid):
		status = control.StatusInvalid
	case errors.As(err, &large):
		status = http.StatusRequestEntityTooLarge
	}
	m.log.Warn("admin socket", "refused", what, "uid", uid, "err", err)
	answer(w, status, control.Failure{Error: err.Error()})
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	// The only errors are those of a client that went away.
	_ = encoder.Encode(v)
}
