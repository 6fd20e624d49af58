package integration

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A bad configuration is refused by each way, with its place, and what was in
// force stays, under load.
func TestEventBadConfiguration(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		good := configOf([]string{b.addr}, `"workers": 2`)
		c := startCup(t, engine, good)
		before := c.status()
		here := settle(t, c.addr, 16)
		l := startLoad(t, 16, func(worker, turn int) error {
			_, err := here.request(worker, func(b *browser) (answer, error) { return b.get("", 500, int64(turn), "") })
			return err
		})
		refusals := 0
		for name, bad := range map[string]struct{ text, place string }{
			"key":    {strings.Replace(good, `"workers"`, `"workerz"`, 1), ":3:1: "},
			"syntax": {strings.Replace(good, `"workers"`, `"workers`, 1), ":3:1"},
			"type":   {strings.Replace(good, `"workers": 2`, `"workers": "2"`, 1), ":3:12: "},
			"route":  {strings.Replace(good, `{"*"`, `{"nothing/*"`, 1), ":2:"},
			"empty":  {"", ":1:1: "},
		} {
			t.Run(name, func(t *testing.T) { refusals += refusedByEachWay(t, c, engine, bad.text, bad.place) })
		}
		l.more(100)
		failed := l.stop()
		report(t, "bad configurations, "+engine, "%d refused with their place; %d failed of %d requests",
			refusals, len(failed), l.done.Load())
		require.Empty(t, failed)
		after := c.status()
		require.Equal(t, before.Generation, after.Generation)
		require.Equal(t, before.Config.SHA256, after.Config.SHA256)
	})
}

// refusedByEachWay offers a bad text to a new master, to both programs' checks
// and to c, and returns how many refused it. place is where the mistake is.
func refusedByEachWay(t *testing.T, c *cup, engine, text, place string) int {
	t.Helper()
	file := writeFile(t, "bad.json", text)
	want := "bad.json" + place
	count := 0
	refused := func(code int, stderr string) {
		t.Helper()
		require.Equal(t, 4, code, stderr)
		require.Contains(t, stderr, want)
		count++
	}
	_, stderr, code := run(t, program("cloud-cup"), "-io="+engine, "--admin", "off", file)
	refused(code, stderr)
	_, stderr, code = run(t, program("cloud-cup"), "--test", file)
	refused(code, stderr)
	_, stderr, code = run(t, program("cupctl"), "check", file)
	refused(code, stderr)
	for _, args := range [][]string{{"apply", file}, {"apply", "-f", file}, {"apply", "--save", file}} {
		_, stderr, code = c.cupctl(args...)
		refused(code, stderr)
	}

	want = filepath.Base(c.file) + place
	c.write(text)
	_, stderr, code = c.cupctl("reload")
	refused(code, stderr)
	seen, _ := c.log.since(0)
	c.signal(syscall.SIGHUP)
	eventually(t, "the refusal to be logged", func() bool {
		for _, r := range c.log.after(len(seen)) {
			if strings.Contains(r.line, "reload") && strings.Contains(r.line, want) {
				return true
			}
		}
		return false
	})
	count++

	status, answer := c.api(t, "POST", "/v1/reload", "")
	require.Equal(t, control.StatusInvalid, status)
	require.Contains(t, answer, want)
	count++
	for _, query := range []string{"?name=sent.json", "?name=sent.json&dry_run=1", "?name=sent.json&save=1"} {
		status, answer = c.api(t, "POST", "/v1/config"+query, text)
		require.Equal(t, control.StatusInvalid, status)
		require.Contains(t, answer, "sent.json"+place)
		count++
	}
	return count
}

// after returns the records from number n on.
func (l *logRecords) after(n int) []record {
	all, _ := l.since(n)
	return all
}

