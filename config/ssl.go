package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// SSL is how listeners speak TLS. All files were read, see Config.Files; each
// certificate belongs to its key and was valid when the text was parsed.
type SSL struct {
	// Certificates has at least one element. A client gets the one that the
	// name it asks for (SNI) matches, else the first.
	Certificates []KeyPair
	MinVersion   SSLVersion
	// Curves are the key exchanges in order of preference, nil for those of
	// crypto/tls.
	Curves []tls.CurveID
	// Client says whether clients show a certificate of their own.
	Client ClientCerts
}

// KeyPair names the PEM files of a certificate, with its chain, and its key.
type KeyPair struct {
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
}

// SSLVersion is a version of TLS.
type SSLVersion string

// The versions that min_version may name, the default first.
const (
	SSLVersion12 SSLVersion = "1.2"
	SSLVersion13 SSLVersion = "1.3"
)

// ClientCerts is what is asked of clients.
type ClientCerts struct {
	Mode ClientMode
	// CAFile holds the authorities whose certificates are believed; empty
	// with ClientOff.
	CAFile string
}

// ClientMode says whether a client shows a certificate.
type ClientMode string

// The modes, the default first.
const (
	ClientOff     ClientMode = "off"
	ClientRequest ClientMode = "request" // it may; what it shows must be valid
	ClientRequire ClientMode = "require"
)

// Files are the contents of the files that a configuration names, by their
// joined paths.
type Files map[string][]byte

// pemBytesMax bounds the files that a configuration names.
const pemBytesMax = 1 << 20

// curves are the key exchanges that may be named.
var curves = []struct {
	name string
	id   tls.CurveID
}{
	{"X25519MLKEM768", tls.X25519MLKEM768},
	{"X25519", tls.X25519},
	{"P-256", tls.CurveP256},
	{"P-384", tls.CurveP384},
	{"P-521", tls.CurveP521},
}

// sslReader is an SSL that is being decoded.
type sslReader struct {
	SSL
	pair KeyPair // of the two keys that stand in ssl itself
}

// ssl decodes the TLS of listeners.
func (d *decoder) ssl(v *hujson.Value) *SSL {
	r := &sslReader{SSL: SSL{MinVersion: SSLVersion12, Client: ClientCerts{Mode: ClientOff}}}
	seen := sslKeys.decode(d, v, r)
	if seen == nil {
		return nil
	}
	single := seen["ssl_certificate"] != nil || seen["ssl_certificate_key"] != nil
	switch {
	case single && seen["certificates"] != nil:
		d.at(seen["certificates"].StartOffset, "put all pairs into certificates", "certificates stands beside ssl_certificate")
	case !single && seen["certificates"] == nil:
		d.at(v.StartOffset, "", "ssl has neither ssl_certificate with ssl_certificate_key nor certificates")
	case single:
		d.keyPair(v, seen, "ssl", r.pair)
		r.Certificates = []KeyPair{r.pair}
	}
	return &r.SSL
}

// listenerSSL decodes the ssl of one address, which "off" makes plain.
func (d *decoder) listenerSSL(v *hujson.Value, l *listener) {
	if lit, ok := v.Value.(hujson.Literal); ok && lit.Kind() == '"' {
		if s := lit.String(); s != "off" {
			d.at(v.StartOffset, "", "ssl must be an object or \"off\", not %q", clip(s))
		}
		l.policy.plain = true
		return
	}
	l.policy.SSL = d.ssl(v)
}

// inheritSSL gives the addresses that say nothing of ssl that of the top level.
func (c *Config) inheritSSL() {
	for i := range c.Policies {
		p := &c.Policies[i]
		if p.SSL == nil && !p.plain && !p.Redirect {
			p.SSL = c.SSL
		}
	}
}

// redirect decodes where the requests to an address are sent on to.
func (d *decoder) redirect(v *hujson.Value, l *listener) {
	switch s, ok := d.stringOf(v, "redirect"); {
	case !ok:
	case s != "https":
		d.at(v.StartOffset, `write "https"`, "redirect: unknown word %q", clip(s))
	default:
		l.policy.Redirect = true
	}
}

// certificates decodes a list of pairs.
func (d *decoder) certificates(v *hujson.Value, r *sslReader) {
	list, ok := v.Value.(*hujson.Array)
	switch {
	case !ok:
		d.at(v.StartOffset, "", "certificates must be a list, not %s", kindOf(v))
		return
	case len(list.Elements) == 0:
		d.at(v.StartOffset, "", "certificates is empty: ssl needs at least one")
		return
	}
	for i := range list.Elements {
		e := &list.Elements[i]
		var pair KeyPair
		seen := pairKeys.decode(d, e, &pair)
		if seen == nil {
			continue
		}
		d.keyPair(e, seen, pairKeys.what, pair)
		if slices.Contains(r.Certificates, pair) {
			d.at(e.StartOffset, "", "this certificate stands twice in certificates")
		}
		r.Certificates = append(r.Certificates, pair)
	}
}

