//go:build peers

package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// openTalk starts a program that is talked to over its standard input and
// returns what it has said so far.
func openTalk(t *testing.T, name string, args ...string) (in io.WriteCloser, said func() string, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(name, args...)
	out := &talk{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	started := make(chan error)
	starter <- func() { started <- cmd.Start() }
	require.NoError(t, <-started)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return in, out.String, cmd
}

// talk is what a program says.
type talk struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *talk) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *talk) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// openssl speaks both versions, updates keys, may not renegotiate, and may leave
// at any time.
func TestPeersOpenSSL(t *testing.T) {
	openssl := peer(t, "openssl")
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, oneWorker, `"ssl": {`+a.issue("cup.test", nil).ssl()+`}`))
		request := "GET /5/1 HTTP/1.1\r\nHost: cup.test\r\n\r\n"
		for version, protocol := range map[string]string{"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"} {
			in, said, _ := openTalk(t, openssl, "s_client", "-connect", c.addr, "-servername", "cup.test", "-CAfile", a.file,
				"-verify_return_error", "-verify_hostname", "cup.test", version)
			answers := 0
			ask := func() {
				_, err := io.WriteString(in, request)
				require.NoError(t, err)
				answers++
				eventually(t, "the answer", func() bool { return strings.Count(said(), "HTTP/1.1 200 OK") == answers })
			}
			ask()
			require.Contains(t, said(), protocol)
			require.Contains(t, said(), "Verify return code: 0 (ok)")
			if version == "-tls1_3" {
				for i, letter := range []string{"k", "K"} { // ours, and then the server's too
					_, err := io.WriteString(in, letter+"\n")
					require.NoError(t, err)
					eventually(t, "the update", func() bool { return strings.Count(said(), "KEYUPDATE") == i+1 })
					ask()
				}
			} else {
				_, err := io.WriteString(in, "R\n")
				require.NoError(t, err)
				eventually(t, "the refusal", func() bool { return strings.Contains(said(), "alert unexpected message") })
			}
			require.NoError(t, in.Close())
		}
		eventually(t, "all to be gone", func() bool { return c.status().Workers[0].Connections == 0 })
	})
}

// Loads over TLS see no error.
func TestPeersLoadOverTLS(t *testing.T) {
	dir, sum := site(t)
	addr := startNginx(t, dir)
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		c := startCup(t, engine, configOf([]string{addr}, oneWorker, `"ssl": {`+a.issue("cup.test", nil).ssl()+`}`))
		_, port, err := net.SplitHostPort(c.addr)
		require.NoError(t, err)
		for _, version := range []string{"1.2", "1.3"} {
			file := filepath.Join(t.TempDir(), "large")
			_, stderr, code := run(t, peer(t, "curl"), "-sS", "--fail", "--cacert", a.file, "--tlsv"+version, "--tls-max", version,
				"--resolve", "cup.test:"+port+":127.0.0.1", "-o", file, "https://cup.test:"+port+"/large.bin")
			require.Zero(t, code, stderr)
			require.Equal(t, sum, sumOf(t, file))
		}
		require.Less(t, peakRSS(t, c.workers()[0]), workerRSSMax)
		stdout, stderr, code := run(t, peer(t, "wrk"), "-t1", "-c64", "-d2s", "https://"+c.addr+"/small")
		require.Zero(t, code, stderr)
		require.Empty(t, wrkErrors.FindString(stdout), stdout)
		stdout, stderr, code = run(t, peer(t, "h2load"), "--h1", "-n", "3000", "-c", "50", "https://"+c.addr+"/small")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "3000 succeeded, 0 failed, 0 errored, 0 timeout")
		stdout, stderr, code = run(t, peer(t, "chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
			"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
			"--ignore-certificate-errors", "--user-data-dir="+t.TempDir(), "--dump-dom", "https://"+c.addr+"/index.html")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "<title>20 of 20 images</title>")
	})
}

var sslscanSuite = regexp.MustCompile(`(?m)^(?:Preferred|Accepted) +(\S+) +\d+ bits +(\S+)`)

// A scan finds no old version, no weak suite, and nothing else to complain of.
func TestPeersScan(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, oneWorker,
			fmt.Sprintf(`"ssl": {"certificates": [{%s}, {%s}]}`, a.issue("cup.test", nil).ssl(), a.issueRSA("rsa.test").ssl())))
		for _, name := range []string{"cup.test", "rsa.test"} {
			stdout, stderr, code := run(t, peer(t, "sslscan"), "--no-colour", "--sni-name="+name, c.addr)
			require.Zero(t, code, stderr)
			for _, old := range []string{"SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"} {
				require.Regexp(t, old+` +disabled`, stdout)
			}
			suites := sslscanSuite.FindAllStringSubmatch(stdout, -1)
			require.GreaterOrEqual(t, len(suites), 5, stdout)
			for _, s := range suites {
				require.Regexp(t, `^(TLS_|ECDHE-).*(GCM|POLY1305)`, s[2])
			}
			for _, bad := range []string{"Insecure", "Compression enabled", " vulnerable to heartbleed"} {
				require.NotContains(t, strings.ReplaceAll(stdout, "not vulnerable to heartbleed", ""), bad)
			}
		}
	})
}
