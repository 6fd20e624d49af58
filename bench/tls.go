package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files that all programs with TLS are given: one key of ECDSA on P-256 and a
// certificate that it signed itself, made anew by each run.
const (
	certificateFile = "certificate.pem"
	keyFile         = "key.pem"
	bothFile        = "both.pem" // one behind the other, as haproxy wants them
)

// suite is the one that all programs use: they do the same work.
const suite = "TLS_AES_128_GCM_SHA256"

// writeCertificate makes these files in the folder dir.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, text := range map[string][]byte{
		certificateFile: certificate, keyFile: private, bothFile: bytes.Join([][]byte{certificate, private}, nil),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// clientTLS is how our own clients speak: the certificate was made a moment
// ago, and whether a proxy shows it is not what is measured.
func clientTLS(groups ...tls.CurveID) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, CurvePreferences: groups}
}
