package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/spf13/cobra"
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
		Totals:  totals,
		Refused: []control.RefusedFile{{File: "/etc/cup/ca.pem", Cause: "permission denied", Since: time.Date(2026, 1, 2, 3, 30, 0, 0, time.UTC)}},
		Backends: []control.BackendStatus{
			{
				Host: "127.0.0.1:8081", Addresses: []string{"127.0.0.1:8081"}, Routes: 2, State: control.BackendDrain, Weights: []int{1, 3},
				Health: control.HealthOut, OutFor: 1.234, Failures: 7, InFlight: 2, Idle: 3,
				Requests: map[string]uint64{"2xx": 1180, "5xx": 9, "none": 3}, Reasons: map[string]uint64{"backend_refused": 3},
				Retries: 2, Connects: 9, Reused: 1191,
			},
			{
				Host: "api.internal:9000", Addresses: []string{}, Routes: 1, Error: "lookup api.internal: no such host",
				State: control.BackendEnabled, Weights: []int{1}, WeightSet: new(int), Health: control.HealthUnresolved,
				Requests: map[string]uint64{},
			},
			{
				Host: "localhost:9001", Addresses: []string{"127.0.0.1:9001", "[::1]:9001"}, Routes: 1, State: control.BackendEnabled,
				Weights: []int{1}, Health: control.HealthUp, Requests: map[string]uint64{"2xx": 17},
			},
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

func exampleStats() *control.Stats {
	return &control.Stats{
		Time: time.Date(2026, 1, 2, 4, 6, 10, 0, time.UTC), LatencyWindow: 90,
		Routes: []control.RouteStats{
			{Route: "*", Requests: 3, Classes: map[string]uint64{"2xx": 3}},
			{
				Route: "example.com/game/*", Requests: 120000, Classes: map[string]uint64{"2xx": 119000, "5xx": 1000}, Errors: 12,
				Rate:    control.Rate{TenSeconds: 812.34, Minute: 700},
				Latency: &control.Latency{Requests: 40000, Mean: .0021, P50: .00031, P90: .0045, P99: 1.234}, InFlight: 7, BytesIn: 1, BytesOut: 2,
			},
		},
		Backends: []control.BackendStats{{
			Backend: "127.0.0.1:8081", Requests: 120003, Classes: map[string]uint64{"2xx": 119003, "none": 12}, Failures: 12, Retries: 1,
			Connects: 8, Reused: 119000, Rate: control.Rate{TenSeconds: 812.4, Minute: 700.1},
			Latency: &control.Latency{Requests: 40000, Mean: .002, P50: .00029, P90: .0044, P99: 12.34}, InFlight: 7, Idle: 3,
		}},
	}
}

func exampleIO() *control.IOStatus {
	s := exampleStatus()
	return &control.IOStatus{Engine: s.Engine, Workers: s.Workers, Report: &control.IOReport{
		Facts: []control.IOFact{{Name: "kernel", Value: "Linux 6.1.0 x86_64"}, {Name: "seccomp", Value: "filters look at this process' calls: 1"}},
		Engines: []control.IOFinding{
			{Name: "uring", Answer: control.AnswerNo, Errno: "EPERM", Detail: "io_uring: io_uring_setup: operation not permitted (a seccomp filter forbids it)"},
			{Name: "epoll", Answer: control.AnswerYes, Detail: "edge-triggered"},
		},
		Features: []control.IOFinding{
			{Name: "io_uring_setup", Since: "5.17", Answer: control.AnswerNo, Errno: "EPERM", Detail: "a seccomp filter forbids it"},
			{Name: "SINGLE_ISSUER", Since: "6.0", Answer: control.AnswerUnknown},
			{Name: "eventfd", Since: "2.6.27", Answer: control.AnswerYes},
		},
		Advice: []string{"a seccomp filter refuses the calls io_uring_setup, io_uring_enter and io_uring_register: allow them"},
	}}
}

func exampleErrors() *control.Errors {
	now := time.Date(2026, 1, 2, 4, 6, 10, 0, time.UTC)
	return &control.Errors{
		Time: now, Window: 300,
		Routes: []control.ErrorCount{
			{Route: "example.com/game/*", Reason: "backend_refused", Count: 11, Last: now.Add(-12 * time.Second), PerMinute: []uint64{1, 10}},
			{Route: "*", Reason: "client_gone", Count: 1, Last: now.Add(-3 * time.Minute), PerMinute: []uint64{0, 0, 0, 1}},
		},
		Backends: []control.ErrorCount{
			{Backend: "127.0.0.1:8081", Reason: "backend_refused", Count: 12, Last: now, PerMinute: []uint64{2, 10}},
			{Backend: "127.0.0.1:8081", Reason: "of_a_later_version", Count: 1, Last: now, PerMinute: []uint64{1}},
		},
	}
}

// exampleAPI answers what a master would that is as exampleStatus says. What
// is asked is noted in log.
func exampleAPI(log *[]string) http.HandlerFunc {
	s := exampleStatus()
	answers := map[string]any{
		"GET /v1/status":   s,
		"GET /v1/workers":  s.Workers,
		"GET /v1/backends": s.Backends,
		"GET /v1/routes": []control.RouteStatus{
			{Pattern: "*", Strategy: "round-robin", Backends: []string{"127.0.0.1:8081", "api.internal:9000"}},
			{Pattern: "example.com/a/long/path/that/goes/on/*", Strategy: "round-robin", Backends: []string{"127.0.0.1:8081"}},
		},
		"GET /v1/routes?match=%2Fx": []control.RouteStatus{
			{Pattern: "*", Strategy: "round-robin", Backends: []string{"127.0.0.1:8081"}},
		},
		"GET /v1/stats": exampleStats(),
		"GET /v1/io":    exampleIO(),
		"GET /v1/certs": []control.Certificate{
			{
				File: "/etc/letsencrypt/live/cup.test/fullchain.pem", Names: []string{"cup.test", "*.cup.test"}, Issuer: "E7",
				NotBefore: s.Started, NotAfter: s.Started.AddDate(0, 0, 90), DaysLeft: 89, Listeners: []string{"0.0.0.0:443"}, Backends: []string{},
			},
			{
				File: "/etc/cup/us.pem", Names: []string{"cup"}, Issuer: "Ours",
				NotBefore: s.Started.AddDate(0, 0, -90), NotAfter: s.Started, DaysLeft: -1, Listeners: []string{},
				Backends: []string{"https://api.internal:9443"}, Refused: "the private key does not belong to the certificate",
			},
		},
		"GET /v1/errors":  exampleErrors(),
		"GET /v1/config":  json.RawMessage(`{"root": ":80"}`),
		"GET /v1/version": control.VersionInfo{Version: "v0.1.0"},
		"POST /v1/reload": control.Applied{Generation: 7, Before: 6, Workers: 2, Changes: &control.Changes{
			Added: 1, Removed: 24, Changed: 1, Routes: []string{"+ /new", "~ *", "- /old"}, Settings: []string{"limits", "timeouts"},
		}},
		"POST /v1/config?dry_run=1&name=-": control.Applied{Generation: 6, Before: 6, DryRun: true, Changes: &control.Changes{}},
		"POST /v1/config?name=-&save=1": control.Applied{
			Generation: 7, Before: 6, Workers: 2, Saved: "cup.json", Changes: &control.Changes{Routes: []string{}, Settings: []string{}},
		},
		"PATCH /v1/backends/127.0.0.1:8081": control.BackendChanged{
			Before: control.BackendStatus{Host: "127.0.0.1:8081", State: control.BackendEnabled, Weights: []int{1, 3}},
			After:  s.Backends[0],
		},
		"PATCH /v1/backends/unix:%2Frun%2Fx.sock": control.BackendChanged{
			Before: control.BackendStatus{Host: "unix:/run/x.sock", State: control.BackendEnabled, Weights: []int{1}},
			After:  control.BackendStatus{Host: "unix:/run/x.sock", State: control.BackendEnabled, Weights: []int{1}, WeightSet: new(int)},
		},
		"POST /v1/stop":       control.Stopping{PID: 100, DrainDeadline: 30},
		"POST /v1/stop?now=1": control.Stopping{PID: 100, DrainDeadline: 30, Now: true},
	}
	return func(w http.ResponseWriter, r *http.Request) {
		asked := r.Method + " " + r.URL.RequestURI()
		*log = append(*log, asked)
		if v, ok := answers[asked]; ok {
			answerWith(http.StatusOK, v)(w, r)
			return
		}
		answerWith(http.StatusNotFound, control.Failure{Error: "the test does not know " + asked})(w, r)
	}
}

// Each verb's output, as a table in 80 columns and as JSON, is held by a file:
// the names in JSON are a promise.
func TestOutput(t *testing.T) {
	t.Setenv("COLUMNS", "80")
	var log []string
	socket := startMaster(t, exampleAPI(&log))
	for name, c := range map[string]struct {
		args  []string
		asked string
	}{
		"status":        {[]string{"status"}, "GET /v1/status"},
		"show-status":   {[]string{"show", "status"}, "GET /v1/status"},
		"workers":       {[]string{"workers"}, "GET /v1/workers"},
		"backends":      {[]string{"backends"}, "GET /v1/backends"},
		"routes":        {[]string{"routes"}, "GET /v1/routes"},
		"routes-match":  {[]string{"routes", "match", "/x"}, "GET /v1/routes?match=%2Fx"},
		"config":        {[]string{"config"}, "GET /v1/config"},
		"show":          {[]string{"show"}, "GET /v1/config"},
		"show-config":   {[]string{"show", "config"}, "GET /v1/config"},
		"version":       {[]string{"version"}, "GET /v1/version"},
		"reload":        {[]string{"reload"}, "POST /v1/reload"},
		"apply-dry-run": {[]string{"apply", "--dry-run", "-"}, "POST /v1/config?dry_run=1&name=-"},
		"apply-save":    {[]string{"apply", "-f", "-", "-save"}, "POST /v1/config?name=-&save=1"},
		"drain":         {[]string{"drain", "127.0.0.1:8081"}, "PATCH /v1/backends/127.0.0.1:8081"},
		"weight":        {[]string{"weight", "unix:/run/x.sock", "0"}, "PATCH /v1/backends/unix:%2Frun%2Fx.sock"},
		"stats":         {[]string{"stats"}, "GET /v1/stats"},
		"errors":        {[]string{"errors"}, "GET /v1/errors"},
		"certs":         {[]string{"certs"}, "GET /v1/certs"},
		"io":            {[]string{"io"}, "GET /v1/io"},
		"stop":          {[]string{"stop"}, "POST /v1/stop"},
		"stop-now":      {[]string{"stop", "--now"}, "POST /v1/stop?now=1"},
		"explain-one":   {[]string{"explain", "backend_reset"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			log = nil
			code, table, errs := cupctl(append(c.args, "-socket", socket)...)
			require.Zero(t, code, errs)
			require.Empty(t, errs)
			require.Contains(t, append(log, ""), c.asked)
			golden(t, name+".txt", []byte(table))
			require.NotContains(t, table, "\x1b")
			for line := range strings.Lines(table) {
				require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), 80, line)
			}
			code, text, errs := cupctl(append([]string{"-o", "json", "--socket=unix:" + socket}, c.args...)...)
			require.Zero(t, code, errs)
			require.True(t, json.Valid([]byte(text)))
			golden(t, name+".json", []byte(text))
		})
	}
}

