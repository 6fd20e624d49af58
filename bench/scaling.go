package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
)

// partScaling runs programs with one worker and with two.
const partScaling = "scaling"

const (
	scalingRounds     = 5
	scalingVariants   = 8
	scalingWorkersMax = 2
)

// scalingLoad is what all are asked.
var scalingLoad = plain("100 B, 256 connections", 256, 100)

// Scaling is the runs with one worker and two.
type Scaling struct {
	Load     Load         `json:"load"`
	Programs []Program    `json:"programs"`
	Runs     []ScalingRun `json:"runs"` // in the order in which they were made
	// Calls are the programs' system calls by index; none if the kernel does not
	// let us count them.
	Calls []CallCount `json:"system_calls,omitempty"`
}

// ScalingRun is one program in one round.
type ScalingRun struct {
	Run
	Workers  int      `json:"workers"`
	Switches Switches `json:"context_switches"`
	Engine   *Engine  `json:"engine,omitempty"` // of Cloud Cup
}

// Switches are context switches of all threads of a program.
type Switches struct {
	Voluntary int64 `json:"voluntary"`
	Forced    int64 `json:"forced"`
}

// Engine is what the engines of all workers counted.
type Engine struct {
	Requests uint64 `json:"requests"`
	Turns    uint64 `json:"turns"`
	Waits    uint64 `json:"waits"` // system calls that may have slept
	Calls    uint64 `json:"calls"` // other system calls
}

func (o *options) scalingRoundsOf() int {
	if o.thorough() {
		return scalingRounds
	}
	return 1
}

func scalingDuration(o *options) time.Duration {
	return scalingVariants * (time.Duration(o.scalingRoundsOf())*(o.length()+overhead) + callsLength + profileLead + overhead)
}

// scaled are programs with one worker and with two, on both CPUs.
func (b *bench) scaled(dir, backend string) ([]candidate, error) {
	base, err := candidates(b.o, &b.results.Build, dir, backend)
	if err != nil {
		return nil, err
	}
	var list []candidate
	for _, c := range base {
		for workers := 1; workers <= scalingWorkersMax; workers++ {
			_, engine, _ := strings.Cut(c.Name, " ")
			config, command, one, several := cupConfig, cupCommand(b.o.cup, engine), `"workers": 1`, `"workers": %d`
			switch c.Name {
			case reference:
				config, command, one, several = nginxConfig, nginxCommand, "worker_processes 1;", "worker_processes %d;"
			case nameHAProxy:
				config, command, one, several = haproxyConfig, haproxyCommand, "nbthread 1", "nbthread %d"
			}
			file := filepath.Join(dir, fmt.Sprintf("scaling-%s-%d", strings.ReplaceAll(c.Name, " ", "-"), workers))
			made, err := newCandidate(b.o, scaledName(c.Name, workers), file, backend, config, command)
			if err != nil {
				return nil, err
			}
			edits := []string{one, fmt.Sprintf(several, workers)}
			if c.Name == reference {
				edits = append(edits, "nginx.pid", filepath.Base(file)+".pid")
			}
			if c.Ours {
				made.Command = replaceWord(made.Command, "--admin=off", "--admin=unix:"+file+".sock")
			}
			if err := made.edit(edits...); err != nil {
				return nil, err
			}
			made.Command = replaceWord(made.Command, strconv.Itoa(b.o.proxyCPU), fmt.Sprintf("%d,%d", b.o.proxyCPU, b.o.clientCPU))
			made.Ours = c.Ours
			list = append(list, made)
		}
	}
	return list, nil
}

func scaledName(program string, workers int) string {
	return fmt.Sprintf("%s, %s", program, plural(workers, "worker"))
}

// scaling makes all runs.
func (b *bench) scaling(ctx context.Context) error {
	l, err := b.lineUp(ctx, []Load{scalingLoad}, b.scaled)
	if err != nil {
		return err
	}
	b.results.Scaling = &Scaling{Load: scalingLoad, Programs: l.programs}
	err = b.scalingRuns(ctx, l)
	if err == nil {
		b.results.Scaling.Calls = countCalls(ctx, l)
		err = context.Cause(ctx)
	}
	return errors.Join(err, l.stop())
}

func (b *bench) scalingRuns(ctx context.Context, l *lineup) error {
	for _, t := range order(b.o.scalingRoundsOf(), 1, len(l.servers)) {
		before, err1 := countersOf(l, t.program)
		r := ScalingRun{Run: l.run(ctx, &scalingLoad, t.program, b.o.length())}
		after, err2 := countersOf(l, t.program)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Round = t.round + 1
		r.Workers = t.program%scalingWorkersMax + 1
		r.Switches, r.Engine = after.since(&before)
		if err := errors.Join(err1, err2); err != nil && r.Failure == "" {
			r.Failure = err.Error()
		}
		b.results.Scaling.Runs = append(b.results.Scaling.Runs, r)
		fmt.Fprintf(os.Stderr, "round %d  %-28s %s\n", r.Round, r.Program, r.progress())
	}
	return nil
}

// counters are what was counted up to a moment.
type counters struct {
	Switches
	engine *Engine // nil: not ours
}

