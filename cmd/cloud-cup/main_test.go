package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/worker"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// programEnvironment makes the test binary the program itself.
const programEnvironment = "CLOUD_CUP_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if worker.Asked() || os.Getenv(programEnvironment) != "" {
		main()
	}
	os.Exit(m.Run())
}

// cloudCup runs the program's command line in this process.
func cloudCup(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good := write("good.json", `{"root": "127.0.0.1:0", "routes": {"*": {"backends": [{"host": "127.0.0.1:81"}]}}}`)
	bad := write("bad.json", `{"root": 1}`)
	for name, c := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"nothing":        {nil, exitUsage, "", "no configuration file\n\nusage: cloud-cup"},
		"two files":      {[]string{good, bad}, exitUsage, "", "unexpected argument"},
		"file and demo":  {[]string{"-demo", good}, exitUsage, "", "unexpected argument"},
		"unknown flag":   {[]string{"--nope"}, exitUsage, "", "unknown flag: --nope"},
		"unknown engine": {[]string{"-io=kqueue", good}, exitUsage, "", "--io kqueue: want auto, uring or epoll"},
		"workers":        {[]string{"-workers", "0", good}, exitUsage, "", "--workers 0"},
		"admin":          {[]string{"--admin=/x", good}, exitUsage, "", "want unix:PATH or off"},
		"version":        {[]string{"-version"}, 0, "cloud-cup development\n", ""},
		"help":           {[]string{"-h"}, 0, "usage: cloud-cup", ""},
		"test good":      {[]string{"-test", good}, 0, good + ": valid\n", ""},
		"test bad":       {[]string{bad, "-test"}, 4, "", bad + ":1:10: "},
		"start bad":      {[]string{bad}, 4, "", bad + ":1:10: "},
		"no such file":   {[]string{filepath.Join(dir, "none")}, 1, "", "no such file"},
		"engines":        {[]string{"-check-io"}, 0, "epoll  yes: ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := cloudCup(c.args...)
			require.Equal(t, c.code, code, errs)
			require.Contains(t, out, c.stdout)
			require.Contains(t, errs, c.stderr)
		})
	}
}

// With one dash, every long flag means what it means with two; no shorthand
// may swallow it.
func TestSingleDashLongFlags(t *testing.T) {
	fs := newFlagSet(new(flags))
	fs.VisitAll(func(f *pflag.Flag) {
		require.Greater(t, len(f.Name), 1)
		require.Equal(t, []string{"--" + f.Name + "=x"}, control.LongFlags(fs, []string{"-" + f.Name + "=x"}))
	})
	for _, args := range [][]string{{"-io=epoll"}, {"-io", "epoll"}, {"--io=epoll"}, {"--io", "epoll"}, {"-demo", "-io=epoll"}} {
		var f flags
		require.NoError(t, newFlagSet(&f).Parse(control.LongFlags(newFlagSet(new(flags)), args)))
		require.Equal(t, "epoll", f.io)
	}
}

// The demo's curl line answers as soon as it is printed, on each engine.
func TestDemo(t *testing.T) {
	for _, engine := range worker.EngineNames() {
		t.Run(engine, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-demo", "-io="+engine, "-admin=off", "-workers=1")
			cmd.Env = append(os.Environ(), programEnvironment+"=1")
			var log bytes.Buffer
			cmd.Stderr = &log
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			defer func() { _ = cmd.Process.Kill() }() // it has ended, or the test failed
			var url string
			for lines := bufio.NewScanner(stdout); url == "" && lines.Scan(); {
				if _, after, ok := strings.Cut(lines.Text(), "curl "); ok {
					url = after
				}
			}
			require.NotEmpty(t, url, "%s", &log)
			resp, err := http.Get(url)
			require.NoError(t, err)
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), `the backend "game"`)
			http.DefaultClient.CloseIdleConnections()

			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait(), "%s", &log)
			ready := readyLine(t, log.String())
			require.Equal(t, engine, ready.Engine)
			require.Equal(t, []string{strings.Split(url, "/")[2]}, ready.Listen)
		})
	}
}

// readyLine finds the log line that says that the program serves.
func readyLine(t *testing.T, log string) (line struct {
	Msg, Engine string
	Listen      []string
}) {
	t.Helper()
	for text := range strings.Lines(log) {
		require.NoError(t, json.Unmarshal([]byte(text), &line), "the log is JSON: %s", text)
		if line.Msg == "ready" {
			return line
		}
	}
	require.Fail(t, "not ready", "%s", log)
	return line
}
