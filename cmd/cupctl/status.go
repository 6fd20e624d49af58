package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/spf13/cobra"
)

// status and the commands below it show what the master answers.
func (c *command) status() error {
	s, err := c.client().Status()
	return show(c, s, err, c.screen.status)
}

func (c *command) workers() error {
	list, err := c.client().Workers()
	return show(c, list, err, c.screen.workersInDetail)
}

func (c *command) backends() error {
	list, err := c.client().Backends()
	return show(c, list, err, c.screen.backends)
}

func (c *command) io() error {
	s, err := c.client().IO()
	return show(c, s, err, c.screen.io)
}

func (c *command) config() error {
	text, err := c.client().Config()
	return show(c, configText{string(text)}, err, func(t configText) error {
		_, err := fmt.Fprint(c.out, t.Text)
		return err
	})
}

// configText is the configuration in force, as JSON.
type configText struct {
	Text string `json:"text"`
}

func (c *command) routesCommand() *cobra.Command {
	routes := c.leaf("routes", "Show the routes", func() error {
		list, err := c.client().Routes("")
		return show(c, list, err, c.screen.routes)
	})
	routes.AddCommand(&cobra.Command{
		Use: "match URL", Short: "Show which route takes requests for a URL, and its backends",
		Example: "  cupctl routes match http://example.com/game/1\n  cupctl routes match /game/1",
		Args:    takes("URL"),
		RunE:    func(_ *cobra.Command, args []string) error { return c.match(args[0]) },
	})
	return routes
}

// matched is a route with its backends, as JSON.
type matched struct {
	control.RouteStatus
	States []control.BackendStatus `json:"backend_states"`
}

func (c *command) match(url string) error {
	routes, err := c.client().Routes(url)
	if err != nil {
		return err
	}
	backends, err := c.client().Backends()
	if err != nil {
		return err
	}
	m := matched{RouteStatus: routes[0], States: []control.BackendStatus{}}
	for _, b := range backends {
		if slices.Contains(m.Backends, b.Host) {
			m.States = append(m.States, b)
		}
	}
	return show(c, m, nil, func(m matched) error {
		if _, err := fmt.Fprintf(c.out, "route %s, %s\n\n", m.Pattern, m.Strategy); err != nil {
			return err
		}
		return c.screen.backends(m.States)
	})
}

// status writes s for a person.
func (s *screen) status(st *control.Status) error {
	if err := s.table(nil, masterRows(st)); err != nil {
		return err
	}
	if err := s.part("", func() error { return s.workers(st.Workers) }); err != nil {
		return err
	}
	return s.part("", func() error { return s.backends(st.Backends) })
}

// part writes a table behind an empty line and, unless it is empty, a title.
func (s *screen) part(title string, write func() error) error {
	if title != "" {
		title += "\n"
	}
	if _, err := fmt.Fprint(s.out, "\n"+title); err != nil {
		return err
	}
	return write()
}

// masterRows are the facts about the master.
func masterRows(st *control.Status) [][]string {
	state := "running"
	if st.Draining {
		state = "draining"
	}
	file := st.Config.File
	if file == "" {
		file = "built-in"
	}
	t := &st.Totals
	rows := [][]string{
		{"cloud-cup", fmt.Sprintf("%s, pid %d, %s for %s", st.Version, st.PID, state, seconds(st.Uptime))},
		{"config", fmt.Sprintf("%s, generation %d, sha256 %.12s", file, st.Generation, st.Config.SHA256)},
	}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("drift", st.Config.Drift)
	for _, r := range st.Refused {
		add("refused", fmt.Sprintf("%s since %s: %s", r.File, r.Since.UTC().Format(time.RFC3339), r.Cause))
	}
	add("engine", fmt.Sprintf("%s (asked: %s)%s", st.Engine.Used, st.Engine.Asked, prefixed(", ", st.Engine.Detail)))
	add("fallback", st.Engine.Fallback)
	add("listen", strings.Join(st.Listeners, ", "))
	add("requests", fmt.Sprintf("%d, on %d connections, %d retries", t.Requests, t.Accepted, t.Retries))
	add("backends", fmt.Sprintf("%d connections made, %d times reused", t.BackendConnects, t.BackendReused))
	for _, word := range slices.Sorted(maps.Keys(t.Reasons)) {
		add("reason", fmt.Sprintf("%s: %d", word, t.Reasons[word]))
	}
	return rows
}

