package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// bench is one call's state.
type bench struct {
	o       *options
	self    string // this program's file
	dir     string // temporary: the certificate, and the lineups' folders
	results *Results
}

// measure runs everything, writes the raw results, and the tables from them.
func measure(ctx context.Context, o *options) error {
	if err := checkCPUs(o); err != nil {
		return err
	}
	if err := install(runTools); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cup-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := newBench(o, dir, o.command())
	if err != nil {
		return err
	}
	if err := b.describe(); err != nil {
		return err
	}
	if err := b.runParts(ctx); err != nil {
		return err
	}
	return b.publish()
}

// newBench is a bench with its results so far: what will be done.
func newBench(o *options, dir, command string) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &bench{o: o, self: self, dir: dir, results: &Results{
		Schema: schema, Started: time.Now().UTC().Truncate(time.Second),
		Command: command, Rounds: o.rounds, Seconds: o.length().Seconds(),
	}}, writeCertificate(dir)
}

func (b *bench) describe() error {
	var err1, err2, err3 error
	b.results.Machine, err1 = thisMachine(b.o)
	b.results.Build, err2 = thisBuild(b.o.cup)
	b.results.Versions, err3 = versions()
	return errors.Join(err1, err2, err3)
}

// resultsDir is where the raw results go. Those of short runs are kept apart.
func (o *options) resultsDir() string {
	if o.full() {
		return o.results
	}
	return filepath.Join(o.results, "tmp")
}

// publish writes the raw results, and the tables if the run was a full one.
// That requests failed is an error, that they were slow is none.
func (b *bench) publish() error {
	path, err := b.results.save(b.o.resultsDir())
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "raw results: %s\n", path)
	if err := b.results.savePlots(path); err != nil {
		return err
	}
	text := tables(b.results, path)
	fmt.Print(text)
	if b.o.full() {
		if err := replaceTables(b.o.markdown, summary(b.results), text); err != nil {
			return err
		}
	}
	return b.results.failures()
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
	if err := r.savePlots(file); err != nil {
		return err
	}
	return replaceTables(o.markdown, summary(r), tables(r, file))
}
