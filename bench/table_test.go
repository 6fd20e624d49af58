package main

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// someResults has three rounds of two loads. The epoll engine loses a little
// at one connection, and once its processes change.
func someResults() *Results {
	at := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	r := &Results{
		Schema: schema, Started: at, Ended: at.Add(time.Minute),
		Command: "bin/bench --rounds=3 --seconds=1", Rounds: 3, Seconds: 1,
		Machine:  Machine{CPU: "Some CPU", CPUs: 2, Virtual: true, MemoryMiB: 4096, System: "Debian", Kernel: "6.18.0 x86_64", TCP: "cubic", ClientCPU: 1},
		Build:    Build{Commit: "fb383ea", Dirty: true, Go: "go1.26.8", CheckIO: "uring  yes: tier A\nepoll  yes: edge-triggered"},
		Versions: map[string]string{"nginx": "1.22.1", "wrk": "4.1.0"},
		Backend:  "taskset --cpu-list 1 bin/bench backend 127.0.0.1:9",
		Clients:  []string{"taskset --cpu-list 1 wrk http://ADDRESS/bytes/100"},
		Loads:    loads[:2],
		Programs: []Program{
			{nameRing, true, false, []string{"cloud-cup", "DIR/uring.json"}, "{}\n"},
			{nameEpoll, true, false, []string{"cloud-cup", "DIR/epoll.json"}, "{}\n"},
			{reference, false, false, []string{"nginx", "-c", "DIR/nginx.conf"}, "daemon off;\n"},
		},
	}
	base := map[string]int64{nameRing: 80, nameEpoll: 101, reference: 100}
	for _, turn := range order(3, 2, 3) {
		name := r.Programs[turn.program].Name
		run := Run{Round: turn.round + 1, Load: loads[turn.load].Name, Program: name}
		us := base[name] + int64(turn.round)*10
		if turn.load == 0 && name == nameEpoll && turn.round == 0 {
			us = 95
		}
		run.Wrk = Wrk{Requests: 8000, Rate: 1e6 / float64(us), P50: float64(us), P99: float64(5 * us)}
		run.CPU = CPU{
			ProxyNS: us * 8000 * 1000, UserNS: us * 8000 * 200, SystemNS: us * 8000 * 800, WallNS: 1e9,
			ProxyCPU: float64(us)*8000/1e6 + 0.01, ClientCPU: 0.9,
		}
		if turn.load == 1 && name == nameEpoll && turn.round == 2 {
			run.Failure = "processes [1 2] became [1 3]"
			run.BadStatus = 4
		}
		r.Runs = append(r.Runs, run)
	}
	return r
}

func TestTables(t *testing.T) {
	golden := filepath.Join("testdata", "tables.md")
	got := tables(someResults(), "bench/results/20261122T200000Z.json")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "go test ./bench -update rewrites it")
}

func TestNoLosses(t *testing.T) {
	r := someResults()
	r.Programs = r.Programs[:1]
	require.Contains(t, tables(r, "x.json"), "In this run, no figure of ours was worse than another program's: 8 were compared.")
}

func TestSpread(t *testing.T) {
	require.Equal(t, spread{2, 1, 9}, spreadOf([]float64{9, 1, 2}))
	require.Equal(t, spread{2.5, 1, 9}, spreadOf([]float64{9, 1, 2, 3}))
	require.True(t, math.IsNaN(spreadOf(nil).median))
	require.Equal(t, "-", micros(spreadOf(nil)))
	require.Equal(t, "9.99 (1.00-123)", micros(spread{9.994, 1, 123.4}))
	require.Equal(t, "10.0 (10.0-99.9)", micros(spread{9.996, 10, 99.94}))
}

// Ratios are taken within a round, not between medians.
func TestRatioWithinARound(t *testing.T) {
	r := &Results{}
	for round, cost := range [][2]int64{{1000, 2000}, {3000, 4000}, {7000, 8000}} {
		for i, name := range []string{nameRing, reference} {
			r.Runs = append(r.Runs, Run{Round: round, Load: "x", Program: name, Wrk: Wrk{Requests: 1}, CPU: CPU{ProxyNS: cost[i]}})
		}
	}
	r.Runs = append(r.Runs, Run{Round: 3, Load: "x", Program: nameRing, Wrk: Wrk{Requests: 1}, CPU: CPU{ProxyNS: 1e6}})
	require.Equal(t, spread{0.75, 0.5, 0.875}, r.ratio("x", nameRing, reference, cpuPerRequest.of))
}

func TestOrderTurnsAround(t *testing.T) {
	require.Equal(t, []turn{
		{0, 0, 0}, {0, 0, 1}, {0, 0, 2},
		{0, 1, 2}, {0, 1, 1}, {0, 1, 0},
		{1, 0, 2}, {1, 0, 1}, {1, 0, 0},
		{1, 1, 0}, {1, 1, 1}, {1, 1, 2},
	}, order(2, 2, 3))
}

