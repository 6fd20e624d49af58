package integration

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// writeFile puts text into a new file and returns its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestExitCodes(t *testing.T) {
	valid := writeFile(t, "valid.json", configOf([]string{"127.0.0.1:9"}))
	invalid := writeFile(t, "invalid.json", configOf([]string{"127.0.0.1:9"}, `"workerz": 1`))
	missing := filepath.Join(t.TempDir(), "missing.json")
	for _, c := range []struct {
		program string
		args    []string
		code    int
		stdout  string
		stderr  string
	}{
		{"cloud-cup", nil, 2, "", "usage: cloud-cup"},
		{"cloud-cup", []string{"--no-such-flag", valid}, 2, "", "usage: cloud-cup"},
		{"cloud-cup", []string{"-io=fast", valid}, 2, "", "usage: cloud-cup"},
		{"cloud-cup", []string{valid, valid}, 2, "", "usage: cloud-cup"},
		{"cloud-cup", []string{"--workers", "0", valid}, 2, "", "usage: cloud-cup"},
		{"cloud-cup", []string{"--help"}, 0, "usage: cloud-cup", ""},
		{"cloud-cup", []string{"--version"}, 0, "cloud-cup ", ""},
		{"cloud-cup", []string{"--check-io"}, 0, "epoll  yes", ""},
		{"cloud-cup", []string{"--test", valid}, 0, "valid", ""},
		{"cloud-cup", []string{"-test", valid}, 0, "valid", ""},
		{"cloud-cup", []string{"--test", invalid}, 4, "", "invalid.json:3:1: "},
		{"cloud-cup", []string{"--test", missing}, 1, "", "missing.json"},
		{"cloud-cup", []string{"--admin", "off", invalid}, 4, "", "invalid.json:3:1: "},
		{"cloud-cup", []string{"--admin", "off", missing}, 1, "", "missing.json"},
		{"cupctl", nil, 2, "", "no command"},
		{"cupctl", []string{"no-such-command"}, 2, "", "no-such-command"},
		{"cupctl", []string{"status", "-o", "xml"}, 2, "", "xml"},
		{"cupctl", []string{"--socket", missing, "check"}, 3, "", "not running"},
		{"cupctl", []string{"check", valid}, 0, "valid", ""},
		{"cupctl", []string{"check", invalid}, 4, "", "invalid.json:3:1: "},
		{"cupctl", []string{"check", missing}, 1, "", "missing.json"},
		{"cupctl", []string{"--socket", missing, "status"}, 3, "", "not running"},
		{"cupctl", []string{"--socket", missing, "reload"}, 3, "", "not running"},
	} {
		t.Run(strings.Join(append([]string{c.program}, c.args...), " "), func(t *testing.T) {
			stdout, stderr, code := run(t, program(c.program), c.args...)
			require.Equal(t, c.code, code, "%s%s", stdout, stderr)
			require.Contains(t, stdout, c.stdout)
			require.Contains(t, stderr, c.stderr)
			if c.code == 0 {
				require.Empty(t, stderr)
			} else {
				require.Empty(t, stdout)
			}
		})
	}
}

func TestCupctl(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, configOf([]string{a.addr}, oneWorker))
		stdout, stderr, code := c.cupctl("status")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, engine)
		require.Contains(t, stdout, a.addr)
		stdout, stderr, code = c.cupctl("-o", "json", "status")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, `"engine"`)
		stdout, stderr, code = c.cupctl("version")
		require.Zero(t, code, stderr)
		require.NotEmpty(t, stdout)

		other := writeFile(t, "other.json", configOf([]string{b.addr}, oneWorker))
		_, stderr, code = c.cupctl("apply", other)
		require.Zero(t, code, stderr)
		client := browse(t, c.addr)
		got, err := client.get("", 10, 1, "")
		require.NoError(t, err)
		require.Equal(t, "b", got.backend)
		require.NotEmpty(t, c.status().Config.Drift)

		_, stderr, code = c.cupctl("apply", writeFile(t, "broken.json", "{"))
		require.Equal(t, 4, code)
		require.Contains(t, stderr, "broken.json:1:")

		// HUP reads the file again, and so ends what was applied.
		c.signal(syscall.SIGHUP)
		eventually(t, "the file to be in force", func() bool { return c.status().Generation == 3 })
		got, err = client.get("", 10, 1, "")
		require.NoError(t, err)
		require.Equal(t, "a", got.backend)

		if os.Geteuid() != 0 {
			t.Skip("only root can try as another user")
		}
		// Another user may not even reach the folder of the test.
		dir, err := os.MkdirTemp("", "cupctl-")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		require.NoError(t, os.Chmod(dir, 0o755))
		text, err := os.ReadFile(program("cupctl"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cupctl"), text, 0o755))
		stranger := exec.Command(filepath.Join(dir, "cupctl"), "--socket", c.socket, "status")
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := stranger.CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", out)
		require.Equal(t, 5, exit.ExitCode(), "%s", out)
	})
}

