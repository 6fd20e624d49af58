package config

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// inSSL is a configuration with the members of ssl, and pairs in the folders a
// and b.
func inSSL(t *testing.T, members string) (text, dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, folder := range []string{"a", "b"} {
		writePair(t, filepath.Join(dir, folder), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	}
	pair := func(folder string) string {
		return `"ssl_certificate": "` + folder + `/ssl_key/certificate.crt", "ssl_certificate_key": "` + folder + `/ssl_key/private.key"`
	}
	members = strings.NewReplacer("PAIR_A", pair("a"), "PAIR_B", pair("b")).Replace(members)
	return `{"root": ":80", "ssl": {` + members + `}, "routes": {"*": {"backends": [{"host": "127.0.0.1:1"}]}}}`, dir
}

func TestSSL(t *testing.T) {
	text, dir := inSSL(t, `"certificates": [{PAIR_A}, {PAIR_B}], "min_version": "1.3", "curves": ["P-256", "X25519"],
		"client": {"mode": "request", "ca_file": "a/ssl_key/certificate.crt"}`)
	c, err := Parse("cup.json", []byte(text), dir)
	require.NoError(t, err)
	a, b := filepath.Join(dir, "a/ssl_key/"), filepath.Join(dir, "b/ssl_key/")
	require.Equal(t, &SSL{
		Certificates: []KeyPair{{a + "/certificate.crt", a + "/private.key"}, {b + "/certificate.crt", b + "/private.key"}},
		MinVersion:   SSLVersion13,
		Curves:       []tls.CurveID{tls.CurveP256, tls.X25519},
		Client:       ClientCerts{Mode: ClientRequest, CAFile: a + "/certificate.crt"},
	}, c.SSL)
	require.Len(t, c.Files, 4)

	// What was accepted is so elsewhere, without the files.
	require.NoError(t, os.RemoveAll(dir))
	again, err := Reparse("cup.json", []byte(text), dir, c.Files)
	require.NoError(t, err)
	require.Equal(t, c, again)
	delete(c.Files, a+"/private.key")
	_, err = Reparse("cup.json", []byte(text), dir, c.Files)
	require.ErrorContains(t, err, "was not handed over")
}

// What stands at the top level is for some address, or a mistake.
func TestSSLOfNoUse(t *testing.T) {
	for root, want := range map[string]string{
		`":80"`: "",
		`[":80", {"address": ":81", "ssl": "off"}]`: "",
		`{"address": ":80", "ssl": "off"}`:          "ssl is of no use: no address of root takes it from here",
		`{"address": ":80", "redirect": "https"}`:   "ssl is of no use: no address of root takes it from here",
	} {
		text, dir := inSSL(t, "PAIR_A")
		_, err := Parse("cup.json", []byte(strings.Replace(text, `":80"`, root, 1)), dir)
		if want == "" {
			require.NoError(t, err, root)
		} else {
			require.ErrorContains(t, err, want, root)
		}
	}
}

// The ssl of an address is an object, or a word.
func TestListenerSSL(t *testing.T) {
	for ssl, want := range map[string]string{
		`"off"`: "",
		`"on"`:  `ssl must be an object or "off", not "on"`,
		`false`: `ssl must be an object or "off", not a boolean`,
		`[]`:    `ssl must be an object, not a list`,
	} {
		_, err := Parse("cup.json", []byte(`{"root": [{"address": ":80", "ssl": `+ssl+`}],
			"routes": {"*": {"backends": [{"host": "127.0.0.1:1"}]}}}`), "")
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
}

// A certificate that nobody would ever get is a mistake, and one with another kind
// of key for the same name is none.
func TestSSLNames(t *testing.T) {
	dir := t.TempDir()
	slow, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for folder, names := range map[string][]string{
		"one": {"One.test", "*.One.test"}, "one-again": {"one.test"}, "more": {"one.test", "two.test"}, "rsa": {"one.test"}, "nobody": nil,
	} {
		fast, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		key := map[bool]crypto.Signer{true: slow, false: fast}[folder == "rsa"]
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
		if names == nil {
			template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		}
		writeSigned(t, filepath.Join(dir, folder), key, template)
	}
	for folders, want := range map[string]string{
		"one more rsa":   "",
		"nobody one":     "",
		"one one-again":  "this certificate is never shown",
		"more rsa one":   "",
		"one rsa nobody": "this certificate is never shown",
	} {
		var pairs []string
		for _, folder := range strings.Fields(folders) {
			pairs = append(pairs, fmt.Sprintf(`{"ssl_certificate": "%s/ssl_key/certificate.crt", "ssl_certificate_key": "%[1]s/ssl_key/private.key"}`, folder))
		}
		_, err := Parse("cup.json", []byte(`{"root": ":80", "ssl": {"certificates": [`+strings.Join(pairs, ", ")+`]},
			"routes": {"*": {"backends": [{"host": "127.0.0.1:1"}]}}}`), dir)
		if want == "" {
			require.NoError(t, err, folders)
		} else {
			require.ErrorContains(t, err, want, folders)
		}
	}
}

func TestReparseDoesNotMindExpiry(t *testing.T) {
	text, dir := inSSL(t, "PAIR_A")
	c, err := Parse("cup.json", []byte(text), dir)
	require.NoError(t, err)
	writePair(t, filepath.Join(dir, "a"), time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	for path := range c.Files {
		c.Files[path], err = os.ReadFile(path)
		require.NoError(t, err)
	}
	_, err = Reparse("cup.json", []byte(text), dir, c.Files)
	require.NoError(t, err)
	_, err = Parse("cup.json", []byte(text), dir)
	require.ErrorContains(t, err, "the certificate expired on ")
}

// Authorities may have expired, but not all of a file.
func TestExpiredAuthorities(t *testing.T) {
	past, soon := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	text, dir := inSSL(t, `PAIR_A, "client": {"mode": "request", "ca_file": "ca.pem"}`)
	ca := filepath.Join(dir, "ca.pem")
	pem := func(until time.Time) []byte {
		dir := t.TempDir()
		writePair(t, dir, past.Add(-time.Hour), until)
		text, err := os.ReadFile(filepath.Join(dir, "ssl_key", "certificate.crt"))
		require.NoError(t, err)
		return text
	}
	old, young := pem(past), pem(soon)
	require.NoError(t, os.WriteFile(ca, slices.Concat(old, young), 0o600))
	c, err := Parse("cup.json", []byte(text), dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(ca, slices.Concat(old, old), 0o600))
	_, err = Parse("cup.json", []byte(text), dir)
	require.ErrorContains(t, err, "all certificates in "+ca+" have expired, the last on "+past.UTC().Format(time.RFC3339))
	require.ErrorContains(t, err, "ca_file")

	c.Files[ca] = slices.Concat(old, old) // in use when they expired
	_, refused, err := Renew("cup.json", []byte(text), dir, c.Files)
	require.NoError(t, err)
	require.Empty(t, refused)
}

func TestSSLForms(t *testing.T) {
	for members, want := range map[string]string{
		``:                                     "ssl has neither ssl_certificate",
		`PAIR_A, "certificates": [{PAIR_B}]`:   "certificates stands beside ssl_certificate",
		`"certificates": []`:                   "certificates is empty",
		`"certificates": [{PAIR_A}, {PAIR_A}]`: "stands twice in certificates",
		`"certificates": [{"ssl_certificate": "a/ssl_key/certificate.crt"}]`:                             "ssl_certificate_key is missing in a certificate",
		`"ssl_certificate_key": "a/ssl_key/private.key"`:                                                 "ssl_certificate is missing in ssl",
		`PAIR_A, "min_version": "1.1"`:                                                                   `min_version: unknown word "1.1"`,
		`PAIR_A, "client": {"mode": "optional", "ca_file": "a/ssl_key/certificate.crt"}`:                 `unknown word "optional"; write "off", "request" or "require"`,
		`PAIR_A, "curves": ["P256"]`:                                                                     `did you mean "P-256"?`,
		`PAIR_A, "curves": ["P-256", "P-256"]`:                                                           "curve P-256 stands twice",
		`PAIR_A, "curves": []`:                                                                           "curves must be a list",
		`PAIR_A, "client": {"mode": "require"}`:                                                          "ca_file is missing",
		`PAIR_A, "client": {"ca_file": "a/ssl_key/certificate.crt"}`:                                     "ca_file is of no use",
		`PAIR_A, "client": {"mode": "require", "ca_file": "a/ssl_key/private.key"}`:                      "does not hold a certificate in PEM form",
		`PAIR_A, "client": {"mode": "require", "ca_file": "nowhere.pem"}`:                                "no such file",
		`"ssl_certificate": "a/ssl_key/certificate.crt", "ssl_certificate_key": "b/ssl_key/private.key"`: "does not belong to the certificate",
	} {
		text, dir := inSSL(t, members)
		_, err := Parse("cup.json", []byte(text), dir)
		require.ErrorContains(t, err, want, members)
		require.Len(t, err.(Errors), 1, "%v", err)
	}
}

func TestBackendTLS(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	certificate, key := filepath.Join(dir, "ssl_key/certificate.crt"), filepath.Join(dir, "ssl_key/private.key")
	t.Setenv("SSL_CERT_FILE", certificate)
	backend := func(members string) (*Backend, Files, error) {
		c, err := Parse("cup.json", []byte(`{"root": ":80", "routes": {"*": {"backends": [{`+members+`}]}}}`), dir)
		if err != nil {
			return nil, nil, err
		}
		return &c.Routes[0].Backends[0], c.Files, nil
	}
	b, files, err := backend(`"host": "https://API.internal"`)
	require.NoError(t, err)
	require.Equal(t, "https://api.internal:443", b.Host)
	require.Equal(t, "api.internal:443", b.Address())
	require.True(t, b.Secure())
	require.Equal(t, BackendTLS{}, b.TLS)
	require.Len(t, files, 1)
	require.Contains(t, files, SystemRoots)

	b, files, err = backend(`"host": "https://[::1]:8443", "tls": {"ca_file": "ssl_key/certificate.crt", "server_name": "API.internal",
		"certificate": "ssl_key/certificate.crt", "key": "ssl_key/private.key"}`)
	require.NoError(t, err)
	require.Equal(t, "https://[::1]:8443", b.Host)
	require.Equal(t, BackendTLS{certificate, "api.internal", KeyPair{certificate, key}}, b.TLS)
	require.Len(t, files, 2, "the system's authorities are not needed")

	for members, want := range map[string]string{
		`"host": "127.0.0.1:1", "tls": {}`:                       "tls is of no use",
		`"host": "https://unix:/run/x"`:                          "TLS goes over TCP",
		`"host": "HTTPS://a.b"`:                                  `did you mean "https://a.b"?`,
		`"host": "https://::1"`:                                  `did you mean "https://[::1]"?`,
		`"host": "https://a.b:0"`:                                "is not a port",
		`"host": "https://a.b/c"`:                                `did you mean "https://a.b"?`,
		`"host": "https://:443"`:                                 `did you mean "https://127.0.0.1:443"?`,
		`"host": "https:///run/x"`:                               "TLS goes over TCP",
		`"host": "https://a.b:1", "tls": {"server_name": "a b"}`: "a name has no",
		`"host": "https://a.b:1", "tls": {"certificate": "ssl_key/certificate.crt"}`: "key is missing in tls",
		`"host": "https://a.b:1", "tls": {"ca_file": "nowhere"}`:                     "no such file",
		`"host": "https://a.b:1", "tls": {"verify": false}`:                          "unknown key",
	} {
		_, _, err := backend(members)
		require.ErrorContains(t, err, want, members)
	}

	// A host with a mistake may have been meant with TLS.
	_, _, err = backend(`"host": "https://a.b/c", "tls": {"ca_file": "ssl_key/certificate.crt"}`)
	require.NotContains(t, err.Error(), "tls is of no use")

	for file, want := range map[string]string{filepath.Join(dir, "nowhere"): "no such file", key: "holds no certificate"} {
		t.Setenv("SSL_CERT_FILE", file)
		_, _, err = backend(`"host": "https://a.b:1"`)
		require.ErrorContains(t, err, "SSL_CERT_FILE in the environment: "+file)
		require.ErrorContains(t, err, want)
	}
}

// Each pair and each file of authorities is renewed by itself.
func TestRenew(t *testing.T) {
	past, soon := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	text, dir := inSSL(t, `"certificates": [{PAIR_A}, {PAIR_B}], "client": {"mode": "request", "ca_file": "ca/ssl_key/certificate.crt"}`)
	in := func(folder, name string) string { return filepath.Join(dir, folder, "ssl_key", name) }
	writePair(t, filepath.Join(dir, "ca"), past, soon)
	c, err := Parse("cup.json", []byte(text), dir)
	require.NoError(t, err)
	before := c.Files
	spoil := func(path, content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) }
	for what, test := range map[string]struct {
		spoil   func()
		refused map[string]string // causes by folder
	}{
		"all renewed":     {func() {}, nil},
		"half a file":     {func() { spoil(in("a", "certificate.crt"), "-----BEGIN CERT") }, map[string]string{"a": "cut or damaged"}},
		"key unreadable":  {func() { require.NoError(t, os.Remove(in("b", "private.key"))) }, map[string]string{"b": "private.key: no such file"}},
		"key of another":  {func() { spoil(in("a", "private.key"), string(before[in("a", "private.key")])) }, map[string]string{"a": "does not belong"}},
		"expired":         {func() { writePair(t, filepath.Join(dir, "b"), past.Add(-time.Hour), past) }, map[string]string{"b": "expired on"}},
		"not yet":         {func() { writePair(t, filepath.Join(dir, "b"), soon, soon.Add(time.Hour)) }, map[string]string{"b": "not valid before"}},
		"old authorities": {func() { writePair(t, filepath.Join(dir, "ca"), past.Add(-time.Hour), past) }, map[string]string{"ca": "have expired"}},
		"no authorities":  {func() { spoil(in("ca", "certificate.crt"), "") }, map[string]string{"ca": "does not hold a certificate"}},
		"pair and others": {func() { spoil(in("ca", "certificate.crt"), ""); spoil(in("a", "private.key"), "") }, map[string]string{"a": "private key", "ca": "certificate"}},
	} {
		for _, folder := range []string{"a", "b", "ca"} {
			writePair(t, filepath.Join(dir, folder), past, soon)
		}
		test.spoil()
		c, refused, err := Renew("cup.json", []byte(text), dir, before)
		require.NoError(t, err, what)
		causes := map[string]string{}
		for _, r := range refused {
			causes[filepath.Base(filepath.Dir(filepath.Dir(r.File)))] = r.Cause
		}
		require.Len(t, causes, len(test.refused), what)
		for _, folder := range []string{"a", "b", "ca"} {
			require.Contains(t, causes[folder], test.refused[folder], what)
			for _, name := range []string{"certificate.crt", "private.key"} {
				path := in(folder, name)
				if _, named := before[path]; !named {
					continue // the key of the authorities
				}
				want, err := before[path], error(nil)
				if test.refused[folder] == "" {
					want, err = os.ReadFile(path)
				}
				require.NoError(t, err)
				require.Equal(t, want, c.Files[path], "%s: %s", what, path)
			}
		}
		_, err = Reparse("cup.json", []byte(text), dir, c.Files)
		require.NoError(t, err, what)
	}
}

// What is in use stays so when it expires, and whose key is shared stays as it
// was together. New names are no mistake of the text.
func TestRenewKeeps(t *testing.T) {
	text, dir := inSSL(t, `"certificates": [{PAIR_A}, {PAIR_B}, {"ssl_certificate": "a2.crt", "ssl_certificate_key": "a/ssl_key/private.key"}]`)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	write := func(folder, name string, key crypto.Signer) {
		writeSigned(t, filepath.Join(dir, folder), key, &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)})
	}
	second := func() {
		require.NoError(t, os.Rename(filepath.Join(dir, "a2/ssl_key/certificate.crt"), filepath.Join(dir, "a2.crt")))
	}
	write("a2", "two.test", key)
	second()
	write("a", "one.test", key)
	c, err := Parse("cup.json", []byte(text), dir)
	require.NoError(t, err)

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	write("a", "one.test", other) // with a2.crt still the one of the old key
	write("b", "one.test", other) // never shown now
	again, refused, err := Renew("cup.json", []byte(text), dir, c.Files)
	require.NoError(t, err)
	require.Len(t, refused, 2, "%v", refused)
	for _, path := range []string{"a2.crt", "a/ssl_key/certificate.crt", "a/ssl_key/private.key"} {
		require.Equal(t, c.Files[filepath.Join(dir, path)], again.Files[filepath.Join(dir, path)])
	}
	taken := filepath.Join(dir, "b/ssl_key/certificate.crt")
	require.NotEqual(t, c.Files[taken], again.Files[taken])

	writePair(t, filepath.Join(dir, "b"), time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	for _, name := range []string{"certificate.crt", "private.key"} {
		path := filepath.Join(dir, "b/ssl_key", name)
		again.Files[path], err = os.ReadFile(path)
		require.NoError(t, err)
	}
	write("a2", "two.test", other)
	second()
	_, refused, err = Renew("cup.json", []byte(text), dir, again.Files)
	require.NoError(t, err)
	require.Empty(t, refused)
}
