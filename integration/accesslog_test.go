package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// loggedConfig has a route per format, all over one backend and on two workers.
// What is not said otherwise goes to the file.
func loggedConfig(backend, file string) string {
	route := func(pattern, format string) string {
		return fmt.Sprintf(`%q: {"backends": [{"host": %q}], "access_log": {"format": %q}}`, pattern, backend, format)
	}
	routes := []string{route("*", "combined"), route("/cup/*", "cup"), route("/json/*", "json")}
	return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "access_log": {"file": %q, "format": "combined"}, "routes": {%s}}`,
		file, strings.Join(routes, ",\n"))
}

// logFormats are what a request to loggedConfig may begin with.
var logFolders = []string{"combined", "cup", "json"}

// writers is work that makes requests with numbers of their own, on one
// connection for each goroutine, to every format. Each gets its 200.
type writers struct {
	addr string
	open sync.Map // *browser by worker
}

func (w *writers) turn(worker, turn int) error {
	kept, _ := w.open.Load(worker)
	b, _ := kept.(*browser)
	if b == nil {
		var err error
		if b, err = openBrowser(w.addr); err != nil {
			return err
		}
		w.open.Store(worker, b)
	}
	target := fmt.Sprintf("/%s/%d.%d", logFolders[turn%len(logFolders)], worker, turn)
	err := b.ask("GET", target, "User-Agent: \"w\\\r\nReferer: http://r\r\n")
	if err == nil {
		err = b.hello()
	}
	if err != nil {
		b.conn.Close()
		w.open.Delete(worker)
	}
	return err
}

// hello reads a plain backend's response.
func (b *browser) hello() error {
	resp, err := b.response()
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("body %q", body)
	}
	return err
}

func (w *writers) close() {
	w.open.Range(func(_, b any) bool {
		b.(*browser).conn.Close()
		return true
	})
}

var (
	combinedLine = regexp.MustCompile(`^127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET (/combined/\S+) HTTP/1\.1" 200 5 "http://r" "\\x22w\\x5C"$`)
	cupLine      = regexp.MustCompile(`^127\.0\.0\.1 - - \[[^]]+\] "GET (/cup/\S+) HTTP/1\.1" 200 5 "http://r" "\\x22w\\x5C" total=\d+\.\d{6} connect=(?:-|\d+\.\d{6}) ` +
		`head=\d+\.\d{6} own=(?:-|\d+\.\d{6}) in=0 route="/cup/\*" backend="127\.0\.0\.1:\d+" attempts=1 reason=- id="[0-9a-f]{32}" tls=- suite=- sni="-" resumed=- slot=[01] engine=(?:uring|epoll)$`)
)

// targetOf is the request that a line tells of. Any byte that is not as it must
// be fails the test.
func targetOf(t testing.TB, line string) string {
	t.Helper()
	if strings.HasPrefix(line, "{") {
		var o struct {
			Target, Method, Protocol, Referer, Engine string
			Agent                                     string `json:"user_agent"`
			Status, Bytes                             int
		}
		require.NoError(t, json.Unmarshal([]byte(line), &o), line)
		require.Equal(t, "GET HTTP/1.1 http://r \"w\\ 200 5", fmt.Sprint(o.Method, " ", o.Protocol, " ", o.Referer, " ", o.Agent, " ", o.Status, " ", o.Bytes), line)
		require.Contains(t, o.Target, "/json/")
		return o.Target
	}
	for _, format := range []*regexp.Regexp{combinedLine, cupLine} {
		if m := format.FindStringSubmatch(line); m != nil {
			return m[1]
		}
	}
	require.Fail(t, "no line of a log", "%q", line)
	return ""
}

// targetsIn are the requests that a file's lines tell of, each once.
func targetsIn(t testing.TB, files ...string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.True(t, len(text) == 0 || text[len(text)-1] == '\n', "the last line of %s is torn", file)
		for line := range strings.Lines(string(text)) {
			target := targetOf(t, strings.TrimSuffix(line, "\n"))
			require.False(t, all[target], "twice: %s", target)
			all[target] = true
		}
	}
	return all
}

// Every request has one line in its format, whole, in one file that several
// workers write.
func TestAccessLogHasEveryRequest(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		file := filepath.Join(t.TempDir(), "access.log")
		c := startCup(t, engine, loggedConfig(startPlainBackend(t), file))
		w := &writers{addr: c.addr}
		l := startLoad(t, 64, w.turn)
		l.more(pick[int64](200_000, 10_000))
		require.Empty(t, l.stop())
		w.close()
		require.Zero(t, c.status().Totals.LogDropped)
		c.stop() // with what is in the buffers
		c.stopped = true
		require.Equal(t, int(l.done.Load()), len(targetsIn(t, file)))
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o640), info.Mode())
	})
}

