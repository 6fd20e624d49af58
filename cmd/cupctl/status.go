package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
)

// writeStatus writes s for a terminal.
func writeStatus(out io.Writer, s *control.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "running"
	if s.Draining {
		state = "draining"
	}
	fmt.Fprintf(w, "cloud-cup\t%s, pid %d, %s for %s\n", s.Version, s.PID, state, seconds(s.Uptime))
	file := s.Config.File
	if file == "" {
		file = "built-in"
	}
	fmt.Fprintf(w, "config\t%s, generation %d, sha256 %.12s\n", file, s.Generation, s.Config.SHA256)
	if s.Config.Drift != "" {
		fmt.Fprintf(w, "drift\t%s\n", s.Config.Drift)
	}
	fmt.Fprintf(w, "engine\t%s (asked: %s)%s\n", s.Engine.Used, s.Engine.Asked, prefixed(", ", s.Engine.Detail))
	if s.Engine.Fallback != "" {
		fmt.Fprintf(w, "fallback\t%s\n", s.Engine.Fallback)
	}
	fmt.Fprintf(w, "listen\t%s\n", strings.Join(s.Listeners, ", "))
	t := &s.Totals
	fmt.Fprintf(w, "requests\t%d, on %d connections, %d retries\n", t.Requests, t.Accepted, t.Retries)
	fmt.Fprintf(w, "backends\t%d connections made, %d times reused\n", t.BackendConnects, t.BackendReused)
	for _, word := range slices.Sorted(maps.Keys(t.Reasons)) {
		fmt.Fprintf(w, "reason\t%s: %d\n", word, t.Reasons[word])
	}

	fmt.Fprint(w, "\nSLOT\tPID\tSTATE\tENGINE\tUPTIME\tRESTARTS\tCONNECTIONS\tREQUESTS\tLAST DEATH\n")
	for i := range s.Workers {
		k := &s.Workers[i]
		state := k.State
		if k.Stale {
			state += ", stuck"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", k.Slot, number(k.PID), state, dash(k.Engine),
			seconds(k.Uptime), k.Restarts, k.Connections, k.Requests, dash(k.LastDeath))
	}

	for i := range s.Workers {
		if k := &s.Workers[i]; k.Fallback != "" {
			fmt.Fprintf(w, "worker %d: %s\n", k.Slot, k.Fallback)
		}
	}

	fmt.Fprint(w, "\nBACKEND\tROUTES\tADDRESSES\n")
	for i := range s.Backends {
		b := &s.Backends[i]
		addresses := strings.Join(b.Addresses, ", ")
		if addresses == "" {
			addresses = "unresolved"
		}
		fmt.Fprintf(w, "%s\t%d\t%s%s\n", b.Host, b.Routes, addresses, prefixed(": ", b.Error))
	}
	return w.Flush()
}

// seconds formats a duration with what a person reads of it.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
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
