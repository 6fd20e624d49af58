package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// partFailures lets things go wrong and looks at what a client sees of it.
const partFailures = "failures"

// strikeEvery is how often something goes wrong in a failure run.
const strikeEvery = time.Second

// Failure runs of a full run, which has failureRounds of them.
const (
	failureRounds = 3
	failureLength = 2500 * time.Millisecond
	// failureShortest lets something go wrong once.
	failureShortest = strikeEvery * 7 / 10
	// followWait is how long a program may take to follow the last strike.
	followWait = 5 * time.Second
)

// What goes wrong.
const (
	strikeNone    = "nothing"
	strikeReload  = "reload each second"
	strikeKill    = "worker killed each second"
	strikeBackend = "one of two backends restarted each second"
)

var strikeNames = []string{strikeNone, strikeReload, strikeKill, strikeBackend}

// Failures are the failure runs.
type Failures struct {
	Seconds  float64      `json:"seconds"` // of one run
	Client   string       `json:"client"`  // its command; ADDRESS stands for the program's
	Programs []Program    `json:"programs"`
	Runs     []FailureRun `json:"runs"` // in the order in which they were made
}

// FailureRun is one program while one thing goes wrong.
type FailureRun struct {
	Round   int    `json:"round"` // from 1
	Strike  string `json:"strike"`
	Program string `json:"program"`
	Strikes int    `json:"strikes"` // that were seen to have had their effect
	Watched
	Failure string `json:"failure,omitempty"` // what made the run worthless
}

// survivor is a program in a failure run.
type survivor struct {
	candidate
	reload unix.Signal // to the master
	killed bool        // its master replaces a worker that was killed
}

