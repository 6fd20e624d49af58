//go:build peers

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// systemd's own tool hands over a socket and starts cloud-cup with the first
// connection.
func TestSystemdSocketActivate(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		dir, addr := t.TempDir(), freePort(t)
		file, socket := filepath.Join(dir, "cup.json"), filepath.Join(dir, "admin.sock")
		config := rooted(configOf([]string{startEcho(t)}, `"workers": 2`), addr)
		require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
		serve(t, addr, exec.Command(peer(t, "systemd-socket-activate"), "-l", addr,
			program("cloud-cup"), "-io="+engine, "--admin", "unix:"+socket, file))
		for i := range 50 {
			b := browse(t, addr)
			require.NoError(t, b.ask("GET", fmt.Sprintf("/%d", i), ""))
			_, err := b.response()
			require.NoError(t, err)
		}
	})
}
