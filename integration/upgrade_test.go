package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// startFrom starts cloud-cup from a file of its own, which a test can replace.
func startFrom(t *testing.T, engine, config string, flags ...string) (c *cup, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "program")
	install(t, file, program("cloud-cup"))
	path, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
	require.NoError(t, os.WriteFile(path, []byte(config), 0o600))
	args := append([]string{"-io=" + engine, "--admin", "unix:" + socket}, flags...)
	c, err := launch(t, path, socket, exec.Command(file, append(args, path)...))
	require.NoError(t, err)
	t.Cleanup(func() { endUpgraded(c) })
	return c, file
}

// endUpgraded stops the master that answers now, which is not the process that
// the test started.
func endUpgraded(c *cup) {
	c.t.Helper()
	if c.t.Failed() || len(groupOf(c.pid())) == 0 {
		return
	}
	s := c.status()
	require.Zero(c.t, s.Totals.Quarantined, "broken rules of its own")
	require.NoError(c.t, syscall.Kill(s.PID, syscall.SIGTERM))
	require.Zero(c.t, c.wait(), c.log.text())
	c.allGone()
}

// install puts a program's file at path, as a package manager does: what runs
// from there goes on.
func install(t *testing.T, path, from string) {
	t.Helper()
	text, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path+".new", text, 0o700))
	require.NoError(t, os.Rename(path+".new", path))
}

// installScript puts a script in the place of a program.
func installScript(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte("#!/bin/sh\n"+text), 0o700))
	require.NoError(t, os.Rename(path+".new", path))
}

// upgrade upgrades by cupctl and returns what it said.
func (c *cup) upgrade() *control.Upgraded {
	c.t.Helper()
	stdout, stderr, code := c.cupctl("upgrade", "-o", "json")
	require.Zero(c.t, code, "%s\n%s", stderr, c.log.text())
	u := new(control.Upgraded)
	require.NoError(c.t, json.Unmarshal([]byte(stdout), u))
	return u
}

// keptAlive is work on one connection per goroutine that is replaced only when
// the server says that it closes it, and sometimes rests longer than the grace
// of a stop.
func keptAlive(addr string) func(worker, turn int) error {
	var open sync.Map
	return func(worker, turn int) error {
		b, _ := open.Load(worker)
		if b == nil {
			opened, err := openBrowser(addr)
			if err != nil {
				return err
			}
			b = opened
			open.Store(worker, b)
		}
		if worker == 0 {
			time.Sleep(1500 * time.Millisecond) // a client that thinks; nothing is waited for
		}
		a, err := b.(*browser).get("", int64(100+turn%5*9000), int64(turn), "")
		if err != nil || a.closes {
			b.(*browser).conn.Close()
			open.Delete(worker)
		}
		return err
	}
}

// growing asks for the totals again and again and notes what shrank.
func growing(c *cup) func() []string {
	var mu sync.Mutex
	var shrunk []string
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var before control.Totals
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			s, err := c.admin.Status()
			mu.Lock()
			switch {
			case err != nil:
				shrunk = append(shrunk, err.Error())
			case s.Totals.Requests < before.Requests || s.Totals.Accepted < before.Accepted:
				shrunk = append(shrunk, fmt.Sprintf("pid %d: %d requests after %d, %d accepted after %d",
					s.PID, s.Totals.Requests, before.Requests, s.Totals.Accepted, before.Accepted))
			}
			if err == nil {
				before = s.Totals
			}
			mu.Unlock()
		}
	}()
	return func() []string {
		close(stop)
		<-stopped
		return shrunk
	}
}

// requireOrders checks that a backend is drained and has the weight 7.
func requireOrders(t *testing.T, s *control.Status, host string) {
	t.Helper()
	i := slices.IndexFunc(s.Backends, func(b control.BackendStatus) bool { return b.Host == host })
	require.GreaterOrEqual(t, i, 0)
	require.Equal(t, control.BackendDrain, s.Backends[i].State)
	require.Equal(t, 7, *s.Backends[i].WeightSet)
}

