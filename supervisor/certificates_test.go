package supervisor

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// pairFiles writes a self-signed certificate for name and its key, and returns
// their contents.
func pairFiles(t *testing.T, name string, from, to time.Time) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// logText is a log that can be read while it is written.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func logTo(l *logText) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logText) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// renewal is a master with a certificate and key in files.
type renewal struct {
	*rig
	log              *logText
	certificate, key string
	watch            *fileWatch
}

func startRenewal(t *testing.T, to time.Time) *renewal {
	t.Helper()
	dir := t.TempDir()
	n := &renewal{
		log: new(logText), certificate: filepath.Join(dir, "cup.pem"), key: filepath.Join(dir, "cup.key"), watch: new(fileWatch),
	}
	n.write(t, time.Now().Add(-time.Hour), to)
	n.start(t)
	return n
}

// start starts the master.
func (n *renewal) start(t *testing.T) {
	t.Helper()
	n.rig = startRig(t, func(o *Options, m *Master) {
		m.log = logTo(n.log)
		text := strings.Replace(configText("127.0.0.1:0"), "{", fmt.Sprintf(`{"ssl": {"ssl_certificate": %q, "ssl_certificate_key": %q}, `,
			n.certificate, n.key), 1)
		require.NoError(t, os.WriteFile(o.Path, []byte(text), 0o600))
	})
}

func (n *renewal) write(t *testing.T, from, to time.Time) {
	t.Helper()
	certificate, key := pairFiles(t, "cup.test", from, to)
	require.NoError(t, os.WriteFile(n.certificate, certificate, 0o600))
	require.NoError(t, os.WriteFile(n.key, key, 0o600))
}

// settle looks until nothing is to be waited for.
func (n *renewal) settle() {
	for n.lookAtFiles(n.watch) {
	}
}

func TestChangedCertificatesComeInForce(t *testing.T) {
	now := time.Now()
	n := startRenewal(t, now.Add(100*24*time.Hour))
	require.True(t, n.lookAtFiles(n.watch), "seen for the first time")
	n.settle()
	require.EqualValues(t, 1, n.generation().number, "nothing has changed")
	require.Equal(t, 99, n.Certificates()[0].DaysLeft)

	n.write(t, now.Add(-time.Hour), now.Add(200*24*time.Hour))
	require.True(t, n.lookAtFiles(n.watch), "more may change")
	require.EqualValues(t, 1, n.generation().number)
	n.settle()
	require.EqualValues(t, 2, n.generation().number)
	c := n.Certificates()
	require.Equal(t, []control.Certificate{{
		File: n.certificate, Names: []string{"cup.test"}, Issuer: "cup.test", NotBefore: c[0].NotBefore, NotAfter: c[0].NotAfter,
		DaysLeft: 199, Listeners: n.addresses(), Backends: []string{},
	}}, c)
	g, _ := ask(t, n.addresses()[0])
	require.EqualValues(t, 2, g)
	n.settle()
	require.EqualValues(t, 2, n.generation().number)
}

func TestFilesAreWatched(t *testing.T) {
	n := startRenewal(t, time.Now().Add(100*24*time.Hour))
	n.filesEvery = 10 * time.Millisecond
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		n.keepFiles(done)
		close(ended)
	}()
	n.write(t, time.Now(), time.Now().Add(2*24*time.Hour))
	eventually(t, "the new certificate", func() bool { return n.Certificates()[0].DaysLeft == 1 })
	eventually(t, "a warning", func() bool { return n.log.count("expires soon") == 1 })
	close(done)
	<-ended
}

func TestUnusableFilesChangeNothing(t *testing.T) {
	now := time.Now()
	n := startRenewal(t, now.Add(100*24*time.Hour))
	n.settle()
	certificate, key := pairFiles(t, "cup.test", now, now.Add(300*24*time.Hour))
	for what, spoil := range map[string]func(){
		"key does not belong": func() { require.NoError(t, os.WriteFile(n.certificate, certificate, 0o600)) },
		"PEM":                 func() { require.NoError(t, os.WriteFile(n.certificate, certificate[:40], 0o600)) },
		"no such file":        func() { require.NoError(t, os.Remove(n.certificate)) },
		"expired on":          func() { n.write(t, now.Add(-2*time.Hour), now.Add(-time.Hour)) },
		"not valid before":    func() { n.write(t, now.Add(time.Hour), now.Add(2*time.Hour)) },
	} {
		spoil()
		before := n.log.count(refusedText)
		for range 4 {
			n.settle()
		}
		require.EqualValues(t, 1, n.generation().number, what)
		require.Equal(t, before+1, n.log.count(refusedText), "told once")
		require.Positive(t, n.log.count(what))
		require.Contains(t, n.Certificates()[0].Refused, what)
		require.Len(t, n.Status().Refused, 1)
		require.Equal(t, n.certificate, n.Status().Refused[0].File)
		require.Contains(t, n.metricsText(), `cloudcup_certificate_refused{file="`+n.certificate+`"} 1`)
	}

	require.NoError(t, os.WriteFile(n.certificate, certificate, 0o600))
	require.NoError(t, os.WriteFile(n.key, key, 0o600))
	n.settle()
	require.EqualValues(t, 2, n.generation().number)
	require.Equal(t, 299, n.Certificates()[0].DaysLeft)
	require.Empty(t, n.Certificates()[0].Refused)
	require.Empty(t, n.Status().Refused)
	require.NotContains(t, n.metricsText(), "cloudcup_certificate_refused{")
	require.Equal(t, 1, n.log.count("can be used again"))
}

