package main

import (
	"fmt"
	"slices"
	"strings"
)

// rivals are the programs that ours are compared with.
var rivals = []string{reference, nameHAProxy}

// A contest is a figure of an engine of ours beside those of its rivals.
type contest struct {
	what, program, figure string
	// of compares with a rival. The text is empty if one of both has no figure.
	of func(rival string) outcome
}

// outcome is how a contest ended.
type outcome struct {
	text string
	// worse is what we were in the median, sure what we were in the whole
	// interval; one run has none.
	worse, sure bool
}

// ratioOutcome compares ratios, one of each round; more says that the figure is
// the better the more it is.
func ratioOutcome(ratios []float64, more bool) outcome {
	s := spreadOf(ratios)
	if more {
		return outcome{ratioText(s), s.median < 1, s.high < 1 && len(ratios) > 1}
	}
	return outcome{ratioText(s), s.median > 1, s.low > 1 && len(ratios) > 1}
}

// contests are all that the results have.
func (r *Results) contests() []contest {
	return slices.Concat(r.closedContests(), r.openContests(), r.failureContests(), r.idleContests())
}

func (r *Results) closedContests() (list []contest) {
	for _, l := range r.Loads {
		for _, p := range r.Programs {
			for _, f := range []figure{cpuPerRequest, rate, median, p99} {
				if p.Ours && (l.Beside == 0 || f.beside) {
					list = append(list, contest{l.Name, p.Name, f.name, func(rival string) outcome {
						return ratioOutcome(values(r.ratios(l.Name, p.Name, rival, f.of)), f.more)
					}})
				}
			}
		}
	}
	return list
}

// openContests are at the rate that all programs had.
func (r *Results) openContests() (list []contest) {
	if r.Open == nil {
		return nil
	}
	for _, p := range r.Open.Programs {
		for _, f := range []struct {
			name string
			of   func(*OpenRun) float64
		}{{"CPU per request", (*OpenRun).perRequest}, {"p50", openP50}, {"p99", openP99}, {"p99.9", openP999}} {
			if p.Ours {
				list = append(list, contest{"open loop at " + levelFixed.name, p.Name, f.name, func(rival string) outcome {
					return ratioOutcome(r.Open.ratios(p.Name, rival, f.of), false)
				}})
			}
		}
	}
	return list
}

func (r *Results) failureContests() (list []contest) {
	if r.Failures == nil {
		return nil
	}
	f := r.Failures
	for _, strike := range strikeNames {
		what := "failure runs: " + strike
		for _, p := range f.Programs {
			if !p.Ours {
				continue
			}
			list = append(list, contest{what, p.Name, "failed requests", func(rival string) outcome {
				ours, theirs := f.find(strike, p.Name), f.find(strike, rival)
				if len(ours) == 0 || len(theirs) == 0 {
					return outcome{}
				}
				a, b := failedRequests(ours), failedRequests(theirs)
				return outcome{fmt.Sprintf("%d to %d", a, b), a > b, a > b}
			}}, contest{what, p.Name, "p99", func(rival string) outcome {
				return ratioOutcome(f.ratios(strike, p.Name, rival), false)
			}})
		}
	}
	return list
}

func (r *Results) idleContests() (list []contest) {
	if r.Idle == nil {
		return nil
	}
	for _, secure := range []bool{false, true} {
		what := "connections that rest"
		if secure {
			what += ", TLS"
		}
		for _, p := range r.Idle.Programs {
			for _, f := range []struct {
				name string
				of   func(*IdleRun) float64
			}{{"memory before them", idleBefore}, {"memory of each", idleHeld}, {"memory of each after a request", idleAsked}} {
				if p.Ours {
					list = append(list, contest{what, p.Name, f.name, func(rival string) outcome {
						return ratioOutcome(r.Idle.ratios(p.Name, rival, secure, f.of), false)
					}})
				}
			}
		}
	}
	return list
}

// writeLosses lists the targets that are missed, and every figure of an engine of
// ours that was worse than a rival's.
func (r *Results) writeLosses(w *strings.Builder) {
	list := r.contests()
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "\n### Where we lose\n\n")
	for _, t := range targets() {
		s := spreadOf(t.figures(r))
		if bound, _ := t.counts(r); s.median > bound { // not NaN
			fmt.Fprintf(w, "- Target: %s, %s: %s, %s\n", t.what, t.program, ratioText(s), verdict(s, bound))
		}
	}
	var rows []string
	for _, c := range list {
		if row := c.loss(); row != "" {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		fmt.Fprintf(w, "In this run, no figure of ours was worse than another program's: %d were compared.\n", len(list))
		return
	}
	fmt.Fprintf(w, "\nAll ratios of ours to another program's, within a round, that were worse than 1 in the median: %d of %d figures. **Bold** is worse in\n"+
		"the whole interval, *italic* in the median only. Of requests per second less is worse, of all others more.\n\n"+
		"| what | program | figure | to nginx | to haproxy |\n|---|---|---|---|---|\n%s", len(rows), len(list), strings.Join(rows, ""))
}

// loss is a row of the table, empty if no rival was better.
func (c *contest) loss() string {
	row, lost := fmt.Sprintf("| %s | %s | %s |", c.what, c.program, c.figure), false
	for _, rival := range rivals {
		o := c.of(rival)
		switch {
		case o.text == "":
			o.text = "-"
		case o.sure:
			o.text = "**" + o.text + "**"
		case o.worse:
			o.text = "*" + o.text + "*"
		}
		row, lost = row+" "+o.text+" |", lost || o.worse
	}
	if !lost {
		return ""
	}
	return row + "\n"
}
