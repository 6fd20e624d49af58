package config

import (
	"errors"
	"fmt"
	"os"

	"github.com/tailscale/hujson"
)

// SystemRoots stands among Files for the system's certificate authorities. They
// are there if a backend is verified by them.
const SystemRoots = "the system's authorities"

// rootFiles are where distributions keep the authorities in one file, the same
// places as those of crypto/x509.
var rootFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Arch, Gentoo
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/pki/tls/cacert.pem",                           // OpenELEC
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL 7
	"/etc/ssl/cert.pem",                                 // Alpine
}

// errNoRoots: the system has no certificate authorities.
var errNoRoots = errors.New("this system has no certificate authorities")

// readSystemRoots reads the system's authorities. The environment's
// SSL_CERT_FILE comes first, and its mistakes are told; the other places are
// looked at one after the other.
func readSystemRoots() ([]byte, error) {
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		text, err := readRoots(file)
		if err != nil {
			return nil, fmt.Errorf("SSL_CERT_FILE in the environment: %w", err)
		}
		return text, nil
	}
	for _, file := range rootFiles {
		if text, err := readRoots(file); err == nil {
			return text, nil
		}
	}
	return nil, errNoRoots
}

// readRoots reads a file that holds certificates.
func readRoots(file string) ([]byte, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	if _, err := Authorities(file, Files{file: text}); err != nil {
		return nil, err
	}
	return text, nil
}

// systemRoots has the system's authorities among the files, for the backend at v.
func (d *decoder) systemRoots(v *hujson.Value) {
	if _, ok := d.files[SystemRoots]; ok {
		return
	}
	err := errNoRoots
	if !d.given {
		var text []byte
		if text, err = readSystemRoots(); err == nil {
			d.files[SystemRoots] = text
			return
		}
	}
	d.at(v.StartOffset, "install the package ca-certificates, or set tls.ca_file",
		"the backend's certificate cannot be verified: %v", err)
}
