package main

import (
	"fmt"
	"math"
	"strings"
)

// What is wanted at levelFixed: ratios to the reference.
const (
	openP50Target = 1.0
	openP99Target = 1.1
)

// A clientSaturated client had no time left: what it saw is in part its own
// doing, and the backend's.
const clientSaturated = 0.95

// find returns the good runs of a program at a level, by round.
func (o *OpenResults) find(level, program string) map[int]*OpenRun {
	found := map[int]*OpenRun{}
	for i := range o.Runs {
		run := &o.Runs[i]
		if run.Level == level && run.Program == program && run.Failure == "" && run.Requests > 0 {
			found[run.Round] = run
		}
	}
	return found
}

// figures is the spread of f over a program's runs at a level.
func (o *OpenResults) figures(level, program string, f func(*OpenRun) float64) spread {
	var values []float64
	for _, run := range o.find(level, program) {
		values = append(values, f(run))
	}
	return spreadOf(values)
}

// ratios are those of a program's figure to another's within each round, at
// levelFixed.
func (o *OpenResults) ratios(program, to string, f func(*OpenRun) float64) []float64 {
	var values []float64
	others := o.find(levelFixed.name, to)
	for round, run := range o.find(levelFixed.name, program) {
		if other := others[round]; other != nil && f(other) > 0 {
			values = append(values, f(run)/f(other))
		}
	}
	return values
}

// rounds is how many there are at a level.
func (o *OpenResults) rounds(level string) int {
	n := 0
	for i := range o.Runs {
		if r := &o.Runs[i]; r.Level == level {
			n = max(n, r.Round)
		}
	}
	return n
}

func openP50(r *OpenRun) float64  { return r.Latency.P50 }
func openP99(r *OpenRun) float64  { return r.Latency.P99 }
func openP999(r *OpenRun) float64 { return r.Latency.P999 }

// writeOpen are the tables of the part.
func (r *Results) writeOpen(w *strings.Builder) {
	if r.Open == nil {
		return
	}
	fmt.Fprintf(w, "\n### Latency at a given rate\n\n")
	fmt.Fprintf(w, "An open loop: requests of 100 B start on 64 connections when they are due, at a constant rate, whether answers have come or not;\n"+
		"latencies count from the moment at which a request was due. Each program gets %s, and shares of its own peak in a closed\n"+
		"loop. *Late* is the part of the latencies that is the client's own: due, with a free connection, but the client had not come\n"+
		"to it. Where client and backend had no time left (*), figures say as much about them. CPU is the proxy's, per request.\n", levelFixed.name)
	if n := r.Open.rounds(levelFixed.name); n > r.Rounds {
		fmt.Fprintf(w, "There are %d rounds at %s: few requests are slow there, and what else the machine does decides how many.\n", n, levelFixed.name)
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "| rate | program | requests/s | p50, us | p90, us | p99, us | p99.9, us | max, us | late p50, us | late p99, us | CPU, us | client's CPU | errors |\n"+
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range levels {
		if r.Open.rounds(l.name) == 0 {
			continue
		}
		for _, p := range r.Open.Programs {
			r.Open.writeLevel(w, &l, p.Name)
		}
	}
	r.Open.writeFixed(w)
	r.Open.writeChecks(w)
	fmt.Fprintf(w, "\n```sh\n%s\n%s\n```\n", r.Open.Backend, r.Open.Client)
}

// writeLevel is a line of the table.
func (o *OpenResults) writeLevel(w *strings.Builder, l *level, program string) {
	of := func(f func(*OpenRun) float64) spread { return o.figures(l.name, program, f) }
	client := of(func(r *OpenRun) float64 { return r.ClientCPU }).median
	mark := rounded(100*client) + " %"
	if client > clientSaturated {
		mark += "*"
	}
	fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %d |\n", l.name, program,
		rounded(of(func(r *OpenRun) float64 { return r.Rate }).median),
		whole(of(openP50)), whole(of(func(r *OpenRun) float64 { return r.Latency.P90 })), whole(of(openP99)),
		whole(of(func(r *OpenRun) float64 { return r.Latency.P999 })), whole(of(func(r *OpenRun) float64 { return r.Latency.Max })),
		rounded(of(func(r *OpenRun) float64 { return r.Late.P50 }).median), rounded(of(func(r *OpenRun) float64 { return r.Late.P99 }).median),
		micros(of((*OpenRun).perRequest)), mark, o.errors(l.name, program))
}

// errors counts failed requests, and a failed run as one.
func (o *OpenResults) errors(level, program string) int64 {
	var n int64
	for i := range o.Runs {
		run := &o.Runs[i]
		if run.Level == level && run.Program == program {
			n += run.Errors()
			if run.Failure != "" {
				n++
			}
		}
	}
	return n
}

// writeFixed compares programs where all had the same rate.
func (o *OpenResults) writeFixed(w *strings.Builder) {
	fmt.Fprintf(w, "\nAt %s, ratios to %s within a round: their median, and the %.0f %% interval of it.\n\n", levelFixed.name, reference, 100*confidence)
	fmt.Fprintf(w, "| program | p50 | wanted | p99 | wanted | CPU per request |\n|---|---|---|---|---|---|\n")
	for _, p := range o.Programs {
		if p.Name == reference {
			continue
		}
		wanted := [2]string{"-", "-"}
		if p.Ours {
			wanted = [2]string{fmt.Sprintf("<= %.1f", openP50Target), fmt.Sprintf("<= %.1f", openP99Target)}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", p.Name, ratioText(spreadOf(o.ratios(p.Name, reference, openP50))), wanted[0],
			ratioText(spreadOf(o.ratios(p.Name, reference, openP99))), wanted[1], ratioText(spreadOf(o.ratios(p.Name, reference, (*OpenRun).perRequest))))
	}
}

// writeChecks compares the client with wrk.
func (o *OpenResults) writeChecks(w *strings.Builder) {
	if len(o.Checks) == 0 {
		return
	}
	fmt.Fprintf(w, "\nThe client beside wrk: what each gets out of a program that is asked for more than it can do.\n\n"+
		"| program | wrk, requests/s | open loop, requests/s | ratio |\n|---|---|---|---|\n")
	for _, p := range o.Programs {
		var peaks, checks, ratios []float64
		for i := range min(len(o.Peaks), len(o.Checks)) { // they were made in turn
			peak, check := &o.Peaks[i], &o.Checks[i]
			if peak.Program == p.Name && peak.Failure == "" && check.Failure == "" && peak.Rate > 0 {
				peaks, checks, ratios = append(peaks, peak.Rate), append(checks, check.Rate), append(ratios, check.Rate/peak.Rate)
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", p.Name, whole(spreadOf(peaks)), whole(spreadOf(checks)), ratioText(spreadOf(ratios)))
	}
}

// rounded is a figure of its own.
func rounded(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.0f", v)
}
