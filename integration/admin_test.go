package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// cupctlJSON runs cupctl with -o json and decodes what it says.
func (c *cup) cupctlJSON(into any, args ...string) {
	c.t.Helper()
	stdout, stderr, code := c.cupctl(append([]string{"-o", "json"}, args...)...)
	require.Zero(c.t, code, stderr)
	require.NoError(c.t, json.Unmarshal([]byte(stdout), into), stdout)
}

// Every verb that shows something shows what is the case.
func TestVerbsShow(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		gone := refusingPort(t)
		text := fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 1, "routes": {
			"*": {"backends": [{"host": %q}, {"host": %q, "weight": 2}]}, "/gone/*": {"backends": [{"host": %q}]}
		}}`, a.addr, b.addr, gone)
		c := startCup(t, engine, text)
		client := browse(t, c.addr)
		for i := range 6 {
			_, err := client.get("", 100, int64(i), "")
			require.NoError(t, err)
		}
		_, err := client.get("/gone", 100, 1, "")
		require.ErrorIs(t, err, errStatus)

		for _, v := range []struct {
			args string
			says []string
		}{
			{"status", []string{engine, c.file, a.addr}},
			{"show status", []string{engine, c.file}},
			{"workers", []string{fmt.Sprint(c.workers()[0]), engine}},
			{"backends", []string{a.addr, b.addr, gone, "enabled", "up"}},
			{"routes", []string{"/gone/*", gone}},
			{"routes match http://example.com/gone/1", []string{"route /gone/*", gone}},
			{"config", []string{text}},
			{"show", []string{text}},
			{"show config", []string{text}},
			{"stats", []string{"/gone/*", a.addr}},
			{"errors", []string{"/gone/*", "backend_refused", "nothing listens there"}},
			{"explain backend_refused", []string{"502", "cupctl check -b"}},
			{"io", []string{"worker 0", engine, "SINGLE_ISSUER"}},
			{"version", []string{"cloud-cup"}},
			{"check -r *", []string{a.addr, "green"}},
			{"check -r * --get /10/1", []string{"200"}},
			{"check -b " + a.addr, []string{"green"}},
			{"check " + c.file, []string{"valid, routes: 2"}},
			{"completion bash", []string{"cupctl"}},
		} {
			stdout, stderr, code := c.cupctl(strings.Fields(v.args)...)
			require.Zero(t, code, "%s: %s", v.args, stderr)
			for _, want := range v.says {
				require.Contains(t, stdout, want, v.args)
			}
			require.Empty(t, stderr, v.args)
			require.NotContains(t, stdout, "\x1b", "colour where there is no terminal")
		}
		stdout, _, code := c.cupctl("check")
		require.Equal(t, 1, code)
		require.Regexp(t, `(?m)^`+gone+` +- +red`, stdout)
		stdout, _, _ = c.cupctl("__complete", "drain", "")
		require.Contains(t, stdout, a.addr)

		var backends []control.BackendStatus
		c.cupctlJSON(&backends, "backends")
		sum := uint64(0)
		for _, b := range backends {
			sum += b.Requests["2xx"]
		}
		require.EqualValues(t, 6, sum)
		var io control.IOStatus
		c.cupctlJSON(&io, "io")
		require.Equal(t, engine, io.Workers[0].Engine)
		require.Len(t, io.Report.Engines, 2)
	})
}

// A drained backend gets nothing new, keeps what it has, and drain --wait says
// when that is over. The state survives a reload until the file changes what it
// says about the backend.
func TestDrainAndEnable(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, configOf([]string{a.addr, b.addr}, `"workers": 2`))
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		resp, err := held.response()
		require.NoError(t, err)
		busy, other := a, b
		if resp.Header.Get("X-Backend") == "b" {
			busy, other = b, a
		}

		_, stderr, code := c.cupctl("drain", busy.addr, "--wait", "--timeout", "50ms")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "1 requests in flight")
		onlyOther := func() {
			t.Helper()
			for i := range 20 {
				got, err := browse(t, c.addr).get("", 10, int64(i), "")
				require.NoError(t, err)
				require.Equal(t, other.name, got.backend)
			}
		}
		onlyOther()
		_, stderr, code = c.cupctl("reload")
		require.Zero(t, code, stderr)
		onlyOther()

		waited := make(chan int)
		go func() {
			_, _, code := c.cupctl("drain", busy.addr, "--wait")
			waited <- code
		}()
		busy.release()
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Zero(t, <-waited)

		stdout, stderr, code := c.cupctl("enable", busy.addr)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, busy.addr+": drain -> enabled")
		eventually(t, "requests to be sent to it again", served(t, c, busy))
		_, stderr, code = c.cupctl("drain", "127.0.0.1:1")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, `no backend "127.0.0.1:1"`)
		require.Contains(t, c.log.text(), `"from_state":"enabled","state":"drain"`)
	})
}

// served reports whether a request on a connection of its own is served by b.
func served(t *testing.T, c *cup, b *backend) func() bool {
	return func() bool {
		got, err := browse(t, c.addr).get("", 10, 1, "")
		require.NoError(t, err)
		return got.backend == b.name
	}
}

// A disabled backend also loses its idle connections, and a file that says
// something else about it enables it.
func TestDisable(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, configOf([]string{a.addr, b.addr}, `"workers": 2`))
		eventually(t, "both to be used", served(t, c, a))
		eventually(t, "both to be used", served(t, c, b))
		_, stderr, code := c.cupctl("disable", a.addr, "--wait")
		require.Zero(t, code, stderr)
		for range 10 {
			require.True(t, served(t, c, b)())
		}
		eventually(t, "idle connections to be closed", func() bool {
			for _, s := range c.status().Backends {
				if s.Host == a.addr {
					return s.Idle == 0
				}
			}
			return false
		})
		c.write(fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "routes": {"*": {"backends": [{"host": %q, "weight": 2}, {"host": %q}]}}}`,
			a.addr, b.addr))
		_, stderr, code = c.cupctl("reload")
		require.Zero(t, code, stderr)
		eventually(t, "the file to enable it", served(t, c, a))
	})
}

