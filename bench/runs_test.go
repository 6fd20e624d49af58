package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// someRuns has two rounds of every part that is no closed loop.
func someRuns() *Results {
	programs := []Program{{Name: nameRing, Ours: true}, {Name: reference}, {Name: nameHAProxy}}
	r := &Results{
		Failures: &Failures{Seconds: 4, Programs: programs},
		Costs:    &Costs{Load: costLoad, Programs: []Program{{Name: nameRing}, {Name: nameRing + ", log cup"}, {Name: nameRing + ", metrics read"}}},
		Idle:     &Idle{Files: 20_000, Programs: append(programs, Program{Name: nameBare})},
		Scaling:  &Scaling{Load: scalingLoad, Programs: []Program{{Name: scaledName(nameRing, 1)}, {Name: scaledName(nameRing, 2)}, {Name: scaledName(reference, 1)}}},
	}
	for round := 1; round <= 2; round++ {
		base := float64(100 * round)
		for _, strike := range strikeNames[1:3] {
			for _, p := range programs[:2] {
				run := FailureRun{Round: round, Strike: strike, Program: p.Name, Strikes: 3,
					Watched: Watched{Requests: 25000, Failed: map[string]int64{}, Repeated: 7, P50: base, P99: 2 * base, Max: 10 * base}}
				if p.Name == reference {
					run.Watched.Failed = map[string]int64{failedReset: 2, failedCut: int64(round)}
				}
				r.Failures.Runs = append(r.Failures.Runs, run)
			}
		}
		for i, p := range r.Costs.Programs {
			run := CostRun{Run: Run{Round: round, Load: costLoad.Name, Program: p.Name, Wrk: Wrk{Requests: 1000}, CPU: CPU{ProxyNS: int64(1000*base) * int64(100+3*i)}}}
			if i == 1 {
				run.Lines = 990
			}
			r.Costs.Runs = append(r.Costs.Runs, run)
		}
		for _, p := range r.Idle.Programs {
			for _, secure := range []bool{false, true} {
				if p.Name == nameBare && !secure {
					continue
				}
				r.Idle.Runs = append(r.Idle.Runs, IdleRun{Round: round, Program: p.Name, TLS: secure, Connections: 1000, Before: Memory{10_240, 9_000},
					Held: Memory{10_740, 9_400}, Asked: Memory{10_240 + int64(10*base), 9_900}})
			}
		}
		for i, p := range r.Scaling.Programs {
			run := ScalingRun{Workers: i + 1, Switches: Switches{10, 20}, Run: Run{Round: round, Load: scalingLoad.Name, Program: p.Name,
				Wrk: Wrk{Requests: 1000, Rate: 1e5}, CPU: CPU{ProxyNS: int64(base*1e5) + int64(i)*1e6}}}
			if i < 2 {
				run.Engine = &Engine{1000, 70, 10, 90}
			}
			r.Scaling.Runs = append(r.Scaling.Runs, run)
		}
	}
	return r
}

func writeRuns(r *Results) string {
	var w strings.Builder
	r.writeFailures(&w)
	r.writeCosts(&w)
	r.writeIdle(&w)
	r.writeScaling(&w)
	return w.String()
}

func TestRunsTables(t *testing.T) {
	golden := filepath.Join("testdata", "runs.md")
	got := writeRuns(someRuns())
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
	require.Empty(t, writeRuns(&Results{}))
}

// A run that failed is told and is in no table.
func TestRunsThatFailed(t *testing.T) {
	r := someRuns()
	all := func() []error {
		return []error{r.failureRunFailures(), r.costFailures(), r.idleFailures(), r.scalingFailures()}
	}
	require.Equal(t, make([]error, 4), all())
	before := writeRuns(r)
	r.Failures.Runs = append(r.Failures.Runs, FailureRun{Strike: strikeReload, Program: nameRing, Failure: "lost"})
	r.Idle.Runs = append(r.Idle.Runs, IdleRun{Program: nameRing, Connections: 1, Failure: "lost"})
	r.Costs.Runs = append(r.Costs.Runs, CostRun{Run: Run{Round: 3, Program: nameRing, Load: costLoad.Name, Failure: "lost"}})
	r.Scaling.Runs = append(r.Scaling.Runs, ScalingRun{Run: Run{Round: 3, Program: scaledName(nameRing, 2), Load: scalingLoad.Name, Failure: "lost"}})
	for _, err := range all() {
		require.ErrorContains(t, err, "lost")
	}
	require.Equal(t, before, writeRuns(r))
	for _, err := range (&Results{}).allFailures() {
		require.NoError(t, err)
	}
}

