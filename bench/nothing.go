package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// partBackend compares the backend with the least that nginx can do, an answer
// of as many bytes that stands in its configuration: the backend has to be light,
// because what it costs is missing to the client beside it.
const partBackend = "backend"

// nameNothing is the nginx of this part.
const nameNothing = "nginx return 200"

var backendLoads = []Load{plain("100 B, 64 connections", 64, 100), plain("100 B, 256 connections", 256, 100)}

// BackendCost is what the part saw.
type BackendCost struct {
	Programs []Program `json:"programs"`
	Runs     []Run     `json:"runs"`
}

func backendDuration(o *options) time.Duration {
	return time.Duration(2*len(backendLoads)*o.rounds) * (o.length() + overhead)
}

func (b *bench) backendCost(ctx context.Context) error {
	l, err := b.lineUp(ctx, backendLoads, b.nothings)
	if err != nil {
		return err
	}
	runs, err := b.rounds(ctx, backendLoads, func(*Load) *lineup { return l })
	b.results.BackendCost = &BackendCost{l.programs, runs}
	return errors.Join(err, l.stop())
}

// nothings are the two programs, on the CPU of programs under test.
func (b *bench) nothings(dir, _ string) ([]candidate, error) {
	address, err1 := freeAddress()
	nginx, err2 := newCandidate(b.o, nameNothing, filepath.Join(dir, "nothing.conf"), "", nothingConfig, nginxCommand)
	ours := candidate{
		Program: Program{Name: backendCommand, Ours: true, Command: pinned(b.o.proxyCPU, b.self, backendCommand, address)},
		site:    site{address: address},
	}
	return []candidate{ours, nginx}, errors.Join(err1, err2)
}

func nothingConfig(s *site) string {
	return s.in(fmt.Sprintf(`daemon off;
worker_processes 1;
pid DIR/nothing.pid;
error_log stderr warn;
events {
    use epoll;
    worker_connections 4096;
}
http {
    access_log off;
    default_type text/plain;
    keepalive_requests 1000000000;
    server {
        listen ADDRESS backlog=4096;
        location / {
            return 200 %q;
        }
    }
}
`, backendBody(100)))
}

// writeBackendCost writes the part's table.
func (r *Results) writeBackendCost(w *strings.Builder) {
	if r.BackendCost == nil {
		return
	}
	of := &Results{Runs: r.BackendCost.Runs}
	fmt.Fprintf(w, "\n### The backend\n\nCPU time per request of the backend, and of an nginx that answers by `return 200`, without a proxy.\n\n"+
		"| load | backend, us | nginx, us | ratio |\n|---|---|---|---|\n")
	for i := range backendLoads {
		load, f := backendLoads[i].Name, cpuPerRequest.of
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", load, micros(of.figures(load, backendCommand, f)), micros(of.figures(load, nameNothing, f)),
			ratioText(of.ratio(load, backendCommand, nameNothing, f)))
	}
}

func (r *Results) backendFailures() error {
	if r.BackendCost == nil {
		return nil
	}
	return (&Results{Runs: r.BackendCost.Runs}).closedFailures()
}
