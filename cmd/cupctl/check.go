package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/cobra"
)

// errRed says that a backend is not well; its line was written.
var errRed = errors.New("not all backends are green")

// probesAtOnce bounds the connections of a check.
const probesAtOnce = 32

// checks are the flags of check.
type checks struct {
	backends         []string
	route, get, head string
	timeout          time.Duration
}

func (c *command) checkCommand() *cobra.Command {
	var f checks
	cmd := &cobra.Command{
		Use: "check [FILE]", Short: "Validate a file, or, without one, connect to backends",
		Long: "With a file: validate it; no cloud-cup needs to run.\n" +
			"Without one: connect from here to the backends of the configuration in force, or to those that -b and -r name.\n" +
			"A backend is green if it can be connected to and answers a request, if one is sent, with a status below 500.\n" +
			"With https it must also show a certificate that is trusted and take ours, by the backend's tls in the configuration.\n" +
			"If one is red, the exit code is 1.",
		Example: "  cupctl check cup.json\n  cupctl check -r '/game/*' --get /game/health",
		Args: func(_ *cobra.Command, args []string) error {
			probing := len(f.backends) > 0 || f.route != "" || f.get != "" || f.head != ""
			switch {
			case len(args) > 1:
				return errors.New("check: want at most one file")
			case len(args) == 1 && probing:
				return errors.New("check: a file is validated without asking backends: leave the flags out")
			case f.get != "" && f.head != "":
				return errors.New("--get and --head exclude each other")
			case f.timeout <= 0:
				return errors.New("--timeout: want more than 0s")
			}
			for _, path := range []string{f.get, f.head} {
				if path != "" && path[0] != '/' {
					return fmt.Errorf("%q: a path begins with a slash", path)
				}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				return c.checkFile(args[0])
			}
			return c.checkBackends(&f)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.backends, "backend", "b", nil, "an address to connect to: IP:port, name:port, https://name:port or unix:PATH (several times for several)")
	flags.StringVarP(&f.route, "route", "r", "", "the pattern of a route whose backends are connected to")
	flags.StringVar(&f.get, "get", "", "also send a GET for this path")
	flags.StringVar(&f.head, "head", "", "also send a HEAD for this path")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Second, "for each backend")
	return cmd
}

// checkedFile is what check found in a file, as JSON.
type checkedFile struct {
	File   string `json:"file"`
	Valid  bool   `json:"valid"`
	Routes int    `json:"routes"`
}

func (c *command) checkFile(path string) error {
	text, err := readFile(path)
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
	found := checkedFile{File: path, Valid: true, Routes: len(cfg.Routes)}
	return show(c, found, nil, func(f checkedFile) error {
		_, err := fmt.Fprintf(c.out, "%s: valid, routes: %d\n", f.File, f.Routes)
		return err
	})
}

// question is a backend with one of its addresses, which is empty if its name
// does not resolve for the master.
type question struct {
	backend config.Backend
	address string
}

func (c *command) checkBackends(f *checks) error {
	questions, err := c.questions(f)
	if err != nil {
		return err
	}
	probe := control.Probe{Timeout: f.timeout}
	switch {
	case f.get != "":
		probe.Method, probe.Path = http.MethodGet, f.get
	case f.head != "":
		probe.Method, probe.Path = http.MethodHead, f.head
	}
	results := askAll(&probe, questions)
	if err := show(c, results, nil, c.screen.probed); err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(r control.Probed) bool { return !r.Green }) {
		return errRed
	}
	return nil
}

// questions are the backends that the flags mean.
func (c *command) questions(f *checks) ([]question, error) {
	list, err := c.named(f.backends)
	if err != nil || len(list) > 0 && f.route == "" {
		return list, err
	}
	backends, err := c.client().Backends()
	if err != nil {
		return nil, err
	}
	if f.route != "" {
		if backends, err = c.ofRoute(f.route, backends); err != nil {
			return nil, err
		}
	}
	for _, b := range backends {
		addresses := b.Addresses
		if len(addresses) == 0 {
			addresses = []string{""}
		}
		for _, address := range addresses {
			list = append(list, ways(b.Host, address, b.TLS)...)
		}
	}
	return list, nil
}

// named are the backends of -b. Those with https are asked as the configuration
// in force has it, or, if it does not know them or cannot be asked, with the
// system's authorities.
func (c *command) named(hosts []string) (list []question, err error) {
	var known []control.BackendStatus
	secure := func(host string) bool { return (&config.Backend{Host: host}).Secure() }
	if slices.ContainsFunc(hosts, secure) {
		known, err = c.client().Backends()
		if err != nil && !errors.Is(err, control.ErrNotRunning) && !errors.Is(err, control.ErrDenied) {
			return nil, err
		}
	}
	for _, host := range hosts {
		if _, _, err := net.SplitHostPort(config.Address(host)); err != nil && secure(host) {
			host += ":443"
		}
		var how []config.BackendTLS
		if i := slices.IndexFunc(known, func(b control.BackendStatus) bool { return b.Host == host }); i >= 0 {
			how = known[i].TLS
		}
		list = append(list, ways(host, config.Address(host), how)...)
	}
	return list, nil
}

// ways is one question for each of the ways in which a backend is spoken to.
func ways(host, address string, how []config.BackendTLS) (list []question) {
	if len(how) == 0 {
		how = make([]config.BackendTLS, 1)
	}
	for _, t := range how {
		list = append(list, question{config.Backend{Host: host, TLS: t}, address})
	}
	return list
}

// ofRoute are those backends that the route with the pattern names.
func (c *command) ofRoute(pattern string, backends []control.BackendStatus) ([]control.BackendStatus, error) {
	routes, err := c.client().Routes("")
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Pattern == pattern {
			return slices.DeleteFunc(backends, func(b control.BackendStatus) bool { return !slices.Contains(r.Backends, b.Host) }), nil
		}
	}
	return nil, fmt.Errorf("there is no route %q: cupctl routes lists all, cupctl routes match URL finds one", pattern)
}

// askAll asks several at a time and answers in the order of the questions.
func askAll(probe *control.Probe, questions []question) []control.Probed {
	results := make([]control.Probed, len(questions))
	turns := make(chan struct{}, probesAtOnce)
	var wg sync.WaitGroup
	for i, q := range questions {
		if q.address == "" {
			results[i] = control.Probed{Backend: q.backend.Host, Error: "the name does not resolve"}
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			results[i] = probe.Ask(&q.backend, q.address)
			<-turns
		})
	}
	wg.Wait()
	return results
}

func (s *screen) probed(list []control.Probed) error {
	rows := make([][]string, 0, len(list))
	for _, r := range list {
		state := "red"
		if r.Green {
			state = "green"
		}
		address := r.Address
		if address == config.Address(r.Backend) {
			address = ""
		}
		until := ""
		if r.NotAfter != nil {
			until = r.NotAfter.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{
			r.Backend, dash(address), state, fmt.Sprintf("%.1fms", r.Seconds*1e3), number(r.Status), dash(r.TLS), dash(until), dash(strings.TrimSpace(r.Error)),
		})
	}
	return s.table([]string{"BACKEND", "ADDRESS", "STATE", "TIME", "STATUS", "TLS", "VALID UNTIL", "ERROR"}, rows)
}