// Lines arrive within about a second, and those of refused heads too.
func TestAccessLogIsWrittenSoon(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		file := filepath.Join(t.TempDir(), "access.log")
		c := startCup(t, engine, loggedConfig(startPlainBackend(t), file))
		b := browse(t, c.addr)
		require.NoError(t, b.ask("GET", "/combined/1", "Transfer-Encoding: x\r\n"))
		_, err := b.response()
		require.ErrorIs(t, err, errStatus)
		eventually(t, "the line of a refused request", func() bool {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			return regexp.MustCompile(`"GET /combined/1 HTTP/1\.1" (400|501) \d+ "-" "-"\n$`).Match(text)
		})
	})
}

// The files are renamed and opened anew under load: no line is lost, and what
// was renamed grows no more once the program has said so.
func TestAccessLogRotation(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		file := filepath.Join(t.TempDir(), "access.log")
		c := startCup(t, engine, loggedConfig(startPlainBackend(t), file))
		w := &writers{addr: c.addr}
		l := startLoad(t, 16, w.turn)
		files := []string{file}
		for i := range pick(50, 8) {
			l.more(300)
			old := fmt.Sprintf("%s.%d", file, i)
			require.NoError(t, os.Rename(file, old))
			c.signal(syscall.SIGUSR1)
			eventually(t, "the log to say so", func() bool {
				return strings.Count(c.log.text(), "access logs reopened") == i+1
			})
			size := sizeOf(t, old)
			l.more(300)
			require.Equal(t, size, sizeOf(t, old))
			files = append(files, old)
		}
		require.Empty(t, l.stop())
		w.close()
		c.stop()
		c.stopped = true
		require.Equal(t, int(l.done.Load()), len(targetsIn(t, files...)))
	})
}

func sizeOf(t testing.TB, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	require.NoError(t, err)
	return info.Size()
}

// A log that cannot be written makes no request fail. Its lines are dropped and
// counted, and those that are there are whole.
func TestAccessLogCannotBeWritten(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Run("reader stuck", func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fifo")
			require.NoError(t, unix.Mkfifo(file, 0o600))
			reader, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
			require.NoError(t, err)
			defer reader.Close()
			w := withoutRoom(t, engine, file)
			// Now it reads: every line is whole.
			var text []byte
			for buf := make([]byte, 64<<10); w.dropped > 0; {
				n, err := unix.Read(int(reader.Fd()), buf)
				if err != nil || n == 0 {
					break
				}
				text = append(text, buf[:n]...)
			}
			for line := range strings.Lines(string(text)) {
				targetOf(t, strings.TrimSuffix(line, "\n"))
			}
		})
		t.Run("disk full", func(t *testing.T) {
			file := filepath.Join(smallDisk(t, 256<<10), "access.log")
			w := withoutRoom(t, engine, file)
			require.Equal(t, w.served-w.dropped, len(targetsIn(t, file)))
		})
		t.Run("device full", func(t *testing.T) {
			w := withoutRoom(t, engine, "/dev/full")
			require.Equal(t, w.served, w.dropped)
		})
	})
}

// roomless is what came of a log without room.
type roomless struct{ served, dropped int }

// withoutRoom serves with a log that soon takes nothing.
func withoutRoom(t *testing.T, engine, file string) roomless {
	c := startCup(t, engine, loggedConfig(startPlainBackend(t), file))
	w := &writers{addr: c.addr}
	l := startLoad(t, 16, w.turn)
	l.more(5_000)
	eventually(t, "lines to be dropped", func() bool { return c.status().Totals.LogDropped > 1000 })
	failed := l.stop()
	report(t, t.Name(), "%d failed of %d requests, %d lines dropped", len(failed), l.done.Load(), c.status().Totals.LogDropped)
	require.Empty(t, failed)
	w.close()
	c.write(loggedConfig(startPlainBackend(t), filepath.Join(filepath.Dir(c.file), "elsewhere.log")))
	_, err := c.admin.Reload() // lets go of the file, with what it has not taken
	require.NoError(t, err)
	eventually(t, "the workers to let go of the log", func() bool {
		pids := c.workers()
		return !slices.ContainsFunc(pids, func(pid int) bool { return hasOpen(t, pid, file) })
	})
	dropped := c.status().Totals.LogDropped
	c.stop()
	c.stopped = true
	return roomless{int(l.done.Load()), int(dropped)}
}

