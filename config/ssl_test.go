package config

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// writePair writes a self-signed certificate, for a name made of dir's, and its
// key to dir/ssl_key.
func writePair(t testing.TB, dir string, from, to time.Time) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	writeSigned(t, dir, key, &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: filepath.Base(dir) + ".test"},
		NotBefore:    from,
		NotAfter:     to,
	})
}

// writeSigned is writePair with the key and what the certificate says.
func writeSigned(t testing.TB, dir string, key crypto.Signer, template *x509.Certificate) {
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writePEM(t, filepath.Join(dir, "ssl_key/certificate.crt"), "CERTIFICATE", certificate)
	writePEM(t, filepath.Join(dir, "ssl_key/private.key"), "PRIVATE KEY", private)
}

func writePEM(t testing.TB, path, block string, content []byte) {
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: block, Bytes: content}), 0o600))
}

// spoiltPair is what is done to a good pair, and the mistakes that follow.
type spoiltPair struct {
	spoil func(t *testing.T, dir, certificate, key string)
	want  []string
}

// Where the mistakes stand.
const atCertificate, atKey = "cup.json:4:24: ", "cup.json:5:28: "

// Each mistake is reported at the path that names the file.
func TestSSLMistakes(t *testing.T) {
	now := time.Now()
	checkSpoilt(t, map[string]spoiltPair{
		"no files": {func(t *testing.T, dir, _, _ string) {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "ssl_key")))
		}, []string{
			atCertificate + "DIR/ssl_key/certificate.crt: no such file or directory",
			atKey + "DIR/ssl_key/private.key: no such file or directory",
		}},
		"expired": {func(t *testing.T, dir, _, _ string) {
			writePair(t, dir, now.Add(-2*time.Hour), now.Add(-time.Hour))
		}, []string{atCertificate + "the certificate expired on " + now.Add(-time.Hour).UTC().Format(time.RFC3339)}},
		"not yet valid": {func(t *testing.T, dir, _, _ string) {
			writePair(t, dir, now.Add(time.Hour), now.Add(2*time.Hour))
		}, []string{atCertificate + "the certificate is not valid before " + now.Add(time.Hour).UTC().Format(time.RFC3339)}},
		"other key": {func(t *testing.T, dir, certificate, _ string) {
			keep, err := os.ReadFile(certificate)
			require.NoError(t, err)
			writePair(t, dir, now.Add(-time.Hour), now.Add(time.Hour))
			require.NoError(t, os.WriteFile(certificate, keep, 0o600))
		}, []string{atKey + "the private key does not belong to the certificate"}},
		"swapped": {func(t *testing.T, dir, certificate, key string) {
			require.NoError(t, os.Rename(certificate, key+".tmp"))
			require.NoError(t, os.Rename(key, certificate))
			require.NoError(t, os.Rename(key+".tmp", key))
		}, []string{
			atCertificate + "DIR/ssl_key/certificate.crt does not hold a certificate in PEM form",
			atKey + "DIR/ssl_key/private.key does not hold a private key in PEM form",
		}},
		"garbage inside": {func(t *testing.T, _, certificate, _ string) {
			writePEM(t, certificate, "CERTIFICATE", []byte("garbage"))
		}, []string{atCertificate + "x509: malformed certificate"}},
		"garbage key": {func(t *testing.T, _, _, key string) {
			writePEM(t, key, "PRIVATE KEY", []byte("garbage"))
		}, []string{atKey + "failed to parse private key; a key is RSA, ECDSA or Ed25519"}},
		"encrypted": {func(t *testing.T, _, _, key string) {
			writePEM(t, key, "ENCRYPTED PRIVATE KEY", []byte("secret"))
		}, []string{atKey + "DIR/ssl_key/private.key holds an encrypted key, and there is nobody to ask for the password"}},
		"a folder": {func(t *testing.T, _, certificate, _ string) {
			require.NoError(t, os.Remove(certificate))
			require.NoError(t, os.Mkdir(certificate, 0o700))
		}, []string{atCertificate + "DIR/ssl_key/certificate.crt: not a regular file"}},
		"a named pipe": {func(t *testing.T, _, certificate, _ string) {
			require.NoError(t, os.Remove(certificate))
			require.NoError(t, syscall.Mkfifo(certificate, 0o600))
		}, []string{atCertificate + "DIR/ssl_key/certificate.crt: not a regular file"}},
		"too large": {func(t *testing.T, _, certificate, _ string) {
			require.NoError(t, os.Truncate(certificate, pemBytesMax+1))
		}, []string{atCertificate + "DIR/ssl_key/certificate.crt: larger than 1MiB"}},
	})
}