func TestWeight(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, configOf([]string{a.addr, b.addr}, oneWorker))
		share := func() (ofA int) {
			before := a.served.Load()
			client := browse(t, c.addr)
			for i := range 40 {
				_, err := client.get("", 10, int64(i), "")
				require.NoError(t, err)
			}
			return int(a.served.Load() - before)
		}
		require.Equal(t, 20, share())
		stdout, stderr, code := c.cupctl("weight", a.addr, "3")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "weight 1 -> 3 (set)")
		require.InDelta(t, 30, share(), 2)
		_, stderr, code = c.cupctl("weight", a.addr, "default")
		require.Zero(t, code, stderr)
		require.InDelta(t, 20, share(), 2)
		_, stderr, code = c.cupctl("weight", a.addr, "100000")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "want 0 to 1000")
	})
}

// apply --save is in force and in the file; --dry-run is neither.
func TestApplySave(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, configOf([]string{a.addr}, oneWorker))
		other := configOf([]string{b.addr}, oneWorker)
		file := writeFile(t, "other.json", other)
		serves := func(want *backend) {
			t.Helper()
			got, err := browse(t, c.addr).get("", 10, 1, "")
			require.NoError(t, err)
			require.Equal(t, want.name, got.backend)
		}
		stdout, stderr, code := c.cupctl("apply", "--dry-run", file)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "  ~ *\n")
		serves(a)

		require.NoError(t, os.Chmod(c.file, 0o640))
		stdout, stderr, code = c.cupctl("apply", "--save", "-f", file)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "applied and saved: generation 2")
		serves(b)
		saved, err := os.ReadFile(c.file)
		require.NoError(t, err)
		require.Equal(t, other, string(saved))
		info, err := os.Stat(c.file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
		require.Empty(t, c.status().Config.Drift)
		require.Contains(t, c.log.text(), `"did":"apply"`)
		require.Contains(t, c.log.text(), `"changed":"~ *"`)
	})
}