// smallDisk is a folder on a disk of that many bytes, in a mount namespace of a
// thread of this process: nothing is to be unmounted.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	dir := t.TempDir()
	path, stop := make(chan string), make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		defer close(path)
		runtime.LockOSThread() // for good: the thread is not like the others any more
		if unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS) != nil ||
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") != nil ||
			unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)) != nil {
			return
		}
		path <- fmt.Sprintf("/proc/%d/task/%d/root%s", os.Getpid(), unix.Gettid(), dir)
		<-stop
	}()
	where := <-path
	if where == "" {
		t.Skip("this root may not mount a small disk")
	}
	return where
}

// The lines of a killed worker that were in its buffer are lost, and no others:
// those that are there are whole.
func TestAccessLogOfKilledWorkers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		file := filepath.Join(t.TempDir(), "access.log")
		c := startCup(t, engine, loggedConfig(startPlainBackend(t), file))
		w := &writers{addr: c.addr}
		l := startLoad(t, 16, w.turn)
		kills := pick(20, 3)
		for i := range kills {
			l.more(1000)
			c.kill(i % 2)
		}
		l.stop()
		w.close()
		c.stop()
		c.stopped = true
		const shortest = 120 // bytes of a line here
		lost := int(l.done.Load()) - len(targetsIn(t, file))
		require.LessOrEqual(t, lost, kills*(2<<20)/shortest)
	})
}

func TestAccessLogOnStandardError(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, loggedConfig(startPlainBackend(t), "stderr"))
		w := &writers{addr: c.addr}
		l := startLoad(t, 8, w.turn)
		l.more(500)
		require.Empty(t, l.stop())
		w.close()
		c.stop()
		c.stopped = true
		<-c.logEnd
		seen := map[string]bool{}
		for line := range strings.Lines(c.log.text()) {
			if strings.HasPrefix(line, "127.") || strings.Contains(line, `"user_agent":`) {
				seen[targetOf(t, strings.TrimSuffix(line, "\n"))] = true
			}
		}
		require.Equal(t, int(l.done.Load()), len(seen))
	})
}

// A file that cannot be opened is an error of the configuration: nothing
// changes. Files come and go with reloads.
func TestAccessLogFilesFollowReloads(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		dir := t.TempDir()
		backend := startPlainBackend(t)
		one, two, missing := filepath.Join(dir, "one"), filepath.Join(dir, "two"), filepath.Join(dir, "missing", "log")
		_, stderr, code := run(t, program("cloud-cup"), "-io="+engine, "--admin", "off", writeFile(t, "bad.json", loggedConfig(backend, missing)))
		require.Equal(t, 4, code)
		require.Contains(t, stderr, "bad.json:1:62: access_log.file: open "+missing+": no such file or directory")

		c := startCup(t, engine, loggedConfig(backend, one))
		w := &writers{addr: c.addr}
		l := startLoad(t, 8, w.turn)
		l.more(100)
		c.write(loggedConfig(backend, missing))
		_, err := c.admin.Reload()
		require.ErrorContains(t, err, "access_log.file: open "+missing)
		require.EqualValues(t, 1, c.status().Generation)
		open := descriptors(t, c.pid())
		for i := range 10 {
			c.write(loggedConfig(backend, []string{two, one}[i%2]))
			_, err = c.admin.Reload()
			require.NoError(t, err)
			l.more(100)
		}
		eventually(t, "the master to have no more descriptors", func() bool { return descriptors(t, c.pid()) <= open })
		pids := c.workers()
		eventually(t, "the workers to let go of the other file", func() bool {
			return !slices.ContainsFunc(pids, func(pid int) bool { return hasOpen(t, pid, two) })
		})
		require.Empty(t, l.stop())
		w.close()
		c.stop()
		c.stopped = true
		all := targetsIn(t, one)
		maps.Copy(all, targetsIn(t, two))
		require.Equal(t, int(l.done.Load()), len(all))
	})
}

// hasOpen reports whether a process has the file open.
func hasOpen(t testing.TB, pid int, file string) bool {
	t.Helper()
	if _, inDisk, ok := strings.Cut(file, "/root"); ok && strings.HasPrefix(file, "/proc/") {
		file = inDisk // see smallDisk
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	return slices.ContainsFunc(links, func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && to == file // what is gone meanwhile is not open
	})
}
