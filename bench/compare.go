package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
)

// compareCommand compares two builds of Cloud Cup.
const compareCommand = "compare"

const compareRounds = 9

// compareLoads are the loads of a comparison that names none.
var compareLoads = []string{"100 B, 64 connections", "100 B, 256 connections", "16 KiB, 64 connections"}

func runCompare(ctx context.Context, args []string) int {
	var o options
	fs := pflag.NewFlagSet("bench compare", pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are printed below
	fs.SortFlags = false
	err := o.addRunFlags(fs, compareRounds)
	fs.StringSliceVar(&o.engines, "engine", nil, "engines; without, those of uring and epoll that work here in both builds")
	fs.StringVar(&o.load, "load", "", "loads with this in their name; without, "+strings.Join(compareLoads, "; "))
	fs.StringVar(&o.out, "out", "", "file for the raw results")
	err = errors.Join(err, fs.Parse(args))
	if err == nil {
		err = o.checkCompare(fs.Args())
	}
	if err != nil {
		return usage("bench compare [flags] OLD NEW\n       (each a cloud-cup, or a git revision that is built first)", fs, err)
	}
	return report(compare(ctx, &o))
}

func (o *options) checkCompare(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments: want OLD and NEW", len(args))
	}
	o.old, o.new = args[0], args[1]
	for i, engine := range o.engines {
		if engine != "uring" && engine != "epoll" || slices.Contains(o.engines[:i], engine) {
			return fmt.Errorf("--engine=%s: want uring, epoll or both", strings.Join(o.engines, ","))
		}
	}
	if len(o.compareLoads()) == 0 {
		return fmt.Errorf("no load has %q in its name", o.load)
	}
	return o.checkRun()
}

func (o *options) compareLoads() []Load {
	if o.load != "" {
		return selected(o.load)
	}
	return slices.DeleteFunc(selected(""), func(l Load) bool { return !slices.Contains(compareLoads, l.Name) })
}

// compareLine is how the same comparison is made again.
func (o *options) compareLine() string {
	text := fmt.Sprintf("bin/bench compare --rounds=%d --seconds=%g", o.rounds, o.seconds)
	if len(o.engines) > 0 {
		text += " --engine=" + strings.Join(o.engines, ",")
	}
	if o.load != "" {
		text += fmt.Sprintf(" --load=%q", o.load)
	}
	return text + " " + o.old + " " + o.new
}

// compare runs both builds and prints how they compare.
func compare(ctx context.Context, o *options) error {
	if err := checkCPUs(o); err != nil {
		return err
	}
	if err := install(compareTools); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cup-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var files [2]string
	var builds [2]Build
	for i, name := range []string{"old", "new"} {
		if files[i], err = program(ctx, []string{o.old, o.new}[i], filepath.Join(dir, name)); err != nil {
			return err
		}
		if builds[i], err = thisBuild(files[i]); err != nil {
			return err
		}
	}
	engines, err := commonEngines(o.engines, &builds[0], &builds[1])
	if err != nil {
		return err
	}
	b, err := newBench(o, dir, o.compareLine())
	if err != nil {
		return err
	}
	b.results.Old, b.results.Build = &builds[0], builds[1]
	b.results.Versions = map[string]string{"wrk": wrkVersion()}
	if b.results.Machine, err = thisMachine(o); err != nil {
		return err
	}
	err = b.closed(ctx, o.compareLoads(), func(dir, backend string) ([]candidate, error) {
		return pairs(o, files, engines, dir, backend)
	})
	if err != nil {
		return err
	}
	b.results.Ended = time.Now().UTC().Truncate(time.Second)
	if o.out != "" {
		if err := b.results.write(o.out); err != nil {
			return err
		}
	}
	fmt.Print(comparison(b.results, engines))
	return b.results.failures()
}