// refusedText is what the log says of a file that cannot be used.
const refusedText = "a changed certificate is not in use"

// metricsText is what a scrape gets.
func (n *renewal) metricsText() string { return string(n.appendMetrics(nil)) }

// A file that cannot be used holds up no other, whatever else is done meanwhile.
func TestUnusableFileHoldsUpNoOther(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, days time.Duration) {
		certificate, key := pairFiles(t, name+".test", now.Add(-time.Hour), now.Add(days*24*time.Hour+time.Hour))
		require.NoError(t, os.WriteFile(at(name+".pem"), certificate, 0o600))
		require.NoError(t, os.WriteFile(at(name+".key"), key, 0o600))
	}
	for _, name := range []string{"a", "b", "ca"} {
		write(name, 100)
	}
	n := &renewal{log: new(logText), watch: new(fileWatch)}
	n.rig = startRig(t, func(o *Options, m *Master) {
		m.log = logTo(n.log)
		ssl := fmt.Sprintf(`{"ssl": {"certificates": [{"ssl_certificate": %q, "ssl_certificate_key": %q}, {"ssl_certificate": %q, "ssl_certificate_key": %q}],
			"client": {"mode": "request", "ca_file": %q}}, `, at("a.pem"), at("a.key"), at("b.pem"), at("b.key"), at("ca.pem"))
		require.NoError(t, os.WriteFile(o.Path, []byte(strings.Replace(configText("127.0.0.1:0"), "{", ssl, 1)), 0o600))
	})
	n.settle()
	days := func() (list []int) {
		for _, c := range n.Certificates() {
			list = append(list, c.DaysLeft)
		}
		return list
	}

	write("b", 200)
	require.NoError(t, os.WriteFile(at("a.pem"), []byte("-----BEGIN CERT"), 0o600))
	require.NoError(t, os.Remove(at("ca.pem")))
	n.settle()
	require.Equal(t, []int{100, 200}, days())
	require.EqualValues(t, 2, n.generation().number)
	refused := n.Status().Refused
	require.Len(t, refused, 2)
	require.Equal(t, []string{at("a.pem"), at("ca.pem")}, []string{refused[0].File, refused[1].File})
	require.Equal(t, at("ca.pem")+": no such file or directory", refused[1].Cause)
	require.Equal(t, refused[0].Cause, n.Certificates()[0].Refused)

	// The next renewal, a new worker and the next master go by what is in use.
	write("b", 300)
	n.settle()
	require.Equal(t, []int{100, 300}, days())
	require.Equal(t, refused, n.Status().Refused, "since when, too")
	require.Equal(t, 2, n.log.count(refusedText), "told once of each")
	_, err := n.Reload()
	require.ErrorContains(t, err, "no such file", "what is asked for is done, or nothing is")
	n.handsOver(t, func(*handedConfig) {})
	slot := 0
	pid := n.pids()[slot]
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "another worker", func() bool { return n.pids()[slot] != pid && len(n.running()) == 2 })

	// One becomes good again: as it was, or renewed.
	write("ca", 100)
	n.settle()
	require.Len(t, n.Status().Refused, 1)
	require.Equal(t, 1, n.log.count("can be used again"))
	write("a", 400)
	_, err = n.Reload()
	require.NoError(t, err)
	require.Empty(t, n.Status().Refused)
	require.Equal(t, []int{400, 300}, days())
	n.handsOver(t, func(c *handedConfig) { c.Files = nil }) // as a version before does
}