// Upgrades in a row under load: no request fails, tunnels live on, totals are
// never less than they were, and what was ordered and applied stays.
func TestUpgrade(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		text := configOf([]string{a.addr, b.addr}, `"workers": 2`, `"timeouts": {"drain": "20s"}`)
		c, file := startFrom(t, engine, text)
		kept := startLoad(t, 16, keptAlive(c.addr))
		single := startLoad(t, 8, onePerConnection(c.addr))
		u := dig(t, c.addr, "/tunnel")

		// What an operator did, and a configuration that is in no file.
		applied := filepath.Join(t.TempDir(), "applied.json")
		require.NoError(t, os.WriteFile(applied, []byte(strings.Replace(text, `"20s"`, `"21s"`, 1)), 0o600))
		_, stderr, code := c.cupctl("apply", applied)
		require.Zero(t, code, stderr)
		_, stderr, code = c.cupctl("weight", b.addr, "7")
		require.Zero(t, code, stderr)
		_, stderr, code = c.cupctl("drain", b.addr)
		require.Zero(t, code, stderr)
		before := c.status()
		stopGrowing := growing(c)

		upgrades := pick(30, 3)
		pids := map[int]bool{c.pid(): true}
		for i := range upgrades {
			single.more(100)
			kept.more(100)
			if i == 1 {
				require.NoError(t, syscall.Kill(c.status().PID, syscall.SIGUSR2))
				now := c.status().PID
				eventually(t, "the new master to answer", func() bool { return c.status().PID != now })
			} else {
				install(t, file, program("cloud-cup"))
				old := c.status().PID
				u := c.upgrade()
				require.Equal(t, old, u.Before)
				require.Equal(t, u.PID, c.status().PID)
			}
			require.NoError(t, u.echo())
			s := c.status()
			require.False(t, pids[s.PID], "another master")
			pids[s.PID] = true
			require.Equal(t, before.Generation, s.Generation)
			require.Equal(t, before.Config.SHA256, s.Config.SHA256)
			require.Equal(t, "memory", s.Config.Source)
			require.Equal(t, before.Listeners, s.Listeners)
			for _, w := range s.Workers {
				require.Equal(t, control.WorkerRunning, w.State)
			}
			requireOrders(t, s, b.addr)
		}
		single.more(100)
		kept.more(100)
		at := b.served.Load()
		single.more(100)
		require.Equal(t, at, b.served.Load(), "the backend stays drained")
		require.Empty(t, single.stop())
		require.Empty(t, kept.stop())
		require.NoError(t, u.echo(), "a tunnel of the first master")
		require.NoError(t, u.conn.Close())
		served := kept.done.Load() + single.done.Load()
		require.Empty(t, stopGrowing())
		require.Zero(t, c.wait(), "the first master")
		eventually(t, "all that was counted", func() bool { return c.status().Totals.Requests >= uint64(served) })
		report(t, fmt.Sprintf("upgrade %d times, %s", upgrades, engine), "0 failed of %d requests", served)
	})
}

