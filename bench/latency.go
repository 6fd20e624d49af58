package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// partOpen is the part with latencies at given rates.
const partOpen = "open"

// openLoad is what is asked for, and the load of a closed loop that finds the
// peaks.
var openLoad = plain("100 B, 64 connections", 64, 100)

// A level is a rate of requests.
type level struct {
	name  string
	share float64 // of the program's own peak
	rate  float64 // a second, if share is 0
	times int     // as many rounds as others have
}

var (
	// levelFixed is the level at which programs are compared with each other.
	// Few requests are slow there, and what else runs on the machine decides
	// which: more rounds make up for it.
	levelFixed = level{name: "5,000/s", rate: 5000, times: 3}
	levels     = []level{
		levelFixed,
		{name: "25 %", share: 0.25, times: 1},
		{name: "50 %", share: 0.5, times: 1},
		{name: "75 %", share: 0.75, times: 1},
		{name: "90 %", share: 0.9, times: 1},
	}
	// levelsRehearsal show that both kinds work.
	levelsRehearsal = []level{levels[0], levels[2]}
)

// peakRounds is how often a program's peak is looked for; the median counts.
const peakRounds = 3

// checkShare of a peak is more than a program can do.
const checkShare = 1.5

// OpenResults are the raw results of the part.
type OpenResults struct {
	Backend  string    `json:"backend"` // its command
	Client   string    `json:"client"`  // its command; RATE and ADDRESS stand for those of a run
	Programs []Program `json:"programs"`
	Peaks    []Run     `json:"peaks"` // closed loop
	// Checks are runs of the open loop in which more is due than a program can
	// do: they ought to have its peak.
	Checks []OpenRun `json:"checks,omitempty"`
	Runs   []OpenRun `json:"runs"` // in the order in which they were made
}

// OpenRun is one program at one level in one round.
type OpenRun struct {
	Round   int     `json:"round"` // from 1
	Program string  `json:"program"`
	Level   string  `json:"level"`
	Wanted  float64 `json:"wanted_per_second"`
	OpenLoop
	CPU
	Failure string `json:"failure,omitempty"` // what made the run worthless
}

func (o *options) levels() []level {
	if o.rehearsal() {
		return levelsRehearsal
	}
	return levels
}

// openOrder is the plan; a turn's load is one of the levels.
func (o *options) openOrder(programs int) []turn {
	levels := o.levels()
	list := order(o.rounds, len(levels), programs)
	if o.rehearsal() {
		return list
	}
	for i, l := range levels {
		for _, t := range order(o.rounds*(l.times-1), 1, programs) {
			list = append(list, turn{o.rounds + t.round, i, t.program})
		}
	}
	return list
}

// peakRounds is how often each program's peak is looked for.
func (o *options) peakRounds() int { return min(o.rounds, peakRounds) }

func openDuration(o *options) time.Duration {
	peaks := time.Duration(o.peakRounds()) * (o.length() + overhead + openLoopWarmUp + o.length() + overhead)
	runs := time.Duration(len(o.openOrder(closedPrograms))) * (openLoopWarmUp + o.length() + overhead)
	return closedPrograms*peaks + runs
}

// openLoop finds the peak of each program, and asks it at each level.
func (b *bench) openLoop(ctx context.Context) error {
	l, err := b.lineUp(ctx, []Load{openLoad}, b.everyone)
	if err != nil {
		return err
	}
	client := pinned(b.o.clientCPU, "bin/bench", openLoopArguments(0, openLoad.Connections, b.o.length(), openLoad.url("ADDRESS", ""))...)
	b.results.Open = &OpenResults{
		Backend:  l.backendCommandText(),
		Client:   strings.Replace(strings.Join(client, " "), "--rate=0", "--rate=RATE", 1),
		Programs: l.programs,
	}
	return errors.Join(b.openRounds(ctx, l), l.stop())
}

