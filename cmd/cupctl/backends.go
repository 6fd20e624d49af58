package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/cobra"
)

// inFlightEvery is how often a backend is looked at that is to get rid of its
// requests.
const inFlightEvery = 100 * time.Millisecond

// weightDefault as a weight is that of the configuration.
const weightDefault = "default"

// onBackend is a command about one backend, whose name a shell can complete, with
// the arguments that words name.
func (c *command) onBackend(verb, short string, words []string, do func(host string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " " + strings.Join(words, " "), Short: short, Args: takes(words...),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.hosts(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error { return do(args[0]) },
	}
}

// hosts are the backends that a shell may offer; none if no master answers.
func (c *command) hosts() []string {
	backends, err := c.client().Backends()
	if err != nil {
		return nil
	}
	var hosts []string
	for _, b := range backends {
		hosts = append(hosts, b.Host)
	}
	return hosts
}

// stateCommand puts a backend into a state that it leaves by enable.
func (c *command) stateCommand(verb, state, short string) *cobra.Command {
	var w waiting
	cmd := c.onBackend(verb, short, []string{"BACKEND"}, func(host string) error {
		changed, err := c.client().SetBackend(host, control.BackendChange{State: state})
		if err == nil && w.wait {
			err = c.awaitIdle(host, w.timeout, &changed.After)
		}
		return show(c, changed, err, c.changedState)
	})
	if state != control.BackendEnabled {
		w.of(cmd, "no request is left on it")
	}
	return cmd
}

// awaitIdle waits until no request is left on a backend, and notes how it is.
func (c *command) awaitIdle(host string, timeout time.Duration, last *control.BackendStatus) error {
	var left uint64
	err := every(inFlightEvery, timeout, func() (bool, error) {
		s, err := c.client().Status()
		if err != nil {
			return false, err
		}
		sure := true
		for i := range s.Workers {
			sure = sure && !s.Workers[i].Stale
		}
		for _, b := range s.Backends {
			if b.Host == host {
				*last, left = b, b.InFlight
				return sure && left == 0, nil
			}
		}
		return false, fmt.Errorf("backend %s is no longer in the configuration", host)
	})
	if errors.Is(err, errOver) {
		return fmt.Errorf("%s still has %d requests in flight after %v", host, left, timeout)
	}
	return err
}

func (c *command) weightCommand() *cobra.Command {
	var change control.BackendChange
	cmd := c.onBackend("weight", "Give a backend another share of the requests, at once, or the configured one", []string{"BACKEND", "NUMBER|" + weightDefault},
		func(host string) error {
			changed, err := c.client().SetBackend(host, change)
			return show(c, changed, err, c.changedWeight)
		})
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, list []string) error {
		if err := args(cmd, list); err != nil {
			return err
		}
		if change.ConfiguredWeight = list[1] == weightDefault; change.ConfiguredWeight {
			return nil
		}
		n, err := strconv.Atoi(list[1])
		if err != nil {
			return fmt.Errorf("weight %q: want a number or %s", list[1], weightDefault)
		}
		change.Weight = &n
		return nil
	}
	return cmd
}

// changedState writes the state that a backend was in, and that it is in.
func (c *command) changedState(b *control.BackendChanged) error {
	return c.changedBackend(b, b.Before.State, b.After.State)
}

// changedWeight writes the weight that a backend had, and that it has.
func (c *command) changedWeight(b *control.BackendChanged) error {
	return c.changedBackend(b, "weight "+weightOf(&b.Before), weightOf(&b.After))
}

func (c *command) changedBackend(b *control.BackendChanged, from, to string) error {
	_, err := fmt.Fprintf(c.out, "%s: %s -> %s, %d in flight\n", b.After.Host, from, to, b.After.InFlight)
	return err
}

// weightOf is a backend's weight for a person.
func weightOf(b *control.BackendStatus) string {
	if b.WeightSet != nil {
		return fmt.Sprintf("%d (set)", *b.WeightSet)
	}
	var list []string
	for _, w := range b.Weights {
		list = append(list, fmt.Sprint(w))
	}
	return strings.Join(list, ", ")
}