// A program that cannot take over leaves everything as it is: the same
// processes, no failed request, and the reason in log and answer.
func TestUpgradeThatFails(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c, file := startFrom(t, engine, configOf([]string{b.addr}, `"workers": 2`))
		l := startLoad(t, 8, onePerConnection(c.addr))
		kept := startLoad(t, 8, keptAlive(c.addr))
		before, workers := c.status(), c.workers()
		script := func(text string) func() { return func() { installScript(t, file, text) } }
		for name, test := range map[string]struct {
			replace func()
			want    string
		}{
			"exits at once": {script("exit 7\n"), "exit status 7"},
			"ends well":     {script("exit 0\n"), "exit status 0"},
			"hangs":         {script("exec sleep 100\n"), `does not say "hello" within`},
			"is no executable": {func() {
				require.NoError(t, os.WriteFile(file+".new", []byte("what"), 0o600))
				require.NoError(t, os.Rename(file+".new", file))
			}, "permission denied"},
			"is not there":      {func() { require.NoError(t, os.Remove(file)) }, "no such file"},
			"speaks otherwise":  {script(`printf '{"version": 99, "type": "hello"}' >&3` + "\nexec sleep 100\n"), "version 99"},
			"has no words":      {script(`printf 'hello' >&3` + "\nexec sleep 100\n"), "invalid character"},
			"dies on the way":   {script(`printf '{"version": 1, "type": "hello"}' >&3` + "\nexit 5\n"), "exit status 5"},
			"refuses its flags": {script("exec " + program("cloud-cup") + ` --nope "$@"` + "\n"), "exit status 2"},
			"says no":           {script(`printf '{"version": 1, "type": "hello"}' >&3; printf '{"version": 1, "type": "failed", "error": "I would rather not"}' >&3` + "\nexec sleep 100\n"), "I would rather not"},
		} {
			test.replace()
			l.more(20)
			stdout, stderr, code := c.cupctl("upgrade")
			require.Equal(t, 1, code, "%s: %s%s", name, stdout, stderr)
			require.Contains(t, stderr, test.want, name)
			require.Contains(t, stderr, "nothing was changed", name)
			require.Equal(t, before.PID, c.status().PID, name)
			require.Equal(t, workers, c.workers(), name)
			status, _ := c.adminGet("/readyz")
			require.Equal(t, 200, status)
		}
		l.more(50)
		// By signal nobody gets an answer: the log has it.
		c.signal(syscall.SIGUSR2)
		_, err := c.await("upgrade")
		require.NoError(t, err)
		failed := append(l.stop(), kept.stop()...)
		report(t, "new programs that exit, hang, refuse or are none, "+engine, "%d failed of %d requests, master and workers stay",
			len(failed), l.done.Load()+kept.done.Load())
		require.Empty(t, failed)
		// The lock of the address names who has it.
		second, err := tryCup(t, engine, strings.Replace(configOf([]string{b.addr}), "127.0.0.1:0", c.addr, 1))
		require.Error(t, err)
		require.Equal(t, 1, second.wait())
		require.Contains(t, second.log.text(), fmt.Sprintf("another cloud-cup (pid %d)", before.PID))
		install(t, file, program("cloud-cup"))
		c.upgrade()
	})
}

// While a new program takes its time, another upgrade is refused, and a signal
// to stop ends it all.
func TestStopDuringUpgrade(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, file := startFrom(t, engine, configOf([]string{refusingPort(t)}, oneWorker))
		begun := file + ".begun"
		installScript(t, file, ": >"+begun+"; exec sleep 100\n")
		first := make(chan error, 1)
		go func() {
			_, err := c.admin.Upgrade()
			first <- err
		}()
		eventually(t, "the upgrade to be under way", func() bool {
			_, err := os.Stat(begun)
			return err == nil
		})
		_, err := c.admin.Upgrade()
		require.ErrorContains(t, err, "an upgrade is under way")
		c.signal(syscall.SIGTERM)
		require.ErrorContains(t, <-first, "cloud-cup is being stopped")
		require.Zero(t, c.wait(), c.log.text())
		c.allGone()
	})
}

