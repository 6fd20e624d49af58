package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// activated is cloud-cup with sockets handed over as a service manager does it
// (sd_listen_fds(3)).
func activated(t *testing.T, engine, config string, listeners ...net.Listener) (*cup, error) {
	t.Helper()
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh",
		program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(listeners)), "LISTEN_FDNAMES=http:other")
	for _, l := range listeners {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		require.NoError(t, err)
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	return launch(t, file, socket, cmd)
}

// Sockets that are handed over are used, and who connected before the start is
// served.
func TestActivation(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		tcp, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "cup.sock")
		local, err := net.Listen("unix", path)
		require.NoError(t, err)
		defer local.Close()
		addr := tcp.Addr().String()
		backend := startEcho(t)
		config := rooted(configOf([]string{backend}, `"workers": 2`), addr, "127.0.0.1:0", "unix:"+path)

		early := browse(t, addr)
		require.NoError(t, early.ask("GET", "/", ""))
		c, err := activated(t, engine, config, local, tcp)
		require.NoError(t, err)
		require.NoError(t, tcp.Close())
		_, err = early.response()
		require.NoError(t, err, "a connection from before the start")
		require.NoError(t, early.conn.Close())
		listeners := c.status().Listeners
		require.Equal(t, []string{addr, listeners[1], "unix:" + path}, listeners)

		_, err = text(unixClient(path))
		require.NoError(t, err)
		l := startLoad(t, 8, func(int, int) error {
			b, err := openBrowser(addr)
			if err != nil {
				return err
			}
			defer b.conn.Close()
			if err = b.ask("GET", "/", ""); err == nil {
				_, err = b.response()
			}
			return err
		})
		l.more(200)
		c.reload(rooted(configOf([]string{backend}, `"workers": 3`), addr, "unix:"+path))
		l.more(200)
		require.Empty(t, l.stop())
		for slot, w := range c.status().Workers {
			require.NotZero(t, w.Totals.Accepted, "worker %d", slot)
			environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", w.PID))
			require.NoError(t, err)
			require.NotContains(t, string(environment), "LISTEN_")
		}
		c.stop()
		c.stopped = true
		_, err = os.Stat(path)
		require.NoError(t, err, "the file is the service manager's")
	})
}

// A socket that root does not have is refused by name.
func TestActivationRefusesOthers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		other, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		defer other.Close()
		c, err := activated(t, engine, configOf([]string{startEcho(t)}), other)
		require.Error(t, err)
		require.Contains(t, c.log.text(), other.Addr().String()+" is not an address of root")
		require.Equal(t, 1, c.wait())
	})
}
