//go:build peers

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Our combined line of a request is the one that nginx writes as its backend,
// byte for byte but for the second.
func TestPeersCombinedLog(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "nginx.log")
	addr := freePort(t)
	config := writeFile(t, "nginx.conf", fmt.Sprintf(`
		daemon off; master_process off; pid %[1]s/nginx.pid; error_log stderr;
		events {}
		http {
			access_log %[2]s combined;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
			server { listen %[3]s; location / { return 200 "hello"; } location /gone { return 404; } location /none { return 204; } }
		}`, dir, theirs, addr))
	serve(t, addr, exec.Command(peer(t, "nginx"), "-e", "stderr", "-c", config))
	eachEngine(t, func(t *testing.T, engine string) {
		ours := filepath.Join(t.TempDir(), "cup.log")
		require.NoError(t, os.Truncate(theirs, 0))
		c := startCup(t, engine, configOf([]string{addr}, oneWorker, fmt.Sprintf(`"access_log": {"file": %q}`, ours)))
		for _, request := range []string{
			"GET /?a=b&c=%22 HTTP/1.1\r\nUser-Agent: curl/8 (\"x\\y\")\r\nReferer: http://r/\r\n",
			"GET /gone HTTP/1.1\r\nUser-Agent: caf\xc3\xa9 \xff\ttab\r\n",
			"HEAD / HTTP/1.1\r\n",
			"GET /none HTTP/1.1\r\nReferer: -\r\n",
			"DELETE / HTTP/1.1\r\n",
		} {
			conn := dial(t, c.addr)
			_, err := fmt.Fprintf(conn, "%sHost: cup.test\r\nConnection: close\r\n\r\n", request)
			require.NoError(t, err)
			_, err = conn.Read(make([]byte, 1))
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		c.stop()
		c.stopped = true
		require.Equal(t, linesWithoutTime(t, theirs), linesWithoutTime(t, ours))
	})
}

// linesWithoutTime are a log's lines, whose seconds are one. The zone stays.
func linesWithoutTime(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	at := regexp.MustCompile(`\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d ([+-]\d{4})\]`)
	lines := strings.Split(at.ReplaceAllString(string(text), "[$1]"), "\n")
	require.Len(t, lines, 6)
	return lines
}
