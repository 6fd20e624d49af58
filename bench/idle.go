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

	"golang.org/x/sys/unix"
)

// partIdle measures the memory of connections that rest.
const partIdle = "idle"

// Connections of a full run that rest at a time, without and with TLS.
const (
	idlePlain  = 10_000
	idleSecure = 5_000
	// idleRehearsal is how many a short run has.
	idleRehearsal = 300
	// idleSpare is what a program needs of its descriptors besides those for
	// clients and as many for backends.
	idleSpare = 200
	idleBytes = 100 // of each response's body
)

// idleRest is how long connections rest before memory is looked at.
func (o *options) idleRest() time.Duration {
	if o.thorough() {
		return time.Second
	}
	return o.length() / 4
}

// idleRounds of a full run: memory hardly differs from one to the next.
const idleRounds = 1

// Idle is what connections that rest cost.
type Idle struct {
	Files    uint64    `json:"descriptors_max"` // of each process
	Programs []Program `json:"programs"`
	Runs     []IdleRun `json:"runs"` // in the order in which they were made
}

// IdleRun is one program with connections that rest.
type IdleRun struct {
	Round       int    `json:"round"` // from 1
	Program     string `json:"program"`
	TLS         bool   `json:"tls"`
	Connections int    `json:"connections"`
	Before      Memory `json:"before"` // without connections, after one request
	Held        Memory `json:"held"`   // all of them open, no request made on any
	Asked       Memory `json:"asked"`  // after one request on each
	Failure     string `json:"failure,omitempty"`
}

// Memory is that of all processes of a program, without the kernel's. Pages that
// several share count in each one's RSS, and once in the sum of PSS.
type Memory struct {
	RSS int64 `json:"rss_kib"`
	PSS int64 `json:"pss_kib"`
}

// memoryOf reads the memory of root and its descendants.
func memoryOf(root int) (Memory, error) {
	var m Memory
	pids, err := family(root)
	if err != nil {
		return m, err
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return m, err
		}
		one, err := parseMemory(string(text))
		if err != nil {
			return m, fmt.Errorf("process %d: %w", pid, err)
		}
		m.RSS += one.RSS
		m.PSS += one.PSS
	}
	return m, nil
}

// parseMemory reads /proc/PID/smaps_rollup, proc_pid_smaps(5).
func parseMemory(text string) (Memory, error) {
	var m Memory
	found := 0
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		var into *int64
		switch f[0] {
		case "Rss:":
			into = &m.RSS
		case "Pss:":
			into = &m.PSS
		default:
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return m, fmt.Errorf("smaps_rollup: %w", err)
		}
		*into = n
		found++
	}
	if found != 2 {
		return m, fmt.Errorf("smaps_rollup without Rss and Pss: %q", text)
	}
	return m, nil
}

// idleCounts are the numbers of connections without and with TLS. Each may need
// one to a backend besides.
func (o *options) idleCounts(files uint64) (plain, secure int) {
	plain, secure = idlePlain, idleSecure
	if !o.thorough() {
		plain, secure = idleRehearsal, idleRehearsal
	}
	most := max(1, (int(min(files, 1<<20))-idleSpare)/2)
	return min(plain, most), min(secure, most)
}

func (o *options) idleRoundsOf() int {
	if o.thorough() {
		return idleRounds
	}
	return 1
}

func idleDuration(o *options) time.Duration {
	plain, secure := o.idleCounts(1 << 20)
	const connect, handshake = 150 * time.Microsecond, 1800 * time.Microsecond
	one := func(n int, each time.Duration) time.Duration {
		return 300*time.Millisecond + 2*o.idleRest() + time.Duration(n)*each
	}
	all := closedPrograms*one(plain, connect) + (closedPrograms+1)*one(secure, handshake)
	return time.Duration(o.idleRoundsOf()) * all
}

