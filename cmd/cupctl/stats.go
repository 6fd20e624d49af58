package main

import (
	"fmt"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/message"
)

// stats and errors show what was counted by route and backend.
func (c *command) stats() error {
	s, err := c.client().Stats()
	return show(c, s, err, c.screen.stats)
}

func (c *command) errors() error {
	e, err := c.client().Errors()
	if err != nil {
		return err
	}
	return show(c, hinted(e), nil, c.screen.errors)
}

// stats writes rates of the last ten seconds, and latencies of the window.
func (s *screen) stats(st *control.Stats) error {
	var rows [][]string
	for i := range st.Routes {
		r := &st.Routes[i]
		rows = append(rows, statsRow(r.Route, r.Requests, r.Errors, r.Rate, r.InFlight, r.Latency))
	}
	if err := s.table([]string{"ROUTE", "REQUESTS", "ERRORS", "PER SECOND", "NOW", "P50", "P90", "P99"}, rows); err != nil {
		return err
	}
	rows = nil
	for i := range st.Backends {
		b := &st.Backends[i]
		rows = append(rows, statsRow(b.Backend, b.Requests, b.Failures, b.Rate, b.InFlight, b.Latency))
	}
	return s.part("", func() error {
		return s.table([]string{"BACKEND", "REQUESTS", "FAILED", "PER SECOND", "NOW", "P50", "P90", "P99"}, rows)
	})
}

func statsRow(name string, requests, failed uint64, rate control.Rate, now uint64, l *control.Latency) []string {
	row := []string{name, fmt.Sprint(requests), fmt.Sprint(failed), fmt.Sprintf("%.1f", rate.TenSeconds), fmt.Sprint(now)}
	if l == nil {
		return append(row, "-", "-", "-")
	}
	return append(row, short(l.P50), short(l.P90), short(l.P99))
}

// short is a time in seconds with three digits at most.
func short(seconds float64) string {
	switch {
	case seconds >= 1:
		return fmt.Sprintf("%.3gs", seconds)
	case seconds >= 1e-3:
		return fmt.Sprintf("%.3gms", seconds*1e3)
	}
	return fmt.Sprintf("%.3gus", seconds*1e6)
}

// hintedErrors is control.Errors with hints, as JSON.
type hintedErrors struct {
	*control.Errors
	Routes   []hintedCount `json:"routes"`
	Backends []hintedCount `json:"backends"`
}

type hintedCount struct {
	control.ErrorCount
	Hint string `json:"hint"`
}

// hinted adds what the table of reasons knows.
func hinted(e *control.Errors) hintedErrors {
	with := func(counts []control.ErrorCount) []hintedCount {
		list := make([]hintedCount, 0, len(counts))
		for _, c := range counts {
			hint := ""
			if r, ok := message.ReasonOf(c.Reason); ok {
				hint = r.Explain().Hint
			}
			list = append(list, hintedCount{c, hint})
		}
		return list
	}
	return hintedErrors{Errors: e, Routes: with(e.Routes), Backends: with(e.Backends)}
}

// errors writes the counts of the window, the most first.
func (s *screen) errors(e hintedErrors) error {
	window := seconds(e.Window)
	if len(e.Routes)+len(e.Backends) == 0 {
		_, err := fmt.Fprintf(s.out, "none in the last %s\n", window)
		return err
	}
	if _, err := fmt.Fprintf(s.out, "in the last %s; cupctl explain REASON tells more\n", window); err != nil {
		return err
	}
	write := func(title string, list []hintedCount) error {
		if len(list) == 0 {
			return nil
		}
		var rows [][]string
		for _, c := range list {
			ago := e.Time.Sub(c.Last).Round(time.Second)
			rows = append(rows, []string{c.Route + c.Backend, c.Reason, fmt.Sprint(c.Count), ago.String() + " ago", c.Hint})
		}
		return s.part("", func() error { return s.table([]string{title, "REASON", "COUNT", "LAST", "HINT"}, rows) })
	}
	if err := write("ROUTE", e.Routes); err != nil {
		return err
	}
	return write("BACKEND", e.Backends)
}
