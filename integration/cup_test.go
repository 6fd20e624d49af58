package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// cup is a running cloud-cup: a master with its workers.
type cup struct {
	t       testing.TB
	addr    string // where it serves
	file    string // its configuration
	socket  string
	admin   *control.Client
	cmd     *exec.Cmd
	log     *logRecords
	logEnd  chan struct{} // closed when all of the log was read
	stopped bool

	ended  chan struct{} // closed when the master has ended
	result error         // of Wait, once ended is closed
}

// startCup starts cloud-cup with a configuration and waits until it serves. At
// the end of the test it is stopped and must end in order.
func startCup(t testing.TB, engine, config string, flags ...string) *cup {
	t.Helper()
	c, err := tryCup(t, engine, config, flags...)
	require.NoError(t, err)
	return c
}

// tryCup is startCup for starts that may fail.
func tryCup(t testing.TB, engine, config string, flags ...string) (*cup, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "cup.json")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	socket := filepath.Join(dir, "admin.sock")
	args := append([]string{"-io=" + engine, "--admin", "unix:" + socket}, flags...)
	return launch(t, file, socket, exec.Command(program("cloud-cup"), append(args, file)...))
}

// launch starts a prepared command that is, or becomes, a master.
func launch(t testing.TB, file, socket string, cmd *exec.Cmd) (*cup, error) {
	t.Helper()
	c := &cup{
		t: t, file: file, socket: socket, admin: control.NewClient(socket), cmd: cmd,
		log: newLogRecords(), logEnd: make(chan struct{}), ended: make(chan struct{}),
	}
	// A pipe of our own: Wait would wait for everybody who has exec's, and
	// workers may outlive their master.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stderr, cmd.Stdout = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter <- func() { started <- cmd.Start() }
	require.NoError(t, <-started)
	require.NoError(t, w.Close())
	go func() {
		// The end is that of the last process with the pipe.
		_, _ = io.Copy(c.log, r)
		r.Close()
		close(c.logEnd)
	}()
	go func() {
		c.result = cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(c.cleanUp)
	ready, err := c.await("ready")
	if err != nil {
		return c, err
	}
	c.addr = ready.Listen[0]
	return c, nil
}

// pid is the master's.
func (c *cup) pid() int { return c.cmd.Process.Pid }

// await waits for a log record with the message, or for the end.
func (c *cup) await(msg string) (record, error) {
	c.t.Helper()
	deadline := time.After(patience)
	for seen := 0; ; {
		all, changed := c.log.since(seen)
		for _, r := range all {
			if r.Msg == msg {
				return r, nil
			}
		}
		seen += len(all)
		select {
		case <-changed:
		case <-c.logEnd:
			<-c.ended
			all, _ = c.log.since(seen)
			for _, r := range all {
				if r.Msg == msg {
					return r, nil
				}
			}
			return record{}, fmt.Errorf("cloud-cup ended: %v", c.result)
		case <-deadline:
			return record{}, fmt.Errorf("no %q in the log within %v", msg, patience)
		}
	}
}

// status asks the master.
func (c *cup) status() *control.Status {
	c.t.Helper()
	s, err := c.admin.Status()
	require.NoError(c.t, err)
	return s
}

// workers are the workers' process ids by slot; all must run.
func (c *cup) workers() []int {
	c.t.Helper()
	var pids []int
	for _, w := range c.status().Workers {
		require.Equal(c.t, control.WorkerRunning, w.State)
		pids = append(pids, w.PID)
	}
	return pids
}

// kill kills the worker in a slot and waits for the one that takes its place.
func (c *cup) kill(slot int) {
	c.t.Helper()
	pid := c.workers()[slot]
	require.NoError(c.t, syscall.Kill(pid, syscall.SIGKILL))
	c.replaced(slot, pid)
}

// replaced waits until another worker than the given runs in a slot. Until the
// master has seen a death, its status shows the dead one as running.
func (c *cup) replaced(slot, pid int) {
	c.t.Helper()
	eventually(c.t, "another worker", func() bool {
		w := &c.status().Workers[slot]
		return w.State == control.WorkerRunning && w.PID != pid
	})
}

// write replaces the configuration file.
func (c *cup) write(config string) {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(c.file, []byte(config), 0o600))
}

// signal sends a signal to the master alone.
func (c *cup) signal(s syscall.Signal) {
	c.t.Helper()
	require.NoError(c.t, c.cmd.Process.Signal(s))
}

// wait waits for the master's end and returns its exit code, -1 if a signal
// ended it.
func (c *cup) wait() int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.t.Fatalf("cloud-cup does not end\n%s", c.log.text())
	}
	c.stopped = true
	return c.cmd.ProcessState.ExitCode()
}

// stop ends it in order and checks that nothing of it is left.
func (c *cup) stop() {
	c.t.Helper()
	s := c.status()
	require.Zero(c.t, s.Totals.Quarantined, "broken rules of its own")
	c.signal(syscall.SIGTERM)
	code := c.wait()
	require.Zero(c.t, code, "exit code; log:\n%s", c.log.text())
	c.allGone()
}

