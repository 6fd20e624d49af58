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

// A lineup is the backend and the programs under test in front of it, all of
// them running. A part makes one with bench.lineUp, asks its programs one after
// the other, and ends it with stop.
type lineup struct {
	o        *options
	self     string    // this program's file
	dir      string    // temporary: configurations, logs, the certificate, wrk's script
	backend  *server   // of all programs
	command  []string  // the backend's
	servers  []*server // the programs, with their addresses
	programs []Program // what they are, as the results show them; by the index of servers
}

// A chooser makes the programs of a lineup. Their files will stand in dir, and
// their backend listens at backend.
type chooser func(dir, backend string) ([]candidate, error)

// everyone chooses all proxies of the suite that work here.
func (b *bench) everyone(dir, backend string) ([]candidate, error) {
	return candidates(b.o, &b.results.Build, dir, backend)
}

// everything chooses the floors too.
func (b *bench) everything(dir, backend string) ([]candidate, error) {
	list, err1 := b.everyone(dir, backend)
	floors, err2 := floors(b.o, &b.results.Build, b.self, backend)
	return append(list, floors...), errors.Join(err1, err2)
}

// lineUp starts the backend and the programs that are chosen, and waits until
// all answer the loads that they can serve. All loads reach the backend in the
// same way: by TCP, or by its unix socket. After an error nothing is left
// running.
func (b *bench) lineUp(ctx context.Context, loads []Load, choose chooser) (*lineup, error) {
	l := &lineup{o: b.o, self: b.self}
	var err error
	if l.dir, err = os.MkdirTemp(b.dir, ""); err != nil {
		return nil, err
	}
	// The workers of nginx are nobody, and reach the backend's socket in it.
	err = errors.Join(os.Chmod(b.dir, 0o711), os.Chmod(l.dir, 0o711),
		writeCertificate(l.dir), os.WriteFile(filepath.Join(l.dir, scriptFile), script, 0o644))
	if err != nil {
		return nil, err
	}
	if err := l.start(ctx, loads, choose); err != nil {
		return nil, errors.Join(err, l.stop())
	}
	return l, nil
}

func (l *lineup) start(ctx context.Context, loads []Load, choose chooser) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	socket := filepath.Join(l.dir, "backend.sock")
	l.command = pinned(l.o.clientCPU, l.self, backendCommand, address, socket)
	if l.backend, err = startServer(l.dir, backendCommand, address, l.command); err != nil {
		return err
	}
	if err := l.backend.ready(ctx, loads); err != nil {
		return err
	}
	if len(loads) > 0 && loads[0].Unix {
		address = unixPrefix + socket
	}
	chosen, err := choose(l.dir, address)
	if err != nil {
		return err
	}
	for i := range chosen {
		c := &chosen[i]
		fmt.Fprintf(os.Stderr, "starting %s at %s\n", c.Name, c.address)
		s, err := c.start(l.dir)
		if err != nil {
			return err
		}
		l.servers = append(l.servers, s)
		l.programs = append(l.programs, c.published(l.dir))
		asked := slices.DeleteFunc(slices.Clone(loads), func(load Load) bool { return !c.serves(&load) })
		if err := s.ready(ctx, asked); err != nil {
			return err
		}
	}
	return nil
}

// stop ends what was started, last first.
func (l *lineup) stop() error {
	var err error
	for _, s := range slices.Backward(l.servers) {
		err = errors.Join(err, s.stop())
	}
	if l.backend != nil {
		err = errors.Join(err, l.backend.stop())
	}
	return err
}

// backendCommandText is the backend's command as the results show it.
func (l *lineup) backendCommandText() string {
	return strings.NewReplacer(l.self, "bin/bench", l.dir, "DIR").Replace(strings.Join(l.command, " "))
}

// sample reads the clocks of program i: those of all its processes, and the
// CPUs'. The difference of two is what lay between them cost.
func (l *lineup) sample(i int) (sample, error) {
	return takeSample(l.servers[i].cmd.Process.Pid, l.o.proxyCPU, l.o.clientCPU)
}

// run puts program i under a load for a time. What went wrong stands in the Run.
func (l *lineup) run(ctx context.Context, load *Load, i int, length time.Duration) Run {
	r := Run{Load: load.Name, Program: l.programs[i].Name}
	before, err1 := l.sample(i)
	w, beside, err2 := l.ask(ctx, load, i, length)
	after, err3 := l.sample(i)
	r.Wrk, r.Beside, r.CPU = w, beside, after.since(&before)
	if err := errors.Join(err1, err2, err3); err != nil {
		r.Failure = err.Error()
	} else if !slices.Equal(before.pids, after.pids) {
		r.Failure = fmt.Sprintf("processes %v became %v", before.pids, after.pids)
	}
	return r
}

// ask runs the clients of a load. beside is the number of handshakes that were
// made beside it.
func (l *lineup) ask(ctx context.Context, load *Load, i int, length time.Duration) (w Wrk, beside int64, err error) {
	url := load.url(l.servers[i].address, l.servers[i].secure)
	command := clientCommand(l.self, l.dir, l.o.clientCPU, load, length, url)
	if load.Beside == 0 {
		w, err = runClient(ctx, load, command, length)
		return w, 0, err
	}
	finish, err := startClient[Wrk](ctx, besideCommand(l.self, l.o.clientCPU, load, length, url))
	if err != nil {
		return w, 0, err
	}
	w, err = runClient(ctx, load, command, length)
	others, othersErr := finish()
	w.ReadErrors += others.ReadErrors
	return w, others.Requests, errors.Join(err, othersErr)
}
