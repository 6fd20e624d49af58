package worker

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/accesslog"
)

// logPath makes a place for a log file.
func logPath(t *testing.T) string { return filepath.Join(t.TempDir(), "access.log") }

// openLogFile opens path as the master does for a worker.
func openLogFile(t *testing.T, path string) *logFile {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	f, err := newLogFile(fd)
	require.NoError(t, err)
	return f
}

// patience is how long what happens soon may take on a busy machine.
const patience = 30 * time.Second

func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, patience, 5*time.Millisecond, what)
}

// line appends a numbered line to b, and reports whether there was room.
func line(b *accesslog.Buffer, lines *accesslog.Writer, n int) bool {
	return b.Append(lines, accesslog.Combined, &accesslog.Record{Target: fmt.Appendf(nil, "number %d", n)})
}

func newLines() *accesslog.Writer { return accesslog.NewWriter(0, "test") }

func TestAppendLinesEndsWhatWasTorn(t *testing.T) {
	path := logPath(t)
	require.NoError(t, os.WriteFile(path, []byte("whole\nhal"), 0o600))
	f := openLogFile(t, path)
	require.True(t, f.regular)
	n, err := f.appendLines([]byte("one\ntwo\n"))
	require.NoError(t, err)
	require.Equal(t, 8, n)
	n, err = f.appendLines([]byte("three\n"))
	require.NoError(t, err)
	require.Equal(t, 6, n)
	require.NoError(t, f.close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "whole\nhal\none\ntwo\nthree\n", string(text))
}

// Workers have an open file description each; their writes of many lines do not
// mix.
func TestLinesOfSeveralWritersDoNotMix(t *testing.T) {
	path := logPath(t)
	const writers, batches = 4, 50
	var wg sync.WaitGroup
	for i := range writers {
		f := openLogFile(t, path)
		batch := bytes.Repeat(fmt.Appendf(nil, "%d%s\n", i, strings.Repeat("x", 100+i)), 300)
		wg.Go(func() {
			for range batches {
				n, err := f.appendLines(batch)
				require.NoError(t, err)
				require.Equal(t, len(batch), n)
			}
			require.NoError(t, f.close())
		})
	}
	wg.Wait()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	require.Len(t, lines, writers*batches*300)
	for _, l := range lines {
		require.Len(t, l, 101+int(l[0]-'0'))
	}
}

// smallDisk is a folder on a disk of that many bytes, in a mount namespace of
// its own.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	dir := t.TempDir()
	path, stop := make(chan string), make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		runtime.LockOSThread() // for good: the thread is not like the others any more
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err == nil {
			if unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") == nil &&
				unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)) == nil {
				path <- fmt.Sprintf("/proc/%d/task/%d/root%s", os.Getpid(), unix.Gettid(), dir)
				<-stop
			}
		}
		close(path)
	}()
	where := <-path
	if where == "" {
		t.Skip("this root may not mount a small disk")
	}
	return where
}

// On a full disk no half line stays, and later lines are whole again.
func TestFullDiskLeavesWholeLines(t *testing.T) {
	dir := smallDisk(t, 16<<10)
	path := filepath.Join(dir, "access.log")
	f := openLogFile(t, path)
	batch := bytes.Repeat([]byte(strings.Repeat("y", 99)+"\n"), 100)
	n, err := f.appendLines(batch)
	require.NoError(t, err)
	require.Equal(t, len(batch), n)
	n, err = f.appendLines(batch)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, 16<<10/100*100-len(batch), n)
	n, err = f.appendLines(batch)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Zero(t, n)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Zero(t, len(text)%100)
	require.Equal(t, len(text)/100, bytes.Count(text, []byte("y\n")))

	require.NoError(t, os.Truncate(path, 0))
	n, err = f.appendLines(batch)
	require.NoError(t, err)
	require.Equal(t, len(batch), n)
	require.NoError(t, f.close())
}

// fifo makes a FIFO and opens both ends.
func fifo(t *testing.T) (r *os.File, w *logFile) {
	t.Helper()
	path := logPath(t)
	require.NoError(t, unix.Mkfifo(path, 0o600))
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	w, err = newLogFile(fd)
	require.NoError(t, err)
	require.False(t, w.regular)
	return r, w
}

