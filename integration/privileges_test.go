package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// nobody is the user that tests become, with a group of its own. It is spelt in
// numbers, which need no entry.
const nobody = 65534

// processStatus are the lines of /proc/PID/status (proc_pid_status(5)).
func processStatus(t testing.TB, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	lines := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		lines[name] = strings.Join(strings.Fields(value), " ")
	}
	return lines
}

// requireConfined checks that a worker has no privileges and says so.
func requireConfined(t testing.TB, w *control.WorkerStatus, uid, gid int) {
	t.Helper()
	s := processStatus(t, w.PID)
	four := func(id int) string { return strings.TrimSuffix(strings.Repeat(strconv.Itoa(id)+" ", 4), " ") }
	require.Equal(t, four(uid), s["Uid"])
	require.Equal(t, four(gid), s["Gid"])
	if uid != os.Getuid() {
		require.NotContains(t, strings.Fields(s["Groups"]), "0", "groups of root")
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		require.Equal(t, strings.Repeat("0", 16), s[set], set)
	}
	require.Equal(t, "1", s["NoNewPrivs"])
	require.Equal(t, "2", s["Seccomp"])
	g := *w.Guard
	g.Groups = nil
	require.Equal(t, control.Guard{UID: uid, GID: gid, Capabilities: "0", NoNewPrivs: true, Seccomp: true}, g)
}

// Workers have no privileges, whoever the master is.
func TestWorkersHaveNoPrivileges(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		for _, w := range c.status().Workers {
			requireConfined(t, &w, os.Getuid(), os.Getgid())
		}
		// The thread that starts them has none either, but the others keep
		// what the master needs.
		if os.Getuid() == 0 {
			require.NotEqual(t, strings.Repeat("0", 16), processStatus(t, c.pid())["CapEff"])
		}
	})
}

// Workers that are somebody else do all that others do.
func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start workers as somebody else")
	}
	eachEngine(t, func(t *testing.T, engine string) {
		tcp := startBackend(t, "tcp")
		socket := openSocket(t, tcp)
		config := func(backend string) string {
			return configOf([]string{backend}, `"workers": 2`, fmt.Sprintf(`"user": "%d:%d"`, nobody, nobody), `"timeouts": {"drain": "2s"}`)
		}
		c := startCup(t, engine, config(tcp.addr))
		serves := func() {
			t.Helper()
			for i := range 10 {
				_, err := browse(t, c.addr).get("", 1000, int64(i), "")
				require.NoError(t, err)
			}
			for _, w := range c.status().Workers {
				require.Equal(t, engine, w.Engine)
				requireConfined(t, &w, nobody, nobody)
			}
		}
		serves()
		c.write(config("unix:" + socket))
		_, stderr, code := c.cupctl("reload")
		require.Zero(t, code, stderr)
		serves()
		for slot := range c.workers() {
			c.kill(slot)
		}
		serves()

		c.write(strings.Replace(config(tcp.addr), fmt.Sprint(nobody, ":"), "1:", 1))
		_, stderr, code = c.cupctl("reload")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "user (from 65534:65534 to 1:65534) cannot change")

		require.NoError(t, syscall.Kill(c.pid(), syscall.SIGKILL))
		require.Equal(t, -1, c.wait())
		c.allGone() // they notice, though they are another's
	})
}

// openSocket is the backend at a unix socket that everybody may connect to.
func openSocket(t *testing.T, b *backend) string {
	t.Helper()
	path := filepath.Join(openFolder(t), "backend.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o777))
	server := &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }() // until Close
	return path
}

// openFolder is a folder of the test that everybody can reach.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cloud-cup-open-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// A user that is not there, or cannot be, is refused with its place.
func TestUserRefused(t *testing.T) {
	text := func(user string) string { return configOf([]string{"127.0.0.1:9"}, fmt.Sprintf(`"user": %q`, user)) }
	for user, why := range map[string]string{
		"no-such-user-here":       `:3:9: user: there is no user "no-such-user-here"`,
		"root:no-such-group":      `:3:9: user: `,
		"4000000001":              `:3:9: user: nothing tells the group of user 4000000001`,
		"a b":                     `:3:9: user: "a b" is no user`,
		fmt.Sprint("root:", "x:"): `:3:9: user: `,
	} {
		_, stderr, code := run(t, program("cloud-cup"), "--test", writeFile(t, "cup.json", text(user)))
		require.Equal(t, 4, code, "%s", stderr)
		require.Contains(t, stderr, why)
	}
	if os.Getuid() != 0 {
		_, stderr, code := run(t, program("cloud-cup"), "--admin", "off", writeFile(t, "cup.json", text("root")))
		require.Equal(t, 4, code, "%s", stderr)
		require.Contains(t, stderr, "only root can start workers as root")
		return
	}
	// A program that the user must not execute.
	private := filepath.Join(t.TempDir(), "cloud-cup")
	image, err := os.ReadFile(program("cloud-cup"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(private, image, 0o700))
	_, stderr, code := run(t, private, "--admin", "off", writeFile(t, "cup.json", text("65534:65534")))
	require.Equal(t, 1, code, "%s", stderr)
	require.Contains(t, stderr, private+" must be executable for them")
}

// asNobody starts cloud-cup as an unprivileged user that may lock so much
// memory. If this process is one already, it stays that.
func asNobody(t *testing.T, engine string, lockable int, config string) (c *cup, uid int) {
	t.Helper()
	dir := openFolder(t)
	file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	uid = os.Getuid()
	if uid == 0 {
		uid = nobody
		require.NoError(t, os.Chown(file, uid, uid))
		require.NoError(t, os.Chown(dir, uid, uid))
	}
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(lockable), strconv.Itoa(uid),
		program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file)
	cmd.Env = append(os.Environ(), childVariable+"=unprivileged")
	c, err := launch(t, file, socket, cmd)
	require.NoError(t, err)
	return c, uid
}

