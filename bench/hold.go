package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// holdCommand runs this program as a client that opens connections and lets them
// rest. It takes a step for each line that it reads, and prints holdDone after
// each: opening all connections, then a request on each.
const (
	holdCommand = "hold"
	holdDone    = "done"
	// holdBatch is how many connections ask at a time.
	holdBatch = 100
)

// serveHold is the client. It ends with its input.
func serveHold(args []string) error {
	fs := pflag.NewFlagSet(holdCommand, pflag.ContinueOnError)
	count := fs.Int("connections", 1, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	target, err := url.Parse(fs.Arg(0))
	if err != nil {
		return err
	}
	h := &holder{target: target, conns: make([]net.Conn, *count)}
	steps := []func() error{h.open, h.ask}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if len(steps) == 0 {
			return errors.New("there are no more steps")
		}
		if err := steps[0](); err != nil {
			return err
		}
		steps = steps[1:]
		fmt.Println(holdDone)
	}
	return in.Err()
}

type holder struct {
	target *url.URL
	conns  []net.Conn
}

// open opens all connections, one after the other.
func (h *holder) open() error {
	for i := range h.conns {
		c, err := net.DialTimeout("tcp", h.target.Host, exchangeTimeout)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		h.conns[i] = c
		if h.target.Scheme != "https" {
			continue
		}
		secure := tls.Client(c, clientTLS(tls.X25519))
		if err := errors.Join(c.SetDeadline(time.Now().Add(exchangeTimeout)), secure.Handshake()); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		h.conns[i] = secure
	}
	return nil
}

// ask makes a request on each connection, and wants it to stay open.
func (h *holder) ask() error {
	text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", h.target.Path, h.target.Host)
	number := 0
	for some := range slices.Chunk(h.conns, holdBatch) {
		for i, c := range some {
			if err := errors.Join(c.SetDeadline(time.Now().Add(exchangeTimeout))); err != nil {
				return err
			}
			if _, err := io.WriteString(c, text); err != nil {
				return fmt.Errorf("request on connection %d: %w", number+i, err)
			}
		}
		for _, c := range some {
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return fmt.Errorf("response on connection %d: %w", number, err)
			}
			body, err := io.ReadAll(response.Body)
			switch {
			case err != nil:
				return fmt.Errorf("response on connection %d: %w", number, err)
			case response.StatusCode != http.StatusOK || response.Close:
				return fmt.Errorf("response on connection %d: %s, closes: %v: %.200s", number, response.Status, response.Close, body)
			}
			number++
		}
	}
	return nil
}

// hold is such a client, running.
type hold struct {
	ctx context.Context
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err strings.Builder
}

func startHold(ctx context.Context, command []string) (*hold, error) {
	h := &hold{ctx: ctx, cmd: exec.CommandContext(ctx, command[0], command[1:]...)}
	h.cmd.SysProcAttr = ownGroup()
	h.cmd.Stderr = &h.err
	var err1, err2 error
	var out io.Reader
	h.in, err1 = h.cmd.StdinPipe()
	out, err2 = h.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	h.out = bufio.NewScanner(out)
	return h, h.cmd.Start()
}

// next has it take a step and waits for its end.
func (h *hold) next() error {
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		return err
	}
	if !h.out.Scan() || h.out.Text() != holdDone {
		// Its end comes with what it has to say.
		_ = h.stop()
		return fmt.Errorf("%s: %s", holdCommand, strings.TrimSpace(h.err.String()))
	}
	return nil
}

// stop lets it close its connections. It may be called twice.
func (h *hold) stop() error {
	if h.cmd.ProcessState != nil {
		return nil
	}
	_ = h.in.Close() // it may have ended
	err := h.cmd.Wait()
	if h.ctx.Err() != nil {
		return context.Cause(h.ctx)
	}
	return err
}