// Where there is no terminal, nothing is broken into lines.
func TestOutputWithoutTerminal(t *testing.T) {
	t.Setenv("COLUMNS", "")
	var log []string
	socket := startMaster(t, exampleAPI(&log))
	code, table, errs := cupctl("routes", "--socket", socket)
	require.Zero(t, code, errs)
	require.Contains(t, table, "\nexample.com/a/long/path/that/goes/on/*  round-robin  127.0.0.1:8081\n")
}

// docs/control.md has every command.
func TestCommandsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "control.md"))
	require.NoError(t, err)
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		for _, below := range cmd.Commands() {
			require.Regexp(t, "`"+below.CommandPath()+"[ `]", string(text), "docs/control.md does not have this command: add it")
			require.NotEmpty(t, below.Short)
			look(below)
		}
	}
	look(new(command).root())
}

// explain lists the whole table, which grows.
func TestExplainListsAll(t *testing.T) {
	code, out, errs := cupctl("explain")
	require.Zero(t, code, errs)
	for _, r := range message.Reasons() {
		require.Regexp(t, `(?m)^`+r.String()+` +`, out)
		require.Contains(t, out, r.Explain().Hint)
	}
}

func TestNoErrors(t *testing.T) {
	socket := startMaster(t, answerWith(http.StatusOK, control.Errors{Window: 61}))
	code, out, errs := cupctl("errors", "--socket", socket)
	require.Zero(t, code, errs)
	require.Equal(t, "none in the last 1m1s\n", out)
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, width: 30, color: true}
	require.NoError(t, s.table([]string{"A", "STATE"}, [][]string{
		{"short", "up"}, {"some words that are too long for it", "running, stuck"}, {"unbrokenunbrokenunbroken", "x"},
	}))
	require.Equal(t, strings.Join([]string{
		"A               STATE",
		"short           \x1b[32mup\x1b[0m",
		"some words      \x1b[32mrunning, stuck\x1b[0m",
		"that are too",
		"long for it",
		"unbrokenunbrok  x",
		"enunbroken",
		"",
	}, "\n"), out.String())
	require.Equal(t, []string{""}, wrap("", 8))
	require.Equal(t, []string{"aaaa", "bb c"}, wrap("aaaa bb c", 4))
}

