package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scriptFile is wrk's for the loads that need one.
const scriptFile = "wrk.lua"

//go:embed wrk.lua
var script []byte

// clientCommand is the client of a load: one thread, pinned. self is the file of
// this program, dir the folder of scriptFile.
func clientCommand(self, dir string, cpu int, l *Load, length time.Duration, url string) []string {
	switch {
	case l.Handshake != "":
		return pinned(cpu, self, clientArguments(handshakesCommand, l.Handshake, l.Connections, length, url)...)
	case l.Tunnel:
		return pinned(cpu, self, clientArguments(tunnelsCommand, "", l.Connections, length, url)...)
	}
	command := pinned(cpu, "wrk", "--threads=1", "--latency",
		fmt.Sprintf("--connections=%d", l.Connections), fmt.Sprintf("--duration=%.0fs", math.Ceil(length.Seconds())))
	switch {
	case l.Close:
		return append(command, "--header=Connection: close", url)
	case l.RequestBytes > 0:
		return append(command, "--script="+filepath.Join(dir, scriptFile), url, "post", strconv.Itoa(l.RequestBytes))
	case l.Pipeline > 0:
		return append(command, "--script="+filepath.Join(dir, scriptFile), url, "pipeline", strconv.Itoa(l.Pipeline))
	}
	return append(command, url)
}

// besideCommand is the client that makes handshakes beside a load. Only what
// that leaves of the CPU is its own: it would else delay the client whose
// latencies count.
func besideCommand(self string, cpu int, l *Load, length time.Duration, url string) []string {
	return append([]string{"chrt", "--idle", "0"}, pinned(cpu, self, clientArguments(handshakesCommand, handshakeFull, l.Beside, length, url)...)...)
}

// runClient runs the client of a load.
func runClient(ctx context.Context, l *Load, command []string, length time.Duration) (Wrk, error) {
	if l.Handshake != "" || l.Tunnel {
		finish, err := startClient[Wrk](ctx, command)
		if err != nil {
			return Wrk{}, err
		}
		return finish()
	}
	w, err := runWrk(ctx, command, length)
	if l.Pipeline > 0 {
		w.P50, w.P99 = 0, 0 // of whole batches, and wrk loses some of them
	}
	return w, err
}

// runWrk runs a command of clientCommand to its end, or until ctx ends. wrk
// knows whole seconds only: it is told to stop where length is not.
func runWrk(ctx context.Context, command []string, length time.Duration) (Wrk, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.SysProcAttr = ownGroup()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return Wrk{}, err
	}
	if length%time.Second != 0 {
		early := time.AfterFunc(length, func() { _ = cmd.Process.Signal(unix.SIGINT) }) // it may have ended
		defer early.Stop()
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		return Wrk{}, context.Cause(ctx)
	}
	if err != nil {
		return Wrk{}, fmt.Errorf("wrk: %w: %s", err, out.Bytes())
	}
	return parseWrk(out.String())
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
