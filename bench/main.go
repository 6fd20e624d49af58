package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Exit codes other than 0.
const (
	exitFailed = 1
	exitUsage  = 2
)

// A full run has at least these. Shorter ones (ROUNDS= and SECONDS=) show that
// the suite works, and never replace the tables.
const (
	roundsFull  = 7
	secondsFull = 2
)

// options are the command line.
type options struct {
	rounds    int
	seconds   int
	proxyCPU  int
	clientCPU int
	cup       string
	load      string
	results   string
	markdown  string

	// Of bench compare.
	engines  []string
	old, new string // files or revisions
	out      string
}

// addRunFlags adds what every kind of run knows.
func (o *options) addRunFlags(fs *pflag.FlagSet, roundsDefault int) error {
	rounds, err1 := fromEnvironment("ROUNDS", roundsDefault)
	seconds, err2 := fromEnvironment("SECONDS", secondsFull)
	fs.IntVar(&o.rounds, "rounds", rounds, "rounds; the default is $ROUNDS, if set")
	fs.IntVar(&o.seconds, "seconds", seconds, "length of one run; the default is $SECONDS, if set")
	fs.IntVar(&o.proxyCPU, "proxy-cpu", 0, "CPU of the program under test")
	fs.IntVar(&o.clientCPU, "client-cpu", 1, "CPU of wrk and of the backend")
	return errors.Join(err1, err2)
}

// full reports whether the run is complete enough to be published.
func (o *options) full() bool {
	return o.rounds >= roundsFull && o.seconds >= secondsFull && o.load == ""
}

// command is how the same run is started again.
func (o *options) command() string {
	text := fmt.Sprintf("bin/bench --rounds=%d --seconds=%d", o.rounds, o.seconds)
	if o.load != "" {
		text += fmt.Sprintf(" --load=%q", o.load)
	}
	return text
}

// Children ask to be told of their parent's death, which the kernel takes for
// the death of the thread that started them: all are started from the main
// thread.
func init() { runtime.LockOSThread() }

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == backendCommand {
		os.Exit(report(serveBackend(args[1:])))
	}
	if len(args) > 0 && args[0] == handshakesCommand {
		os.Exit(report(serveHandshakes(args[1:])))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends at once
	if len(args) > 0 && args[0] == compareCommand {
		os.Exit(runCompare(ctx, args[1:]))
	}
	os.Exit(run(ctx, args))
}

func run(ctx context.Context, args []string) int {
	var o options
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are printed below
	fs.SortFlags = false
	err := o.addRunFlags(fs, roundsFull)
	fs.StringVar(&o.cup, "cloud-cup", "bin/cloud-cup", "the cloud-cup to measure")
	fs.StringVar(&o.load, "load", "", "run only loads with this in their name; not a full run")
	fs.StringVar(&o.results, "results", "bench/results", "folder of raw results; those of short runs go to tmp/ in it")
	fs.StringVar(&o.markdown, "markdown", "BENCHMARKS.md", "file whose tables a full run replaces")
	err = errors.Join(err, fs.Parse(args))
	if err == nil {
		err = o.check(fs.Args())
	}
	if err != nil {
		return usage("bench [flags] [table [FILE]]\n       bench compare [flags] OLD NEW", fs, err)
	}
	if fs.Arg(0) == "table" {
		return report(rewriteTables(&o, fs.Arg(1)))
	}
	return report(measure(ctx, &o))
}

// usage tells how a command is called: as an answer to --help, or after err.
func usage(text string, fs *pflag.FlagSet, err error) int {
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Printf("usage: %s\n\n%s", text, fs.FlagUsages())
		return 0
	}
	fmt.Fprintf(os.Stderr, "bench: %v\n\nusage: %s\n\n%s", err, text, fs.FlagUsages())
	return exitUsage
}

func report(err error) int {
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return exitFailed
	}
	return 0
}

// fromEnvironment is how make passes ROUNDS= and SECONDS= on.
func fromEnvironment(name string, otherwise int) (int, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s=%s is not a number", name, text)
	}
	return n, nil
}

func (o *options) check(args []string) error {
	switch {
	case len(args) > 0 && args[0] != "table" || len(args) > 2:
		return fmt.Errorf("unexpected arguments %q", args)
	case len(selected(o.load)) == 0:
		return fmt.Errorf("no load has %q in its name", o.load)
	}
	return o.checkRun()
}

// checkRun checks what every kind of run knows.
func (o *options) checkRun() error {
	switch {
	case o.rounds < 1 || o.seconds < 1:
		return fmt.Errorf("%d rounds of %d seconds: want at least one of each", o.rounds, o.seconds)
	case o.proxyCPU == o.clientCPU:
		return fmt.Errorf("proxy and client both on CPU %d: want two", o.proxyCPU)
	}
	return nil
}