// A reader that is stuck makes lines be dropped and nothing wait; the log goes
// on with whole lines in another file.
func TestStuckReaderAndAnotherFile(t *testing.T) {
	l := newLogs(slog.New(slog.DiscardHandler))
	r, w := fifo(t)
	open, err := l.give("x", w)
	require.NoError(t, err)
	require.Nil(t, open, "it waits for a snapshot that names it")
	b, lines := l.Open("x"), newLines()

	made := 0
	for deadline := time.Now().Add(patience); line(b, lines, made); made++ {
		require.True(t, time.Now().Before(deadline), "somebody reads")
	}
	// Before that the writer might turn to the other file at once.
	soon(t, "lines in the pipe", func() bool {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		return err == nil && n > 0
	})
	path := logPath(t)
	f := openLogFile(t, path)
	open, err = l.give("x", f)
	require.NoError(t, err)
	require.NoError(t, open.turn(f))
	for more := made + 20_000; made < more; made++ {
		soon(t, "room", func() bool { return line(b, lines, made) })
	}
	require.Zero(t, l.finish())

	pipe := make([]byte, 1<<20)
	n, err := r.Read(pipe)
	require.NoError(t, err)
	rest, err := os.ReadFile(path)
	require.NoError(t, err)
	all := bytes.Split(bytes.TrimSuffix(append(pipe[:n], rest...), []byte("\n")), []byte("\n"))
	require.Len(t, all, made)
	for i, text := range all {
		require.Contains(t, string(text), fmt.Sprintf(`"number %d" 000 0`, i))
	}
}

func TestClosedReaderLosesLines(t *testing.T) {
	var told lockedText
	l := newLogs(slog.New(slog.NewTextHandler(&told, nil)))
	r, w := fifo(t)
	_, err := l.give("x", w)
	require.NoError(t, err)
	b, lines := l.Open("x"), newLines()
	require.NoError(t, r.Close())
	for i := range 3 {
		require.True(t, line(b, lines, i))
	}
	require.True(t, b.HandOver())
	lost := uint64(0)
	soon(t, "the lines to be lost", func() bool { lost += b.Lost(); return lost == 3 })
	require.Zero(t, l.finish())
	require.Contains(t, told.String(), "broken pipe")
	require.Contains(t, told.String(), "lines_lost=3")
}

// lockedText collects what several goroutines write.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestLinesWaitForTheirFile(t *testing.T) {
	l := newLogs(slog.New(slog.DiscardHandler))
	b, lines := l.Open("x"), newLines()
	for i := range 5000 { // more than a piece takes
		require.True(t, line(b, lines, i))
	}
	path := logPath(t)
	f := openLogFile(t, path)
	open, err := l.give("x", f)
	require.NoError(t, err)
	require.NoError(t, open.turn(f))
	require.Zero(t, l.finish())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, 5000, bytes.Count(text, []byte("\n")))
}

// The end of a process is not held up by a log that nobody reads, or that has
// no file.
func TestFinishGivesUp(t *testing.T) {
	l := newLogs(slog.New(slog.DiscardHandler))
	r, w := fifo(t)
	defer runtime.KeepAlive(r)
	_, err := l.give("stuck", w)
	require.NoError(t, err)
	stuck, missing, lines := l.Open("stuck"), l.Open("missing"), newLines()
	made := 0
	for ; line(stuck, lines, made); made++ {
	}
	require.True(t, line(missing, lines, 0))
	start := time.Now()
	lost := l.finish()
	require.Greater(t, lost, uint64(100))
	require.Less(t, lost, uint64(made))
	require.Less(t, time.Since(start), patience)
}

// What is given for a generation that does not come is closed, and so is what a
// closed log had.
func TestFilesAreClosed(t *testing.T) {
	path := logPath(t)
	count := func() (n int) { // of this file: other tests have others
		links, err := filepath.Glob("/proc/self/fd/*")
		require.NoError(t, err)
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == path {
				n++
			}
		}
		return n
	}
	l := newLogs(slog.New(slog.DiscardHandler))
	for range 3 {
		_, err := l.give("x", openLogFile(t, path))
		require.NoError(t, err)
	}
	require.Equal(t, 1, count())
	require.NoError(t, l.forget())
	require.Zero(t, count())

	_, err := l.give("x", openLogFile(t, path))
	require.NoError(t, err)
	l.Open("x")
	for range 3 {
		f := openLogFile(t, path)
		w, err := l.give("x", f)
		require.NoError(t, err)
		require.NoError(t, w.turn(f))
	}
	soon(t, "the files before", func() bool { return count() == 1 })
	w := l.open["x"]
	l.Close("x")
	w.buffer.Close(0)
	soon(t, "the last file", func() bool { return count() == 0 })
	<-w.ended
	require.NoError(t, w.turn(openLogFile(t, path)), "too late, and closed")
	require.Zero(t, count())
}