// A pair of which nothing is missing may still be of no use.
func TestSSLUnfit(t *testing.T) {
	now := time.Now()
	checkSpoilt(t, map[string]spoiltPair{
		"cut in the chain": {func(t *testing.T, _, certificate, _ string) {
			text, err := os.ReadFile(certificate)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(certificate, append(text, text[:len(text)/2]...), 0o600))
		}, []string{atCertificate + "DIR/ssl_key/certificate.crt holds a PEM block that is cut or damaged"}},
		"joined without an end of line": {func(t *testing.T, _, certificate, _ string) {
			text, err := os.ReadFile(certificate)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(certificate, append(text[:len(text)-1], text...), 0o600))
		}, []string{atCertificate + "DIR/ssl_key/certificate.crt holds a PEM block that is cut or damaged"}},
		"chain first": {func(t *testing.T, dir, certificate, _ string) {
			leaf, err := os.ReadFile(certificate)
			require.NoError(t, err)
			writePair(t, filepath.Join(dir, "other"), now.Add(-time.Hour), now.Add(time.Hour))
			other, err := os.ReadFile(filepath.Join(dir, "other/ssl_key/certificate.crt"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(certificate, append(other, leaf...), 0o600))
		}, []string{atKey + "the private key does not belong to the certificate; " +
			"its certificate must stand first in the file, before the chain"}},
		"short RSA": {func(t *testing.T, dir, _, _ string) {
			t.Setenv("GODEBUG", "rsa1024min=0") // to make one
			key, err := rsa.GenerateKey(rand.Reader, 768)
			require.NoError(t, err)
			writeSigned(t, dir, key, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
		}, []string{atKey + "the key has 768 bits, RSA needs at least 1024"}},
		"P-224": {func(t *testing.T, dir, _, _ string) {
			key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			require.NoError(t, err)
			writeSigned(t, dir, key, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
		}, []string{atKey + "TLS has no signatures by keys of the curve P-224"}},
	})
}

func checkSpoilt(t *testing.T, cases map[string]spoiltPair) {
	const text = `{
  "root": ":80",
  "ssl": {
    "ssl_certificate": "ssl_key/certificate.crt",
    "ssl_certificate_key": "ssl_key/private.key"
  },
  "routes": {"*": {"backends": [{"host": "127.0.0.1:1"}]}}
}`
	now := time.Now()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writePair(t, dir, now.Add(-time.Hour), now.Add(time.Hour))
			_, err := Parse("cup.json", []byte(text), dir)
			require.NoError(t, err)
			c.spoil(t, dir, filepath.Join(dir, "ssl_key/certificate.crt"), filepath.Join(dir, "ssl_key/private.key"))
			_, err = Parse("cup.json", []byte(text), dir)
			require.Error(t, err)
			require.Len(t, err.(Errors), len(c.want), "%v", err)
			for i, want := range c.want {
				first, _, _ := strings.Cut(err.(Errors)[i].Error(), "\n")
				require.True(t, strings.HasPrefix(first+"; ", strings.ReplaceAll(want, "DIR", dir)+"; "), first)
			}
		})
	}
}
