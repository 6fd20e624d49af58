// Command cupctl controls a running cloud-cup over its admin socket.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "development"

// Exit codes.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
	exitInvalid    = 4
	exitDenied     = 5
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program; it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	c := &command{out: stdout}
	root := c.root()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(control.LongFlags(allFlags(root), args))
	err := root.Execute()
	code := c.exitCode(err)
	switch code {
	case 0:
	case exitInvalid: // every line begins with its place
		fmt.Fprintln(stderr, err)
	case exitUsage:
		fmt.Fprintf(stderr, "cupctl: %v\nsee cupctl --help\n", err)
	default:
		fmt.Fprintf(stderr, "cupctl: %v\n", err)
	}
	return code
}

// command is the command line.
type command struct {
	out    io.Writer
	socket string
	output string
	begun  bool // the arguments were right: errors are not about usage
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "cupctl",
		Short:         "Control a running cloud-cup",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(*cobra.Command, []string) error { return errors.New("no command") },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("--output %s: want table or json", c.output)
			}
			c.begun = cmd.HasParent()
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", "", "admin socket: PATH or unix:PATH (default "+control.DefaultSocket()+")")
	flags.StringVarP(&c.output, "output", "o", "table", "table or json")

	root.AddCommand(
		&cobra.Command{
			Use: "status", Short: "Show the master, its workers and backends", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return c.status() },
		},
		&cobra.Command{
			Use: "reload", Short: "Read the configuration file again; returns when every worker serves by it", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return c.reload() },
		},
		&cobra.Command{
			Use: "apply FILE", Short: "Put a file's content in force, in memory, until the next reload or restart", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return c.apply(args[0]) },
		},
		&cobra.Command{
			Use: "check FILE", Short: "Validate a configuration file without a running cloud-cup", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return c.check(args[0]) },
		},
		&cobra.Command{
			Use: "version", Short: "Show the versions of cupctl and of the running cloud-cup", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return c.version() },
		},
	)
	return root
}

// allFlags are the flags of all commands: control.LongFlags must know them
// before the command is known.
func allFlags(root *cobra.Command) *pflag.FlagSet {
	all := pflag.NewFlagSet("cupctl", pflag.ContinueOnError)
	for _, cmd := range append(root.Commands(), root) {
		cmd.InitDefaultHelpFlag()
		all.AddFlagSet(cmd.Flags())
		all.AddFlagSet(cmd.PersistentFlags())
	}
	return all
}

func (c *command) wrongUsage(err error) bool { return err != nil && !c.begun }

func (c *command) exitCode(err error) int {
	var invalid config.Errors
	switch {
	case err == nil:
		return 0
	case c.wrongUsage(err):
		return exitUsage
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	case errors.Is(err, control.ErrConfig), errors.As(err, &invalid):
		return exitInvalid
	case errors.Is(err, control.ErrDenied):
		return exitDenied
	}
	return exitFailed
}

func (c *command) client() *control.Client { return control.NewClient(c.socket) }

func (c *command) status() error {
	s, err := c.client().Status()
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.json(s)
	}
	return writeStatus(c.out, s)
}

func (c *command) reload() error {
	applied, err := c.client().Reload()
	if err != nil {
		return err
	}
	return c.applied("reloaded", applied)
}

func (c *command) apply(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	applied, err := c.client().Apply(path, text, false)
	if err != nil {
		return err
	}
	return c.applied("applied in memory", applied)
}

func (c *command) applied(what string, a *control.Applied) error {
	if c.output == "json" {
		return c.json(a)
	}
	_, err := fmt.Fprintf(c.out, "%s: generation %d in force in %d workers\n", what, a.Generation, a.Workers)
	return err
}

// checked is what check found, as JSON.
type checked struct {
	File   string `json:"file"`
	Valid  bool   `json:"valid"`
	Routes int    `json:"routes"`
}

func (c *command) check(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return err
	}
	cfg, err := config.Parse(path, text, dir)
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.json(checked{File: path, Valid: true, Routes: len(cfg.Routes)})
	}
	if _, err := fmt.Fprintf(c.out, "%s: valid, routes: %d\n", path, len(cfg.Routes)); err != nil {
		return err
	}
	if err := cfg.Servable(); err != nil {
		_, err = fmt.Fprintf(c.out, "note: this version cannot serve it: %v\n", err)
		return err
	}
	return nil
}

// versions is both programs' versions, as JSON.
type versions struct {
	Cupctl   string `json:"cupctl"`
	CloudCup string `json:"cloud_cup,omitempty"` // empty if none runs
}

func (c *command) version() error {
	v := versions{Cupctl: version}
	running, err := c.client().Version()
	switch {
	case err == nil:
		v.CloudCup = running.Version
	case !errors.Is(err, control.ErrNotRunning):
		return err
	}
	if c.output == "json" {
		return c.json(v)
	}
	if v.CloudCup == "" {
		v.CloudCup = "not running"
	}
	_, err = fmt.Fprintf(c.out, "cupctl     %s\ncloud-cup  %s\n", v.Cupctl, v.CloudCup)
	return err
}

func (c *command) json(v any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
