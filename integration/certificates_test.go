package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority signs certificates for the length of a test.
type authority struct {
	t    testing.TB
	dir  string
	file string // its own certificate
	pool *x509.CertPool
	cert *x509.Certificate // nil until it has signed it
	key  crypto.Signer
	made int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	require.NoError(t, os.Chmod(a.dir, 0o755))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.key = key
	p := a.sign("authority", key, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.DNSNames, c.IPAddresses = nil, nil
	})
	a.file, a.cert = p.crt, p.Leaf
	a.pool.AddCert(p.Leaf)
	return a
}

// pair is a certificate with its key, and the files that hold them.
type pair struct {
	tls.Certificate
	crt, key string
}

// ssl is the pair as members of ssl.
func (p *pair) ssl() string {
	return fmt.Sprintf(`"ssl_certificate": %q, "ssl_certificate_key": %q`, p.crt, p.key)
}

// issue signs a certificate for name and 127.0.0.1, after edit.
func (a *authority) issue(name string, edit func(*x509.Certificate)) *pair {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	return a.sign(name, key, edit)
}

// issueRSA is issue with a key whose signatures take their time.
func (a *authority) issueRSA(name string) *pair {
	a.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(a.t, err)
	return a.sign(name, key, nil)
}

func (a *authority) sign(name string, key crypto.Signer, edit func(*x509.Certificate)) *pair {
	a.t.Helper()
	a.made++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.made),
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Cup"}},
		DNSNames:     []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
	}
	if edit != nil {
		edit(c)
	}
	parent := a.cert
	if parent == nil {
		parent = c // its own
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	p := &pair{crt: filepath.Join(a.dir, fmt.Sprint(a.made, ".crt")), key: filepath.Join(a.dir, fmt.Sprint(a.made, ".key"))}
	p.Certificate, err = tls.X509KeyPair(crt, keyPEM)
	require.NoError(a.t, err)
	require.NoError(a.t, os.WriteFile(p.crt, crt, 0o644))
	require.NoError(a.t, os.WriteFile(p.key, keyPEM, 0o600))
	return p
}

// trusting is what a client needs that asks for name.
func (a *authority) trusting(name string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: name}
}