// A second master is told who has the address or the socket, and disturbs
// nobody.
func TestSecondMaster(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		text := fixedRoot(configOf([]string{b.addr}, oneWorker), freePort(t))
		c := startCup(t, engine, text)
		_, stderr, code := run(t, program("cloud-cup"), "-io="+engine, "--admin", "off", c.file)
		require.Equal(t, 1, code, stderr)
		require.Contains(t, stderr, fmt.Sprintf("another cloud-cup (pid %d)", c.pid()))

		elsewhere := writeFile(t, "elsewhere.json", configOf([]string{b.addr}, oneWorker))
		_, stderr, code = run(t, program("cloud-cup"), "-io="+engine, "--admin", "unix:"+c.socket, elsewhere)
		require.Equal(t, 1, code, stderr)
		require.Contains(t, stderr, fmt.Sprintf("another cloud-cup (pid %d)", c.pid()))

		for i := range 50 {
			require.NoError(t, onePerConnection(c.addr)(0, i))
		}
	})
}

// An address that another program has is an error that names it.
func TestAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	file := writeFile(t, "cup.json", fixedRoot(configOf([]string{"127.0.0.1:9"}), l.Addr().String()))
	_, stderr, code := run(t, program("cloud-cup"), "--admin", "off", file)
	require.Equal(t, 1, code, stderr)
	require.Contains(t, stderr, l.Addr().String())
	require.Contains(t, stderr, "another program is listening")
}

// A name that does not resolve stops no start; its route says so.
func TestUnresolvedBackend(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 1, "routes": {
			"*": {"backends": [{"host": %q}]}, "/nowhere/*": {"backends": [{"host": "backend.invalid:80"}]}
		}}`, strings.Replace(b.addr, "127.0.0.1", "localhost", 1)))
		client := browse(t, c.addr)
		_, err := client.get("", 100, 1, "")
		require.NoError(t, err)
		_, err = client.get("/nowhere", 100, 1, "")
		require.ErrorIs(t, err, errStatus)
		require.ErrorContains(t, err, "503 Service Unavailable: backend_unresolved")
		require.EqualValues(t, 1, c.status().Totals.Reasons["backend_unresolved"])
	})
}

// Where io_uring is refused, auto serves on epoll and says why, and an engine
// that is asked for by name is not replaced.
func TestUringRefused(t *testing.T) {
	for _, refusal := range []string{"setup EPERM", "setup ENOSYS", "setup EACCES", "enter EPERM"} {
		t.Run(refusal, func(t *testing.T) {
			b := startBackend(t, "a")
			file := writeFile(t, "cup.json", configOf([]string{b.addr}, oneWorker))
			socket := filepath.Join(t.TempDir(), "admin.sock")
			c, err := launch(t, file, socket, refused(refusal, "--admin", "unix:"+socket, file))
			require.NoError(t, err)
			_, err = browse(t, c.addr).get("", 1000, 1, "")
			require.NoError(t, err)
			s := c.status()
			require.Equal(t, "auto", s.Engine.Asked)
			require.Equal(t, "epoll", s.Engine.Used)
			require.Equal(t, "epoll", s.Workers[0].Engine)
			why := ""
			all, _ := c.log.since(0)
			for _, r := range all {
				if strings.HasPrefix(r.Msg, "uring cannot be used") {
					why = r.Msg
				}
			}
			require.NotEmpty(t, why, c.log.text())
			require.Contains(t, why, s.Engine.Fallback)

			asked := refused(refusal, "-io=uring", "--admin", "off", file)
			out, err := asked.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, "%s", out)
			require.Equal(t, 1, exit.ExitCode(), "%s", out)
			require.Contains(t, string(out), why)
		})
	}
}

// refused is cloud-cup where a filter refuses a system call.
func refused(refusal string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{refusal, program("cloud-cup")}, args...)...)
	cmd.Env = append(os.Environ(), childVariable+"=refuse")
	return cmd
}

// refuseAndExecute installs the filter that the first argument names, and
// becomes the program that the others name.
func refuseAndExecute() error {
	call, name, _ := strings.Cut(os.Args[1], " ")
	number := map[string]int{"setup": unix.SYS_IO_URING_SETUP, "enter": unix.SYS_IO_URING_ENTER}[call]
	errno := map[string]syscall.Errno{"EPERM": syscall.EPERM, "ENOSYS": syscall.ENOSYS, "EACCES": syscall.EACCES}[name]
	if number == 0 || errno == 0 {
		return fmt.Errorf("no refusal %q", os.Args[1])
	}
	runtime.LockOSThread()
	if err := sys.RefuseCalls(sys.Refusal{Call: number, Errno: errno}); err != nil {
		return err
	}
	if err := os.Unsetenv(childVariable); err != nil {
		return err
	}
	return os.NewSyscallError("execve", syscall.Exec(os.Args[2], os.Args[2:], os.Environ()))
}

// The demo serves by itself.
func TestDemo(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		socket := filepath.Join(t.TempDir(), "admin.sock")
		c, err := launch(t, "", socket, exec.Command(program("cloud-cup"), "-io", engine, "--demo", "--admin", "unix:"+socket))
		require.NoError(t, err)
		for _, path := range []string{"/", "/game/", "/game/level/1"} {
			resp, err := http.Get("http://" + c.addr + path)
			require.NoError(t, err)
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			require.NoError(t, errors.Join(err, resp.Body.Close()))
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Contains(t, line, path)
		}
		http.DefaultClient.CloseIdleConnections()
	})
}
