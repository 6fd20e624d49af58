package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture
// that we build for (times(2)).
const tick = 10 * time.Millisecond

// sample is what was used up to a moment.
type sample struct {
	pids           []int
	at             time.Time
	ns             int64 // CPU time of the processes
	user, system   int64 // of it, in nanoseconds, as precise as the kernel's ticks
	waits          int64 // voluntary context switches of the processes' threads
	proxy, clients cpuTime
}

// takeSample reads the clocks of the process root with all its descendants,
// and those of the two CPUs.
func takeSample(root, proxyCPU, clientCPU int) (sample, error) {
	s := sample{at: time.Now()}
	var err error
	if s.pids, err = family(root); err != nil {
		return s, err
	}
	for _, pid := range s.pids {
		var t unix.Timespec
		if err := unix.ClockGettime(cpuClock(pid), &t); err != nil {
			return s, fmt.Errorf("CPU clock of process %d: %w", pid, err)
		}
		s.ns += t.Nano()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return s, err
		}
		p, err := parseStat(string(text))
		if err != nil {
			return s, err
		}
		s.user += p.user
		s.system += p.system
		switches, err := threadSwitches(pid)
		if err != nil {
			return s, err
		}
		s.waits += switches.Voluntary
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return s, err
	}
	if s.proxy, err = parseCPUTime(string(text), proxyCPU); err != nil {
		return s, err
	}
	s.clients, err = parseCPUTime(string(text), clientCPU)
	return s, err
}

// since is what was used from before to s.
func (s *sample) since(before *sample) CPU {
	c := CPU{
		ProxyNS:  s.ns - before.ns,
		UserNS:   s.user - before.user,
		SystemNS: s.system - before.system,
		Waits:    s.waits - before.waits,
		WallNS:   s.at.Sub(before.at).Nanoseconds(),
	}
	c.ProxyCPU, c.ProxySteal = s.proxy.since(before.proxy)
	c.ClientCPU, c.ClientSteal = s.clients.since(before.clients)
	return c
}

// cpuClock is the clock of the CPU time of a process: all its threads, also
// those that have ended. It is what clock_getcpuclockid(3) returns.
func cpuClock(pid int) int32 { return int32(^pid<<3 | 2) }

// threadSwitches are the context switches of a process: of the threads that there
// are.
func threadSwitches(pid int) (Switches, error) {
	var all Switches
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return all, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended since
		}
		one, err := parseSwitches(string(text))
		if err != nil {
			return all, fmt.Errorf("%s: %w", file, err)
		}
		all.Voluntary += one.Voluntary
		all.Forced += one.Forced
	}
	return all, nil
}

// parseSwitches reads /proc/PID/task/TID/status, proc_pid_status(5).
func parseSwitches(text string) (Switches, error) {
	var s Switches
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var into *int64
		switch name {
		case "voluntary_ctxt_switches":
			into = &s.Voluntary
		case "nonvoluntary_ctxt_switches":
			into = &s.Forced
		default:
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			return s, err
		}
		*into = n
	}
	return s, nil
}

// family lists root and its descendants in ascending order.
func family(root int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	alive := false
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has been waited for since
		}
		p, err := parseStat(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if p.state == "Z" {
			continue // it has ended
		}
		children[p.parent] = append(children[p.parent], p.pid)
		alive = alive || p.pid == root
	}
	if !alive {
		return nil, fmt.Errorf("process %d has ended", root)
	}
	list := []int{root}
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i]]...)
	}
	slices.Sort(list)
	return list, nil
}

// process is what /proc/PID/stat says, proc_pid_stat(5).
type process struct {
	pid, parent  int
	state        string
	user, system int64 // nanoseconds
}

func parseStat(text string) (process, error) {
	var p process
	// The name stands in parentheses and may itself have some.
	end := strings.LastIndexByte(text, ')')
	pid, _, ok := strings.Cut(text, " (")
	if end < 0 || !ok {
		return p, fmt.Errorf("not a process's stat: %q", text)
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 13 {
		return p, fmt.Errorf("short stat: %q", text)
	}
	n, err := parseInts(pid, f[1], f[11], f[12])
	if err != nil {
		return p, fmt.Errorf("stat: %w", err)
	}
	return process{int(n[0]), int(n[1]), f[0], n[2] * int64(tick), n[3] * int64(tick)}, nil
}

// cpuTime is how a CPU spent its time since the start, in ticks.
type cpuTime struct{ busy, steal, all int64 }

// parseCPUTime reads a CPU's line of /proc/stat, proc_stat(5).
func parseCPUTime(text string, cpu int) (cpuTime, error) {
	name := "cpu" + strconv.Itoa(cpu)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != name {
			continue
		}
		// user nice system idle iowait irq softirq steal
		n, err := parseInts(f[1:9]...)
		if err != nil {
			return cpuTime{}, fmt.Errorf("/proc/stat: %w", err)
		}
		t := cpuTime{steal: n[7]}
		for _, v := range n {
			t.all += v
		}
		t.busy = t.all - n[3] - n[4] - n[7]
		return t, nil
	}
	return cpuTime{}, fmt.Errorf("this machine has no CPU %d", cpu)
}

func (t cpuTime) since(before cpuTime) (busy, steal float64) {
	all := float64(max(t.all-before.all, 1))
	return float64(t.busy-before.busy) / all, float64(t.steal-before.steal) / all
}

func parseInts(texts ...string) ([]int64, error) {
	list := make([]int64, len(texts))
	for i, text := range texts {
		var err error
		if list[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, err
		}
	}
	return list, nil
}