// countersOf reads the counters of program i.
func countersOf(l *lineup, i int) (counters, error) {
	var c counters
	var err error
	if c.Switches, err = switchesOf(l.servers[i].cmd.Process.Pid); err != nil || !l.programs[i].Ours {
		return c, err
	}
	for _, word := range l.servers[i].cmd.Args {
		if path, ok := strings.CutPrefix(word, "--admin=unix:"); ok {
			status, err := control.NewClient(path).Status()
			if err != nil {
				return c, err
			}
			c.engine = &Engine{status.Totals.Requests, status.Totals.LoopTurns, status.Totals.Waits, status.Totals.Calls}
		}
	}
	return c, nil
}

func (c *counters) since(before *counters) (Switches, *Engine) {
	s := Switches{c.Voluntary - before.Voluntary, c.Forced - before.Forced}
	if c.engine == nil || before.engine == nil {
		return s, nil
	}
	now, then := c.engine, before.engine
	return s, &Engine{now.Requests - then.Requests, now.Turns - then.Turns, now.Waits - then.Waits, now.Calls - then.Calls}
}

// switchesOf counts the context switches of root and its descendants.
func switchesOf(root int) (Switches, error) {
	var all Switches
	pids, err := family(root)
	if err != nil {
		return all, err
	}
	for _, pid := range pids {
		one, err := threadSwitches(pid)
		if err != nil {
			return all, err
		}
		all.Voluntary += one.Voluntary
		all.Forced += one.Forced
	}
	return all, nil
}

// writeScaling writes the table of one worker and two.
func (r *Results) writeScaling(w *strings.Builder) {
	if r.Scaling == nil {
		return
	}
	s := r.Scaling
	all := &Results{}
	for i := range s.Runs {
		all.Runs = append(all.Runs, s.Runs[i].Run)
	}
	fmt.Fprintf(w, "\n### One worker and two\n\n")
	fmt.Fprintf(w, "%s, programs on both CPUs, client and backend on one of them: with one worker both CPUs are busy already, so two\n"+
		"cannot serve more here. What can be seen is what a second worker costs: the ratio is that of CPU time per request to\n"+
		"the same program with one worker in the same round. Haproxy's workers are threads. Sleeps and forced switches are voluntary and\n"+
		"involuntary context switches, turns those of our event loop. Counts are per request; system calls are what %s.\n\n"+
		"What limits more workers, up to hosts with 64 CPUs, is argued from these counts and from the cache lines that workers share in\n"+
		"[docs/design.md](docs/design.md#scaling-to-many-cpus).\n\n", s.Load.Name, s.countedBy())
	fmt.Fprintf(w, "| program | requests/s | CPU per request, us | to one worker | sleeps | forced switches | turns | system calls |\n|---|---|---|---|---|---|---|---|\n")
	for _, p := range s.Programs {
		name, _, _ := strings.Cut(p.Name, ", ")
		ratio := "1"
		if one := scaledName(name, 1); one != p.Name {
			ratio = ratioText(all.ratio(s.Load.Name, p.Name, one, cpuPerRequest.of))
		}
		of := func(f func(*ScalingRun) float64) string { return micros(s.figures(p.Name, f)) }
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", p.Name, whole(all.figures(s.Load.Name, p.Name, rate.of)),
			micros(all.figures(s.Load.Name, p.Name, cpuPerRequest.of)), ratio,
			of(func(r *ScalingRun) float64 { return float64(r.Switches.Voluntary) / float64(r.Requests) }),
			of(func(r *ScalingRun) float64 { return float64(r.Switches.Forced) / float64(r.Requests) }),
			of(func(r *ScalingRun) float64 { return r.Engine.per(func(e *Engine) uint64 { return e.Turns }) }),
			s.calls(p.Name))
	}
}

// countedBy is who counted the system calls.
func (s *Scaling) countedBy() string {
	if len(s.Calls) == 0 {
		return "the engines count"
	}
	return fmt.Sprintf("the kernel\ncounts of all threads in a run of its own (`%s`)", strings.Join(callsCommand("PIDS"), " "))
}

// calls are the system calls of a program per request.
func (s *Scaling) calls(program string) string {
	for i := range s.Calls {
		if c := &s.Calls[i]; c.Program == program {
			return three(c.perRequest())
		}
	}
	return micros(s.figures(program, func(r *ScalingRun) float64 {
		return r.Engine.per(func(e *Engine) uint64 { return e.Waits + e.Calls })
	}))
}

// per is a count per request of the engines, NaN if they are not ours.
func (e *Engine) per(f func(*Engine) uint64) float64 {
	if e == nil || e.Requests == 0 {
		return spreadOf(nil).median
	}
	return float64(f(e)) / float64(e.Requests)
}

// figures is the spread of f over the good runs of a program.
func (s *Scaling) figures(program string, f func(*ScalingRun) float64) spread {
	var values []float64
	for i := range s.Runs {
		if r := &s.Runs[i]; r.Program == program && r.Failure == "" && r.Requests > 0 {
			values = append(values, f(r))
		}
	}
	return spreadOf(values)
}

// scalingFailures tells which runs went wrong.
func (r *Results) scalingFailures() error {
	if r.Scaling == nil {
		return nil
	}
	var list []error
	for i := range r.Scaling.Runs {
		if run := &r.Scaling.Runs[i]; run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s: %s", run.Round, run.Program, run.progress()))
		}
	}
	return errors.Join(list...)
}