func (b *bench) openRounds(ctx context.Context, l *lineup) error {
	results := b.results.Open
	for _, t := range order(b.o.peakRounds(), 1, len(l.servers)) {
		r := l.run(ctx, &openLoad, t.program, b.o.length())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Round = t.round + 1
		results.Peaks = append(results.Peaks, r)
		check := l.openRun(ctx, checkShare*max(r.Rate, 1), t.program, b.o.length())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		check.Round = t.round + 1
		results.Checks = append(results.Checks, check)
		fmt.Fprintf(os.Stderr, "peak %d  %-16s %7.0f/s by wrk, %7.0f/s by the open loop\n", r.Round, r.Program, r.Rate, check.Rate)
	}
	levels := b.o.levels()
	order := b.o.openOrder(len(l.servers))
	for i, t := range order {
		level, name := levels[t.load], l.programs[t.program].Name
		wanted := level.rate
		if level.share > 0 {
			wanted = level.share * results.peak(name)
		}
		r := l.openRun(ctx, wanted, t.program, b.o.length())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Round, r.Level = t.round+1, level.name
		results.Runs = append(results.Runs, r)
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %-16s %s\n", i+1, len(order), r.Round, r.Level, r.Program, r.progress())
	}
	return nil
}

// peak is a program's rate in the closed loop; without one, at least a request
// a second is asked for.
func (o *OpenResults) peak(program string) float64 {
	var rates []float64
	for i := range o.Peaks {
		if r := &o.Peaks[i]; r.Program == program && r.Failure == "" {
			rates = append(rates, r.Rate)
		}
	}
	if len(rates) == 0 {
		return 1
	}
	return max(spreadOf(rates).median, 1)
}

// openRun asks program i at a rate. What went wrong stands in the OpenRun.
func (l *lineup) openRun(ctx context.Context, rate float64, i int, length time.Duration) OpenRun {
	r := OpenRun{Program: l.programs[i].Name, Wanted: rate}
	url := openLoad.url(l.servers[i].address, "")
	command := pinned(l.o.clientCPU, l.self, openLoopArguments(rate, openLoad.Connections, length, url)...)
	before, err1 := l.sample(i)
	var err2 error
	r.OpenLoop, err2 = runOpenLoop(ctx, command)
	after, err3 := l.sample(i)
	r.CPU = after.since(&before)
	if err := errors.Join(err1, err2, err3); err != nil {
		r.Failure = err.Error()
	} else if !slices.Equal(before.pids, after.pids) {
		r.Failure = fmt.Sprintf("processes %v became %v", before.pids, after.pids)
	}
	return r
}

// runOpenLoop runs a client to its end, or until ctx ends.
func runOpenLoop(ctx context.Context, command []string) (OpenLoop, error) {
	var result OpenLoop
	text, err := output(ctx, "", command...)
	if err == nil {
		err = json.Unmarshal([]byte(text), &result)
	}
	return result, err
}

func (r *OpenRun) progress() string {
	text := fmt.Sprintf("%6.2f us CPU  %7.0f/s  p50 %6.0f us  p99 %6.0f us  client late %5.0f us", r.perRequest(), r.Rate,
		r.Latency.P50, r.Latency.P99, r.Late.P99)
	if n := r.Errors(); n > 0 {
		text += fmt.Sprintf("  %d ERRORS", n)
	}
	if r.Failure != "" {
		text += "  FAILED: " + r.Failure
	}
	return text
}

// perRequest is the CPU time of the proxy in microseconds per request.
func (r *OpenRun) perRequest() float64 { return float64(r.ProxyNS) / 1e3 / float64(r.Requests) }

// openFailures tells which runs had errors.
func (r *Results) openFailures() error {
	if r.Open == nil {
		return nil
	}
	var list []error
	for i := range r.Open.Peaks {
		if run := &r.Open.Peaks[i]; run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("peak, round %d, %s: %s", run.Round, run.Program, run.progress()))
		}
	}
	for i := range r.Open.Checks {
		// What it could not answer is what it was asked for.
		if run := &r.Open.Checks[i]; run.Errors() > run.Unanswered || run.Failure != "" {
			list = append(list, fmt.Errorf("check, round %d, %s: %s", run.Round, run.Program, run.progress()))
		}
	}
	for i := range r.Open.Runs {
		if run := &r.Open.Runs[i]; run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s, %s: %s", run.Round, run.Level, run.Program, run.progress()))
		}
	}
	return errors.Join(list...)
}
