package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// serviceManager is the socket on which a service manager is told how a
// service is.
type serviceManager struct {
	t    *testing.T
	conn *net.UnixConn
	name string
}

// startServiceManager listens at an abstract name, or at a path.
func startServiceManager(t *testing.T, abstract bool) *serviceManager {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify.sock")
	if abstract {
		name = "@cloud-cup-test" + strings.ReplaceAll(name, "/", "-")
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &serviceManager{t, conn, name}
}

// next waits for a message that contains the assignment, and returns all of it.
// What comes before it must be among the others that are allowed.
func (s *serviceManager) next(assignment string, others ...string) map[string]string {
	s.t.Helper()
	require.NoError(s.t, s.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		buf := make([]byte, 4096)
		n, err := s.conn.Read(buf)
		require.NoError(s.t, err, "waiting for %s", assignment)
		text := string(buf[:n])
		message := map[string]string{}
		for line := range strings.SplitSeq(text, "\n") {
			name, value, ok := strings.Cut(line, "=")
			require.True(s.t, ok, "assignment %q", line)
			message[name] = value
		}
		name, value, _ := strings.Cut(assignment, "=")
		if message[name] == value && message[name] != "" {
			return message
		}
		require.Contains(s.t, others, text, "waiting for %s", assignment)
	}
}

// startNotified starts cloud-cup as a service manager does.
func startNotified(t *testing.T, s *serviceManager, engine, config string, environment ...string) *cup {
	t.Helper()
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command(program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file)
	cmd.Env = append(os.Environ(), append(environment, "NOTIFY_SOCKET="+s.name)...)
	c, err := launch(t, file, socket, cmd)
	require.NoError(t, err)
	return c
}

const alive = "WATCHDOG=1"

// The service manager hears when cloud-cup serves, reloads and stops, and signs
// of life in between; workers know nothing of it.
func TestServiceManagerIsTold(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for name, abstract := range map[string]bool{"path": false, "abstract": true} {
			t.Run(name, func(t *testing.T) {
				s := startServiceManager(t, abstract)
				text := configOf([]string{startBackend(t, "a").addr}, oneWorker, `"timeouts": {"drain": "7s", "drain_delay": "1ms"}`)
				c := startNotified(t, s, engine, text, "WATCHDOG_USEC=300000")
				require.Contains(t, s.next("READY=1", alive)["STATUS"], "serving "+c.addr+" with 1 workers ("+engine+"), generation 1")
				for range 3 {
					s.next(alive)
				}
				for _, pid := range c.workers() {
					environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
					require.NoError(t, err)
					require.NotContains(t, string(environment), "NOTIFY_SOCKET")
					require.NotContains(t, string(environment), "WATCHDOG")
				}

				before := monotonic(t)
				c.signal(syscall.SIGHUP)
				begun, err := strconv.ParseInt(s.next("RELOADING=1", alive)["MONOTONIC_USEC"], 10, 64)
				require.NoError(t, err)
				require.GreaterOrEqual(t, begun, before)
				require.LessOrEqual(t, begun, monotonic(t))
				require.Contains(t, s.next("READY=1", alive)["STATUS"], "generation 2")

				c.write("{")
				_, _, code := c.cupctl("reload")
				require.Equal(t, 4, code)
				s.next("RELOADING=1", alive)
				refused := s.next("READY=1", alive)["STATUS"]
				require.Contains(t, refused, "generation 2; last reload refused: "+c.file+":1:")

				c.signal(syscall.SIGTERM)
				end := s.next("STOPPING=1", alive)
				usec, err := strconv.Atoi(end["EXTEND_TIMEOUT_USEC"])
				require.NoError(t, err)
				require.Greater(t, usec, 7_001_000, "the drain's deadline is no surprise")
				require.Zero(t, c.wait())
			})
		}
	})
}

// monotonic is CLOCK_MONOTONIC in microseconds.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return now.Nano() / 1000
}

// A service manager that is not there, that watches another process, or that
// cannot be understood changes nothing.
func TestServiceManagerThatIsNoUse(t *testing.T) {
	config := configOf([]string{refusingPort(t)}, oneWorker)
	s := startServiceManager(t, false)
	c := startNotified(t, s, "epoll", config, "WATCHDOG_USEC=1000", "WATCHDOG_PID=1")
	s.next("READY=1")
	require.NoError(t, s.conn.Close())
	c.signal(syscall.SIGHUP)
	record, err := c.await("service manager")
	require.NoError(t, err)
	require.Contains(t, record.Err, s.name)
	eventually(t, "the reload", func() bool { return c.status().Generation == 2 })

	c = startNotified(t, &serviceManager{t: t, name: "vsock:2:1234"}, "epoll", config)
	_, err = c.await("service manager")
	require.NoError(t, err)
}