// workers writes what one looks for first.
func (s *screen) workers(list []control.WorkerStatus) error {
	rows := make([][]string, 0, len(list))
	for i := range list {
		k := &list[i]
		rows = append(rows, []string{
			fmt.Sprint(k.Slot), number(k.PID), workerState(k), dash(k.Engine), seconds(k.Uptime), fmt.Sprint(k.Restarts),
			fmt.Sprint(k.Connections), fmt.Sprint(k.Requests), dash(k.LastDeath),
		})
	}
	err := s.table([]string{"SLOT", "PID", "STATE", "ENGINE", "UPTIME", "RESTARTS", "CONNS", "REQUESTS", "LAST DEATH"}, rows)
	if err != nil {
		return err
	}
	return s.fallbacks(list)
}

// fallbacks tells which workers use another engine than the master chose.
func (s *screen) fallbacks(list []control.WorkerStatus) error {
	for i := range list {
		if k := &list[i]; k.Fallback != "" {
			if err := s.text(fmt.Sprintf("worker %d: ", k.Slot), "  ", k.Fallback); err != nil {
				return err
			}
		}
	}
	return nil
}

// io writes which engine is used, by whom and why.
func (s *screen) io(st *control.IOStatus) error {
	rows := [][]string{{"engine", fmt.Sprintf("%s, asked for: %s", st.Engine.Used, st.Engine.Asked)}}
	if st.Engine.Detail != "" {
		rows = append(rows, []string{"detail", st.Engine.Detail})
	}
	if st.Engine.Fallback != "" {
		rows = append(rows, []string{"why", st.Engine.Fallback})
	}
	for i := range st.Workers {
		k := &st.Workers[i]
		rows = append(rows, []string{fmt.Sprintf("worker %d", k.Slot), dash(k.Engine) + prefixed(": ", k.Detail) + prefixed("; ", k.Fallback)})
	}
	if err := s.table(nil, rows); err != nil || st.Report == nil {
		return err
	}
	return s.part("what can be had where the master runs:", func() error {
		for _, line := range st.Report.Lines() {
			if err := s.text("", "    ", line); err != nil {
				return err
			}
		}
		return nil
	})
}

// workersInDetail writes what workers hold besides.
func (s *screen) workersInDetail(list []control.WorkerStatus) error {
	if err := s.workers(list); err != nil {
		return err
	}
	rows := make([][]string, 0, len(list))
	for i := range list {
		k := &list[i]
		rows = append(rows, []string{
			fmt.Sprint(k.Slot), fmt.Sprint(k.Generation), fmt.Sprint(k.Accepted), fmt.Sprint(k.BackendIdle), size(k.BuffersLent),
			size(k.BuffersMapped), fmt.Sprint(k.AcceptPaused), fmt.Sprint(k.Quarantined), dash(k.Detail),
		})
	}
	return s.part("", func() error {
		return s.table([]string{"SLOT", "GEN", "ACCEPTED", "IDLE", "LENT", "MAPPED", "PAUSED", "BROKEN", "ENGINE"}, rows)
	})
}

func workerState(k *control.WorkerStatus) string {
	if k.Stale {
		return k.State + ", stuck"
	}
	return k.State
}

func (s *screen) backends(list []control.BackendStatus) error {
	rows := make([][]string, 0, len(list))
	for i := range list {
		b := &list[i]
		total, failed := uint64(0), uint64(0)
		for _, n := range b.Requests {
			total += n
		}
		for _, n := range b.Reasons {
			failed += n
		}
		rows = append(rows, []string{
			b.Host, b.State, healthText(b), weightOf(b), fmt.Sprint(b.InFlight), fmt.Sprint(b.Idle), fmt.Sprint(total), fmt.Sprint(failed),
		})
	}
	if err := s.table([]string{"BACKEND", "STATE", "HEALTH", "WEIGHT", "NOW", "IDLE", "REQUESTS", "FAILED"}, rows); err != nil {
		return err
	}
	return s.addresses(list)
}

// healthText is a backend's health with how long it is out.
func healthText(b *control.BackendStatus) string {
	if b.Health == control.HealthOut {
		return "out " + seconds(b.OutFor)
	}
	return b.Health
}

// addresses tells what names resolve to.
func (s *screen) addresses(list []control.BackendStatus) error {
	for i := range list {
		b := &list[i]
		text := strings.Join(b.Addresses, ", ")
		switch {
		case text == b.Host && b.Error == "":
			continue
		case text == "":
			text = "unresolved"
		}
		if err := s.text(b.Host+": ", "  ", text+prefixed("; ", b.Error)); err != nil {
			return err
		}
	}
	return nil
}

func (s *screen) routes(list []control.RouteStatus) error {
	rows := make([][]string, 0, len(list))
	for i := range list {
		r := &list[i]
		rows = append(rows, []string{r.Pattern, r.Strategy, strings.Join(r.Backends, ", ")})
	}
	return s.table([]string{"ROUTE", "STRATEGY", "BACKENDS"}, rows)
}

// seconds formats a duration with what a person reads of it.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// size formats a number of bytes with what a person reads of it.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
