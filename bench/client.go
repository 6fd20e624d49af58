package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// clientOptions are the command line of the clients that are ours: this program
// with handshakesCommand or tunnelsCommand.
type clientOptions struct {
	kind        string // of handshakes
	connections int
	seconds     float64
	target      *url.URL
}

// clientArguments are the arguments for a client of ours.
func clientArguments(name, kind string, connections int, length time.Duration, target string) []string {
	list := []string{name}
	if kind != "" {
		list = append(list, "--kind="+kind)
	}
	return append(list, fmt.Sprintf("--connections=%d", connections), fmt.Sprintf("--seconds=%g", length.Seconds()), target)
}

func (o *clientOptions) parse(name string, args []string) error {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	if o.kind != "" {
		fs.StringVar(&o.kind, "kind", o.kind, "")
	}
	fs.IntVar(&o.connections, "connections", 1, "")
	fs.Float64Var(&o.seconds, "seconds", 1, "")
	err := fs.Parse(args)
	target, urlErr := url.Parse(fs.Arg(0))
	o.target = target
	return errors.Join(err, urlErr)
}

func (o *clientOptions) length() time.Duration {
	return time.Duration(o.seconds * float64(time.Second))
}

// printed hands what a client saw to the process that started it.
func printed(w Wrk, err error) error {
	if err != nil {
		return err
	}
	text, err := json.Marshal(w)
	fmt.Println(string(text))
	return err
}

// summarize fills in what the latencies of all requests tell.
func (w *Wrk) summarize(times []float64, length time.Duration) {
	slices.Sort(times)
	w.Requests = int64(len(times))
	w.Rate = float64(w.Requests) / length.Seconds()
	if len(times) > 0 {
		w.P50, w.P99 = times[len(times)/2], times[len(times)*99/100]
	}
}

// startClient starts a client of ours, which prints a T as JSON. finish waits
// for its end, or for that of ctx. What it says besides is passed on.
func startClient[T any](ctx context.Context, command []string) (finish func() (T, error), err error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.SysProcAttr = ownGroup()
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (result T, err error) {
		err = cmd.Wait()
		if ctx.Err() != nil {
			return result, context.Cause(ctx)
		}
		if err != nil {
			return result, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
		return result, json.Unmarshal(out.Bytes(), &result)
	}, nil
}
