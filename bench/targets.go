package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// floorAllowance is what a target may be beside the floor of the same engine in
// the same run, if that is above what was wanted.
const floorAllowance = 1.15

// A target is what an engine of ours is to reach: a figure that is not above it,
// in the median.
type target struct {
	what    string // the load, or what else is measured
	program string
	wanted  float64
	// figures are what is compared: one of each round.
	figures func(r *Results) []float64
	// floor are the same of the engine's floor; nil if nothing forwards that
	// without looking at it.
	floor func(r *Results) []float64
}

// closedTargets are of CPU time per request, as ratios to the reference.
var closedTargets = []struct {
	load        string
	ring, epoll float64
}{
	{"100 B, 1 connection", 0.85, 0.90},
	{"100 B, 64 connections", 0.70, 0.75},
	{"100 B, 256 connections", 0.62, 0.72},
	{"100 B, 1000 connections", 0.60, 0.68},
	{"16 KiB, 64 connections", 0.75, 0.80},
	{"1 MiB, 16 connections", 0.40, 0.48},
	{"POST 16 KiB, 64 connections", 0.65, 0.70},
	{"100 B, a connection per request, 64", 0.90, 0.95},
	{"TLS, 100 B, 64 connections", 0.75, 0.80},
	{"TLS, 16 KiB, 64 connections", 0.85, 0.90},
	{"TLS, 1 MiB, 16 connections", 0.80, 0.85},
	{"TLS, new handshake, X25519", 1.00, 1.00},
}

// Of idle connections, in KiB each.
const (
	idleTarget           = 0.35
	idleAskedRingTarget  = 0.75
	idleAskedEpollTarget = 0.35
)

// targets are all targets, by row and engine.
func targets() []target {
	var list []target
	for _, c := range closedTargets {
		list = append(list,
			target{c.load, nameRing, c.ring, closedFigures(c.load, nameRing), closedFigures(c.load, floorRing)},
			target{c.load, nameEpoll, c.epoll, closedFigures(c.load, nameEpoll), closedFigures(c.load, floorEpoll)})
	}
	for _, name := range []string{nameRing, nameEpoll} {
		asked := idleAskedRingTarget
		if name == nameEpoll {
			asked = idleAskedEpollTarget
		}
		list = append(list,
			target{"idle connection, KiB, before any request", name, idleTarget, idleFigures(name, idleHeld), nil},
			target{"idle connection, KiB, after one request", name, asked, idleFigures(name, idleAsked), nil})
	}
	for _, name := range []string{nameRing, nameEpoll} {
		list = append(list,
			target{"open loop at " + levelFixed.name + ", p50", name, openP50Target, openFigures(name, openP50), nil},
			target{"open loop at " + levelFixed.name + ", p99", name, openP99Target, openFigures(name, openP99), nil})
	}
	return list
}

func closedFigures(load, program string) func(*Results) []float64 {
	return func(r *Results) []float64 { return values(r.ratios(load, program, reference, cpuPerRequest.of)) }
}

func openFigures(program string, f func(*OpenRun) float64) func(*Results) []float64 {
	return func(r *Results) []float64 {
		if r.Open == nil {
			return nil
		}
		return r.Open.ratios(program, reference, f)
	}
}

func idleFigures(program string, f func(*IdleRun) float64) func(*Results) []float64 {
	return func(r *Results) (list []float64) {
		if r.Idle != nil {
			for _, run := range r.Idle.find(program, false) {
				list = append(list, f(run))
			}
		}
		return list
	}
}

// counts is the target that counts in these results: the wanted one, or what the
// floor allows.
func (t *target) counts(r *Results) (bound float64, byFloor bool) {
	if t.floor != nil {
		if f := spreadOf(t.floor(r)).median; f > t.wanted { // false without floor
			return f * floorAllowance, true
		}
	}
	return t.wanted, false
}

// verdict says whether the figures meet the bound.
func verdict(s spread, bound float64) string {
	switch {
	case math.IsNaN(s.median):
		return "not measured"
	case s.median <= bound && s.high <= bound:
		return "met"
	case s.median <= bound:
		return "met, not for sure"
	case s.low <= bound:
		return fmt.Sprintf("missed by %.2f, not for sure", s.median-bound)
	}
	return fmt.Sprintf("missed by %.2f", s.median-bound)
}

// writeTargets compares the results with what is wanted, if there is anything to
// compare.
func (r *Results) writeTargets(w *strings.Builder) {
	if !slices.ContainsFunc(targets(), func(t target) bool { return len(t.figures(r)) > 0 }) {
		return
	}
	fmt.Fprintf(w, "\n### Targets\n\n")
	fmt.Fprintf(w, "CPU time per request as a ratio to nginx in the same round, unless the row says otherwise. Where the floor of the same\n"+
		"engine in the same run is above a target, %.2f times the floor counts instead (\"by floor\"). A verdict is not sure where\n"+
		"the interval has the target in it.\n\n| load | program | target | counts | measured | |\n|---|---|---|---|---|---|\n", floorAllowance)
	for _, t := range targets() {
		s := spreadOf(t.figures(r))
		bound, byFloor := t.counts(r)
		counts := fmt.Sprintf("%.2f", bound)
		if byFloor {
			counts += " by floor"
		}
		fmt.Fprintf(w, "| %s | %s | %.2f | %s | %s | %s |\n", t.what, t.program, t.wanted, counts, ratioText(s), verdict(s, bound))
	}
}
