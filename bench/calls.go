package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// callsLength is how long the load runs while system calls are counted.
const callsLength = 500 * time.Millisecond

// callsEvent is the kernel's, at the begin of each system call.
const callsEvent = "raw_syscalls:sys_enter"

// CallCount is how many system calls a program made under a load. Counting costs
// time: these runs are none of those that are compared.
type CallCount struct {
	Program  string `json:"program"`
	Calls    int64  `json:"calls"`
	Requests int64  `json:"requests"`
}

// callsCommand counts the system calls of processes until it is interrupted.
func callsCommand(pids string) []string {
	return []string{"perf", "stat", "--event=" + callsEvent, "--field-separator=,", "--pid=" + pids}
}

// countCalls counts the system calls of every program, by perf(1). There are none
// if perf is missing or forbidden, which says nothing of the programs.
func countCalls(ctx context.Context, l *lineup) []CallCount {
	var list []CallCount
	for i := range l.servers {
		c, err := countCallsOf(ctx, l, i)
		if err != nil {
			fmt.Fprintf(os.Stderr, "system calls are not counted: %v\n", err)
			return nil
		}
		fmt.Fprintf(os.Stderr, "system calls  %-28s %.2f per request\n", c.Program, c.perRequest())
		list = append(list, c)
	}
	return list
}

func countCallsOf(ctx context.Context, l *lineup, i int) (CallCount, error) {
	c := CallCount{Program: l.programs[i].Name}
	pids, err := family(l.servers[i].cmd.Process.Pid)
	if err != nil {
		return c, err
	}
	command := callsCommand(joined(pids))
	perf := exec.CommandContext(ctx, command[0], command[1:]...)
	perf.SysProcAttr = ownGroup()
	var said bytes.Buffer
	perf.Stdout, perf.Stderr = &said, &said
	if err := perf.Start(); err != nil {
		return c, err
	}
	time.Sleep(profileLead) // it tells nobody that it has begun
	w, _, askErr := l.ask(ctx, &scalingLoad, i, callsLength)
	_ = perf.Process.Signal(unix.SIGINT) // it may have ended
	_ = perf.Wait()                      // by the signal, or by what it says
	if askErr != nil {
		return c, askErr
	}
	c.Requests = w.Requests
	c.Calls, err = parseCalls(said.String())
	return c, err
}

func (c *CallCount) perRequest() float64 { return float64(c.Calls) / float64(c.Requests) }

// parseCalls reads what perf stat says: value, unit, event, and more.
func parseCalls(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Split(line, ","); len(f) > 2 && f[2] == callsEvent {
			n, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("perf stat: %w", err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("perf stat: %s", strings.TrimSpace(text))
}

// joined are process ids as perf wants them.
func joined(pids []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ","), "[]")
}
