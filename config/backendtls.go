package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
)

// Protocols is what is offered by ALPN (RFC 7301).
var Protocols = []string{"http/1.1"}

// BackendTLS is how a backend with https is spoken to. Its certificate is
// always verified.
type BackendTLS struct {
	CAFile     string `json:"ca_file,omitempty"`     // authorities; empty for the system's
	ServerName string `json:"server_name,omitempty"` // what its certificate must be for; empty for the host's name
	KeyPair           // what we show it; empty for nothing
}

// roots is the name among Files of the authorities that sign the backend's
// certificate.
func (t *BackendTLS) roots() string {
	if t.CAFile == "" {
		return SystemRoots
	}
	return t.CAFile
}

// Read reads the files that t names, as they are now, and the system's
// authorities if those count.
func (t *BackendTLS) Read() (files Files, err error) {
	files = Files{}
	for _, path := range []string{t.CAFile, t.Certificate, t.Key} {
		if path == "" {
			continue
		}
		if files[path], err = readSmall(path); err != nil {
			return nil, err
		}
	}
	if t.CAFile != "" {
		return files, nil
	}
	files[SystemRoots], err = readSystemRoots()
	return files, err
}

// ClientTLS is what connections to b, which is spoken to with TLS, do their
// handshakes with. files has what b.TLS names.
func (b *Backend) ClientTLS(files Files) (*tls.Config, error) {
	name, _, err := net.SplitHostPort(b.Address())
	if err != nil {
		return nil, err
	}
	t := &b.TLS
	if t.ServerName != "" {
		name = t.ServerName
	}
	pool, err := Authorities(t.roots(), files)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{ServerName: name, RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: Protocols}
	if t.Certificate != "" {
		pair, err := tls.X509KeyPair(files[t.Certificate], files[t.Key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Certificate, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Authorities are the certificates in a file that others are verified by.
func Authorities(file string, files Files) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(files[file]) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}
