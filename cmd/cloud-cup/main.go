// Command cloud-cup is the reverse proxy: the master process, and, started by
// a master, a worker.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/demo"
	"github.com/cloud-cup/cloud-cup/supervisor"
	"github.com/cloud-cup/cloud-cup/worker"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "development"

const exitUsage = 2

func main() {
	stderr := newErrorOutput(os.Stderr)
	code := 0
	if worker.Asked() {
		code = worker.Run(newLog(stderr))
	} else {
		code = run(os.Args[1:], os.Stdout, stderr)
	}
	stderr.flush()
	os.Exit(code)
}

// flags are the command line.
type flags struct {
	io      string
	workers int
	test    bool
	checkIO bool
	demo    bool
	admin   string
	version bool
	help    bool
}

func newFlagSet(f *flags) *pflag.FlagSet {
	fs := pflag.NewFlagSet("cloud-cup", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&f.io, "io", supervisor.EngineAuto, "engine: auto, uring or epoll")
	fs.IntVar(&f.workers, "workers", 0, "number of worker processes (default: as configured, else one per CPU)")
	fs.BoolVar(&f.test, "test", false, "validate the configuration and exit")
	fs.BoolVar(&f.checkIO, "check-io", false, "tell what this kernel and container allow of the engines, and what to change, and exit")
	fs.BoolVar(&f.demo, "demo", false, "serve a built-in configuration with two built-in backends")
	fs.StringVar(&f.admin, "admin", "", "admin socket: unix:PATH, or off (default: as configured, else "+control.DefaultSocket()+")")
	fs.BoolVar(&f.version, "version", false, "print the version and exit")
	fs.BoolVarP(&f.help, "help", "h", false, "print this help and exit")
	return fs
}

// signalsText tells what signals to the master do.
const signalsText = `
Signals:
  TERM, INT, QUIT  stop: not ready any more, serve for timeouts.drain_delay, then drain until timeouts.drain;
                   a second one stops at once
  HUP              read the configuration file again, as "cupctl reload" does
  USR1             open the access logs anew
  USR2             start the program's file anew and hand over to it, as "cupctl upgrade" does

Exit status: 0 stopped, 1 could not start, 2 wrong usage, 3 the drain's deadline passed, 4 invalid configuration.
`

func usage(w io.Writer, fs *pflag.FlagSet) {
	fmt.Fprintf(w, "usage: cloud-cup [flags] CONFIG.json\n       cloud-cup [flags] --demo\n\n%s%s", fs.FlagUsages(), signalsText)
}

// run is the program; it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	var f flags
	fs := newFlagSet(&f)
	fs.SetOutput(io.Discard) // errors are printed below
	if err := fs.Parse(control.LongFlags(fs, args)); err != nil {
		return wrongUsage(stderr, fs, err)
	}
	switch {
	case f.help:
		usage(stdout, fs)
		return 0
	case f.version:
		fmt.Fprintln(stdout, "cloud-cup", version)
		return 0
	}
	if err := f.check(fs); err != nil {
		return wrongUsage(stderr, fs, err)
	}
	var err error
	switch {
	case f.checkIO:
		return checkIO(stdout)
	case f.test:
		if err = supervisor.Check(fs.Arg(0)); err == nil {
			fmt.Fprintf(stdout, "%s: valid\n", fs.Arg(0))
		}
	case f.demo:
		err = runDemo(&f, stdout, stderr)
	default:
		err = supervisor.Run(options(&f, fs.Arg(0), stderr))
	}
	var invalid config.Errors
	switch {
	case errors.As(err, &invalid): // every line begins with its place
		fmt.Fprintln(stderr, err)
	case err != nil:
		fmt.Fprintf(stderr, "cloud-cup: %v\n", err)
	}
	return supervisor.ExitCode(err)
}

func wrongUsage(w io.Writer, fs *pflag.FlagSet, err error) int {
	fmt.Fprintf(w, "cloud-cup: %v\n\n", err)
	usage(w, fs)
	return exitUsage
}

// check finds what the flag set cannot know.
func (f *flags) check(fs *pflag.FlagSet) error {
	files := 1
	if f.checkIO || f.demo {
		files = 0
	}
	switch {
	case fs.NArg() < files:
		return errors.New("no configuration file")
	case fs.NArg() > files:
		return fmt.Errorf("unexpected argument %q", fs.Arg(files))
	case f.io != supervisor.EngineAuto && !slices.Contains(worker.EngineNames(), f.io):
		return fmt.Errorf("--io %s: want auto, %s", f.io, strings.Join(worker.EngineNames(), " or "))
	case fs.Changed("workers") && (f.workers < 1 || f.workers > 1024):
		return fmt.Errorf("--workers %d: want 1 to 1024", f.workers)
	case f.admin != "" && f.admin != supervisor.AdminOff && (!strings.HasPrefix(f.admin, "unix:") || f.admin == "unix:"):
		return fmt.Errorf("--admin %s: want unix:PATH or off", f.admin)
	}
	return nil
}

func options(f *flags, path string, stderr io.Writer) supervisor.Options {
	return supervisor.Options{
		Path:    path,
		Engine:  f.io,
		Workers: f.workers,
		Admin:   f.admin,
		Version: version,
		Log:     newLog(stderr),
		Probe:   worker.Probe,
		Examine: worker.Examine,
		Reasons: worker.ReasonWords(),
	}
}

// runDemo serves the built-in configuration and prints how to see it.
func runDemo(f *flags, stdout, stderr io.Writer) error {
	d, err := demo.Start()
	if err != nil {
		return err
	}
	o := options(f, "", stderr)
	o.Name, o.Text = demo.Name, d.Text
	o.AdminOptional = f.admin == ""
	o.Ready = func(addresses []string) {
		fmt.Fprintf(stdout, "Try it in another terminal:\n  curl http://%s/game/\n", addresses[0])
	}
	return errors.Join(supervisor.Run(o), d.Close())
}

// checkIO prints what the kernel allows here. It fails if no engine works.
func checkIO(w io.Writer) int {
	report := worker.Examine()
	for _, line := range report.Lines() {
		fmt.Fprintln(w, line)
	}
	for _, e := range report.Engines {
		if e.Answer == control.AnswerYes {
			return 0
		}
	}
	return 1
}
