package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Warming up before the first round of a run with as many rounds as a full one:
// shorter ones show only that the suite works.
const warmUp = 300 * time.Millisecond

// overhead of a run beside its length: clients start and end.
const overhead = 60 * time.Millisecond

// Programs that take part in a load where all work, and floors beside them.
const (
	closedPrograms = 4
	closedFloors   = 2
)

func (o *options) closedLoads() []Load { return selected(o.load) }

func closedDuration(o *options) time.Duration {
	runs := time.Duration(0)
	for _, load := range o.closedLoads() {
		runs += closedPrograms
		if load.Floors {
			runs += closedFloors
		}
	}
	all := runs * time.Duration(o.rounds) * (o.length() + overhead)
	if o.rounds >= roundsFull {
		all += runs * (warmUp + overhead)
	}
	return all
}

// closedLoop puts every program under every load, in rounds.
func (b *bench) closedLoop(ctx context.Context) error {
	return b.closed(ctx, b.o.closedLoads(), b.everything)
}

// closed does it with these loads and programs. Where the backend is reached by
// its unix socket, the same programs stand in a second lineup beside the first.
func (b *bench) closed(ctx context.Context, loads []Load, choose chooser) error {
	b.results.Loads, b.results.Clients = loads, clientTexts(b.o, loads)
	var ways [2]*lineup
	var err error
	for i := range ways {
		some := slices.DeleteFunc(slices.Clone(loads), func(l Load) bool { return l.Unix != (i == 1) })
		if err == nil && len(some) > 0 {
			ways[i], err = b.lineUp(ctx, some, choose)
		}
	}
	if err == nil {
		first := ways[0]
		if first == nil {
			first = ways[1]
		}
		b.results.Backend, b.results.Programs = first.backendCommandText(), first.programs
		b.results.Runs, err = b.rounds(ctx, loads, func(l *Load) *lineup {
			if l.Unix {
				return ways[1]
			}
			return ways[0]
		})
	}
	for _, l := range ways {
		if l != nil {
			err = errors.Join(err, l.stop())
		}
	}
	return err
}

// clientTexts are the commands of the clients, as the results show them.
func clientTexts(o *options, loads []Load) []string {
	var list []string
	for i := range loads {
		load := &loads[i]
		url := load.url("ADDRESS", "ADDRESS")
		text := strings.Join(clientCommand("bin/bench", "bench", o.clientCPU, load, o.length(), url), " ")
		if load.Beside > 0 {
			text += " & " + strings.Join(besideCommand("bin/bench", o.clientCPU, load, o.length(), url), " ")
		}
		list = append(list, text)
	}
	return list
}

// rounds warms up and puts the programs of each load's lineup under it. Programs
// stay up all the time.
func (b *bench) rounds(ctx context.Context, loads []Load, of func(*Load) *lineup) ([]Run, error) {
	programs := 0
	for i := range loads {
		programs = max(programs, len(of(&loads[i]).programs))
	}
	plan := slices.DeleteFunc(order(b.o.rounds, len(loads), programs), func(t turn) bool {
		l := of(&loads[t.load])
		return t.program >= len(l.programs) || !l.programs[t.program].serves(&loads[t.load])
	})
	if b.o.rounds >= roundsFull {
		for _, t := range plan[:len(plan)/b.o.rounds] {
			load := &loads[t.load]
			if _, _, err := of(load).ask(ctx, load, t.program, warmUp); err != nil {
				return nil, err
			}
		}
	}
	var runs []Run
	for i, t := range plan {
		load := &loads[t.load]
		r := of(load).run(ctx, load, t.program, b.o.length())
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r.Round = t.round + 1
		runs = append(runs, r)
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %-16s %s\n", i+1, len(plan), r.Round, r.Load, r.Program, r.progress())
	}
	return runs, nil
}

func (r *Run) progress() string {
	text := fmt.Sprintf("%6.2f us CPU  %7.0f/s  p99 %6.0f us  proxy %3.0f %%", r.perRequest(r.ProxyNS), r.Rate, r.P99, 100*r.utilisation())
	if n := r.Errors(); n > 0 {
		text += fmt.Sprintf("  %d ERRORS", n)
	}
	if r.Failure != "" {
		text += "  FAILED: " + r.Failure
	}
	return text
}

// turn is one run of the plan, by indices.
type turn struct{ round, load, program int }

// order is the plan: the order of programs turns around from one run to the
// next, within a round and from round to round.
func order(rounds, loads, programs int) []turn {
	var list []turn
	for round := range rounds {
		for load := range loads {
			for i := range programs {
				if (round+load)%2 == 1 {
					i = programs - 1 - i
				}
				list = append(list, turn{round, load, i})
			}
		}
	}
	return list
}

// closedFailures tells which runs had errors.
func (r *Results) closedFailures() error {
	var list []error
	for i := range r.Runs {
		run := &r.Runs[i]
		if run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s, %s: %s", run.Round, run.Load, run.Program, run.progress()))
		}
	}
	return errors.Join(list...)
}
