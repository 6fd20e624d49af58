package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Starting and stopping programs.
const (
	startTimeout = 10 * time.Second
	stopTimeout  = 10 * time.Second
	// retryPause is how long to wait before asking a starting program again.
	retryPause = 20 * time.Millisecond
	// logTailBytes of a program's output are shown when it does not start.
	logTailBytes = 2000
)

// pinned is the command that runs name on one CPU. taskset replaces itself by
// the program, so the process's id is the program's.
func pinned(cpu int, name string, args ...string) []string {
	return append([]string{"taskset", "--cpu-list", strconv.Itoa(cpu), name}, args...)
}

// ownGroup keeps Ctrl-C from a child, which is stopped by us, and stops it if
// we die.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
}

// server is a running child that listens.
type server struct {
	name    string
	address string
	secure  string // address with TLS, empty without
	cmd     *exec.Cmd
	log     string        // file with its output
	ended   chan struct{} // closed when it was waited for
}

// logFile is where the output of a program goes.
func logFile(dir, name string) string { return filepath.Join(dir, name+".log") }

// startServer starts the command with its output in a file in dir.
func startServer(dir, name, address string, command []string) (*server, error) {
	s := &server{name: name, address: address, log: logFile(dir, name), ended: make(chan struct{})}
	// Appended to: it may be emptied while the program runs.
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(command[0], command[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = ownGroup()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.ended)
	}()
	return s, nil
}

// ready waits until the server answers each load as it should.
func (s *server) ready(ctx context.Context, loads []Load) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("not ready in time"))
	defer cancel()
	for i := range loads {
		var problem error
		for s.secure != "" || !loads[i].TLS {
			err := ask(ctx, &loads[i], loads[i].url(s.address, s.secure))
			if err == nil {
				break
			}
			if problem == nil || ctx.Err() == nil {
				problem = err // that the time is over tells nothing
			}
			select {
			case <-s.ended:
				return fmt.Errorf("%s ended: %s", s.name, s.logTail())
			case <-ctx.Done():
				return fmt.Errorf("%s: %w: %w: %s", s.name, context.Cause(ctx), problem, s.logTail())
			case <-time.After(retryPause):
			}
		}
	}
	return nil
}

// ask makes one request of a load on a connection of its own, and wants a body
// of the backend's; or one message, if the load is of tunnels.
func ask(ctx context.Context, l *Load, target string) error {
	if l.Tunnel {
		u, err := url.Parse(target)
		if err == nil {
			_, err = tunnels(1, 0, u)
		}
		return err
	}
	method, body := http.MethodGet, io.Reader(nil)
	if l.RequestBytes > 0 {
		method, body = http.MethodPost, bytes.NewReader(backendBody(l.RequestBytes))
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return err
	}
	request.Close = true
	client := http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS()}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %.200s", target, response.Status, got)
	case !bytes.Equal(got, backendBody(l.Bytes)):
		return fmt.Errorf("%s: %d bytes that are not the backend's %d", target, len(got), l.Bytes)
	}
	return nil
}

func (s *server) logTail() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-logTailBytes):])
}

// stop ends the process, and after a while whatever is left of its group.
func (s *server) stop() error {
	pid := s.cmd.Process.Pid
	select {
	case <-s.ended:
		return fmt.Errorf("%s had ended by itself: %s", s.name, s.logTail())
	default:
	}
	err := unix.Kill(pid, unix.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopTimeout):
		err = fmt.Errorf("%s did not end within %v", s.name, stopTimeout)
	}
	// Usually nobody is left.
	if killed := unix.Kill(-pid, unix.SIGKILL); killed != nil && killed != unix.ESRCH {
		err = errors.Join(err, killed)
	}
	<-s.ended
	return err
}

// givenAddresses are those that freeAddress has returned: the programs that
// they are for may not have started yet.
var givenAddresses = map[string]bool{}

// freeAddress lets the kernel choose a port of the loopback interface that it
// has not chosen before.
func freeAddress() (string, error) {
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		address := l.Addr().String()
		if err := l.Close(); err != nil || !givenAddresses[address] {
			givenAddresses[address] = true
			return address, err
		}
	}
}
