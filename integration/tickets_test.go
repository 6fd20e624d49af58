package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// visitor is a client that resumes its session in each connection.
type visitor struct {
	t      testing.TB
	addr   string
	config *tls.Config
}

func newVisitor(a *authority, addr string, version uint16) *visitor {
	v := &visitor{a.t, addr, a.trusting("cup.test")}
	v.config.MinVersion, v.config.MaxVersion = version, version
	v.config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return v
}

// visit makes one request on a connection of its own, and returns that.
func (v *visitor) visit() *tls.Conn {
	v.t.Helper()
	conn, err := tls.Dial("tcp", v.addr, v.config)
	require.NoError(v.t, err)
	v.t.Cleanup(func() { conn.Close() })
	v.ask(conn)
	return conn
}

func (v *visitor) ask(conn *tls.Conn) {
	v.t.Helper()
	require.NoError(v.t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.WriteString(conn, "GET /100/1 HTTP/1.1\r\nHost: cup.test\r\n\r\n")
	require.NoError(v.t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(v.t, err)
	require.NoError(v.t, checkContent(res.Body, 1, 100))
}

// A client resumes its session at whichever worker it comes to, and whatever
// became of the one that it came from.
func TestResumption(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b, a := startBackend(t, "a"), newAuthority(t)
		logFile := filepath.Join(t.TempDir(), "access.log")
		c, _ := startFrom(t, engine, configOf([]string{b.addr}, `"workers": 4`, `"ssl": {`+a.issue("cup.test", nil).ssl()+"}",
			fmt.Sprintf(`"access_log": {"file": %q, "format": "json"}`, logFile)))
		visitors := []*visitor{newVisitor(a, c.addr, tls.VersionTLS12), newVisitor(a, c.addr, tls.VersionTLS13)}
		const times = 100
		for i := range times + 1 {
			switch i {
			case times / 4:
				waitForLines(t, logFile, 2*i) // a killed worker's last ones may be lost
				c.kill(0)
			case times / 2:
				_, stderr, code := c.cupctl("reload")
				require.Zero(t, code, stderr)
			case times * 3 / 4:
				c.upgrade()
			}
			for _, v := range visitors {
				conn := v.visit()
				require.Equal(t, i > 0, conn.ConnectionState().DidResume, "connection %d", i)
				conn.Close()
			}
		}
		s, err := c.scraper()()
		require.NoError(t, err)
		for _, version := range []string{"1.2", "1.3"} {
			count := func(resumed string) float64 {
				return s.values[fmt.Sprintf("cloudcup_tls_sessions_total{version=%s,resumed=%s}", version, resumed)]
			}
			// A worker that was killed in between may have counted its last.
			require.EqualValues(t, 1, count("no"))
			require.InDelta(t, times, count("yes"), 1)
		}
		checkTLSInLog(t, logFile, times)
	})
}

// waitForLines waits until a file has at least n lines, and returns its text.
func waitForLines(t *testing.T, file string, n int) string {
	t.Helper()
	var text []byte
	eventually(t, fmt.Sprint(n, " lines in ", filepath.Base(file)), func() bool {
		var err error
		text, err = os.ReadFile(file)
		require.NoError(t, err)
		return bytes.Count(text, []byte("\n")) >= n
	})
	return string(text)
}

