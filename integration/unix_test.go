package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// startEcho is a backend that answers with what it is told about the client.
func startEcho(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "for %s, port %q", r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Port"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// unixClient connects to a unix socket for each request.
func unixClient(path string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

// text asks for a page and returns its body.
func text(client *http.Client, fields ...string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, "http://cup.test/", nil)
	if err != nil {
		return "", err
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %q: %w", resp.Status, body, errStatus)
	}
	return string(body), err
}

// Unix sockets are served by all workers: also under load while workers come
// and go and die, and with an abstract name.
func TestUnixSockets(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		backend := startEcho(t)
		abstract := fmt.Sprintf("@cloud-cup-test-%d-%s", os.Getpid(), engine)
		config := func(workers int) string {
			return rooted(configOf([]string{backend}, fmt.Sprintf(`"workers": %d`, workers)), "127.0.0.1:0", "unix:cup.sock", "unix:"+abstract)
		}
		c := startCup(t, engine, config(2))
		path := filepath.Join(filepath.Dir(c.file), "cup.sock")
		require.Equal(t, []string{c.addr, "unix:" + path, "unix:" + abstract}, c.status().Listeners)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.ModeSocket|0o666, info.Mode())
		for _, name := range []string{path, abstract} {
			got, err := text(unixClient(name), "X-Forwarded-For", "192.0.2.1")
			require.NoError(t, err)
			require.Equal(t, `for unix:, port ""`, got)
		}

		l := startLoad(t, 8, func(worker, _ int) error {
			got, err := text(unixClient([]string{path, abstract}[worker%2]))
			if err == nil && got != `for unix:, port ""` {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
		l.more(100)
		for _, workers := range []int{4, 1, 2} {
			c.reload(config(workers))
			l.more(100)
		}
		require.Empty(t, l.errors())
		for range pick(7, 3) {
			pid := c.workers()[1]
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			l.more(100)
			c.replaced(1, pid)
		}
		for _, err := range l.stop() {
			require.NotErrorIs(t, err, errStatus)
			require.NotErrorIs(t, err, syscall.ECONNREFUSED)
			var slow net.Error
			require.False(t, errors.As(err, &slow) && slow.Timeout(), "a connection was left waiting: %v", err)
		}

		c.reload(rooted(configOf([]string{backend}, `"trusted_proxies": ["unix:"]`), "127.0.0.1:0", "unix:"+abstract))
		_, err = os.Stat(path)
		require.ErrorIs(t, err, os.ErrNotExist, "an address that is removed leaves no file")
		got, err := text(unixClient(abstract), "X-Forwarded-For", "192.0.2.1")
		require.NoError(t, err)
		require.Equal(t, `for 192.0.2.1, unix:, port ""`, got)
	})
}

// Connections that stay are shared among the workers.
func TestUnixSocketIsShared(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, rooted(configOf([]string{startEcho(t)}, `"workers": 2`), "127.0.0.1:0", "unix:cup.sock"))
		path := filepath.Join(filepath.Dir(c.file), "cup.sock")
		const clients = 300
		for range clients {
			conn, err := net.Dial("unix", path)
			require.NoError(t, err)
			defer conn.Close()
		}
		var shares []uint64
		eventually(t, "all connections to be accepted", func() bool {
			s := c.status()
			shares = []uint64{s.Workers[0].Connections, s.Workers[1].Connections}
			return shares[0]+shares[1] == clients
		})
		t.Logf("shares %v", shares)
		require.Greater(t, min(shares[0], shares[1]), uint64(clients/5))
	})
}

// The file of a socket that nobody listens on is replaced, one that serves is
// refused, and any other file is left alone; at the end the file goes.
func TestUnixSocketFile(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		path := filepath.Join(t.TempDir(), "cup.sock")
		config := rooted(configOf([]string{startEcho(t)}, oneWorker), "unix:"+path)
		first := startCup(t, engine, config)
		client := unixClient(path)
		_, err := text(client)
		require.NoError(t, err)
		require.Contains(t, refusals(t, engine, config), fmt.Sprintf("unix:%s: another cloud-cup (pid %d) is listening there", path, first.pid()))

		first.signal(syscall.SIGKILL)
		first.wait()
		second := startCup(t, engine, config)
		_, err = text(client)
		require.NoError(t, err)
		second.stop()
		second.stopped = true
		_, err = os.Stat(path)
		require.ErrorIs(t, err, os.ErrNotExist)

		require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
		require.Contains(t, refusals(t, engine, config), "a file that is no socket is there")
		kept, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "precious", string(kept))
	})
}

// refusals is what a cloud-cup says that does not start.
func refusals(t *testing.T, engine, config string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cup.json")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	_, stderr, code := run(t, program("cloud-cup"), "-io="+engine, "--admin", "off", file)
	require.Equal(t, 1, code)
	return stderr
}
