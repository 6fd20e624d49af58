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

// A part is a section of the suite: it makes runs, keeps what it saw in a field
// of Results that is its own, and writes its own tables from that field. Each
// has its files; the list below is all that knows of all of them.
type part struct {
	name string // of --part
	// duration is about how long it takes.
	duration func(o *options) time.Duration
	// run makes the runs. What failed in them is kept in the results and is no
	// error: an error means that there is nothing to keep.
	run func(b *bench, ctx context.Context) error
	// write adds the tables, and nothing if the results do not have the part.
	write func(r *Results, w *strings.Builder)
	// failures tells what failed in the runs, so that bench can.
	failures func(r *Results) error
}

// partClosed is the part that --load narrows.
const partClosed = "closed"

// parts are all parts, in the order in which they run and are written.
var parts = []part{
	{partClosed, closedDuration, (*bench).closedLoop, (*Results).writeClosed, (*Results).closedFailures},
	{partOpen, openDuration, (*bench).openLoop, (*Results).writeOpen, (*Results).openFailures},
	{partFailures, failureDuration, (*bench).strikes, (*Results).writeFailures, (*Results).failureRunFailures},
	{partCost, costDuration, (*bench).cost, (*Results).writeCosts, (*Results).costFailures},
	{partIdle, idleDuration, (*bench).idle, (*Results).writeIdle, (*Results).idleFailures},
	{partScaling, scalingDuration, (*bench).scaling, (*Results).writeScaling, (*Results).scalingFailures},
	{partBackend, backendDuration, (*bench).backendCost, (*Results).writeBackendCost, (*Results).backendFailures},
	{partProfile, profileDuration, (*bench).profile, (*Results).writeProfiles, (*Results).profileFailures},
}

func partNames() []string {
	var names []string
	for i := range parts {
		names = append(names, parts[i].name)
	}
	return names
}

// chosenParts are the parts that the command line asks for.
func (o *options) chosenParts() []part {
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool {
		switch {
		case len(o.parts) > 0:
			return !slices.Contains(o.parts, p.name)
		case o.load != "":
			return p.name != partClosed
		}
		return false
	})
}

// runParts makes all runs. The programs of a part run during that part only.
func (b *bench) runParts(ctx context.Context) error {
	chosen := b.o.chosenParts()
	var all time.Duration
	for i := range chosen {
		all += chosen[i].duration(b.o)
	}
	fmt.Fprintf(os.Stderr, "about %v in all\n", all.Round(time.Second))
	for i := range chosen {
		p := &chosen[i]
		fmt.Fprintf(os.Stderr, "part %d/%d, %s: about %v\n", i+1, len(chosen), p.name, p.duration(b.o).Round(time.Second))
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.results.Ended = time.Now().UTC().Truncate(time.Second)
	return nil
}

// failures tells which runs of all parts went wrong.
func (r *Results) failures() error {
	var list []error
	for i := range parts {
		list = append(list, parts[i].failures(r))
	}
	return errors.Join(list...)
}
