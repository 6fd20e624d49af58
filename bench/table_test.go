package main

import (
	"flag"
	"math"
	"os"
	"path/filepath"
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
	require.Contains(t, tables(r, "x.json"), "In this run, nowhere")
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
	require.NoError(t, os.WriteFile(file, []byte("before\n"+tablesBegin+"\nold\n"+tablesEnd+"\nafter\n"), 0o644))
	require.NoError(t, replaceTables(file, "new\n"))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "before\n"+tablesBegin+"\n\nnew\n\n"+tablesEnd+"\nafter\n", string(text))

	require.NoError(t, os.WriteFile(file, []byte("by hand\n"), 0o644))
	require.ErrorContains(t, replaceTables(file, "new\n"), "missing")
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
