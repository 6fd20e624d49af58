package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// Errors of a Client that its caller acts on.
var (
	// ErrNotRunning: nobody listens on the socket.
	ErrNotRunning = errors.New("cloud-cup is not running")
	// ErrDenied: this user may not use the socket.
	ErrDenied = errors.New("permission denied")
	// ErrConfig: the configuration is invalid.
	ErrConfig = errors.New("invalid configuration")
)

// StatusInvalid is the HTTP status for an invalid configuration.
const StatusInvalid = http.StatusUnprocessableEntity

// clientTimeout bounds a request. The master's own deadlines are shorter.
const clientTimeout = time.Minute

// DefaultSocket is where master and cupctl meet if nothing else is said.
func DefaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/cloud-cup/admin.sock"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "cloud-cup", "admin.sock")
	}
	return filepath.Join(os.TempDir(), "cloud-cup-"+strconv.Itoa(os.Geteuid()), "admin.sock")
}

// Client asks a master over its admin socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client for the socket at path; "unix:" in front of it
// is dropped. An empty path is DefaultSocket, where only a master of this user
// or of root is believed: others may be able to listen there first.
func NewClient(path string) *Client {
	path = strings.TrimPrefix(path, "unix:")
	check := path == ""
	if check {
		path = DefaultSocket()
	}
	return &Client{socket: path, http: http.Client{
		Timeout: clientTimeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
				if err == nil && check {
					if err = checkOwner(conn.(*net.UnixConn)); err != nil {
						return nil, errors.Join(err, conn.Close())
					}
				}
				return conn, err
			},
			DisableKeepAlives: true,
		},
	}}
}

// checkOwner refuses a master of a user that this one need not trust.
func checkOwner(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var uid int
	controlErr := raw.Control(func(fd uintptr) { _, uid, err = sys.PeerOf(int(fd)) })
	if err := errors.Join(controlErr, err); err != nil {
		return err
	}
	if uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("user %d listens there: %w", uid, ErrDenied)
	}
	return nil
}

// Status asks how the master and its workers are.
func (c *Client) Status() (*Status, error) {
	s := new(Status)
	return s, c.do(http.MethodGet, "/v1/status", nil, s)
}

// Version asks for the master's version.
func (c *Client) Version() (*VersionInfo, error) {
	v := new(VersionInfo)
	return v, c.do(http.MethodGet, "/v1/version", nil, v)
}

// Workers asks for the workers alone.
func (c *Client) Workers() (list []WorkerStatus, err error) {
	err = c.do(http.MethodGet, "/v1/workers", nil, &list)
	return list, err
}

// Backends asks for the backends alone.
func (c *Client) Backends() (list []BackendStatus, err error) {
	err = c.do(http.MethodGet, "/v1/backends", nil, &list)
	return list, err
}

// SetBackend changes the state or the weight of a backend, at once in all
// workers, until the configuration changes what it says about that backend.
func (c *Client) SetBackend(host string, change BackendChange) (*BackendChanged, error) {
	text, err := json.Marshal(change)
	if err != nil {
		return nil, err
	}
	changed := new(BackendChanged)
	return changed, c.do(http.MethodPatch, "/v1/backends/"+url.PathEscape(host), text, changed)
}

// Routes asks for the routes, or, unless match is empty, for the one that takes
// requests for that URL, host with path, or path.
func (c *Client) Routes(match string) (list []RouteStatus, err error) {
	path := "/v1/routes"
	if match != "" {
		path += "?" + url.Values{"match": {match}}.Encode()
	}
	err = c.do(http.MethodGet, path, nil, &list)
	return list, err
}

// Config returns the text of the configuration in force.
func (c *Client) Config() ([]byte, error) {
	var text []byte
	err := c.do(http.MethodGet, "/v1/config", nil, &text)
	return text, err
}

// Reload makes the master read its file again. When it returns without error,
// every worker serves by what the file says.
func (c *Client) Reload() (*Applied, error) {
	a := new(Applied)
	return a, c.do(http.MethodPost, "/v1/reload", nil, a)
}

// Way is what Apply does with a configuration.
type Way string

// The ways: in force until the next reload or restart; only checked; in force
// and in the file that the master was started with.
const (
	ApplyInMemory Way = ""
	ApplyDryRun   Way = "dry_run"
	ApplyAndSave  Way = "save"
)

// Apply has the master validate the configuration text and do with it what how
// says. name stands for it in messages.
func (c *Client) Apply(name string, text []byte, how Way) (*Applied, error) {
	query := url.Values{"name": {name}}
	if how != ApplyInMemory {
		query.Set(string(how), "1")
	}
	a := new(Applied)
	return a, c.do(http.MethodPost, "/v1/config?"+query.Encode(), text, a)
}

// Upgrade makes the master start its program's file anew and hand over to it.
// When it returns without error, the new one serves; with an error, the old one
// goes on as before.
func (c *Client) Upgrade() (*Upgraded, error) {
	u := new(Upgraded)
	return u, c.do(http.MethodPost, "/v1/upgrade", nil, u)
}

// Stop makes the master stop as a signal does, or, with now, as two do. It
// returns before the end.
func (c *Client) Stop(now bool) (*Stopping, error) {
	path := "/v1/stop"
	if now {
		path += "?now=1"
	}
	s := new(Stopping)
	return s, c.do(http.MethodPost, path, nil, s)
}

// do sends a request and decodes a success into out.
func (c *Client) do(method, path string, body []byte, out any) error {
	req, err := http.NewRequest(method, "http://cloud-cup"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.dialError(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		return c.failure(resp.StatusCode, text)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = text
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s: answer of the master: %w", c.socket, err)
	}
	return nil
}

// dialError names what callers decide on.
func (c *Client) dialError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s: %w", c.socket, ErrNotRunning)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, ErrDenied):
		return fmt.Errorf("%s: %w", c.socket, ErrDenied)
	}
	return fmt.Errorf("%s: %w", c.socket, err)
}

// failure is the error that an answer's status and body tell.
func (c *Client) failure(status int, body []byte) error {
	var f Failure
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		f.Error = fmt.Sprintf("%s: the master answered %d", c.socket, status)
	}
	switch status {
	case http.StatusForbidden:
		return fmt.Errorf("%s: %w", f.Error, ErrDenied)
	case StatusInvalid:
		return &invalidError{f.Error}
	}
	return errors.New(f.Error)
}

// invalidError is ErrConfig with the text that explains it alone.
type invalidError struct{ text string }

func (e *invalidError) Error() string        { return e.text }
func (e *invalidError) Is(target error) bool { return target == ErrConfig }