// The new master is killed: who was served goes on in the old workers, and
// another master starts at once.
func TestUpgradedMasterKilled(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c, _ := startFrom(t, engine, strings.Replace(configOf([]string{b.addr}, `"workers": 2`, `"timeouts": {"drain": "10s"}`), "127.0.0.1:0", freePort(t), 1))
		u := dig(t, c.addr, "/tunnel")
		require.NoError(t, u.echo())
		upgraded := c.upgrade()
		require.NoError(t, syscall.Kill(upgraded.PID, syscall.SIGKILL))
		eventually(t, "the listener to be gone", func() bool {
			conn, err := net.Dial("tcp", c.addr)
			if err == nil {
				conn.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
		next := startCup(t, engine, strings.Replace(configOf([]string{b.addr}, `"workers": 2`), "127.0.0.1:0", c.addr, 1))
		_, err := browse(t, next.addr).get("", 100, 1, "")
		require.NoError(t, err)
		require.NoError(t, u.echo(), "the tunnel of the first master")
		require.NoError(t, u.conn.Close())
		require.Zero(t, c.wait(), c.log.text())
		c.allGone()
	})
}

// TERM for the new master while the old one drains ends both in order, and a
// second one both at once.
func TestStopWhileTheOldDrains(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		config := configOf([]string{b.addr}, `"workers": 2`, `"timeouts": {"drain": "60s"}`)
		c, _ := startFrom(t, engine, config)
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held
		upgraded := c.upgrade()
		_, err := c.await("draining after an upgrade")
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(upgraded.PID, syscall.SIGTERM))
		c.signal(syscall.SIGTERM) // as to a whole process group: it drains already
		_, err = c.await("stopping")
		require.NoError(t, err)
		b.release()
		resp, err := held.response()
		require.NoError(t, err)
		var text [2]byte
		_, err = io.ReadFull(resp.Body, text[:])
		require.NoError(t, err)
		require.NoError(t, held.conn.Close())
		require.Zero(t, c.wait(), c.log.text())
		c.allGone()

		c, _ = startFrom(t, engine, config)
		u := dig(t, c.addr, "/tunnel")
		require.NoError(t, u.echo())
		upgraded = c.upgrade()
		require.NoError(t, syscall.Kill(upgraded.PID, syscall.SIGTERM))
		_, err = c.await("stopping")
		require.NoError(t, err)
		begin := time.Now()
		require.NoError(t, syscall.Kill(upgraded.PID, syscall.SIGTERM))
		require.Equal(t, 3, c.wait(), c.log.text())
		c.allGone()
		require.Less(t, time.Since(begin), 20*time.Second)
	})
}

// Under a service manager, the new master becomes the main process.
func TestUpgradeTellsTheServiceManager(t *testing.T) {
	s := startServiceManager(t, false)
	c := startNotified(t, s, "epoll", configOf([]string{refusingPort(t)}, oneWorker), "WATCHDOG_USEC=600000")
	t.Cleanup(func() { endUpgraded(c) })
	s.next("READY=1", alive)
	u := c.upgrade()
	main := fmt.Sprintf("MAINPID=%d", u.PID)
	require.Empty(t, s.next(main, alive)["READY"], "the old one says it, whom the service manager believes")
	require.Equal(t, "1", s.next(main, alive)["READY"], "then the new one")
	_, err := c.await("ended after an upgrade")
	require.NoError(t, err)
	for range 3 {
		s.next(alive)
	}
}

// Unix sockets outlive the master that made them.
func TestUpgradeKeepsUnixSockets(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		path := filepath.Join(t.TempDir(), "web.sock")
		text := strings.Replace(configOf([]string{b.addr}, `"workers": 2`), `"127.0.0.1:0"`, `["127.0.0.1:0", "unix:`+path+`"]`, 1)
		c, _ := startFrom(t, engine, text)
		for range 2 {
			c.upgrade()
			_, err := c.await("ended after an upgrade")
			require.NoError(t, err)
			conn, err := net.Dial("unix", path)
			require.NoError(t, err)
			_, err = io.WriteString(conn, "GET /3/1 HTTP/1.1\r\nHost: cup.test\r\nConnection: close\r\n\r\n")
			require.NoError(t, err)
			text, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.Contains(t, string(text), "HTTP/1.1 200 OK")
			require.NoError(t, conn.Close())
		}
		require.NoError(t, syscall.Kill(c.status().PID, syscall.SIGTERM))
		require.Zero(t, c.wait())
		c.allGone()
		_, err := os.Lstat(path)
		require.ErrorIs(t, err, os.ErrNotExist)
		_, err = os.Lstat(c.socket)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}