func TestApplySendsTheContent(t *testing.T) {
	var asked, body string
	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		text := new(bytes.Buffer)
		text.ReadFrom(r.Body)
		asked, body = r.Method+" "+r.URL.String(), text.String()
		answerWith(http.StatusOK, control.Applied{Generation: 7, Workers: 2})(w, r)
	})
	file := filepath.Join(t.TempDir(), "x.json")
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o600))
	for _, args := range [][]string{{"apply", file}, {"apply", "-f", file}, {"apply", "-file", file}} {
		body = ""
		code, out, _ := cupctl(append(args, "--socket", socket)...)
		require.Zero(t, code)
		require.Equal(t, "applied in memory: generation 7 in force in 2 workers\n", out)
		require.Contains(t, asked, "POST /v1/config?name=")
		require.Equal(t, "content", body)
	}
}

// check without a file connects to backends from here.
func TestCheckBackends(t *testing.T) {
	t.Setenv("COLUMNS", "")
	status := http.StatusOK
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "/health", r.URL.Path)
		w.WriteHeader(status)
	}))
	defer backend.Close()
	green := backend.Listener.Addr().String()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	red := l.Addr().String()
	unix := "unix:" + startMaster(t, answerWith(http.StatusOK, nil))

	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/backends":
			answerWith(http.StatusOK, []control.BackendStatus{
				{Host: green, Addresses: []string{green}}, {Host: red, Addresses: []string{red}},
				{Host: unix, Addresses: []string{unix}}, {Host: "no.test:80"},
			})(w, r)
		case "/v1/routes":
			answerWith(http.StatusOK, []control.RouteStatus{{Pattern: "*", Backends: []string{green, unix}}, {Pattern: "/x", Backends: []string{red}}})(w, r)
		}
	})
	for _, c := range []struct {
		args     string
		code     int
		contains []string
	}{
		{"check", 1, []string{green, red, "red", "connection refused", "no.test:80", "does not resolve", unix}},
		{"check -r *", 0, []string{green, unix}},
		{"check --route /x", 1, []string{red}},
		{"check -r /nothing", 1, nil},
		{"check -b " + green, 0, []string{green, "green"}},
		{"check -b " + green + " -b " + red, 1, []string{green, red}},
		{"check -b " + green + " --get /health", 0, []string{"200"}},
		{"check -b " + green + " -head /health", 0, []string{"200"}},
		{"check -b " + unix + " --get /any", 0, []string{"200"}},
		{"check -o json -b " + green, 0, []string{`"green": true`}},
	} {
		code, out, errs := cupctl(append(strings.Fields(c.args), "--socket", socket)...)
		require.Equal(t, c.code, code, "%s: %s%s", c.args, out, errs)
		require.Equal(t, c.code, strings.Count(errs, "\n"), "%s: %s", c.args, errs)
		for _, want := range c.contains {
			require.Contains(t, out, want, c.args)
		}
	}
	status = http.StatusServiceUnavailable
	code, out, _ := cupctl("check", "-b", green, "--get", "/health")
	require.Equal(t, exitFailed, code)
	require.Contains(t, out, "503")
}

