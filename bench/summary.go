package main

import (
	"fmt"
	"math"
	"strings"
)

// summaryLoads are what a reader looks for first.
var summaryLoads = []string{
	"100 B, 64 connections", "100 B, 1000 connections", "16 KiB, 64 connections", "1 MiB, 16 connections", "POST 16 KiB, 64 connections",
	"100 B, a connection per request, 64", "WebSocket, 64 B echoed, 64 tunnels", "TLS, 100 B, 64 connections", "TLS, 1 MiB, 16 connections",
	"TLS, new handshake, X25519", "TLS, new handshake, hybrid preferred",
}

// summaryColumns are the programs of the summary, with their titles.
var summaryColumns = [][2]string{{nameRing, "Cloud Cup, io_uring"}, {nameEpoll, "Cloud Cup, epoll"}, {nameHAProxy, "HAProxy"}}

// summary is the generated beginning of the markdown file. All of it stands with
// more detail in the tables.
func summary(r *Results) string {
	var w strings.Builder
	m := &r.Machine
	fmt.Fprintf(&w, "CPU time per request, one worker each, as a ratio to nginx' in the same round: below 1 costs less than nginx. Medians of %s\n"+
		"with 95 %% intervals, %s, commit %s, %d CPUs (%s), Linux %s, nginx %s, HAProxy %s.\n\n| load |", plural(r.Rounds, "round"), r.Started.UTC().Format("2006-01-02"),
		r.Build.Commit, m.CPUs, m.CPU, m.Kernel, r.Versions["nginx"], r.Versions["haproxy"])
	for _, c := range summaryColumns {
		fmt.Fprintf(&w, " %s |", c[1])
	}
	fmt.Fprintf(&w, "\n|---|%s\n", strings.Repeat("---|", len(summaryColumns)))
	row := func(name string, ratios func(program string) []float64) {
		if len(ratios(nameRing)) == 0 && len(ratios(nameEpoll)) == 0 {
			return
		}
		fmt.Fprintf(&w, "| %s |", name)
		for _, c := range summaryColumns {
			fmt.Fprintf(&w, " %s |", ratioText(spreadOf(ratios(c[0]))))
		}
		fmt.Fprintln(&w)
	}
	for _, load := range summaryLoads {
		row(load, func(program string) []float64 { return values(r.ratios(load, program, reference, cpuPerRequest.of)) })
	}
	if r.Open != nil {
		row("p50 of latency at "+levelFixed.name, func(program string) []float64 { return r.Open.ratios(program, reference, openP50) })
		row("p99 of latency at "+levelFixed.name, func(program string) []float64 { return r.Open.ratios(program, reference, openP99) })
	}
	if r.Idle != nil {
		row("memory of a connection that rests", func(program string) []float64 { return r.Idle.ratios(program, reference, false, idleHeld) })
	}
	met, missed := 0, 0
	for _, t := range targets() {
		bound, _ := t.counts(r)
		switch s := spreadOf(t.figures(r)); {
		case math.IsNaN(s.median):
		case s.median <= bound:
			met++
		default:
			missed++
		}
	}
	lost, all := 0, r.contests()
	for i := range all {
		if all[i].loss() != "" {
			lost++
		}
	}
	fmt.Fprintf(&w, "\nOf our own [targets](#targets) %d are met and %d are missed. Of %d figures that are compared with nginx and HAProxy (CPU, requests\n"+
		"per second, latencies, memory, failed requests) %d are worse than one of theirs: [all of them](#where-we-lose).\n", met, missed, len(all), lost)
	return w.String()
}
