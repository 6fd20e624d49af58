//go:build peers

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// testssl.sh finds nothing in what we speak that it does not find in nginx with
// the usual modern profile and the same certificate. It knows no engine.
func TestPeersTestssl(t *testing.T) {
	a := newAuthority(t)
	p := a.issue("cup.test", nil)
	dir := t.TempDir()
	theirs := freePort(t)
	config := writeFile(t, "nginx.conf", fmt.Sprintf(`
		daemon off; master_process off; pid %[1]s/nginx.pid; error_log stderr;
		events {}
		http {
			access_log off;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
			ssl_protocols TLSv1.2 TLSv1.3; ssl_prefer_server_ciphers off; ssl_session_timeout 1d; ssl_session_tickets off;
			ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305;
			server { listen %[2]s ssl; ssl_certificate %[3]s; ssl_certificate_key %[4]s; location / { return 200 "hello"; } }
		}`, dir, theirs, p.crt, p.key))
	serve(t, theirs, exec.Command(peer(t, "nginx"), "-e", "stderr", "-c", config))
	c := startCup(t, "auto", configOf([]string{startBackend(t, "a").addr}, oneWorker, `"ssl": {`+p.ssl()+`}`))

	scan := func(addr string) chan map[string]string {
		file := filepath.Join(dir, addr+".json")
		cmd := exec.Command(peer(t, "testssl"), "--quiet", "--warnings", "off", "--color", "0", "-n", "none", "--jsonfile", file,
			"--protocols", "--std", "--server-defaults", "--vulnerable", "--ip", "127.0.0.1", addr)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		started, found := make(chan error), make(chan map[string]string, 1)
		starter <- func() { started <- cmd.Start() }
		require.NoError(t, <-started)
		go func() {
			_ = cmd.Wait() // it exits by what it found
			found <- complaints(file)
		}()
		return found
	}
	ours, nginx := scan(c.addr), scan(theirs)
	reference, list := <-nginx, <-ours
	require.Contains(t, reference, "cert_revocation HIGH", "the scan of nginx is complete")
	require.Contains(t, list, "cert_revocation HIGH", "and so is ours")
	// crypto/tls says of every ticket that it is good for the seven days that
	// TLS 1.3 allows (RFC 8446 4.6.1), and cannot be told otherwise. Ours are
	// good for a day or so: their keys are forgotten.
	delete(list, "TLS_session_ticket LOW")
	for what, text := range list {
		require.Contains(t, reference, what, text)
	}
}

// complaints are the findings above INFO in a file of testssl.sh, by name and
// severity.
func complaints(file string) map[string]string {
	var all []struct{ ID, Severity, Finding string }
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	list := map[string]string{}
	if err != nil {
		list["no findings"] = err.Error()
	}
	for _, f := range all {
		if f.Severity != "OK" && f.Severity != "INFO" {
			list[f.ID+" "+f.Severity] = f.Finding
		}
	}
	return list
}
