package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Warming up before the first round of a run with as many rounds as a full one:
// shorter ones show only that the suite works.
const warmUp = time.Second

// overhead of a run beside its length: clients start and end.
const overhead = 60 * time.Millisecond

// closedPrograms is how many programs take part where all work.
const closedPrograms = 4

func (o *options) closedLoads() []Load { return selected(o.load) }

func closedDuration(o *options) time.Duration {
	runs := time.Duration(len(o.closedLoads()) * closedPrograms)
	all := runs * time.Duration(o.rounds) * (o.length() + overhead)
	if o.rounds >= roundsFull {
		all += runs * (warmUp + overhead)
	}
	return all
}

// closedLoop puts every program under every load, in rounds.
func (b *bench) closedLoop(ctx context.Context) error {
	return b.closed(ctx, b.o.closedLoads(), b.everyone)
}

// closed does it with these loads and programs.
func (b *bench) closed(ctx context.Context, loads []Load, choose chooser) error {
	b.results.Loads, b.results.Clients = loads, clientTexts(b.o, loads)
	l, err := b.lineUp(ctx, loads, choose)
	if err != nil {
		return err
	}
	b.results.Backend, b.results.Programs = l.backendCommandText(), l.programs
	return errors.Join(b.rounds(ctx, l), l.stop())
}

// clientTexts are the commands of the clients, as the results show them.
func clientTexts(o *options, loads []Load) []string {
	var list []string
	for i := range loads {
		load := &loads[i]
		url := load.url("ADDRESS", "ADDRESS")
		text := strings.Join(clientCommand("bin/bench", o.clientCPU, load, o.length(), url), " ")
		if load.Beside > 0 {
			text += " & " + strings.Join(besideCommand("bin/bench", o.clientCPU, load, o.length(), url), " ")
		}
		list = append(list, text)
	}
	return list
}

// rounds warms up and makes all runs. Programs stay up all the time.
func (b *bench) rounds(ctx context.Context, l *lineup) error {
	loads := b.results.Loads
	order := order(b.o.rounds, len(loads), len(l.servers))
	if b.o.rounds >= roundsFull {
		for _, t := range order[:len(loads)*len(l.servers)] {
			if _, _, err := l.ask(ctx, &loads[t.load], t.program, warmUp); err != nil {
				return err
			}
		}
	}
	for i, t := range order {
		r := l.run(ctx, &loads[t.load], t.program, b.o.length())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Round = t.round + 1
		b.results.Runs = append(b.results.Runs, r)
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %-16s %s\n", i+1, len(order), r.Round, r.Load, r.Program, r.progress())
	}
	return nil
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
