package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// newLog logs to w, the program's standard error or what stands before it: text
// on a terminal and JSON elsewhere.
func newLog(w io.Writer) *slog.Logger {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		return slog.New(slog.NewTextHandler(w, nil))
	}
	return slog.New(slog.NewJSONHandler(w, nil))
}

const (
	// lineWait is how long a line may hold up who writes it.
	lineWait = 20 * time.Millisecond
	// linesMax bounds the lines that wait. Beyond it they are dropped.
	linesMax = 1000
	// endWait is how long the program's end waits for them.
	endWait = time.Second
)

// errorOutput stands before standard error, which may be a pipe, a terminal or
// a socket that nobody reads from: neither the master nor a worker's loop may
// wait for it. A line is written when Write returns, unless that takes too long;
// while one is stuck, those that follow wait in order, and nobody waits for them.
type errorOutput struct {
	out     io.Writer
	lines   chan line
	stuck   atomic.Bool
	dropped atomic.Uint64
}

// line is what one Write was given.
type line struct {
	text    []byte
	written chan struct{} // closed when it is
}

func newErrorOutput(out io.Writer) *errorOutput {
	e := &errorOutput{out: out, lines: make(chan line, linesMax)}
	go e.run()
	return e
}

// Write never fails: there is no other place to complain.
func (e *errorOutput) Write(p []byte) (int, error) {
	l := line{bytes.Clone(p), make(chan struct{})}
	select {
	case e.lines <- l:
	default:
		e.dropped.Add(1)
		return len(p), nil
	}
	if !e.stuck.Load() && !written(l, lineWait) {
		e.stuck.Store(true)
	}
	return len(p), nil
}

// run passes the lines on until the program ends.
func (e *errorOutput) run() {
	for l := range e.lines {
		_, _ = e.out.Write(l.text) // as in Write
		close(l.written)
		if len(e.lines) > 0 {
			continue
		}
		e.stuck.Store(false)
		if n := e.dropped.Swap(0); n > 0 {
			newLog(e.out).Warn("lines of the log were dropped: nobody took them", "lines", n)
		}
	}
}

// flush waits until everything before it was written, or endWait.
func (e *errorOutput) flush() {
	l := line{written: make(chan struct{})}
	select {
	case e.lines <- l:
		written(l, endWait)
	default: // far too much is waiting
	}
}

// written reports whether l was written in time.
func written(l line, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-l.written:
		return true
	case <-timer.C:
		return false
	}
}