// A resumed session is the client's that began it, for as long as its certificate
// would be asked for and believed.
func TestResumptionAsClient(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, strangers := newAuthority(t), newAuthority(t)
		server, ca := a.issue("cup.test", nil), filepath.Join(t.TempDir(), "ca.crt")
		trust := func(who *authority) {
			text, err := os.ReadFile(who.file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(ca, text, 0o644))
		}
		with := func(mode string) string {
			client := fmt.Sprintf(`, "client": {"mode": %q, "ca_file": %q}`, mode, ca)
			if mode == "off" {
				client = ""
			}
			return configOf([]string{echoFields(t)}, oneWorker, `"ssl": {`+server.ssl()+client+`}`)
		}
		trust(a)
		c := startCup(t, engine, with("request"))
		reload := func(mode string) {
			c.write(with(mode))
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
		}
		alice := a.issue("Alice", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		for name, version := range tlsVersions {
			client := newVisitor(a, c.addr, version).config
			client.Certificates = []tls.Certificate{alice.Certificate}
			for _, step := range []struct {
				mode    string
				believe *authority
				resumed bool
				told    bool
				refused bool
			}{
				{"request", a, false, true, false},
				{"request", a, true, true, false},
				{"require", a, false, true, false},
				{"require", a, true, true, false},
				{"require", strangers, false, false, true},
				{"request", strangers, false, false, true},
				{"off", a, false, false, false},
				{"off", a, true, false, false},
				{"require", a, false, true, false},
			} {
				trust(step.believe)
				reload(step.mode)
				resumed, head, err := askAs(c.addr, client)
				require.Equal(t, step.refused, err != nil, "%s: %+v: %v", name, step, err)
				require.Equal(t, step.resumed, resumed, "%s: %+v", name, step)
				require.Equal(t, step.told, strings.Contains(head, "\r\nX-Client-Cert-Subject: CN=Alice,O=Cup\r\n"), "%s: %+v: %s", name, step, head)
			}
			reload("request")
		}
	})
}

// askAs makes a request on a connection of its own. It tells whether that resumed
// a session, and the head of the request that the backend got.
func askAs(addr string, client *tls.Config) (resumed bool, head string, err error) {
	conn, err := tls.Dial("tcp", addr, client)
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	if _, err = io.WriteString(conn, getFrom("cup.test")); err != nil {
		return false, "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return false, "", err
	}
	text, err := io.ReadAll(res.Body)
	return conn.ConnectionState().DidResume, string(text), err
}

// checkTLSInLog waits for the lines of TestResumption.
func checkTLSInLog(t *testing.T, file string, times int) {
	type line struct {
		TLS, Suite, SNI string
		Resumed         bool
	}
	counts := map[line]int{}
	for one := range strings.Lines(waitForLines(t, file, 2*(times+1))) {
		var l line
		require.NoError(t, json.Unmarshal([]byte(one), &l))
		counts[l]++
	}
	total := map[string]int{}
	for l, n := range counts {
		require.Equal(t, "cup.test", l.SNI)
		require.Regexp(t, "^TLS_", l.Suite)
		total[fmt.Sprint(l.TLS, l.Resumed)] += n
	}
	require.Equal(t, map[string]int{"1.2false": 1, "1.2true": times, "1.3false": 1, "1.3true": times}, total)
}

// A renewed certificate is shown in new handshakes after a reload; connections
// that are open go on.
func TestRenewedCertificate(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b, a := startBackend(t, "a"), newAuthority(t)
		p := a.issue("cup.test", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(6*24*time.Hour + time.Hour) })
		c := startCup(t, engine, configOf([]string{b.addr}, `"workers": 2`, `"ssl": {`+p.ssl()+"}"))
		certs := func() []control.Certificate {
			list, err := c.admin.Certificates()
			require.NoError(t, err)
			require.Len(t, list, 1)
			return list
		}
		first := certs()[0]
		require.Equal(t, p.crt, first.File)
		require.Equal(t, []string{"cup.test", "127.0.0.1"}, first.Names)
		require.Equal(t, []string{c.addr}, first.Listeners)
		require.Equal(t, 6, first.DaysLeft)
		_, err := c.await("a certificate expires soon")
		require.NoError(t, err)

		old := newVisitor(a, c.addr, tls.VersionTLS13)
		open := old.visit()
		renewed := a.issue("cup.test", nil)
		require.NoError(t, os.Rename(renewed.crt, p.crt))
		require.NoError(t, os.Rename(renewed.key, p.key))
		if long() { // who waits for the watch
			_, err := c.await("changed certificates in use")
			require.NoError(t, err)
		} else {
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
		}
		old.ask(open)
		now := newVisitor(a, c.addr, tls.VersionTLS13).visit()
		require.Equal(t, renewed.Leaf.SerialNumber, now.ConnectionState().PeerCertificates[0].SerialNumber)
		require.Equal(t, 89, certs()[0].DaysLeft)
	})
}