// holders are all programs that work here, with room for the connections, and
// the one that only speaks TLS.
func (b *bench) holders(dir, backend string) ([]candidate, error) {
	list, err := candidates(b.o, &b.results.Build, dir, backend)
	if err != nil {
		return nil, err
	}
	files := fmt.Sprint(b.results.Idle.Files)
	most, _ := b.o.idleCounts(b.results.Idle.Files)
	room := fmt.Sprint(most + idleSpare/4)
	for i := range list {
		c := &list[i]
		switch c.Name {
		case reference:
			err = c.edit("worker_rlimit_nofile 8192;", "worker_rlimit_nofile "+files+";",
				"worker_connections 4096;", "worker_connections "+files+";")
		case nameHAProxy:
			// A fourth as many pipes as connections, by default, are too many descriptors.
			err = c.edit("maxconn 4096", "maxconn "+room+"\n    maxpipes 16")
		}
		if err != nil {
			return nil, err
		}
	}
	bare, err := newCandidate(b.o, nameBare, filepath.Join(dir, bareCommand), backend,
		func(*site) string { return "" }, func(string) []string { return []string{b.self, bareCommand} })
	bare.Command = append(bare.Command, bare.secure, dir)
	return append(list, bare), err
}

// idle makes all runs with connections that rest.
func (b *bench) idle(ctx context.Context) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	b.results.Idle = &Idle{Files: limit.Max}
	plainCount, secureCount := b.o.idleCounts(limit.Max)
	for round := range b.o.idleRoundsOf() {
		for _, secure := range []bool{false, true} {
			count := plainCount
			if secure {
				count = secureCount
			}
			if err := b.idleAll(ctx, IdleRun{Round: round + 1, TLS: secure, Connections: count}); err != nil {
				return err
			}
		}
	}
	return nil
}

// idleAll makes a run with every program, which has just been started.
func (b *bench) idleAll(ctx context.Context, r IdleRun) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	list, err := b.holders(b.dir, address)
	if err != nil {
		return err
	}
	back, err := startServer(b.dir, backendCommand, address, pinned(b.o.clientCPU, b.self, backendCommand, address))
	if err != nil {
		return err
	}
	keep := len(b.results.Idle.Programs) == 0
	for i := range list {
		c := &list[i]
		if keep {
			b.results.Idle.Programs = append(b.results.Idle.Programs, c.published(b.dir))
		}
		if c.Name == nameBare && !r.TLS {
			continue
		}
		run := r
		run.Program = c.Name
		if err = b.idleOne(ctx, c, &run); err != nil {
			break
		}
		b.results.Idle.Runs = append(b.results.Idle.Runs, run)
		fmt.Fprintf(os.Stderr, "round %d  %5d connections, TLS: %-5v  %-16s %s\n", run.Round, run.Connections, run.TLS, c.Name, run.progress())
	}
	return errors.Join(err, back.stop())
}

func (r *IdleRun) progress() string {
	if r.Failure != "" {
		return "FAILED: " + r.Failure
	}
	return fmt.Sprintf("%5.2f KiB each, %5.2f after a request", r.each(r.Held.RSS, r.Before.RSS), r.each(r.Asked.RSS, r.Before.RSS))
}

// each is the memory of one connection in KiB, where there is now and before.
func (r *IdleRun) each(now, before int64) float64 {
	return float64(now-before) / float64(r.Connections)
}

