package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

func TestProbedTable(t *testing.T) {
	until := time.Date(2027, 2, 21, 9, 0, 0, 0, time.UTC)
	var text bytes.Buffer
	require.NoError(t, (&screen{out: &text}).probed([]control.Probed{
		{Backend: "127.0.0.1:8081", Address: "127.0.0.1:8081", Green: true, Seconds: 0.0004},
		{Backend: "game.internal:80", Address: "10.0.0.1:80", Seconds: 0.02, Status: 503},
		{Backend: "https://api.internal:443", Address: "10.0.0.2:443", Green: true, Seconds: 0.003, Status: 200, TLS: "1.3", NotAfter: &until},
		{Backend: "https://10.0.0.3:443", Address: "10.0.0.3:443", Seconds: 0.002, NotAfter: &until,
			Error: "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
	}))
	golden(t, "check.txt", text.Bytes())
}

// pemFile writes a certificate that a server shows, and returns where.
func pemFile(t *testing.T, certificate []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}

// Backends with TLS are asked as the configuration in force has it.
func TestCheckSecureBackends(t *testing.T) {
	t.Setenv("COLUMNS", "")
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	backend.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of every handshake that we end
	backend.StartTLS()
	defer backend.Close()
	ca := pemFile(t, backend.Certificate().Raw)
	t.Setenv("SSL_CERT_FILE", filepath.Join(t.TempDir(), "none"))
	address := backend.Listener.Addr().String()
	var how []config.BackendTLS
	socket := startMaster(t, func(w http.ResponseWriter, r *http.Request) {
		answerWith(http.StatusOK, []control.BackendStatus{{Host: "https://" + address, Addresses: []string{address}, TLS: how}})(w, r)
	})
	until := backend.Certificate().NotAfter.UTC().Format(time.RFC3339)
	trusted := config.BackendTLS{CAFile: ca}
	for _, c := range []struct {
		args string
		how  []config.BackendTLS
		code int
		want []string
	}{
		{"check", []config.BackendTLS{trusted}, 0, []string{"green", "1.3", until}},
		{"check --get /", []config.BackendTLS{trusted}, 0, []string{"green", "200", "1.3", until}},
		{"check -o json --head /", []config.BackendTLS{trusted}, 0, []string{`"tls": "1.3"`, `"certificate_not_after": "` + until, `"status": 200`}},
		{"check -b https://" + address, []config.BackendTLS{trusted}, 0, []string{"green", "1.3"}},
		{"check -b https://" + address, nil, 1, []string{"SSL_CERT_FILE in the environment"}},
		{"check", []config.BackendTLS{trusted, {CAFile: ca, ServerName: "other.test"}}, 1, []string{"green", "red", "is valid for example.com, *.example.com, not other.test", until}},
		{"check", []config.BackendTLS{{CAFile: ca + ".gone"}}, 1, []string{"red", "ca.pem.gone: no such file"}},
		{"check --socket " + socket + ".gone -b https://" + address, nil, 1, []string{"SSL_CERT_FILE in the environment"}},
	} {
		how = c.how
		code, out, errs := cupctl(append([]string{"--socket", socket}, strings.Fields(c.args)...)...)
		require.Equal(t, c.code, code, "%s: %s%s", c.args, out, errs)
		for _, want := range c.want {
			require.Contains(t, out, want, c.args)
		}
	}

	t.Setenv("SSL_CERT_FILE", ca)
	code, out, _ := cupctl("check", "--socket", socket+".gone", "-b", "https://"+address)
	require.Zero(t, code, out)
}
