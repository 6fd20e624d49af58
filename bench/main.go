package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

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
	secondsFull = 1
)

// Lengths of a run: of the shortest that can be asked for, wrk looks every
// tenth of a second whether to stop; and the longest of a rehearsal.
const (
	shortest        = 200 * time.Millisecond
	rehearsalLength = 400 * time.Millisecond
)

// options are the command line.
type options struct {
	rounds    int
	seconds   float64 // of one run
	proxyCPU  int
	clientCPU int
	cup       string
	load      string
	parts     []string
	results   string
	markdown  string

	// Of bench compare.
	engines  []string
	old, new string // files or revisions
	out      string
}

// addRunFlags adds what every kind of run knows.
func (o *options) addRunFlags(fs *pflag.FlagSet, roundsDefault int) error {
	rounds, err1 := fromEnvironment("ROUNDS", roundsDefault, strconv.Atoi)
	seconds, err2 := fromEnvironment("SECONDS", secondsFull, parseSeconds)
	fs.IntVar(&o.rounds, "rounds", rounds, "rounds; the default is $ROUNDS, if set")
	fs.Float64Var(&o.seconds, "seconds", seconds, "length of one run; the default is $SECONDS, if set")
	fs.IntVar(&o.proxyCPU, "proxy-cpu", 0, "CPU of the program under test")
	fs.IntVar(&o.clientCPU, "client-cpu", 1, "CPU of wrk and of the backend")
	return errors.Join(err1, err2)
}

// thorough reports whether runs are as many and as long as those of a full run.
func (o *options) thorough() bool { return o.rounds >= roundsFull && o.seconds >= secondsFull }

// full reports whether the run is complete enough to be published.
func (o *options) full() bool {
	return o.thorough() && o.everything()
}

// everything reports whether the whole suite was asked for.
func (o *options) everything() bool { return o.load == "" && len(o.parts) == 0 && o.old == "" }

// rehearsal reports whether the run has nothing to tell but that everything
// works: one round of the whole suite.
func (o *options) rehearsal() bool { return o.rounds == 1 && o.everything() }

// length is that of one run of a program under a load.
func (o *options) length() time.Duration {
	length := time.Duration(o.seconds * float64(time.Second))
	if o.rehearsal() {
		length = min(length, rehearsalLength)
	}
	return length
}

// command is how the same run is started again.
func (o *options) command() string {
	text := fmt.Sprintf("bin/bench --rounds=%d --seconds=%g", o.rounds, o.seconds)
	if o.load != "" {
		text += fmt.Sprintf(" --load=%q", o.load)
	}
	if len(o.parts) > 0 {
		text += " --part=" + strings.Join(o.parts, ",")
	}
	return text
}

// Children ask to be told of their parent's death, which the kernel takes for
// the death of the thread that started them: all are started from the main
// thread.
func init() { runtime.LockOSThread() }

// helpers are what this program does as a child of itself, by first argument.
var helpers = map[string]func(args []string) error{
	backendCommand:    serveBackend,
	floorCommand:      serveFloor,
	handshakesCommand: serveHandshakes,
	tunnelsCommand:    serveTunnels,
	openLoopCommand:   serveOpenLoop,
	watchCommand:      serveWatch,
	holdCommand:       serveHold,
	bareCommand:       serveBare,
}

// help does what a child of this program is for, and exits, if this is one.
func help(args []string) {
	if len(args) > 0 {
		if serve := helpers[args[0]]; serve != nil {
			os.Exit(report(serve(args[1:])))
		}
	}
}

func main() {
	args := os.Args[1:]
	help(args)
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
	fs.StringSliceVar(&o.parts, "part", nil, "run only these parts, of "+strings.Join(partNames(), ", ")+"; not a full run")
	fs.StringVar(&o.load, "load", "", "run only the part "+partClosed+", and loads with this in their name; not a full run")
	fs.StringVar(&o.results, "results", "bench/results", "folder of raw results; those of short runs go to tmp/ in it")
	fs.StringVar(&o.markdown, "markdown", "BENCHMARKS.md", "file whose tables a full run replaces")
	err = errors.Join(err, fs.Parse(args))
	if err == nil {
		err = o.check(fs.Args())
	}
	if err != nil {
		return usage(usageText, fs, err)
	}
	if fs.Arg(0) == "table" {
		return report(rewriteTables(&o, fs.Arg(1)))
	}
	return report(measure(ctx, &o))
}

// usageText is how bench is called.
const usageText = `bench [flags]                  measure, print the tables, and keep the raw results
       bench table [FILE]             write tables and plots again from raw results, by default the newest
       bench compare [flags] OLD NEW  measure two builds of Cloud Cup against each other: compare --help`

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
func fromEnvironment[number int | float64](name string, otherwise number, parse func(string) (number, error)) (number, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := parse(text)
	if err != nil {
		return 0, fmt.Errorf("%s=%s is not a number", name, text)
	}
	return n, nil
}

func parseSeconds(text string) (float64, error) { return strconv.ParseFloat(text, 64) }

func (o *options) check(args []string) error {
	switch {
	case len(args) > 0 && args[0] != "table" || len(args) > 2:
		return fmt.Errorf("unexpected arguments %q", args)
	case len(selected(o.load)) == 0:
		return fmt.Errorf("no load has %q in its name", o.load)
	}
	for _, name := range o.parts {
		if !slices.Contains(partNames(), name) {
			return fmt.Errorf("no part %q: want some of %s", name, strings.Join(partNames(), ", "))
		}
	}
	return o.checkRun()
}

// checkRun checks what every kind of run knows.
func (o *options) checkRun() error {
	switch {
	case o.rounds < 1 || o.length() < shortest:
		return fmt.Errorf("%d rounds of %g seconds: want one round and %v at least", o.rounds, o.seconds, shortest)
	case o.proxyCPU == o.clientCPU:
		return fmt.Errorf("proxy and client both on CPU %d: want two", o.proxyCPU)
	}
	return nil
}
