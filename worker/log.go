package worker

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/config"
	"golang.org/x/sys/unix"
)

// What writing logs may take.
const (
	// logPoll is how often the writer of a log that takes no lines looks
	// whether it is to go on elsewhere.
	logPoll = 100 * time.Millisecond
	// logPatience is how long the last lines may take when a log is given up,
	// or the process ends.
	logPatience = time.Second
	// logSwitch bounds the wait for a writer to turn to another file.
	logSwitch = 5 * time.Second
	// logWarnEvery is how often lost lines are told about.
	logWarnEvery = 10 * time.Second
)

// Why lines are lost, and why a file is not taken.
var (
	errLogStuck  = errors.New("nobody takes the lines")
	errLogNoFile = errors.New("the master has handed over no file")
	errLogBusy   = errors.New("the log's last write has not returned")
)

// logs are the access logs of this worker, by file. They belong to the loop's
// thread. The master opens the files; their descriptors may come before the
// snapshot that names them, or after it.
type logs struct {
	log   *slog.Logger
	given map[string]*logFile // that no snapshot in force has named
	open  map[string]*logWriter
	// closing are being given up. Some of them may have ended.
	closing []*logWriter
}

func newLogs(log *slog.Logger) *logs {
	return &logs{log: log, given: map[string]*logFile{}, open: map[string]*logWriter{}}
}

// Open returns the buffer of a log that is not open. See proxy.Logs.
func (l *logs) Open(name string) *accesslog.Buffer {
	w := &logWriter{
		name: name, log: l.log, buffer: accesslog.NewBuffer(),
		files: make(chan *logFile), giveUp: make(chan struct{}), ended: make(chan struct{}),
		file: l.given[name],
	}
	delete(l.given, name)
	if name == config.LogStderr {
		w.file = standardError()
	}
	l.open[name] = w
	go w.run()
	return w.buffer
}

// Close gives a log up. See proxy.Logs.
func (l *logs) Close(name string) {
	w := l.open[name]
	delete(l.open, name)
	l.closing = slices.DeleteFunc(l.closing, (*logWriter).hasEnded)
	l.closing = append(l.closing, w)
	time.AfterFunc(logPatience, w.abandon)
}

// give takes the file of a log over. It returns the writer that is to be told,
// or nil where the log is not open yet.
func (l *logs) give(name string, f *logFile) (*logWriter, error) {
	if w := l.open[name]; w != nil {
		return w, nil
	}
	old := l.given[name]
	l.given[name] = f
	if old != nil {
		return nil, old.close()
	}
	return nil, nil
}

// forget closes the files that were for a generation that does not come, or
// that has not named them.
func (l *logs) forget() error {
	var errs []error
	for name, f := range l.given {
		errs = append(errs, f.close())
		delete(l.given, name)
	}
	return errors.Join(errs...)
}

// finish writes the last lines of all logs, or gives up soon, and returns how
// many lines were lost. The loop has ended.
func (l *logs) finish() (lost uint64) {
	end := time.Now().Add(logPatience)
	writers := slices.AppendSeq(l.closing, maps.Values(l.open))
	for _, w := range writers {
		w.buffer.Close(time.Until(end))
	}
	if !haveEnded(writers, time.Until(end)) {
		for _, w := range writers {
			w.abandon()
		}
		haveEnded(writers, 5*logPoll)
	}
	for _, w := range writers {
		lost += w.buffer.Lost()
	}
	return lost
}

// haveEnded waits for all writers to end, but no longer than patience, and
// reports whether they have.
func haveEnded(writers []*logWriter, patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for _, w := range writers {
		select {
		case <-w.ended:
		case <-timer.C:
			return false
		}
	}
	return true
}

// logWriter writes the lines of one log. Its goroutine may wait as long as it
// must; the loop drops lines meanwhile.
type logWriter struct {
	name   string
	log    *slog.Logger
	buffer *accesslog.Buffer
	files  chan *logFile
	giveUp chan struct{} // closed: nothing is waited for any more
	once   sync.Once     // of giveUp
	ended  chan struct{} // closed when the goroutine has ended

	// Of the goroutine.
	file   *logFile // nil: it has not come yet
	missed int      // lines lost since the last warning
	warned time.Time
}

// abandon makes the writer wait for nothing any more. Any goroutine may call it.
func (w *logWriter) abandon() { w.once.Do(func() { close(w.giveUp) }) }

func (w *logWriter) hasEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// turn makes the writer go on in another file, which it takes over.
func (w *logWriter) turn(f *logFile) error {
	timer := time.NewTimer(logSwitch)
	defer timer.Stop()
	select {
	case w.files <- f:
		return nil
	case <-w.ended:
		return f.close()
	case <-timer.C:
		return errors.Join(errLogBusy, f.close())
	}
}

// run writes until the buffer is closed.
func (w *logWriter) run() {
	defer close(w.ended)
	if w.file == nil {
		select {
		case w.file = <-w.files:
		case <-w.giveUp:
		}
	}
	for {
		select {
		case lines, open := <-w.buffer.Full():
			if !open {
				w.take(nil)
				return
			}
			n, err := w.write(lines)
			if n < len(lines) {
				w.warn(err, bytes.Count(lines[n:], []byte{'\n'}))
			}
			w.buffer.Done(lines, n)
		case f := <-w.files:
			w.take(f)
		}
	}
}

// take goes on in f, or in nothing.
func (w *logWriter) take(f *logFile) {
	old := w.file
	w.file = f
	if old != nil {
		if err := old.close(); err != nil { // what NFS has to say about the lines before
			w.warn(err, 0)
		}
	}
}

// write writes lines and returns how many bytes of them are out, a torn line's
// too.
func (w *logWriter) write(lines []byte) (n int, err error) {
	since := time.Now()
	for n < len(lines) {
		k := 0
		switch {
		case w.file == nil:
			return n, errLogNoFile
		case w.file.regular:
			k, err = w.file.appendLines(lines[n:])
		case w.file.ready(logPoll):
			k, err = w.file.put(lines[n:])
		default:
			select {
			case <-w.giveUp:
				return n, errLogStuck
			case f := <-w.files:
				w.take(f)
			default:
			}
			if time.Since(since) > logPatience {
				w.warn(errLogStuck, 0)
			}
		}
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// warn tells that lines were lost, but not again and again, nor to where they
// were lost.
func (w *logWriter) warn(err error, lines int) {
	w.missed += lines
	if w.name == config.LogStderr || time.Since(w.warned) < logWarnEvery {
		return
	}
	w.warned = time.Now()
	w.log.Error("access log", "file", w.name, "err", err, "lines_lost", w.missed)
	w.missed = 0
}

// takeLog takes the file of a log over that the master has opened.
func (w *worker) takeLog(name string, fd int) error {
	if fd < 0 {
		return errors.New("a log without its file")
	}
	f, err := newLogFile(fd)
	if err != nil {
		return err
	}
	var open *logWriter
	var giving error
	err = w.onLoop(func() { open, giving = w.logs.give(name, f) })
	switch {
	case err != nil:
		return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	case open != nil:
		return open.turn(f)
	}
	return giving
}

// forgetLogs closes the files that nothing in force names.
func (w *worker) forgetLogs() error {
	var forgetting error
	err := w.onLoop(func() { forgetting = w.logs.forget() })
	return errors.Join(err, forgetting)
}