// survivors are all programs that work here, each with two backends.
func (b *bench) survivors(backends [2]string) ([]survivor, error) {
	list, err := candidates(b.o, &b.results.Build, b.dir, backends[0])
	if err != nil {
		return nil, err
	}
	var all []survivor
	for _, c := range list {
		s := survivor{candidate: c}
		if err := s.prepare(backends); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// prepare gives the program its second backend, and what it has for such cases.
func (s *survivor) prepare(backends [2]string) error {
	s.reload, s.killed = unix.SIGHUP, true
	first, second := backends[0], backends[1]
	switch s.Name {
	case nameHAProxy:
		s.reload, s.killed = unix.SIGUSR2, false
		s.Command = replaceWord(s.Command, "-db", "-W", "-db")
		return s.edit("    http-reuse always\n", "    http-reuse always\n    option redispatch 1\n    retry-on conn-failure empty-response\n",
			"    server backend "+first+"\n", "    balance roundrobin\n    server backend "+first+"\n    server second "+second+"\n")
	case reference:
		return s.edit("server "+first+";", "server "+first+"; server "+second+";")
	}
	return s.edit(`{"host": "`+first+`"}`, `{"host": "`+first+`"}, {"host": "`+second+`"}`)
}

// edit replaces pairs of texts in the configuration; each has to be in it.
func (c *candidate) edit(pairs ...string) error {
	for pair := range slices.Chunk(pairs, 2) {
		if !strings.Contains(c.Config, pair[0]) {
			return fmt.Errorf("the configuration of %s has no %q", c.Name, pair[0])
		}
		c.Config = strings.ReplaceAll(c.Config, pair[0], pair[1])
	}
	return nil
}

func replaceWord(words []string, word string, by ...string) []string {
	i := slices.Index(words, word)
	return slices.Concat(words[:i], by, words[i+1:])
}

func (o *options) failurePlan() (rounds int, length time.Duration) {
	if o.thorough() {
		return failureRounds, failureLength
	}
	return 1, max(o.length(), failureShortest)
}

func failureDuration(o *options) time.Duration {
	rounds, length := o.failurePlan()
	const start = 300 * time.Millisecond
	return time.Duration(rounds*(len(strikeNames)*closedPrograms-1)) * (length + start)
}

// strikes makes all failure runs.
func (b *bench) strikes(ctx context.Context) error {
	rounds, length := b.o.failurePlan()
	b.results.Failures = &Failures{Seconds: length.Seconds(),
		Client: strings.Join(watchArguments("bin/bench", b.o.clientCPU, length, "http://ADDRESS"+backendPath+fmt.Sprint(watchBytes)), " ")}
	for round := range rounds {
		for i, strike := range strikeNames {
			if err := b.strikeAll(ctx, round+1, strike, (round+i)%2 == 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// strikeAll makes one run with every program.
func (b *bench) strikeAll(ctx context.Context, round int, strike string, backwards bool) (err error) {
	var backends [2]*server
	var addresses [2]string
	for i := range backends {
		if addresses[i], err = freeAddress(); err != nil {
			return err
		}
		if backends[i], err = b.startBackend(addresses[i]); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, backends[i].stop()) }()
	}
	list, err := b.survivors(addresses)
	if err != nil {
		return err
	}
	if f := b.results.Failures; len(f.Programs) == 0 {
		for i := range list {
			f.Programs = append(f.Programs, list[i].published(b.dir))
		}
	}
	if backwards {
		slices.Reverse(list)
	}
	for i := range list {
		s := &list[i]
		if strike == strikeKill && !s.killed {
			continue
		}
		r := FailureRun{Round: round, Strike: strike, Program: s.Name}
		t := &trial{b: b, strike: strike, program: s, second: &backends[1]}
		if err := t.make(ctx, &r); err != nil {
			return err
		}
		b.results.Failures.Runs = append(b.results.Failures.Runs, r)
		fmt.Fprintf(os.Stderr, "round %d  %-42s %-16s %s\n", round, strike, s.Name, r.progress())
	}
	return nil
}

func (r *FailureRun) progress() string {
	text := fmt.Sprintf("%2d times  %6d requests  %d failed  p99 %.0f us  worst %.0f us", r.Strikes, r.Requests, r.failed(), r.P99, r.Max)
	for _, kind := range slices.Sorted(maps.Keys(r.Failed)) {
		text += fmt.Sprintf("  %s: %d", kind, r.Failed[kind])
	}
	if r.Failure != "" {
		text += "  FAILED: " + r.Failure
	}
	return text
}

// startBackend starts a backend.
func (b *bench) startBackend(address string) (*server, error) {
	return startServer(b.dir, backendCommand, address, pinned(b.o.clientCPU, b.self, backendCommand, address))
}

func watchArguments(self string, cpu int, length time.Duration, url string) []string {
	return pinned(cpu, self, watchCommand, fmt.Sprintf("--seconds=%g", length.Seconds()), url)
}

// trial is a program in a failure run, with its surroundings.
type trial struct {
	b       *bench
	strike  string
	program *survivor
	running *server
	second  **server // the backend that is restarted
}

// make starts the program, has the client ask, and lets things go wrong in the
// middle of each second.
func (t *trial) make(ctx context.Context, r *FailureRun) (err error) {
	if t.running, err = t.program.start(t.b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.running.stop()) }()
	load := plain("", 1, watchBytes)
	_, length := t.b.o.failurePlan()
	if err := t.running.ready(ctx, []Load{load}); err != nil {
		return err
	}
	finish, err := startClient[Watched](ctx, watchArguments(t.b.self, t.b.o.clientCPU, length, load.url(t.running.address, "")))
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	var watched Watched
	var watchErr error
	go func() {
		watched, watchErr = finish()
		close(ended)
	}()
	// Children are started here, on the main thread.
	err = t.strikeUntil(ended, &r.Strikes)
	<-ended
	if err := errors.Join(err, watchErr); err != nil {
		return err
	}
	r.Watched = watched
	if r.Strikes == 0 && t.strike != strikeNone {
		r.Failure = "nothing went wrong"
	}
	return nil
}

// strikeUntil lets things go wrong until the run has ended, and counts the times
// that it had an effect before the next time.
func (t *trial) strikeUntil(ended <-chan struct{}, effects *int) error {
	before, err := t.state()
	if err != nil {
		return err
	}
	struck := 0
	next := time.NewTimer(strikeEvery / 2)
	defer next.Stop()
	for {
		over := false
		select {
		case <-ended:
			over = true
		case <-next.C:
			next.Reset(strikeEvery)
		}
		now, err := t.state()
		for began := time.Now(); over && err == nil && now == before && *effects < struck && time.Since(began) < followWait; {
			time.Sleep(retryPause)
			now, err = t.state()
		}
		if err != nil {
			return err
		}
		if now != before {
			*effects++
		}
		if over {
			return nil
		}
		before = now
		if err := t.once(); err != nil {
			return err
		}
		struck++
	}
}

// state is different after each time that something went wrong and the program
// has followed.
func (t *trial) state() (string, error) {
	if t.strike == strikeBackend {
		return fmt.Sprint((*t.second).cmd.Process.Pid), nil
	}
	// Ours keep their processes over a reload.
	log, err1 := os.ReadFile(t.running.log)
	pids, err2 := family(t.running.cmd.Process.Pid)
	return fmt.Sprint(pids, strings.Count(string(log), "configuration in force")), errors.Join(err1, err2)
}

// once lets it go wrong.
func (t *trial) once() error {
	master := t.running.cmd.Process.Pid
	switch t.strike {
	case strikeReload:
		return unix.Kill(master, t.program.reload)
	case strikeKill:
		pids, err := family(master)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if pid == master {
				continue
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return err
			}
		}
	case strikeBackend:
		address := (*t.second).address
		if err := (*t.second).stop(); err != nil {
			return err
		}
		started, err := t.b.startBackend(address)
		if err != nil {
			return err
		}
		*t.second = started
	}
	return nil
}

// writeFailures writes the table of the failure runs.
func (r *Results) writeFailures(w *strings.Builder) {
	if r.Failures == nil {
		return
	}
	f := r.Failures
	fmt.Fprintf(w, "\n### When something goes wrong\n\n")
	fmt.Fprintf(w, "%s of %g s. A client of ours asks %d times a second for %d KiB, on %d connections that it keeps and %d times a second on a new\n"+
		"one, and looks at every byte. Latencies count from the moment when a request was due. Repeated are requests on a kept\n"+
		"connection that ended without a byte of a response: the client asks again on a new one, as browsers do, and that is part of\n"+
		"the latency. The sums of requests, and the medians of latencies with the least and the largest.\n\n",
		plural(f.rounds(), "round"), f.Seconds, watchRate(watchKept+watchFresh), watchBytes>>10, watchKept, watchRate(watchFresh))
	fmt.Fprintf(w, "| what | program | times | requests | failed | repeated | p50, us | p99, us | worst, us |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, strike := range strikeNames {
		for _, p := range f.Programs {
			if runs := f.find(strike, p.Name); len(runs) > 0 {
				fmt.Fprintf(w, "| %s | %s %s\n", strike, p.Name, failureCells(runs))
			} else {
				fmt.Fprintf(w, "| %s | %s | - | - | - | - | - | - | - |\n", strike, p.Name)
			}
		}
	}
	fmt.Fprintf(w, "\nA master of haproxy ends itself, and so everything, when a worker was killed. It is left out there.\n")
}

// watchRate is the number of requests a second on n connections.
func watchRate(n int) int { return n * int(time.Second/watchPause) }

func (f *Failures) rounds() int {
	n := 0
	for i := range f.Runs {
		n = max(n, f.Runs[i].Round)
	}
	return n
}

// find returns the good runs of a program.
func (f *Failures) find(strike, program string) []*FailureRun {
	var found []*FailureRun
	for i := range f.Runs {
		if r := &f.Runs[i]; r.Strike == strike && r.Program == program && r.Failure == "" {
			found = append(found, r)
		}
	}
	return found
}

// ratios are those of the p99 of one program to another's, by round.
func (f *Failures) ratios(strike, program, to string) (list []float64) {
	for _, run := range f.find(strike, program) {
		for _, other := range f.find(strike, to) {
			if other.Round == run.Round && other.P99 > 0 {
				list = append(list, run.P99/other.P99)
			}
		}
	}
	return list
}

// failedRequests counts those of all runs.
func failedRequests(runs []*FailureRun) (n int64) {
	for _, run := range runs {
		n += run.failed()
	}
	return n
}

// failureRunFailures tells which runs went wrong. That requests failed is what
// they are for.
func (r *Results) failureRunFailures() error {
	if r.Failures == nil {
		return nil
	}
	var list []error
	for i := range r.Failures.Runs {
		if run := &r.Failures.Runs[i]; run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s, %s: %s", run.Round, run.Strike, run.Program, run.Failure))
		}
	}
	return errors.Join(list...)
}

// failureCells are the columns of a program's runs.
func failureCells(runs []*FailureRun) string {
	times, failed := 0, map[string]int64{}
	var all Watched
	for _, r := range runs {
		times += r.Strikes
		all.Requests += r.Requests
		all.Repeated += r.Repeated
		for kind, n := range r.Failed {
			failed[kind] += n
		}
	}
	all.Failed = failed
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(failed)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, failed[kind]))
	}
	text := fmt.Sprint(all.failed())
	if len(kinds) > 0 {
		text += " (" + strings.Join(kinds, ", ") + ")"
	}
	of := func(f func(*FailureRun) float64) string {
		var values []float64
		for _, r := range runs {
			values = append(values, f(r))
		}
		return whole(spreadOf(values))
	}
	return fmt.Sprintf("| %d | %d | %s | %d | %s | %s | %s |", times, all.Requests, text, all.Repeated,
		of(func(r *FailureRun) float64 { return r.P50 }), of(func(r *FailureRun) float64 { return r.P99 }),
		of(func(r *FailureRun) float64 { return r.Max }))
}