func TestReplaceTables(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.md")
	write := func(lines ...string) {
		require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644))
	}
	write("before", summaryBegin, "old", generatedEnd, "between", tablesBegin, generatedEnd, "after")
	for range 2 {
		require.NoError(t, replaceTables(file, "short\n", "long\n"))
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, "before\n"+summaryBegin+"\n\nshort\n\n"+generatedEnd+"\nbetween\n"+tablesBegin+"\n\nlong\n\n"+generatedEnd+"\nafter", string(text))
	}
	for _, lines := range [][]string{{"by hand"}, {summaryBegin, generatedEnd}, {summaryBegin, generatedEnd, tablesBegin}} {
		write(lines...)
		require.ErrorContains(t, replaceTables(file, "short\n", "long\n"), "missing")
	}
}

// Every part is in the list of losses, beside both rivals, and nothing that is no
// loss.
func TestLosses(t *testing.T) {
	r := someRuns()
	for i := range r.Failures.Runs {
		if run := &r.Failures.Runs[i]; run.Program == nameRing && run.Strike == strikeKill {
			run.P99 *= 3
			run.Failed = map[string]int64{failedReset: 5}
		}
	}
	for i := range r.Idle.Runs {
		if run := &r.Idle.Runs[i]; run.Program == nameHAProxy && run.TLS {
			run.Held.RSS -= 100
		}
	}
	r.Open = someOpenResults().Open
	closed := someResults()
	r.Loads, r.Programs, r.Runs = closed.Loads, closed.Programs, closed.Runs
	var w strings.Builder
	r.writeLosses(&w)
	_, table, found := strings.Cut(w.String(), "|---|---|---|---|---|\n")
	require.True(t, found)
	require.Equal(t, []string{
		"| 100 B, 1 connection | cloud-cup epoll | CPU per request | *1.01 (0.95-1.01)* | - |",
		"| 100 B, 1 connection | cloud-cup epoll | requests per second | *0.99 (0.99-1.05)* | - |",
		"| 100 B, 1 connection | cloud-cup epoll | p50 | *1.01 (0.95-1.01)* | - |",
		"| 100 B, 1 connection | cloud-cup epoll | p99 | *1.01 (0.95-1.01)* | - |",
		"| 100 B, 64 connections | cloud-cup epoll | CPU per request | **1.01 (1.01-1.01)** | - |",
	}, strings.Split(table, "\n")[:5])
	require.Contains(t, table, "| open loop at 5,000/s | cloud-cup epoll | p99.9 | **1.05** | - |")
	require.Contains(t, table, "| failure runs: worker killed each second | cloud-cup uring | failed requests | **10 to 7** | - |")
	require.Contains(t, table, "| failure runs: worker killed each second | cloud-cup uring | p99 | **3.00** | - |")
	require.Contains(t, table, "| connections that rest, TLS | cloud-cup uring | memory of each | 1.00 | **1.25** |")
	require.NotContains(t, table, strikeReload)
	require.Contains(t, w.String(), "- Target: 100 B, 64 connections, cloud-cup uring: 0.82 (0.80-0.83), missed by 0.12")

	require.Equal(t, outcome{"2.00", true, false}, ratioOutcome([]float64{2}, false), "one run")
	require.Equal(t, outcome{"0.50", true, true}, ratioOutcome([]float64{0.5, 0.5}, true))
	require.Equal(t, outcome{"-", false, false}, ratioOutcome(nil, false))
}

func TestSummary(t *testing.T) {
	r := someOpenResults()
	text := summary(r)
	require.Contains(t, text, "| 100 B, 64 connections | 0.82 (0.80-0.83) | 1.01 (1.01-1.01) | - |")
	require.Contains(t, text, "| p99 of latency at 5,000/s | 0.90")
	require.NotContains(t, text, "| 1 MiB")
	require.Contains(t, text, "targets](#targets) 4 are met and 4 are missed")
}

func TestResultsSurviveTheirFile(t *testing.T) {
	dir := t.TempDir()
	r := someResults()
	path, err := r.save(dir)
	require.NoError(t, err)
	older := *r
	older.Started = r.Started.Add(-time.Hour)
	_, err = older.save(dir)
	require.NoError(t, err)

	newest, err := newestResults(dir)
	require.NoError(t, err)
	require.Equal(t, path, newest)
	loaded, err := loadResults(newest)
	require.NoError(t, err)
	require.Equal(t, r, loaded)

	loaded.Schema++
	_, err = loaded.save(dir)
	require.NoError(t, err)
	_, err = loadResults(path)
	require.ErrorContains(t, err, "schema 2")
}

func TestFailures(t *testing.T) {
	r := someResults()
	require.ErrorContains(t, r.failures(), "round 3, 100 B, 64 connections, cloud-cup epoll")
	require.ErrorContains(t, r.failures(), "4 ERRORS  FAILED: processes")
	r.Runs = r.Runs[:1]
	require.NoError(t, r.failures())
}
