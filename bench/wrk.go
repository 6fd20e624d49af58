package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// wrkCommand is the client: one thread, pinned.
func wrkCommand(cpu int, l *Load, seconds int, address string) []string {
	return pinned(cpu, "wrk", "--threads=1", "--latency",
		fmt.Sprintf("--connections=%d", l.Connections), fmt.Sprintf("--duration=%ds", seconds),
		"http://"+address+l.Path)
}

// runWrk runs a command of wrkCommand to its end, or until ctx ends.
func runWrk(ctx context.Context, command []string) (Wrk, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.SysProcAttr = ownGroup()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return Wrk{}, context.Cause(ctx)
	}
	if err != nil {
		return Wrk{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	return parseWrk(string(out))
}

// parseWrk reads what wrk prints with --latency.
func parseWrk(text string) (Wrk, error) {
	var w Wrk
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		var err error
		switch {
		case f[0] == "50%":
			w.P50, err = parseWrkTime(f[1])
		case f[0] == "99%":
			w.P99, err = parseWrkTime(f[1])
		case f[1] == "requests" && len(f) > 2 && f[2] == "in":
			w.Requests, err = strconv.ParseInt(f[0], 10, 64)
			f[0] = "requests"
		case f[0] == "Requests/sec:":
			w.Rate, err = strconv.ParseFloat(f[1], 64)
		case f[0] == "Socket":
			_, err = fmt.Sscanf(strings.TrimSpace(line), "Socket errors: connect %d, read %d, write %d, timeout %d",
				&w.ConnectErrors, &w.ReadErrors, &w.WriteErrors, &w.Timeouts)
		case f[0] == "Non-2xx":
			w.BadStatus, err = strconv.ParseInt(f[len(f)-1], 10, 64)
		}
		if err != nil {
			return Wrk{}, fmt.Errorf("wrk printed %q: %w", strings.TrimSpace(line), err)
		}
		seen[f[0]] = true
	}
	for _, name := range []string{"50%", "99%", "requests", "Requests/sec:"} {
		if !seen[name] {
			return Wrk{}, fmt.Errorf("wrk printed no %q: %s", name, text)
		}
	}
	return w, nil
}

// parseWrkTime returns microseconds. wrk's units are those of Go.
func parseWrkTime(text string) (float64, error) {
	d, err := time.ParseDuration(text)
	return float64(d) / float64(time.Microsecond), err
}