// api makes a request to the admin socket as any HTTP client would, and returns
// the status and the error that the answer tells.
func (c *cup) api(t testing.TB, method, path, body string) (status int, failure string) {
	t.Helper()
	client := http.Client{Timeout: requestTime, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		},
	}}
	u := &url.URL{Scheme: "http", Host: "cloud-cup"}
	u, err := u.Parse(path)
	require.NoError(t, err)
	req, err := http.NewRequest(method, u.String(), strings.NewReader(body))
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var f control.Failure
	require.NoError(t, json.Unmarshal(text, &f), "%s", text)
	return resp.StatusCode, f.Error
}

// strangerID is a user and a group that own nothing.
const strangerID = 65534

// Another user is denied by the admin socket whatever its mode says, and changes
// nothing.
func TestEventStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can try as another user")
	}
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		// Where a stranger can go; the folder of a test is not.
		dir, err := os.MkdirTemp("", "stranger-")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		require.NoError(t, os.Chmod(dir, 0o755))
		binary, err := os.ReadFile(program("cupctl"))
		require.NoError(t, err)
		cupctl := filepath.Join(dir, "cupctl")
		require.NoError(t, os.WriteFile(cupctl, binary, 0o755))
		file := filepath.Join(dir, "cup.json")
		require.NoError(t, os.WriteFile(file, []byte(configOf([]string{b.addr}, oneWorker)), 0o644))
		socket := filepath.Join(dir, "admin.sock")
		c, err := launch(t, file, socket, exec.Command(program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file))
		require.NoError(t, err)
		before := c.status()
		denied := 0
		for _, mode := range []os.FileMode{0o600, 0o666, 0o777} {
			require.NoError(t, os.Chmod(socket, mode))
			for _, args := range strangersCommands(file, b.addr) {
				stranger := exec.Command(cupctl, append([]string{"--socket", socket}, args...)...)
				stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: strangerID, Gid: strangerID}}
				out, err := stranger.CombinedOutput()
				var exit *exec.ExitError
				require.ErrorAs(t, err, &exit, "mode %o, %s: %s", mode, args, out)
				require.Equal(t, 5, exit.ExitCode(), "mode %o, %s: %s", mode, args, out)
				denied++
			}
		}
		after := c.status()
		require.Equal(t, before.Generation, after.Generation)
		require.NoError(t, onePerConnection(c.addr)(0, 1))
		report(t, "another user at the admin socket, "+engine, "%d calls denied with exit status 5", denied)
	})
}

// strangersCommands are commands that ask for something or change something.
func strangersCommands(file, backend string) [][]string {
	return [][]string{
		{"status"}, {"version"}, {"workers"}, {"backends"}, {"routes"}, {"config"}, {"show", "status"}, {"check"},
		{"reload"}, {"apply", file}, {"apply", "--save", file}, {"drain", backend}, {"disable", backend}, {"enable", backend},
		{"weight", backend, "3"}, {"stop"},
	}
}

// The configuration file becomes something that is none, such as a pipe whose
// writer says nothing: a reload is refused at once, and neither who asks nor the
// replacement of workers waits for it.
func TestEventConfigurationIsNoFile(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		file := c.file
		place := map[string]func(){
			"pipe":   func() { require.NoError(t, unix.Mkfifo(file, 0o600)) },
			"folder": func() { require.NoError(t, os.Mkdir(file, 0o700)) },
			"device": func() { require.NoError(t, os.Symlink("/dev/zero", file)) },
			"link":   func() { require.NoError(t, os.Symlink(file, file)) },
			"gone":   func() {},
		}
		for name, put := range place {
			require.NoError(t, os.RemoveAll(file))
			put()
			_, stderr, code := c.cupctl("reload")
			require.Equal(t, 1, code, "%s: %s", name, stderr)
			require.Contains(t, stderr, file, name)
			require.NotEmpty(t, c.status().Config.Drift, name)
			_, _, code = c.cupctl("apply", "--save", writeFile(t, "new.json", configOf([]string{b.addr}, oneWorker)))
			require.Equal(t, 1, code, name)
			require.NoError(t, onePerConnection(c.addr)(0, 1), name)
		}
		c.kill(0)
		require.EqualValues(t, 1, c.status().Generation)
	})
}
