package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/cobra"
)

// reload has the master read its file again.
func (c *command) reload() error {
	applied, err := c.client().Reload()
	return show(c, applied, err, c.applied("reloaded"))
}

func (c *command) applyCommand() *cobra.Command {
	var file string
	var save, dry bool
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Put a file's content in force; - is the standard input",
		Long: "Put a file's content in force in every worker, in memory: the next reload or restart ends it.\n" +
			"With --save the file that cloud-cup was started with gets the content, too.",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args)+min(len(file), 1) != 1:
				return errors.New("apply: want one file")
			case save && dry:
				return errors.New("--save and --dry-run exclude each other")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			how := control.ApplyInMemory
			switch {
			case save:
				how = control.ApplyAndSave
			case dry:
				how = control.ApplyDryRun
			}
			return c.apply(strings.Join(append(args, file), ""), how)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the file")
	cmd.Flags().BoolVar(&save, "save", false, "also write it into the file that cloud-cup was started with")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only have it checked, and tell what would change")
	return cmd
}

func (c *command) apply(path string, how control.Way) error {
	text, err := readFile(path)
	if err != nil {
		return err
	}
	applied, err := c.client().Apply(path, text, how)
	what := "applied in memory"
	if how == control.ApplyAndSave {
		what = "applied and saved"
	}
	return show(c, applied, err, c.applied(what))
}

// readFile reads the file at path, or the standard input for "-".
func readFile(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}

// applied writes what a change of the configuration came to.
func (c *command) applied(what string) func(*control.Applied) error {
	return func(a *control.Applied) error {
		if a.DryRun {
			what = "valid, nothing was changed"
		} else {
			what = fmt.Sprintf("%s: generation %d in force in %d workers", what, a.Generation, a.Workers)
		}
		if _, err := fmt.Fprintln(c.out, what); err != nil || a.Changes == nil {
			return err
		}
		return c.screen.changes(a.Changes)
	}
}

func (s *screen) changes(c *control.Changes) error {
	if len(c.Settings) > 0 {
		if err := s.text("settings: ", "  ", strings.Join(c.Settings, ", ")); err != nil {
			return err
		}
	}
	if len(c.Routes) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(s.out, "routes: %d added, %d removed, %d changed\n", c.Added, c.Removed, c.Changed)
	for _, r := range c.Routes {
		if err == nil {
			_, err = fmt.Fprintln(s.out, "  "+r)
		}
	}
	if err == nil && c.Added+c.Removed+c.Changed > len(c.Routes) {
		_, err = fmt.Fprintln(s.out, "  ...")
	}
	return err
}

// goneEvery is how often a master is looked for that is to end.
const goneEvery = 50 * time.Millisecond

// waiting are the flags of commands that can wait for what they cause.
type waiting struct {
	wait    bool
	timeout time.Duration // 0: for ever
}

// of gives cmd the flags; until says what --wait waits for.
func (w *waiting) of(cmd *cobra.Command, until string) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "return when "+until)
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "how long --wait waits (default: for ever)")
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, list []string) error {
		switch {
		case w.timeout < 0:
			return errors.New("--timeout: want 0s or more")
		case cmd.Flags().Changed("timeout") && !w.wait:
			return errors.New("--timeout is for --wait")
		}
		return args(cmd, list)
	}
}

func (c *command) stopCommand() *cobra.Command {
	var now bool
	var w waiting
	cmd := c.leaf("stop", "Stop cloud-cup: requests in progress may end, within timeouts.drain", func() error {
		stopping, err := c.client().Stop(now)
		if err == nil && w.wait {
			err = c.awaitEnd(w.timeout)
		}
		return show(c, stopping, err, func(s *control.Stopping) error {
			state := "stopping"
			if w.wait {
				state = "stopped"
			}
			_, err := fmt.Fprintf(c.out, "%s: pid %d\n", state, s.PID)
			return err
		})
	})
	cmd.Flags().BoolVar(&now, "now", false, "cut requests in progress")
	w.of(cmd, "it has stopped")
	return cmd
}

func (c *command) upgradeCommand() *cobra.Command {
	return c.leaf("upgrade", "Start the program's file anew and hand over to it; returns when that serves", func() error {
		upgraded, err := c.client().Upgrade()
		return show(c, upgraded, err, func(u *control.Upgraded) error {
			_, err := fmt.Fprintf(c.out, "upgraded: %s to %s in %.2f s; pid %d serves, pid %d drains\n",
				u.VersionBefore, u.Version, u.Seconds, u.PID, u.Before)
			return err
		})
	})
}

// awaitEnd waits until nobody answers at the socket. 0 is for ever.
func (c *command) awaitEnd(timeout time.Duration) error {
	err := every(goneEvery, timeout, func() (bool, error) {
		_, err := c.client().Version()
		if errors.Is(err, control.ErrNotRunning) {
			return true, nil
		}
		return false, nil // an answer that is cut is one of the last
	})
	if errors.Is(err, errOver) {
		return fmt.Errorf("cloud-cup still runs after %v", timeout)
	}
	return err
}

// errOver says that the time of every is over.
var errOver = errors.New("the time is over")

// every calls done in intervals until it reports true or an error, or until
// the time is over, which is errOver. 0 is for ever.
func every(interval, timeout time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var over <-chan time.Time
	if timeout > 0 {
		over = time.After(timeout)
	}
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-over:
			return errOver
		}
	}
}