// program returns the file of a build: name itself, or what is built from the
// revision that it names into the folder dir.
func program(ctx context.Context, name, dir string) (string, error) {
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		return filepath.Abs(name)
	}
	revision, err := output(ctx, "", "git", "rev-parse", "--verify", "--quiet", "--end-of-options", name+"^{commit}")
	if err != nil {
		return "", fmt.Errorf("%s is neither a file nor a revision: %w", name, err)
	}
	top, err := output(ctx, "", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "building %s (%.12s)\n", name, revision)
	// A clone leaves nothing in the repository, however this ends.
	source, file := filepath.Join(dir, "source"), filepath.Join(dir, "cloud-cup")
	for _, command := range [][]string{
		{"git", "clone", "--quiet", "--shared", "--no-checkout", top, source},
		{"git", "-C", source, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", revision},
	} {
		if _, err := output(ctx, "", command...); err != nil {
			return "", err
		}
	}
	// As make build does it.
	_, err = output(ctx, source, "go", "build", "-trimpath", "-ldflags", "-X main.version="+revision, "-o", file, "./cmd/cloud-cup")
	return file, err
}

// output runs a command in a folder and returns what it printed.
func output(ctx context.Context, dir string, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.SysProcAttr = ownGroup()
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// commonEngines are the engines to compare. One that was asked for by name has
// to work in both builds.
func commonEngines(asked []string, old, new *Build) ([]string, error) {
	engines := asked
	if len(asked) == 0 {
		engines = []string{"uring", "epoll"}
	}
	var working []string
	for _, engine := range engines {
		switch {
		case old.works(engine) && new.works(engine):
			working = append(working, engine)
		case len(asked) > 0:
			return nil, fmt.Errorf("%s does not work here in both builds: old %s; new %s", engine, old.CheckIO, new.CheckIO)
		default:
			fmt.Fprintf(os.Stderr, "left out: %s does not work here in both builds\n", engine)
		}
	}
	if len(working) == 0 {
		return nil, errors.New("no engine works here in both builds")
	}
	return working, nil
}

// Names of the programs of a comparison.
func oldName(engine string) string { return "old " + engine }
func newName(engine string) string { return "new " + engine }

// pairs are the programs: old beside new for each engine.
func pairs(o *options, files [2]string, engines []string, dir, backend string) ([]candidate, error) {
	var list []candidate
	for _, engine := range engines {
		for i, name := range []string{oldName(engine), newName(engine)} {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".json")
			c, err := newCandidate(o, name, file, backend, cupConfig, cupCommand(files[i], engine))
			if err != nil {
				return nil, err
			}
			c.Ours = true
			list = append(list, c)
		}
	}
	return list, nil
}

// comparison is what is printed: a line for each engine and load, and one for
// all together.
func comparison(r *Results, engines []string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "old: %s\nnew: %s\n", r.Old.title(), r.Build.title())
	fmt.Fprintf(&text, "%s of %g s. Ratio: CPU time per request, new to old in the same round; its median, and the %.0f %% interval of it.\n\n",
		plural(r.Rounds, "round"), r.Seconds, 100*confidence)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "engine\tload\told, us\tnew, us\tratio\tinterval\told, req/s\tnew, req/s\trounds\n")
	byRound := map[int][]float64{}
	for _, engine := range engines {
		before, now := oldName(engine), newName(engine)
		for _, l := range r.Loads {
			ratios := r.ratios(l.Name, now, before, cpuPerRequest.of)
			var values []float64
			for round, ratio := range ratios {
				byRound[round] = append(byRound[round], ratio)
				values = append(values, ratio)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.0f\t%.0f\t%d\n", engine, l.Name,
				three(r.figures(l.Name, before, cpuPerRequest.of).median), three(r.figures(l.Name, now, cpuPerRequest.of).median),
				intervalText(values), r.figures(l.Name, before, rate.of).median, r.figures(l.Name, now, rate.of).median, len(values))
		}
	}
	var means []float64
	for _, ratios := range byRound {
		if len(ratios) == len(engines)*len(r.Loads) {
			means = append(means, geometricMean(ratios))
		}
	}
	fmt.Fprintf(w, "all\tgeometric mean of a round\t\t\t%s\t\t\t%d\n", intervalText(means), len(means))
	w.Flush() // into memory: no error
	return text.String()
}

// title is a build in a line.
func (b *Build) title() string {
	commit := b.Commit
	if commit == "" {
		commit = "unknown commit"
	}
	if b.Dirty {
		commit += " with changes"
	}
	return fmt.Sprintf("%s, %s, sha256 %.12s", commit, b.Go, b.SHA256)
}

// intervalText is two cells of a table.
func intervalText(values []float64) string {
	if len(values) == 0 {
		return "-\t-"
	}
	s := spreadOf(values)
	return fmt.Sprintf("%.3f\t%.3f-%.3f", s.median, s.low, s.high)
}
