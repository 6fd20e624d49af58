package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// someOpenResults has three rounds at two levels. nginx fails once, and the
// client had no time left beside the uring engine at half of the peak.
func someOpenResults() *Results {
	r := someResults()
	r.Open = &OpenResults{
		Backend: r.Backend, Client: "taskset --cpu-list 1 bin/bench openloop --rate=RATE http://ADDRESS/bytes/100", Programs: r.Programs,
	}
	base := map[string]float64{nameRing: 180, nameEpoll: 210, reference: 200}
	for _, turn := range order(3, 2, 3) {
		name, l := r.Programs[turn.program].Name, levelsRehearsal[turn.load]
		us := base[name] * (1 + 0.1*float64(turn.round) + float64(turn.load))
		rate := 5000 + 45000*float64(turn.load)
		run := OpenRun{Round: turn.round + 1, Program: name, Level: l.name, Wanted: rate, OpenLoop: OpenLoop{
			Requests: int64(rate), Due: int64(rate), Rate: rate,
			Latency: Quantiles{P50: us, P90: 1.5 * us, P99: 3 * us, P999: 10 * us, Max: 20 * us},
			Late:    Quantiles{P50: 30, P90: 50, P99: 90, P999: 500, Max: 2000},
		}, CPU: CPU{ProxyNS: int64(us*rate) * 100, WallNS: 1e9, ClientCPU: 0.5}}
		switch {
		case name == reference && turn.load == 0 && turn.round == 2:
			run.Failure = "processes [1 2] became [1 3]"
			run.Unanswered = 7
		case name == nameRing && turn.load == 1:
			run.ClientCPU = 0.97
		}
		r.Open.Runs = append(r.Open.Runs, run)
	}
	return r
}

// Each program has as many rounds at a level as the level says, each once.
func TestOpenOrder(t *testing.T) {
	o := options{rounds: 2, seconds: 1}
	seen := map[turn]bool{}
	count := map[string]int{}
	for _, turn := range o.openOrder(3) {
		require.False(t, seen[turn], turn)
		seen[turn] = true
		count[o.levels()[turn.load].name]++
	}
	for _, l := range levels {
		require.Equal(t, 3*2*l.times, count[l.name], l.name)
	}

	r := someOpenResults()
	for _, p := range r.Programs {
		r.Open.Runs = append(r.Open.Runs, OpenRun{Round: r.Rounds + 1, Program: p.Name, Level: levelFixed.name})
	}
	var w strings.Builder
	r.writeOpen(&w)
	require.Contains(t, w.String(), "There are 4 rounds at 5,000/s")
}

func TestOpenTables(t *testing.T) {
	golden := filepath.Join("testdata", "open.md")
	r := someOpenResults()
	var w strings.Builder
	r.writeOpen(&w)
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(w.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), w.String(), "go test ./bench -update rewrites it")

	r.Open = nil
	w.Reset()
	r.writeOpen(&w)
	require.Empty(t, w.String())
	require.NoError(t, r.openFailures())
}

// Ratios are to the reference's in the same round, and leave out what failed.
func TestOpenRatios(t *testing.T) {
	r := someOpenResults()
	ratios := r.Open.ratios(nameEpoll, reference, openP50)
	require.Len(t, ratios, 2)
	for _, ratio := range ratios {
		require.InDelta(t, 1.05, ratio, 1e-9)
	}
	require.ErrorContains(t, r.openFailures(), "round 3, 5,000/s, nginx")
	require.ErrorContains(t, r.openFailures(), "7 ERRORS  FAILED: processes")
}

func TestOpenPeak(t *testing.T) {
	o := &OpenResults{Peaks: []Run{
		{Program: nameRing, Wrk: Wrk{Rate: 100}}, {Program: nameRing, Wrk: Wrk{Rate: 300}}, {Program: nameRing, Wrk: Wrk{Rate: 200}},
		{Program: nameRing, Wrk: Wrk{Rate: 900}, Failure: "x"}, {Program: nameEpoll, Wrk: Wrk{Rate: 7}},
	}}
	require.InDelta(t, 200, o.peak(nameRing), 0)
	require.InDelta(t, 7, o.peak(nameEpoll), 0)
	require.InDelta(t, 1, (&OpenResults{Peaks: []Run{{Program: nameRing, Failure: "x"}}}).peak(nameRing), 0)
}

func TestLevels(t *testing.T) {
	whole, rehearsal := &options{rounds: 7, seconds: 1}, &options{rounds: 1, seconds: 1}
	require.Equal(t, levels, whole.levels())
	require.Equal(t, levelsRehearsal, rehearsal.levels())
	require.Less(t, openDuration(rehearsal), 15*time.Second)
}

// The part runs the client as a program of its own.
func TestRunOpenLoop(t *testing.T) {
	s := startBackend(t)
	command := append([]string{os.Args[0]}, openLoopArguments(1000, 8, 200*time.Millisecond, openLoad.url(s.address, ""))...)
	got, err := runOpenLoop(t.Context(), command)
	require.NoError(t, err)
	require.Zero(t, got.Errors(), "%+v", got)
	require.Equal(t, int64(150+200), got.Requests)
	require.Equal(t, int64(200), got.Due)
	require.LessOrEqual(t, got.Latency.P50, got.Latency.Max)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = runOpenLoop(ended, command)
	require.ErrorIs(t, err, context.Canceled)
	_, err = runOpenLoop(t.Context(), append(command, "--rate=-1"))
	require.ErrorContains(t, err, "--rate=-1")
}

// The open loop is compared with wrk run by run; that it could not do all that
// was due is no error then.
func TestOpenChecks(t *testing.T) {
	r := someOpenResults()
	r.Open.Runs = nil
	for i := range 3 {
		r.Open.Peaks = append(r.Open.Peaks, Run{Round: i + 1, Program: nameRing, Wrk: Wrk{Requests: 1, Rate: 100_000}})
		r.Open.Checks = append(r.Open.Checks, OpenRun{Round: i + 1, Program: nameRing, OpenLoop: OpenLoop{Rate: float64(101_000 + 1000*i), Unanswered: 40_000}})
	}
	var w strings.Builder
	r.writeOpen(&w)
	require.Contains(t, w.String(), "| cloud-cup uring | 100000 | 102000 (101000-103000) | 1.02 (1.01-1.03) |")
	require.NoError(t, r.openFailures())
	r.Open.Checks[1].Broken = 1
	require.ErrorContains(t, r.openFailures(), "check, round 2")
}
