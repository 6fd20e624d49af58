package config

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// CertificateNames are the names that clients ask for (SNI) to get a
// certificate, in lower case, a wildcard as "*.example.com". One that is for no
// names or addresses goes by its common name.
func CertificateNames(leaf *x509.Certificate) []string {
	list := leaf.DNSNames
	if len(list) == 0 && len(leaf.IPAddresses) == 0 && leaf.Subject.CommonName != "" {
		list = []string{leaf.Subject.CommonName}
	}
	names := make([]string, 0, len(list))
	for _, name := range list {
		names = append(names, strings.ToLower(name))
	}
	return names
}

// pairPlaces tells where a pair stands.
type pairPlaces struct {
	what, certificate, key string // names of the object and its keys
	seen                   map[string]*hujson.Value
}

// pair reads the files of a pair and checks that they belong together, that TLS
// can be spoken with them and that the certificate, which it returns, is valid
// now or in use.
func (d *decoder) pair(v *hujson.Value, p pairPlaces, pair KeyPair) *x509.Certificate {
	defer d.refuse(len(d.found), pair.Certificate, pair.Key)
	atCertificate, atKey := p.seen[p.certificate], p.seen[p.key]
	for _, name := range []string{p.certificate, p.key} {
		if p.seen[name] == nil {
			d.at(v.StartOffset, "", "%s is missing in %s", name, p.what)
		}
	}
	var certificate, key []byte
	if atCertificate != nil && pair.Certificate != "" {
		certificate = d.pem(atCertificate, pair.Certificate, "CERTIFICATE", "a certificate")
	}
	if atKey != nil && pair.Key != "" {
		key = d.pem(atKey, pair.Key, "PRIVATE KEY", "a private key")
	}
	if certificate == nil || key == nil {
		return nil
	}
	parsed, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		text := strings.TrimPrefix(err.Error(), "tls: ")
		switch {
		case strings.Contains(text, "match"):
			d.at(atKey.StartOffset, matching(certificate, key), "the private key does not belong to the certificate")
		case strings.Contains(text, "private key"):
			d.at(atKey.StartOffset, "a key is RSA, ECDSA or Ed25519", "%s", text)
		default:
			d.at(atCertificate.StartOffset, "", "%s", text)
		}
		return nil
	}
	if why := unfit(parsed.PrivateKey); why != "" {
		d.at(atKey.StartOffset, "", "%s", why)
		return nil
	}
	switch {
	case d.inUse(pair.Certificate, certificate): // it was valid then
	case d.now.Before(parsed.Leaf.NotBefore):
		d.at(atCertificate.StartOffset, "", "the certificate is not valid before %s", parsed.Leaf.NotBefore.Format(time.RFC3339))
	case d.now.After(parsed.Leaf.NotAfter):
		d.at(atCertificate.StartOffset, "", "the certificate expired on %s", parsed.Leaf.NotAfter.Format(time.RFC3339))
	}
	return parsed.Leaf
}

// matching is a hint if the key belongs to another certificate of the text than
// the first.
func matching(certificates, key []byte) string {
	for rest := certificates; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return ""
		}
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(b), key); err == nil {
			return "its certificate must stand first in the file, before the chain"
		}
	}
}

// rsaBitsMin is what crypto/rsa signs with at least.
const rsaBitsMin = 1024

// unfit tells why every handshake with a key would fail.
func unfit(key crypto.PrivateKey) string {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < rsaBitsMin {
			return fmt.Sprintf("the key has %d bits, RSA needs at least %d", bits, rsaBitsMin)
		}
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P224() {
			return "TLS has no signatures by keys of the curve P-224"
		}
	}
	return ""
}

// pem reads the PEM file that v names, in which at least one block is what is
// wanted and every one can be read. It returns nil after a mistake.
func (d *decoder) pem(v *hujson.Value, path, block, what string) []byte {
	text, err := d.read(path)
	if err != nil {
		d.at(v.StartOffset, "", "%v", err)
		return nil
	}
	found, blocks := false, 0
	for rest := text; ; blocks++ {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if !found && (strings.HasPrefix(b.Type, "ENCRYPTED") || b.Headers["DEK-Info"] != "") {
			d.at(v.StartOffset, "decrypt it with openssl pkey", "%s holds an encrypted key, and there is nobody to ask for the password", path)
			return nil
		}
		found = found || strings.HasSuffix(b.Type, block)
	}
	switch {
	case blocks < bytes.Count(text, []byte(pemBegin)): // pem.Decode passes over what it cannot read
		d.at(v.StartOffset, "", "%s holds a PEM block that is cut or damaged", path)
	case !found:
		d.at(v.StartOffset, "", "%s does not hold %s in PEM form", path, what)
	default:
		return text
	}
	return nil
}

// pemBegin begins a PEM block (RFC 7468 3).
const pemBegin = "-----BEGIN "
