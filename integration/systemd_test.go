//go:build peers

package integration

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// units copies the unit files to a folder of the test, where they name the
// programs under test.
func units(t *testing.T) (service, socket string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cloud-cup.service", "cloud-cup.socket"} {
		text, err := os.ReadFile(filepath.Join("..", "packaging", name))
		require.NoError(t, err)
		text = []byte(strings.ReplaceAll(string(text), "/usr/local/bin/", programs+"/"))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return filepath.Join(dir, "cloud-cup.service"), filepath.Join(dir, "cloud-cup.socket")
}

// systemd understands every line of the unit files, and finds the service
// little exposed for one that starts as root and serves the network.
func TestUnitFiles(t *testing.T) {
	analyze := peer(t, "systemd-analyze")
	service, socket := units(t)
	stdout, stderr, code := run(t, analyze, "verify", service, socket)
	require.Empty(t, stdout+stderr)
	require.Zero(t, code)
	stdout, stderr, code = run(t, analyze, "security", "--offline=yes", "--threshold=30", service)
	require.Zero(t, code, "%s%s", stdout, stderr)
}

// Every system call that master, workers and cupctl make is one that the unit
// file's filter lets through.
func TestUnitFileAllowsOurSystemCalls(t *testing.T) {
	allowed := allowedCalls(t)
	strace := peer(t, "strace")
	eachEngine(t, func(t *testing.T, engine string) {
		dir := t.TempDir()
		trace, file, socket := filepath.Join(dir, "trace"), filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
		require.NoError(t, os.WriteFile(file, []byte(configOf([]string{startBackend(t, "a").addr}, oneWorker)), 0o600))
		s := startServiceManager(t, false)
		cmd := exec.Command(strace, "-f", "-qq", "-o", trace, program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.name)
		c, err := launch(t, file, socket, cmd)
		require.NoError(t, err)
		l := startLoad(t, 4, mixed(c.addr))
		l.more(100)
		_, stderr, code := c.cupctl("reload")
		require.Zero(t, code, stderr)
		_, stderr, code = c.cupctl("upgrade")
		require.Zero(t, code, stderr)
		l.more(100)
		require.Empty(t, l.stop())
		require.NoError(t, syscall.Kill(c.status().PID, syscall.SIGTERM))
		require.Zero(t, c.wait())

		text, err := os.ReadFile(trace)
		require.NoError(t, err)
		used := map[string]bool{}
		for _, m := range tracedCall.FindAllStringSubmatch(string(text), -1) {
			used[m[1]] = true
		}
		require.Contains(t, used, "accept4")
		for _, call := range slices.Sorted(maps.Keys(used)) {
			require.True(t, allowed[call], "the filter of the unit file refuses %s", call)
		}
	})
}

var tracedCall = regexp.MustCompile(`(?m)^\d+ +([a-z0-9_]+)\(`)

// allowedCalls are those that the unit file's SystemCallFilter names.
func allowedCalls(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../packaging/cloud-cup.service")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "\nSystemCallFilter=")
	require.True(t, ok)
	line, _, _ := strings.Cut(rest, "\n")
	allowed := map[string]bool{}
	for _, name := range strings.Fields(line) {
		if !strings.HasPrefix(name, "@") {
			allowed[name] = true
			continue
		}
		addGroup(t, allowed, name)
	}
	return allowed
}

// addGroup adds the calls of a group of systemd's, and of those it names.
func addGroup(t *testing.T, allowed map[string]bool, group string) {
	t.Helper()
	text, stderr, code := run(t, peer(t, "systemd-analyze"), "syscall-filter", group)
	require.Zero(t, code, stderr)
	for line := range strings.Lines(text) {
		switch name := strings.TrimSpace(line); {
		case !strings.HasPrefix(line, " ") || strings.HasPrefix(name, "#"):
		case strings.HasPrefix(name, "@"):
			addGroup(t, allowed, name)
		default:
			allowed[name] = true
		}
	}
}