// handsOver checks that another master goes by the same configuration, after edit
// of what it is told.
func (n *renewal) handsOver(t *testing.T, edit func(*handedConfig)) {
	t.Helper()
	handed := n.generation().handed()
	text, err := json.Marshal(&handed)
	require.NoError(t, err)
	handed = handedConfig{}
	require.NoError(t, json.Unmarshal(text, &handed))
	edit(&handed)
	next, err := handed.generation()
	require.NoError(t, err)
	require.Equal(t, n.generation().cfg, next.cfg)
}

// A file that is written to again and again holds up others for a time only.
func TestRestlessFile(t *testing.T) {
	n := startRenewal(t, time.Now().Add(100*24*time.Hour))
	n.settle()
	n.write(t, time.Now().Add(-time.Hour), time.Now().Add(200*24*time.Hour))
	at := time.Now()
	for range unsettledMax - 1 {
		at = at.Add(time.Second)
		require.NoError(t, os.Chtimes(n.key, at, at))
		require.True(t, n.lookAtFiles(n.watch))
	}
	require.NoError(t, os.Chtimes(n.key, at, at.Add(time.Second)))
	require.False(t, n.lookAtFiles(n.watch))
	require.EqualValues(t, 2, n.generation().number)
}

// Renewed as Kubernetes does it: the files are links through a link to a folder,
// which is put in another one's place. A pair that does not belong together yet,
// or is half written, changes nothing meanwhile.
func TestLinkedCertificates(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	folder := func(name string, days time.Duration) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(path, 0o700))
		certificate, key := pairFiles(t, "cup.test", now.Add(-time.Hour), now.Add(days*24*time.Hour+time.Hour))
		require.NoError(t, os.WriteFile(filepath.Join(path, "tls.crt"), certificate, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(path, "tls.key"), key, 0o600))
		return name
	}
	swap := func(to string) {
		next := filepath.Join(dir, "..data_tmp")
		require.NoError(t, os.Symlink(to, next))
		require.NoError(t, os.Rename(next, filepath.Join(dir, "..data")))
	}
	swap(folder("..one", 100))
	n := &renewal{log: new(logText), certificate: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"), watch: new(fileWatch)}
	require.NoError(t, os.Symlink("..data/tls.crt", n.certificate))
	require.NoError(t, os.Symlink("..data/tls.key", n.key))
	n.start(t)
	n.settle()
	require.Equal(t, 100, n.Certificates()[0].DaysLeft)

	two := folder("..two", 200)
	swap(two)
	n.settle()
	require.EqualValues(t, 2, n.generation().number)
	require.Equal(t, 200, n.Certificates()[0].DaysLeft)

	// In place, one after the other, the certificate in two writes.
	file := func(name string) string { return filepath.Join(dir, two, name) }
	three := folder("three", 300)
	certificate, err := os.ReadFile(filepath.Join(dir, three, "tls.crt"))
	require.NoError(t, err)
	for _, part := range [][]byte{certificate[:len(certificate)/2], certificate} {
		require.NoError(t, os.WriteFile(file("tls.crt"), part, 0o600))
		n.settle()
		_, err := n.Reload()
		require.Error(t, err, "nor does a reload take it")
		require.EqualValues(t, 2, n.generation().number)
		g, _ := ask(t, n.addresses()[0])
		require.EqualValues(t, 2, g, "the old pair is served")
	}
	require.NoError(t, os.Rename(filepath.Join(dir, three, "tls.key"), file("tls.key")))
	n.settle()
	require.EqualValues(t, 3, n.generation().number)
	require.Equal(t, 300, n.Certificates()[0].DaysLeft)
}

// Each warning comes once, and again for another certificate.
func TestExpiryIsTold(t *testing.T) {
	now := time.Now()
	n := startRenewal(t, now.Add(40*24*time.Hour))
	end := n.generation().certificates[0].leaf.NotAfter
	var told warnings
	for _, c := range []struct {
		left  time.Duration
		lines int
	}{
		{35 * 24 * time.Hour, 0}, {30*24*time.Hour + time.Second, 0}, {30 * 24 * time.Hour, 1}, {20 * 24 * time.Hour, 1},
		{7 * 24 * time.Hour, 2}, {2 * 24 * time.Hour, 2}, {time.Hour, 3}, {time.Minute, 3}, {-time.Second, 4}, {-time.Hour, 4},
	} {
		told = n.expiring(n.generation(), told, end.Add(-c.left))
		require.Equal(t, c.lines, n.log.count(n.certificate), c.left)
	}
	require.Equal(t, 1, n.log.count("has expired"))
	require.Equal(t, 1, n.log.count("days_left=30"))
	require.Equal(t, 1, n.log.count("days_left=-1"))
}