// A file that cannot be written is refused, and nothing is put in force.
func TestApplySaveWhereItCannot(t *testing.T) {
	b := startBackend(t, "a")
	dir, err := os.MkdirTemp("", "save-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "run", "admin.sock")
	require.NoError(t, os.WriteFile(file, []byte(configOf([]string{b.addr}, oneWorker)), 0o644))
	cmd := exec.Command(program("cloud-cup"), "--admin", "unix:"+socket, file)
	require.NoError(t, os.Mkdir(filepath.Dir(socket), 0o755))
	if os.Geteuid() == 0 {
		// Root may write everywhere: the master is somebody else.
		require.NoError(t, os.Chown(filepath.Dir(socket), strangerID, strangerID))
		cmd = stranger(program("cloud-cup"), "", "--admin", "unix:"+socket, file)
	} else {
		require.NoError(t, os.Chmod(dir, 0o555))
		t.Cleanup(func() { require.NoError(t, os.Chmod(dir, 0o755)) })
	}
	c, err := launch(t, file, socket, cmd)
	require.NoError(t, err)
	other := writeFile(t, "other.json", configOf([]string{"127.0.0.1:9"}, oneWorker))
	_, stderr, code := c.cupctl("apply", "--save", other)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "nothing was changed: save "+file+": its folder cannot be written to")
	require.EqualValues(t, 1, c.status().Generation)
	_, err = browse(t, c.addr).get("", 10, 1, "")
	require.NoError(t, err)
}

func TestStopByCupctl(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		resp, err := held.response()
		require.NoError(t, err)
		stdout, stderr, code := c.cupctl("stop")
		require.Zero(t, code, stderr)
		require.Equal(t, fmt.Sprintf("stopping: pid %d\n", c.pid()), stdout)
		b.release()
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Zero(t, c.wait())

		c = startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		_, stderr, code = c.cupctl("stop", "--wait")
		require.Zero(t, code, stderr)
		require.Zero(t, c.wait())
		_, _, code = c.cupctl("status")
		require.Equal(t, 3, code)
	})
}

// stop --now cuts what is in progress.
func TestStopNow(t *testing.T) {
	b := startBackend(t, "a")
	c := startCup(t, "auto", configOf([]string{b.addr}, oneWorker))
	held := browse(t, c.addr)
	require.NoError(t, held.ask("GET", "/held/1", ""))
	_, err := held.response()
	require.NoError(t, err)
	_, stderr, code := c.cupctl("stop", "--now", "--wait")
	require.Zero(t, code, stderr)
	require.Equal(t, 3, c.wait())
}

// Members of admin.group may use the socket, others may not.
func TestAdminGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can try as another user")
	}
	const group = 54321
	b := startBackend(t, "a")
	dir, err := os.MkdirTemp("", "group-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "run", "admin.sock")
	text := configOf([]string{b.addr}, oneWorker, fmt.Sprintf(`"admin": {"group": "%d"}`, group))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	c, err := launch(t, file, socket, exec.Command(program("cloud-cup"), "--admin", "unix:"+socket, file))
	require.NoError(t, err)
	as := func(groups ...uint32) int {
		cmd := stranger(program("cupctl"), fmt.Sprint(groups), "--socket", socket, "status")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			require.Contains(t, string(out), "permission denied")
			return exit.ExitCode()
		}
		require.NoError(t, err, "%s", out)
		return 0
	}
	require.Equal(t, 5, as())
	require.Zero(t, as(group), "a supplementary group")
	require.NoError(t, os.Chmod(filepath.Dir(socket), 0o777))
	require.NoError(t, os.Chmod(socket, 0o666))
	require.Equal(t, 5, as(), "also when the file's mode is open")
	require.Equal(t, 5, as(group+1))
	require.Zero(t, as(group))
	_, stderr, code := c.cupctl("status")
	require.Zero(t, code, stderr)
}

