package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// warmUpSeconds of each load come before the first round of a run with as many
// rounds as a full one: shorter ones show only that the suite works.
const warmUpSeconds = 1

// bench is one call's state.
type bench struct {
	o       *options
	self    string // this program's file
	dir     string // temporary: configurations, logs
	results *Results
	chosen  func(dir, backend string) ([]candidate, error) // the programs, where backend is the address of theirs
	servers []*server                                      // by the index of Results.Programs
	running []*server                                      // all that were started, the backend too
}

// measure runs everything, writes the raw results, and the tables from them.
func measure(ctx context.Context, o *options) error {
	if err := install(runTools); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cup-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := newBench(o, dir, o.command(), selected(o.load))
	if err != nil {
		return err
	}
	if err := b.describe(); err != nil {
		return err
	}
	b.chosen = func(dir, backend string) ([]candidate, error) {
		return candidates(o, &b.results.Build, dir, backend)
	}
	if err := b.runAll(ctx); err != nil {
		return err
	}
	return b.publish()
}

// newBench is a bench with its results so far: what will be done.
func newBench(o *options, dir, command string, loads []Load) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, self: self, dir: dir, results: &Results{
		Schema: schema, Started: time.Now().UTC().Truncate(time.Second),
		Command: command, Rounds: o.rounds, Seconds: o.seconds, Loads: loads,
	}}
	for i := range loads {
		l := &loads[i]
		command := clientCommand("bin/bench", o.clientCPU, l, o.seconds, l.url("ADDRESS", "ADDRESS"))
		text := strings.Join(command, " ")
		if l.Beside > 0 {
			command = besideCommand("bin/bench", o.clientCPU, l, o.seconds, l.url("ADDRESS", "ADDRESS"))
			text += " & " + strings.Join(command, " ")
		}
		b.results.Clients = append(b.results.Clients, text)
	}
	return b, writeCertificate(dir)
}

// runAll makes all runs, and leaves no process behind.
func (b *bench) runAll(ctx context.Context) error {
	err := b.start(ctx)
	if err == nil {
		err = b.rounds(ctx)
	}
	b.results.Ended = time.Now().UTC().Truncate(time.Second)
	return errors.Join(err, b.stop())
}

func (b *bench) describe() error {
	var err1, err2, err3 error
	b.results.Machine, err1 = thisMachine(b.o)
	b.results.Build, err2 = thisBuild(b.o.cup)
	b.results.Versions, err3 = versions()
	return errors.Join(err1, err2, err3)
}

// start starts the backend and all programs, and waits until they answer.
func (b *bench) start(ctx context.Context) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	command := pinned(b.o.clientCPU, b.self, backendCommand, address)
	b.results.Backend = strings.Replace(strings.Join(command, " "), b.self, "bin/bench", 1)
	if _, err := b.startOne(ctx, func() (*server, error) { return startServer(b.dir, backendCommand, address, command) }); err != nil {
		return err
	}
	list, err := b.chosen(b.dir, address)
	if err != nil {
		return err
	}
	for i := range list {
		s, err := b.startOne(ctx, func() (*server, error) { return list[i].start(b.dir) })
		if err != nil {
			return err
		}
		b.servers = append(b.servers, s)
		b.results.Programs = append(b.results.Programs, list[i].published(b.dir))
	}
	return nil
}

func (b *bench) startOne(ctx context.Context, start func() (*server, error)) (*server, error) {
	s, err := start()
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, s)
	fmt.Fprintf(os.Stderr, "starting %s at %s\n", s.name, s.address)
	return s, s.ready(ctx, b.results.Loads)
}

// stop ends what was started, last first.
func (b *bench) stop() error {
	var err error
	for _, s := range slices.Backward(b.running) {
		err = errors.Join(err, s.stop())
	}
	return err
}

// rounds warms up and makes all runs. Programs stay up all the time.
func (b *bench) rounds(ctx context.Context) error {
	loads := b.results.Loads
	total := len(loads) * len(b.servers)
	order := order(b.o.rounds, len(loads), len(b.servers))
	warmUps := order[:total]
	if b.o.rounds < roundsFull {
		warmUps = nil
	}
	fmt.Fprintf(os.Stderr, "%d runs of %d s after %d s of warm-up, about %v\n", len(order), b.o.seconds, len(warmUps)*warmUpSeconds,
		time.Duration(len(warmUps)*warmUpSeconds+len(order)*b.o.seconds)*time.Second)
	for _, t := range warmUps {
		if _, _, err := b.load(ctx, t, warmUpSeconds); err != nil {
			return err
		}
	}
	for i, t := range order {
		r := Run{Round: t.round + 1, Load: loads[t.load].Name, Program: b.results.Programs[t.program].Name}
		before, err1 := b.sample(t.program)
		w, beside, err2 := b.load(ctx, t, b.o.seconds)
		after, err3 := b.sample(t.program)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.Wrk, r.Beside, r.CPU = w, beside, after.since(&before)
		if err := errors.Join(err1, err2, err3); err != nil {
			r.Failure = err.Error()
		} else if !slices.Equal(before.pids, after.pids) {
			r.Failure = fmt.Sprintf("processes %v became %v", before.pids, after.pids)
		}
		b.results.Runs = append(b.results.Runs, r)
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %-16s %s\n", i+1, len(order), r.Round, r.Load, r.Program, r.progress())
	}
	return nil
}

func (b *bench) sample(program int) (sample, error) {
	return takeSample(b.servers[program].cmd.Process.Pid, b.o.proxyCPU, b.o.clientCPU)
}

// load makes one run. beside is the number of handshakes that were made beside
// it.
func (b *bench) load(ctx context.Context, t turn, seconds int) (w Wrk, beside int64, err error) {
	l, s := &b.results.Loads[t.load], b.servers[t.program]
	url := l.url(s.address, s.secure)
	command := clientCommand(b.self, b.o.clientCPU, l, seconds, url)
	if l.Beside == 0 {
		w, err = runClient(ctx, l, command)
		return w, 0, err
	}
	finish, err := startHandshakes(ctx, besideCommand(b.self, b.o.clientCPU, l, seconds, url))
	if err != nil {
		return w, 0, err
	}
	w, err = runClient(ctx, l, command)
	others, othersErr := finish()
	w.ReadErrors += others.ReadErrors
	return w, others.Requests, errors.Join(err, othersErr)
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

// publish writes the raw results, and the tables if the run was a full one.
// That requests failed is an error, that they were slow is none.
func (b *bench) publish() error {
	dir := b.o.results
	if !b.o.full() {
		dir = filepath.Join(dir, "tmp")
	}
	path, err := b.results.save(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "raw results: %s\n", path)
	text := tables(b.results, path)
	fmt.Print(text)
	if b.o.full() {
		if err := replaceTables(b.o.markdown, text); err != nil {
			return err
		}
	}
	return b.results.failures()
}

// failures tells which runs had errors.
func (r *Results) failures() error {
	var list []error
	for i := range r.Runs {
		run := &r.Runs[i]
		if run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s, %s: %s", run.Round, run.Load, run.Program, run.progress()))
		}
	}
	return errors.Join(list...)
}

// rewriteTables writes the tables of the results in file, or of the newest.
func rewriteTables(o *options, file string) error {
	if file == "" {
		var err error
		if file, err = newestResults(o.results); err != nil {
			return err
		}
	}
	r, err := loadResults(file)
	if err != nil {
		return err
	}
	return replaceTables(o.markdown, tables(r, file))
}