// What is asked of a backend is what the command line says.
func TestBackendCommands(t *testing.T) {
	var body string
	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		text := new(bytes.Buffer)
		text.ReadFrom(r.Body)
		body = text.String()
		as := control.BackendStatus{Host: "b:1", State: "enabled", Weights: []int{1}}
		answerWith(http.StatusOK, control.BackendChanged{Before: as, After: as})(w, r)
	})
	for args, want := range map[string][2]string{
		"drain b:1":          {`{"state":"drain"}`, "b:1: enabled -> enabled, "},
		"disable b:1":        {`{"state":"disabled"}`, "b:1: enabled -> enabled, "},
		"enable b:1":         {`{"state":"enabled"}`, "b:1: enabled -> enabled, "},
		"weight b:1 7":       {`{"weight":7}`, "b:1: weight 1 -> 1, "},
		"weight b:1 0":       {`{"weight":0}`, "b:1: weight 1 -> 1, "},
		"weight b:1 default": {`{"configured_weight":true}`, "b:1: weight 1 -> 1, "},
	} {
		code, out, errs := cupctl(append(strings.Fields(args), "--socket", socket)...)
		require.Zero(t, code, errs)
		require.Equal(t, want[0], body, args)
		require.Contains(t, out, want[1], args)
	}
}

