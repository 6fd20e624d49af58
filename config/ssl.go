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
	// Certificates has at least one element. A client gets the first one that
	// is for the name it asks for (SNI) and has a kind of key that it knows,
	// else the first: see CertificateNames.
	Certificates []KeyPair
	MinVersion   SSLVersion
	// Curves are the key exchanges that are offered, nil for those of
	// crypto/tls, which has an order of its own.
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
	lit, word := v.Value.(hujson.Literal)
	switch {
	case !word:
		l.policy.SSL = d.ssl(v)
		return
	case lit.Kind() != '"':
		d.at(v.StartOffset, "", "ssl must be an object or \"off\", not %s", kindOf(v))
	case lit.String() != "off":
		d.at(v.StartOffset, "", "ssl must be an object or \"off\", not %q", clip(lit.String()))
	}
	l.policy.plain = true
}

// inheritSSL gives the addresses that say nothing of ssl that of the top level.
// It reports whether there are any.
func (c *Config) inheritSSL() (used bool) {
	for i := range c.Policies {
		p := &c.Policies[i]
		if p.SSL == nil && !p.plain && !p.Redirect {
			p.SSL = c.SSL
			used = true
		}
	}
	return used
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
	shown := map[string]bool{}
	accepted := d.given || d.renewal != nil // once: what changes now is names in files, not the text
	for i := range list.Elements {
		e := &list.Elements[i]
		var pair KeyPair
		seen := pairKeys.decode(d, e, &pair)
		if seen == nil {
			continue
		}
		leaf := d.keyPair(e, seen, pairKeys.what, pair)
		if slices.Contains(r.Certificates, pair) {
			d.at(e.StartOffset, "", "this certificate stands twice in certificates")
		} else if leaf != nil && !isShown(leaf, shown) && i > 0 && !accepted {
			d.at(e.StartOffset, "", "this certificate is never shown: those before it are for all of its names")
		}
		r.Certificates = append(r.Certificates, pair)
	}
}

// isShown reports whether a certificate is the first with its kind of key for
// any of its names. It notes them in shown, which has those before it.
func isShown(leaf *x509.Certificate, shown map[string]bool) (first bool) {
	for _, name := range CertificateNames(leaf) {
		key := leaf.PublicKeyAlgorithm.String() + " " + name
		first = first || !shown[key]
		shown[key] = true
	}
	return first
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
	defer d.refuse(len(d.found), path)
	text := d.pem(v, path, "CERTIFICATE", "a certificate")
	if text == nil {
		return
	}
	switch last := lastExpiry(text); {
	case !x509.NewCertPool().AppendCertsFromPEM(text):
		d.at(v.StartOffset, "", "%s does not hold a certificate that can be read", path)
	case d.now.After(last) && !d.inUse(path, text):
		d.at(v.StartOffset, "", "all certificates in %s have expired, the last on %s", path, last.Format(time.RFC3339))
	}
}

// lastExpiry is until when one or another certificate in a text is valid.
func lastExpiry(text []byte) (last time.Time) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return last
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil && c.NotAfter.After(last) {
			last = c.NotAfter
		}
	}
}

// keyPair checks a pair of ssl, whose keys are called as in the file.
func (d *decoder) keyPair(v *hujson.Value, seen map[string]*hujson.Value, what string, pair KeyPair) *x509.Certificate {
	return d.pair(v, pairPlaces{what, "ssl_certificate", "ssl_certificate_key", seen}, pair)
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
	var err error
	if r := d.renewal; r != nil {
		text, ok = r.kept[path]
	}
	if !ok {
		text, err = readSmall(path)
	}
	if err == nil {
		d.files[path] = text
	}
	return text, err
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
