// Command cupctl controls a running cloud-cup over its admin socket.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

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
	c := &command{out: stdout, screen: screenOf(stdout)}
	root := c.root()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(control.LongFlags(allFlags(root), args))
	cmd, err := root.ExecuteC()
	code := c.exitCode(err)
	switch code {
	case 0:
	case exitInvalid: // every line begins with its place
		fmt.Fprintln(stderr, err)
	case exitUsage:
		fmt.Fprintf(stderr, "cupctl: %v\nsee %s --help\n", err, cmd.CommandPath())
	default:
		fmt.Fprintf(stderr, "cupctl: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return code
}

// command is the command line.
type command struct {
	out    io.Writer
	screen *screen // the same, for tables
	socket string
	output string
	begun  bool // the arguments were right: errors are not about usage
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "cupctl",
		Short: "Control a running cloud-cup",
		Long: "Control a running cloud-cup.\n\nExit codes: 0 done, 1 failed or not green, 2 wrong usage, 3 cloud-cup is not running, 4 the configuration\n" +
			"is invalid, 5 this user may not.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          known,
		RunE:          func(*cobra.Command, []string) error { return errors.New("no command") },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("--output %s: want table or json", c.output)
			}
			c.begun = cmd.HasParent()
			return nil
		},
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
		SuggestionsMinimumDistance: 2,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", "", "admin socket: PATH or unix:PATH (default "+control.DefaultSocket()+")")
	flags.StringVarP(&c.output, "output", "o", "table", "table or json")

	root.AddCommand(
		c.leaf("status", "Show the master, its workers and backends", c.status),
		c.leaf("workers", "Show the workers and what they hold", c.workers),
		c.leaf("backends", "Show the backends", c.backends),
		c.routesCommand(),
		c.leaf("config", "Show the configuration in force", c.config),
		c.showCommand(),
		c.leaf("reload", "Read the configuration file again; returns when every worker serves by it", c.reload),
		c.applyCommand(),
		c.checkCommand(),
		c.stateCommand("drain", control.BackendDrain, "Send no new requests to a backend"),
		c.stateCommand("disable", control.BackendDisabled, "Send no new requests to a backend, and close idle connections to it"),
		c.stateCommand("enable", control.BackendEnabled, "Send requests to a backend again"),
		c.weightCommand(),
		c.leaf("stats", "Show requests, rates and latencies of routes and backends", c.stats),
		c.leaf("errors", "Show the reasons of the last minutes by route and backend, with a hint", c.errors),
		c.explainCommand(),
		c.leaf("certs", "Show the certificates in use, and for how long they are valid", c.certs),
		c.leaf("io", "Show the engine of each worker, why it was chosen, and what the kernel allows", c.io),
		c.stopCommand(),
		c.upgradeCommand(),
		c.leaf("version", "Show the versions of cupctl and of the running cloud-cup", c.version),
		completionCommand(root),
	)
	grouped(root)
	return root
}

// grouped sets the commands that change something apart, in the help.
func grouped(root *cobra.Command) {
	const show, change = "show", "change"
	root.AddGroup(&cobra.Group{ID: show, Title: "To see:"}, &cobra.Group{ID: change, Title: "To change:"})
	root.SetHelpCommandGroupID(show)
	changing := []string{"reload", "apply", "drain", "disable", "enable", "weight", "stop", "upgrade"}
	for _, cmd := range root.Commands() {
		cmd.GroupID = show
		if slices.Contains(changing, cmd.Name()) {
			cmd.GroupID = change
		}
	}
}

// known refuses what is no command.
func known(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q%s", args[0], hint)
}

// takes wants the arguments that words name, all of them and no others.
func takes(words ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(words):
			return fmt.Errorf("%s: %s is missing", cmd.Name(), words[len(args)])
		case len(args) > len(words):
			return fmt.Errorf("%s: unexpected argument %q", cmd.Name(), args[len(words)])
		}
		return nil
	}
}

// leaf is a command without arguments.
func (c *command) leaf(name, short string, do func() error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: takes(), RunE: func(*cobra.Command, []string) error { return do() }}
}

// showCommand has the verbs of programs before this one.
func (c *command) showCommand() *cobra.Command {
	show := c.leaf("show", "Show the configuration in force; show status shows what status does", c.config)
	show.AddCommand(
		c.leaf("config", "Show the configuration in force", c.config),
		c.leaf("status", "Show the master, its workers and backends", c.status),
	)
	return show
}

// completionCommand prints what a shell needs to complete command lines.
func completionCommand(root *cobra.Command) *cobra.Command {
	shells := map[string]func(io.Writer) error{
		"bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"zsh":  root.GenZshCompletion,
		"fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	}
	names := slices.Sorted(maps.Keys(shells))
	return &cobra.Command{
		Use: "completion " + strings.Join(names, "|"), Short: "Print a script that completes commands and backends in a shell",
		Example:   "  source <(cupctl completion bash)\n  cupctl completion fish >~/.config/fish/completions/cupctl.fish",
		ValidArgs: names, Args: cobra.MatchAll(takes("the shell"), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error { return shells[args[0]](cmd.OutOrStdout()) },
	}
}

// allFlags are the flags of all commands: control.LongFlags must know them
// before the command is known.
func allFlags(root *cobra.Command) *pflag.FlagSet {
	all := pflag.NewFlagSet("cupctl", pflag.ContinueOnError)
	var add func(cmd *cobra.Command)
	add = func(cmd *cobra.Command) {
		cmd.InitDefaultHelpFlag()
		all.AddFlagSet(cmd.Flags())
		all.AddFlagSet(cmd.PersistentFlags())
		for _, below := range cmd.Commands() {
			add(below)
		}
	}
	add(root)
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
	return show(c, v, nil, func(v versions) error {
		if v.CloudCup == "" {
			v.CloudCup = "not running"
		}
		return c.screen.table(nil, [][]string{{"cupctl", v.Cupctl}, {"cloud-cup", v.CloudCup}})
	})
}

// show writes v as JSON if that was asked for, else as table does.
func show[T any](c *command, v T, err error, table func(T) error) error {
	switch {
	case err != nil:
		return err
	case c.output == "json":
		return c.json(v)
	}
	return table(v)
}

func (c *command) json(v any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