// curves decodes the key exchanges.
func (d *decoder) curves(v *hujson.Value, r *sslReader) {
	list, ok := v.Value.(*hujson.Array)
	if !ok || len(list.Elements) == 0 {
		d.at(v.StartOffset, `write ["X25519", "P-256"]`, "curves must be a list with at least one name")
		return
	}
	names := make([]string, 0, len(curves))
	for _, c := range curves {
		names = append(names, c.name)
	}
	for i := range list.Elements {
		e := &list.Elements[i]
		s, ok := d.stringOf(e, "a curve")
		if !ok {
			continue
		}
		at := slices.Index(names, s)
		switch {
		case at < 0:
			d.at(e.StartOffset, didYouMean(s, names), "unknown curve %q; there are %s", clip(s), strings.Join(names, ", "))
		case slices.Contains(r.Curves, curves[at].id):
			d.at(e.StartOffset, "", "curve %s stands twice", s)
		default:
			r.Curves = append(r.Curves, curves[at].id)
		}
	}
}

// clientCerts decodes what is asked of clients.
func (d *decoder) clientCerts(v *hujson.Value, r *sslReader) {
	seen := clientKeys.decode(d, v, &r.Client)
	if seen == nil {
		return
	}
	file := seen["ca_file"]
	switch {
	case r.Client.Mode == ClientOff && file != nil:
		d.at(file.StartOffset, `set mode to "request" or "require"`, "ca_file is of no use with mode %q", ClientOff)
	case r.Client.Mode != ClientOff && file == nil:
		d.at(v.StartOffset, "", "ca_file is missing: who signs the clients' certificates?")
	case file != nil && r.Client.CAFile != "":
		d.authorities(file, r.Client.CAFile)
	}
}

// backendTLS decodes a backend's tls.
func (d *decoder) backendTLS(v *hujson.Value, b *Backend) {
	t := &b.TLS
	seen := backendTLSKeys.decode(d, v, t)
	if file := seen["ca_file"]; file != nil && t.CAFile != "" {
		d.authorities(file, t.CAFile)
	}
	if seen["certificate"] != nil || seen["key"] != nil {
		d.pair(v, pairPlaces{"tls", "certificate", "key", seen}, t.KeyPair)
	}
}

// authorities reads a file of certificates that others are verified by.
func (d *decoder) authorities(v *hujson.Value, path string) {
	text := d.pem(v, path, "CERTIFICATE", "a certificate")
	if text != nil && !x509.NewCertPool().AppendCertsFromPEM(text) {
		d.at(v.StartOffset, "", "%s does not hold a certificate that can be read", path)
	}
}

// keyPair checks a pair of ssl, whose keys are called as in the file.
func (d *decoder) keyPair(v *hujson.Value, seen map[string]*hujson.Value, what string, pair KeyPair) {
	d.pair(v, pairPlaces{what, "ssl_certificate", "ssl_certificate_key", seen}, pair)
}

// pairPlaces tells where a pair stands.
type pairPlaces struct {
	what, certificate, key string // names of the object and its keys
	seen                   map[string]*hujson.Value
}

// pair reads the files of a pair and checks that they belong together and that
// the certificate is valid now.
func (d *decoder) pair(v *hujson.Value, p pairPlaces, pair KeyPair) {
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
		return
	}
	parsed, err := tls.X509KeyPair(certificate, key)
	switch {
	case err != nil && strings.Contains(err.Error(), "match"):
		d.at(atKey.StartOffset, "", "the private key does not belong to the certificate")
	case err != nil && strings.Contains(err.Error(), "private key"):
		d.at(atKey.StartOffset, "", "%s", strings.TrimPrefix(err.Error(), "tls: "))
	case err != nil:
		d.at(atCertificate.StartOffset, "", "%s", strings.TrimPrefix(err.Error(), "tls: "))
	case d.now.IsZero(): // it was valid when it was accepted
	case d.now.Before(parsed.Leaf.NotBefore):
		d.at(atCertificate.StartOffset, "", "the certificate is not valid before %s", parsed.Leaf.NotBefore.Format(time.RFC3339))
	case d.now.After(parsed.Leaf.NotAfter):
		d.at(atCertificate.StartOffset, "", "the certificate expired on %s", parsed.Leaf.NotAfter.Format(time.RFC3339))
	}
}

// pem reads the PEM file that v names. It returns nil after a mistake.
func (d *decoder) pem(v *hujson.Value, path, block, what string) []byte {
	text, err := d.read(path)
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

// read returns the content of the file at path, which is read once.
func (d *decoder) read(path string) ([]byte, error) {
	text, ok := d.files[path]
	if ok {
		return text, nil
	}
	if d.given {
		return nil, fmt.Errorf("%s: its content was not handed over", path)
	}
	text, err := readSmall(path)
	if err == nil {
		d.files[path] = text
	}
	return text, err
}

// ReadAgain reads the files again whose contents f has. The system's authorities
// stay as they are.
func (f Files) ReadAgain() (Files, error) {
	again := make(Files, len(f))
	for path, text := range f {
		if path != SystemRoots {
			var err error
			if text, err = readSmall(path); err != nil {
				return nil, err
			}
		}
		again[path] = text
	}
	return again, nil
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
