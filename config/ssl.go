package config

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// pemBytesMax bounds the files that ssl names.
const pemBytesMax = 1 << 20

// ssl decodes ssl and checks the files.
func (d *decoder) ssl(v *hujson.Value, c *Config) {
	s := &SSL{}
	seen := sslKeys.decode(d, v, s)
	sslKeys.require(d, v, seen)
	line, col := d.place(v.StartOffset)
	s.position = fmt.Sprintf("%s:%d:%d", d.name, line, col)
	c.SSL = s
	var certificate, key []byte
	if s.Certificate != "" {
		certificate = d.pem(seen["ssl_certificate"], s.Certificate, "CERTIFICATE", "a certificate")
	}
	if s.Key != "" {
		key = d.pem(seen["ssl_certificate_key"], s.Key, "PRIVATE KEY", "a private key")
	}
	if certificate == nil || key == nil {
		return
	}
	d.pair(seen, certificate, key, time.Now())
}

// pem reads the PEM file that v names. It returns nil after a mistake.
func (d *decoder) pem(v *hujson.Value, path, block, what string) []byte {
	text, err := readSmall(path)
	if err != nil {
		d.at(v.StartOffset, "", "%v", err)
		return nil
	}
	for rest := text; ; {
		var b *pem.Block
		b, rest = pem.Decode(rest)
		switch {
		case b == nil:
			d.at(v.StartOffset, "", "%s does not hold %s in PEM form", path, what)
			return nil
		case strings.HasPrefix(b.Type, "ENCRYPTED") || b.Headers["DEK-Info"] != "":
			d.at(v.StartOffset, "decrypt it with openssl pkey", "%s holds an encrypted key, and there is nobody to ask for the password", path)
			return nil
		case strings.HasSuffix(b.Type, block):
			return text
		}
	}
}

// readSmall reads a regular file of at most pemBytesMax bytes.
func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	// Not opened before: opening a named pipe waits, and a device may act.
	var f *os.File
	if err == nil {
		f, err = os.Open(path)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, pemBytesMax+1))
	if err == nil && len(text) > pemBytesMax {
		err = fmt.Errorf("%s: larger than %s", path, sizeText(pemBytesMax))
	}
	return text, err
}

// pair checks that the certificate and the key belong together and that the
// certificate is valid now.
func (d *decoder) pair(seen map[string]*hujson.Value, certificate, key []byte, now time.Time) {
	at := seen["ssl_certificate"].StartOffset
	p, err := tls.X509KeyPair(certificate, key)
	switch {
	case err != nil && strings.Contains(err.Error(), "match"):
		d.at(seen["ssl_certificate_key"].StartOffset, "", "the private key does not belong to the certificate")
	case err != nil && strings.Contains(err.Error(), "private key"):
		d.at(seen["ssl_certificate_key"].StartOffset, "", "%s", strings.TrimPrefix(err.Error(), "tls: "))
	case err != nil:
		d.at(at, "", "%s", strings.TrimPrefix(err.Error(), "tls: "))
	case now.Before(p.Leaf.NotBefore):
		d.at(at, "", "the certificate is not valid before %s", p.Leaf.NotBefore.Format(time.RFC3339))
	case now.After(p.Leaf.NotAfter):
		d.at(at, "", "the certificate expired on %s", p.Leaf.NotAfter.Format(time.RFC3339))
	}
}