// drain --wait returns when nothing is in flight by the word of workers that
// are not stuck.
func TestDrainWaits(t *testing.T) {
	asked := 0
	s := &control.Status{Workers: []control.WorkerStatus{{Stale: true}}, Backends: []control.BackendStatus{{Host: "a:1"}, {Host: "b:1"}}}
	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			answerWith(http.StatusOK, control.BackendChanged{After: control.BackendStatus{InFlight: 3}})(w, r)
			return
		}
		asked++
		s.Workers[0].Stale = asked < 2
		s.Backends[1].InFlight = uint64(max(4-asked, 0))
		answerWith(http.StatusOK, s)(w, r)
	})
	code, out, errs := cupctl("drain", "b:1", "--wait", "--socket", socket)
	require.Zero(t, code, errs)
	require.Equal(t, 4, asked)
	require.Contains(t, out, "0 in flight")
	code, _, errs = cupctl("drain", "c:1", "--wait", "--socket", socket)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "no longer in the configuration")

	s.Backends[0].InFlight = 5
	code, _, errs = cupctl("disable", "a:1", "--wait", "--timeout", "10ms", "--socket", socket)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "a:1 still has 5 requests in flight after 10ms")
}

func TestStopWaits(t *testing.T) {
	asked := 0
	var s *http.Server
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 4 {
			s.Close()
		}
		answerWith(http.StatusOK, control.Stopping{PID: 100})(w, r)
	})}
	go s.Serve(l)
	code, out, errs := cupctl("stop", "--wait", "--socket", path)
	require.Zero(t, code, errs)
	require.Equal(t, "stopped: pid 100\n", out)

	path = startMaster(t, answerWith(http.StatusOK, control.Stopping{PID: 100}))
	code, _, errs = cupctl("stop", "--wait", "--timeout", "10ms", "--socket", path)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "still runs after 10ms")
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, out, errs := cupctl("completion", shell)
		require.Zero(t, code, errs)
		require.Contains(t, out, "cupctl")
	}
	var log []string
	socket := startMaster(t, exampleAPI(&log))
	_, out, _ := cupctl("__complete", "--socket", socket, "drain", "")
	require.Contains(t, out, "127.0.0.1:8081\napi.internal:9000\n")
	_, out, _ = cupctl("__complete", "explain", "backend_")
	require.Contains(t, out, "backend_reset\t")
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
	several := startMaster(t, answerWith(http.StatusConflict, control.Failure{Error: "one\ntwo"}))
	for name, c := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"no command":        {nil, exitUsage, "no command"},
		"unknown command":   {[]string{"dance"}, exitUsage, `unknown command "dance"`},
		"unknown flag":      {[]string{"status", "--nope"}, exitUsage, "unknown flag"},
		"bad output":        {[]string{"status", "-o", "xml"}, exitUsage, "want table or json"},
		"missing argument":  {[]string{"apply"}, exitUsage, "want one file"},
		"not running":       {[]string{"status", "-socket", gone}, exitNotRunning, "is not running"},
		"refused":           {[]string{"reload", "-socket", refuse(http.StatusConflict)}, exitFailed, "cupctl: because"},
		"invalid":           {[]string{"reload", "-socket", refuse(control.StatusInvalid)}, exitInvalid, "because"},
		"denied":            {[]string{"reload", "-socket", refuse(http.StatusForbidden)}, exitDenied, "permission denied"},
		"two files":         {[]string{"apply", good, "-f", good}, exitUsage, "want one file"},
		"save and dry run":  {[]string{"apply", good, "--save", "--dry-run"}, exitUsage, "exclude each other"},
		"check and probe":   {[]string{"check", good, "-b", "x:1"}, exitUsage, "leave the flags out"},
		"check bad path":    {[]string{"check", "--get", "x"}, exitUsage, "begins with a slash"},
		"bad shell":         {[]string{"completion", "tcsh"}, exitUsage, "tcsh"},
		"weight of words":   {[]string{"weight", "b:1", "much"}, exitUsage, "want a number or default"},
		"no wait":           {[]string{"drain", "b:1", "--timeout", "1s"}, exitUsage, "--timeout is for --wait"},
		"negative timeout":  {[]string{"stop", "--wait", "--timeout", "-1s"}, exitUsage, "want 0s or more"},
		"several causes":    {[]string{"reload", "-socket", several}, exitFailed, "cupctl: one; two\n"},
		"nearly a command":  {[]string{"statuss"}, exitUsage, `unknown command "statuss"; did you mean stats or status?`},
		"drain nothing":     {[]string{"drain"}, exitUsage, "drain: BACKEND is missing\nsee cupctl drain --help"},
		"no weight":         {[]string{"weight", "b:1"}, exitUsage, "weight: NUMBER|default is missing"},
		"match of nothing":  {[]string{"routes", "match"}, exitUsage, "match: URL is missing\nsee cupctl routes match --help"},
		"too much":          {[]string{"reload", "now"}, exitUsage, `reload: unexpected argument "now"`},
		"unknown reason":    {[]string{"explain", "bad_luck"}, exitFailed, "cupctl explain lists all"},
		"check not running": {[]string{"check", "-socket", gone}, exitNotRunning, "is not running"},
		"check good":        {[]string{"check", good}, 0, ""},
		"check bad":         {[]string{"check", bad}, exitInvalid, bad + ":1:"},
		"check no file":     {[]string{"check", gone}, exitFailed, "no such file"},
		"version offline":   {[]string{"version", "-socket", gone}, 0, ""},
		"help":              {[]string{"-help"}, 0, ""},
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