// idleOne starts a program and looks at its memory three times.
func (b *bench) idleOne(ctx context.Context, c *candidate, r *IdleRun) (err error) {
	s, err := c.start(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	load := plain("", 1, idleBytes)
	load.TLS = r.TLS
	if err := s.ready(ctx, []Load{load}); err != nil {
		return err
	}
	pid := s.cmd.Process.Pid
	if r.Before, err = b.rested(ctx, pid); err != nil {
		return err
	}
	h, err := startHold(ctx, pinned(b.o.clientCPU, b.self, holdCommand, fmt.Sprintf("--connections=%d", r.Connections), load.url(s.address, s.secure)))
	if err != nil {
		return err
	}
	for _, into := range []*Memory{&r.Held, &r.Asked} {
		if err = h.next(); err != nil {
			r.Failure = err.Error()
			break
		}
		if *into, err = b.rested(ctx, pid); err != nil {
			break
		}
	}
	if r.Failure != "" && ctx.Err() == nil {
		err = nil
	}
	return errors.Join(err, h.stop())
}

// rested is the memory after a while without requests.
func (b *bench) rested(ctx context.Context, pid int) (Memory, error) {
	select {
	case <-ctx.Done():
		return Memory{}, context.Cause(ctx)
	case <-time.After(b.o.idleRest()):
	}
	return memoryOf(pid)
}

// writeIdle writes the table of connections that rest.
func (r *Results) writeIdle(w *strings.Builder) {
	if r.Idle == nil {
		return
	}
	fmt.Fprintf(w, "\n### Connections that rest\n\n")
	fmt.Fprintf(w, "Memory of all processes of a program (RSS), in KiB for each connection: open before any request, and after one request on\n"+
		"each, 100 at a time; less what the program had after its start and one request, which is the column \"before\". The kernel's\n"+
		"memory for a socket is not in it, and is the same for all. A process may have %d descriptors here, half of them for\n"+
		"backends. %s is a program that does nothing but hold connections of Go's crypto/tls, which Cloud Cup uses: what it\n"+
		"takes is not Cloud Cup's own.\n\n", r.Idle.Files, nameBare)
	fmt.Fprintf(w, "| connections | program | before, MiB | KiB each | KiB each after a request | PSS, KiB each | PSS, KiB each after a request |\n|---|---|---|---|---|---|---|\n")
	for _, secure := range []bool{false, true} {
		for _, p := range r.Idle.Programs {
			runs := r.Idle.find(p.Name, secure)
			if len(runs) == 0 {
				continue
			}
			kind := fmt.Sprintf("%d", runs[0].Connections)
			if secure {
				kind += " with TLS"
			}
			of := func(f func(*IdleRun) float64) string { return micros(idleSpread(runs, f)) }
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", kind, p.Name,
				of(idleBefore), of(idleHeld), of(idleAsked),
				of(func(r *IdleRun) float64 { return r.each(r.Held.PSS, r.Before.PSS) }),
				of(func(r *IdleRun) float64 { return r.each(r.Asked.PSS, r.Before.PSS) }))
		}
	}
}

func idleBefore(r *IdleRun) float64 { return float64(r.Before.RSS) / 1024 }
func idleHeld(r *IdleRun) float64   { return r.each(r.Held.RSS, r.Before.RSS) }
func idleAsked(r *IdleRun) float64  { return r.each(r.Asked.RSS, r.Before.RSS) }

func idleSpread(runs []*IdleRun, f func(*IdleRun) float64) spread {
	var values []float64
	for _, r := range runs {
		values = append(values, f(r))
	}
	return spreadOf(values)
}

// ratios are those of one program's figure to another's, by round.
func (i *Idle) ratios(program, to string, secure bool, f func(*IdleRun) float64) (list []float64) {
	for _, run := range i.find(program, secure) {
		for _, other := range i.find(to, secure) {
			if other.Round == run.Round && f(other) > 0 {
				list = append(list, f(run)/f(other))
			}
		}
	}
	return list
}

// find returns the good runs of a program.
func (i *Idle) find(program string, secure bool) []*IdleRun {
	var found []*IdleRun
	for k := range i.Runs {
		if r := &i.Runs[k]; r.Program == program && r.TLS == secure && r.Failure == "" {
			found = append(found, r)
		}
	}
	return found
}

// idleFailures tells which runs went wrong.
func (r *Results) idleFailures() error {
	if r.Idle == nil {
		return nil
	}
	var list []error
	for i := range r.Idle.Runs {
		if run := &r.Idle.Runs[i]; run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %d connections, TLS: %v, %s: %s", run.Round, run.Connections, run.TLS, run.Program, run.Failure))
		}
	}
	return errors.Join(list...)
}