// allGone waits until no process of it is left.
func (c *cup) allGone() {
	c.t.Helper()
	eventually(c.t, "all processes to end", func() bool { return len(groupOf(c.pid())) == 0 })
}

// cleanUp stops what the test did not stop itself.
func (c *cup) cleanUp() {
	if !c.stopped && !c.t.Failed() {
		c.stop()
	}
	if c.t.Failed() {
		c.t.Logf("log of cloud-cup:\n%s", c.log.text())
	}
	// What is left is ours: each by its number.
	for _, pid := range groupOf(c.pid()) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
	<-c.ended
	<-c.logEnd
}

// groupOf lists the living processes of a process group.
func groupOf(group int) []int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		panic(err) // of a constant pattern
	}
	var pids []int
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		// proc_pid_stat(5): pid (comm) state ppid pgrp ...
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if fields[2] != strconv.Itoa(group) || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// rssBytes is what the process has in memory: of its own, without the pages of
// the program's file.
func rssBytes(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	total := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] == "RssAnon:" || fields[0] == "RssShmem:" {
			kib, err := strconv.Atoi(fields[1])
			require.NoError(t, err)
			total += kib << 10
		}
	}
	require.NotZero(t, total)
	return total
}

// wholeRSS is VmRSS: also what the program's file takes.
func wholeRSS(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	require.NoError(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	require.NoError(t, err)
	return pages * os.Getpagesize()
}

// descriptors is the number of open descriptors of a process.
func descriptors(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if errors.Is(err, syscall.EACCES) && os.Geteuid() != 0 {
		t.Skip("workers are not dumpable: only root sees their descriptors")
	}
	require.NoError(t, err)
	return len(list)
}

// pipes counts the descriptors of pid that are ends of pipes.
func pipes(t testing.TB, pid int) int {
	t.Helper()
	descriptors(t, pid) // whether we may look
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	n := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// record is a line of the log.
type record struct {
	Level  string
	Msg    string
	Listen []string
	Err    string
	line   string
}

// logRecords collects a program's output line by line.
type logRecords struct {
	reading sync.Mutex // held while nobody reads: the pipe fills
	mu      sync.Mutex
	part    []byte
	records []record
	changed chan struct{} // closed and replaced with each line
}

func newLogRecords() *logRecords { return &logRecords{changed: make(chan struct{})} }

func (l *logRecords) Write(p []byte) (int, error) {
	l.reading.Lock()
	defer l.reading.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		line, rest, ok := strings.Cut(string(l.part), "\n")
		if !ok {
			return len(p), nil
		}
		l.part = []byte(rest)
		r := record{line: line}
		if json.Unmarshal([]byte(line), &r) != nil {
			r = record{line: line} // not of the log: usage, or a panic
		}
		l.records = append(l.records, r)
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// since returns the records from number n on, and what is closed when there
// are more.
func (l *logRecords) since(n int) ([]record, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[n:len(l.records):len(l.records)], l.changed
}

func (l *logRecords) text() string {
	all, _ := l.since(0)
	var b strings.Builder
	for _, r := range all {
		b.WriteString(r.line + "\n")
	}
	return b.String()
}

// configOf is a configuration with one route over the backends. more are
// further members of the top level.
func configOf(backends []string, more ...string) string {
	var hosts []string
	for _, b := range backends {
		hosts = append(hosts, fmt.Sprintf(`{"host": %q}`, b))
	}
	members := append([]string{
		`"root": "127.0.0.1:0"`,
		fmt.Sprintf(`"routes": {"*": {"backends": [%s]}}`, strings.Join(hosts, ", ")),
	}, more...)
	return "{" + strings.Join(members, ",\n") + "}\n"
}

// oneWorker is for tests that look at a single process.
const oneWorker = `"workers": 1`

// refusingPort is an address that refuses connections: the port is taken and
// nobody listens.
func refusingPort(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	sa, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
}

// silentPort is an address where connections are neither accepted nor refused:
// its accept queue is full.
func silentPort(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	sa, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for { // until one is not answered any more
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			var timeout net.Error
			require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
			return addr
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// run runs a program to its end and returns what it said and its exit code.
func run(t testing.TB, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	started := make(chan error)
	starter <- func() { started <- cmd.Start() }
	require.NoError(t, <-started)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			require.NoError(t, err)
		}
	case <-time.After(pick(10*time.Minute, time.Minute)):
		require.NoError(t, cmd.Process.Kill())
		<-done
		t.Fatalf("%v does not end\n%s%s", cmd, out.String(), errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cupctl runs cupctl against c.
func (c *cup) cupctl(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	return run(c.t, program("cupctl"), append([]string{"--socket", c.socket}, args...)...)
}

// dial connects to addr.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(pick(10*time.Minute, time.Minute))))
	return conn.(*net.TCPConn)
}

// readLine reads up to a line end of w, the output of a helper process.
func readLine(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if errors.Is(err, io.EOF) {
		t.Fatal("the helper process ended")
	}
	require.NoError(t, err)
	return strings.TrimSuffix(line, "\n")
}
