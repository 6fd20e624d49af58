package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func exampleStatus() *control.Status {
	totals := control.Totals{
		Accepted: 41, Requests: 1200, BackendConnects: 9, BackendReused: 1191, Retries: 2, BytesIn: 88000, BytesOut: 912000,
		LoopTurns: 5000, Waits: 5100, Calls: 3, HeapObjects: 700, Reasons: map[string]uint64{"no_backend": 3, "bad_request": 1},
	}
	return &control.Status{
		Version: "v0.1.0", PID: 100, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Uptime: 3725.4, Generation: 4,
		Config: control.ConfigStatus{
			File: "/etc/cloud-cup.json", SHA256: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", Source: "memory",
			Loaded: time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC),
			Drift:  "applied from memory, differs from the file; the next reload or restart ends it",
		},
		Engine: control.EngineStatus{
			Asked: "auto", Used: "epoll", Detail: "edge-triggered", Fallback: "io_uring_setup: operation not permitted",
		},
		Listeners: []string{"127.0.0.1:8080", "[::1]:8080"},
		Workers: []control.WorkerStatus{
			{
				Slot: 0, PID: 101, State: control.WorkerRunning, Engine: "epoll", Detail: "edge-triggered", Uptime: 3.21, Restarts: 1,
				LastDeath: "killed by SIGKILL", Generation: 4, Connections: 12, BackendIdle: 3, BuffersLent: 65536,
				BuffersMapped: 1048576, Goroutines: 6, Totals: totals, Stale: true,
			},
			{Slot: 1, State: control.WorkerWaiting, Fallback: "uring cannot be used: io_uring_setup: cannot allocate memory", Restarts: 7, LastDeath: "exit status 2"},
		},
		Totals: totals,
		Backends: []control.BackendStatus{
			{Host: "127.0.0.1:8081", Addresses: []string{"127.0.0.1:8081"}, Routes: 2},
			{Host: "api.internal:9000", Addresses: []string{}, Routes: 1, Error: "lookup api.internal: no such host"},
		},
	}
}

// startMaster serves handler as a master would, and returns the socket.
func startMaster(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := &http.Server{Handler: handler}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return path
}

// cupctl runs the program.
func cupctl(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func answerWith(status int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
}

func TestStatusOutput(t *testing.T) {
	socket := startMaster(t, answerWith(http.StatusOK, exampleStatus()))
	code, table, errs := cupctl("status", "-socket", socket)
	require.Zero(t, code, errs)
	golden(t, "status.txt", []byte(table))
	code, text, errs := cupctl("-o", "json", "--socket=unix:"+socket, "status")
	require.Zero(t, code, errs)
	golden(t, "status.json", []byte(text))
}

func TestReloadAndApply(t *testing.T) {
	var asked, body string
	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		text := new(bytes.Buffer)
		text.ReadFrom(r.Body)
		asked, body = r.Method+" "+r.URL.String(), text.String()
		answerWith(http.StatusOK, control.Applied{Generation: 7, Workers: 2})(w, r)
	})
	code, out, _ := cupctl("reload", "--socket", socket)
	require.Zero(t, code)
	require.Equal(t, "reloaded: generation 7 in force in 2 workers\n", out)
	require.Equal(t, "POST /v1/reload", asked)

	file := filepath.Join(t.TempDir(), "x.json")
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o600))
	code, out, _ = cupctl("-output=json", "apply", file, "--socket", socket)
	require.Zero(t, code)
	require.JSONEq(t, `{"generation": 7, "workers": 2}`, out)
	require.Contains(t, asked, "POST /v1/config?name=")
	require.Equal(t, "content", body)
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good := write("good.json", `{"root": ":80", "routes": {"*": {"backends": [{"host": "127.0.0.1:81"}]}}}`)
	bad := write("bad.json", `{"root": 1}`)
	refuse := func(status int) string {
		return startMaster(t, answerWith(status, control.Failure{Error: "because"}))
	}
	gone := filepath.Join(dir, "none.sock")
	for name, c := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"no command":       {nil, exitUsage, "no command"},
		"unknown command":  {[]string{"dance"}, exitUsage, `unknown command "dance"`},
		"unknown flag":     {[]string{"status", "--nope"}, exitUsage, "unknown flag"},
		"bad output":       {[]string{"status", "-o", "xml"}, exitUsage, "want table or json"},
		"missing argument": {[]string{"apply"}, exitUsage, "accepts 1 arg"},
		"not running":      {[]string{"status", "-socket", gone}, exitNotRunning, "is not running"},
		"refused":          {[]string{"reload", "-socket", refuse(http.StatusConflict)}, exitFailed, "cupctl: because"},
		"invalid":          {[]string{"reload", "-socket", refuse(control.StatusInvalid)}, exitInvalid, "because"},
		"denied":           {[]string{"reload", "-socket", refuse(http.StatusForbidden)}, exitDenied, "permission denied"},
		"check good":       {[]string{"check", good}, 0, ""},
		"check bad":        {[]string{"check", bad}, exitInvalid, bad + ":1:"},
		"check no file":    {[]string{"check", gone}, exitFailed, "no such file"},
		"version offline":  {[]string{"version", "-socket", gone}, 0, ""},
		"help":             {[]string{"-help"}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errs := cupctl(c.args...)
			require.Equal(t, c.code, code, errs)
			if c.stderr == "" {
				require.Empty(t, errs)
			}
			require.Contains(t, errs, c.stderr)
		})
	}
	_, out, _ := cupctl("check", good)
	require.Equal(t, good+": valid, routes: 1\n", out)
	_, out, _ = cupctl("version", "-socket", gone)
	require.Equal(t, "cupctl     development\ncloud-cup  not running\n", out)
}

// With one dash, every long flag means what it means with two; no shorthand
// may swallow it.
func TestSingleDashLongFlags(t *testing.T) {
	root := new(command).root()
	all := allFlags(root)
	all.VisitAll(func(f *pflag.Flag) {
		require.Equal(t, []string{"--" + f.Name + "=x"}, control.LongFlags(all, []string{"-" + f.Name + "=x"}))
	})
	require.NotNil(t, all.Lookup("socket"))
	require.NotNil(t, all.Lookup("help"))
}