// allFailures are those of each part.
func (r *Results) allFailures() []error {
	var list []error
	for i := range parts {
		list = append(list, parts[i].failures(r))
	}
	return list
}

func TestEdit(t *testing.T) {
	s := site{address: "A", secure: "S", backend: "B", dir: "/dir"}
	for _, c := range []candidate{{Program: Program{Name: nameRing, Config: cupConfig(&s)}}, {Program: Program{Name: reference, Config: nginxConfig(&s)}},
		{Program: Program{Name: nameHAProxy, Config: haproxyConfig(&s)}}} {
		v := survivor{candidate: c}
		v.Command = haproxyCommand("file")
		require.NoError(t, v.prepare([2]string{"B", "OTHER"}))
		require.Contains(t, v.Config, "OTHER")
		require.ErrorContains(t, v.edit("not there", ""), "not there")
	}
	ways, err := cupVariants("/dir", "uring")
	require.NoError(t, err)
	for _, v := range ways {
		c := candidate{Program: Program{Config: cupConfig(&s)}}
		require.NoError(t, c.edit(v.edits...))
		require.True(t, strings.Contains(c.Config, "/dir/uring-") == (v.log != ""))
	}
	for _, v := range nginxVariants("/dir") {
		c := candidate{Program: Program{Config: nginxConfig(&s)}}
		require.NoError(t, c.edit(v.edits...))
		require.True(t, strings.Contains(c.Config, "access_log off") == (v.log == ""))
	}
	for _, v := range haproxyVariants("/dir") {
		c := candidate{Program: Program{Config: haproxyConfig(&s)}}
		require.NoError(t, c.edit(v.edits...))
		require.True(t, strings.Contains(c.Config, "log stdout") == (v.log == "/dir/haproxy, log httplog.log"))
	}
	require.Equal(t, []string{"haproxy", "-W", "-db", "-f", "x"}, replaceWord(haproxyCommand("x"), "-db", "-W", "-db"))
}

// What the kernel counted stands in place of what engines count.
func TestCalls(t *testing.T) {
	r := someRuns()
	r.Scaling.Calls = []CallCount{{scaledName(nameRing, 1), 1200, 10_000}, {scaledName(reference, 1), 52_000, 10_000}}
	var w strings.Builder
	r.writeScaling(&w)
	require.Contains(t, w.String(), "(`perf stat --event=raw_syscalls:sys_enter --field-separator=, --pid=PIDS`)")
	require.Regexp(t, `cloud-cup uring, 1 worker .* 0\.12 \|\n`, w.String())
	require.Regexp(t, `nginx, 1 worker .* 5\.20 \|\n`, w.String())

	n, err := parseCalls("\n123456,,raw_syscalls:sys_enter,500123,100.00,,\n")
	require.NoError(t, err)
	require.EqualValues(t, 123456, n)
	_, err = parseCalls("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n")
	require.Error(t, err)
	_, err = parseCalls("Error:\nNo permission to enable raw_syscalls:sys_enter event.\n")
	require.ErrorContains(t, err, "No permission")
	require.Equal(t, "1,22,333", joined([]int{1, 22, 333}))
}

func TestEmptyLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, []byte("one\ntwo\nthr"), 0o600))
	n, err := emptyLog(path)
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Size())
	_, err = emptyLog(path + "-not-there")
	require.Error(t, err)
}

func TestScrapeWantsMetrics(t *testing.T) {
	require.NoError(t, <-scrape(t.Context(), "", time.Hour))
	require.Error(t, <-scrape(t.Context(), closedAddress(t), 0))
}

func TestParseSwitches(t *testing.T) {
	s, err := parseSwitches("Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n")
	require.NoError(t, err)
	require.Equal(t, Switches{Voluntary: 12, Forced: 3}, s)
	_, err = parseSwitches("voluntary_ctxt_switches:\tx\n")
	require.Error(t, err)
	s, err = switchesOf(os.Getpid())
	require.NoError(t, err)
	require.Positive(t, s.Voluntary+s.Forced)
}