// --check-io says what is refused and what to change.
func TestCheckIO(t *testing.T) {
	for refusal, want := range map[string]string{
		"setup EPERM": "--security-opt seccomp=", "setup ENOSYS": "SystemCallFilter=", "enter EPERM": "--security-opt seccomp=",
		"setup EACCES": "SELinux",
	} {
		t.Run(refusal, func(t *testing.T) {
			out, err := refused(refusal, "--check-io").CombinedOutput()
			require.NoError(t, err, "%s", out)
			_, errno, _ := strings.Cut(refusal, " ")
			require.Regexp(t, `(?m)^uring  no: .*`, string(out))
			require.Regexp(t, `(?m)^epoll  yes: `, string(out))
			require.Regexp(t, `(?m)^seccomp +filters look at this process' calls: [1-9]`, string(out))
			require.Regexp(t, `(?m)^  no +.*: `+errno+`, `, string(out))
			require.Contains(t, string(out), "unknown")
			require.Contains(t, string(out), "what to change:\n")
			require.Contains(t, string(out), want)
		})
	}
	t.Run("memlock", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can become another user")
		}
		out, err := stranger(program("cloud-cup"), "memlock 4096", "--check-io").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Regexp(t, `(?m)^memlock +4 KiB for all processes of user 65534`, string(out))
		require.Regexp(t, `(?m)^uring  no: .*RLIMIT_MEMLOCK, 4 KiB`, string(out))
		require.Contains(t, string(out), "LimitMEMLOCK=infinity")
		require.Regexp(t, `(?m)^  no +.*: ENOMEM, `, string(out))
	})
	// The same is told about a master that runs so.
	b := startBackend(t, "a")
	file := writeFile(t, "cup.json", configOf([]string{b.addr}, oneWorker))
	socket := filepath.Join(t.TempDir(), "admin.sock")
	c, err := launch(t, file, socket, refused("setup EPERM", "--admin", "unix:"+socket, file))
	require.NoError(t, err)
	stdout, stderr, code := c.cupctl("io")
	require.Zero(t, code, stderr)
	require.Regexp(t, `(?m)^engine +epoll, asked for: auto`, stdout)
	require.Regexp(t, `(?m)^why +io_uring: io_uring_setup: operation not permitted`, stdout)
	require.Regexp(t, `(?m)^worker 0 +epoll`, stdout)
	require.Contains(t, stdout, "--security-opt seccomp=")
}

// stranger is a program as a user that is neither root nor the owner of the
// test's folders. how is a list of groups, or "memlock BYTES". Only root can.
func stranger(path, how string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{how, path}, args...)...)
	cmd.Env = append(os.Environ(), childVariable+"=stranger")
	return cmd
}

// becomeStranger becomes the user and then the program. That one is opened
// before, because the user cannot reach it.
func becomeStranger() error {
	runtime.LockOSThread()
	var groups []int
	for _, word := range strings.Fields(strings.Trim(os.Args[1], "[]")) {
		if n, err := strconv.Atoi(word); err == nil {
			groups = append(groups, n)
		}
	}
	if strings.HasPrefix(os.Args[1], "memlock ") {
		limit := unix.Rlimit{Cur: uint64(groups[0]), Max: uint64(groups[0])}
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
			return err
		}
		groups = nil
	}
	fd, err := unix.Open(os.Args[2], unix.O_PATH, 0)
	if err != nil {
		return err
	}
	err = errors.Join(syscall.Setgroups(groups), syscall.Setgid(strangerID), syscall.Setuid(strangerID))
	if err == nil {
		// Without it /proc/self/fd belongs to root.
		err = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
	if err == nil {
		err = os.Unsetenv(childVariable)
	}
	if err != nil {
		return err
	}
	return os.NewSyscallError("execve", syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args[2:], os.Environ()))
}