// executeUnprivileged lowers the limit of lockable memory to the first argument,
// becomes the user of the second, and then the program that the others name.
func executeUnprivileged() error {
	runtime.LockOSThread()
	lockable, err := strconv.ParseUint(os.Args[1], 10, 64)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: lockable, Max: lockable}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	if uid != os.Getuid() {
		if err := syscall.Setgroups(nil); err != nil {
			return os.NewSyscallError("setgroups", err)
		}
		if err := syscall.Setgid(uid); err != nil {
			return os.NewSyscallError("setgid", err)
		}
		if err := syscall.Setuid(uid); err != nil {
			return os.NewSyscallError("setuid", err)
		}
	}
	// Another user's process has lost it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if err := os.Unsetenv(childVariable); err != nil {
		return err
	}
	return os.NewSyscallError("execve", syscall.Exec(os.Args[3], os.Args[3:], os.Environ()))
}

// lockableDefault is what most systems let a user lock.
const lockableDefault = 8 << 20

// An unprivileged user needs nothing more: start, reload, a worker's death, and
// the end.
func TestUnprivileged(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c, uid := asNobody(t, engine, lockableDefault, configOf([]string{a.addr}, `"workers": 2`))
		answeredBy := func(name string) {
			t.Helper()
			for i := range 10 {
				got, err := browse(t, c.addr).get("", 1000, int64(i), "")
				require.NoError(t, err)
				require.Equal(t, name, got.backend)
			}
			for _, w := range c.status().Workers {
				require.Equal(t, engine, w.Engine, w.Fallback)
				requireConfined(t, &w, uid, uid)
			}
		}
		answeredBy("a")
		c.write(configOf([]string{b.addr}, `"workers": 2`))
		_, stderr, code := c.cupctl("reload")
		require.Zero(t, code, stderr)
		answeredBy("b")
		for range 5 { // at once, before the lockable memory has come back
			c.kill(0)
		}
		answeredBy("b")
		c.stop()
	})
}

// Where the memory that a user may lock is too small for all rings, the workers
// without one serve by epoll and say why.
func TestTooLittleLockableMemory(t *testing.T) {
	if one := os.Getenv("CUP_IO"); one == "epoll" {
		t.Skip("epoll locks no memory")
	}
	b := startBackend(t, "a")
	const workers = 16
	c, _ := asNobody(t, "auto", 1<<20, configOf([]string{b.addr}, fmt.Sprintf(`"workers": %d`, workers)))
	engines := map[string]int{}
	for _, w := range c.status().Workers {
		engines[w.Engine]++
		if w.Engine == "epoll" {
			require.Contains(t, w.Fallback, "cannot allocate memory")
			require.Contains(t, w.Fallback, "RLIMIT_MEMLOCK, 1024 KiB")
		}
	}
	t.Log(engines)
	require.Equal(t, workers, engines["uring"]+engines["epoll"])
	require.NotZero(t, engines["uring"])
	require.NotZero(t, engines["epoll"])
	for i := range 100 {
		_, err := browse(t, c.addr).get("", 1000, int64(i), "")
		require.NoError(t, err)
	}
}

// The time from a worker's death to its successor's first connection, with all
// restrictions.
func TestRespawnTime(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		more := []string{oneWorker}
		if os.Getuid() == 0 {
			more = append(more, fmt.Sprintf(`"user": "%d:%d"`, nobody, nobody))
		}
		c := startCup(t, engine, configOf([]string{b.addr}, more...))
		kills := pick(50, 5)
		took := make([]time.Duration, 0, kills)
		for i := range kills {
			if long() {
				<-time.After(time.Second) // a slot waits after more deaths in a row
			}
			pid := c.workers()[0]
			begin := time.Now()
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			// The dying worker may still accept, and loses what it has.
			eventually(t, "a response", func() bool { return onePerConnection(c.addr)(0, i) == nil })
			took = append(took, time.Since(begin))
			c.replaced(0, pid)
		}
		slices.Sort(took)
		t.Logf("%d kills: p50 %v, max %v", kills, took[kills/2], took[kills-1])
		require.Less(t, took[kills/2], respawnTime)
	})
}
