package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strconv"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/message"
)

// ListenerTLS is how a listener speaks TLS. It never changes.
type ListenerTLS struct {
	// Config is what handshakes are done with.
	Config *tls.Config
	// Names are those that certificates are for, in lower case, a wildcard as
	// "*.example.com", each with the numbers of its certificates in the order
	// of preference: those that follow the first one are for clients that do
	// not know its kind of key.
	Names map[string][]int
	// Default are those for all other names; nil is number 0.
	Default []int
}

// first is the number of the first certificate alone.
var first = []int{0}

// nameBytesMax bounds a host's name (RFC 1035 2.3.4).
const nameBytesMax = 255

// Certificates are the numbers of the certificates for a name in any case, which
// may be followed by a port: at least one.
func (l *ListenerTLS) Certificates(host []byte) []int {
	other := l.Default
	if other == nil {
		other = first
	}
	if len(l.Names) == 0 || len(host) > nameBytesMax {
		return other
	}
	var space [nameBytesMax + 1]byte
	name := append(space[:1], host...)[1:]
	if colon := bytes.LastIndexByte(name, ':'); colon >= 0 {
		name = name[:colon]
	}
	name = bytes.TrimSuffix(name, []byte("."))
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			name[i] = c | 0x20
		}
	}
	if list, ok := l.Names[string(name)]; ok {
		return list
	}
	if dot := bytes.IndexByte(name, '.'); dot > 0 {
		name[dot-1] = '*'
		if list, ok := l.Names[string(name[dot-1:])]; ok {
			return list
		}
	}
	return other
}

// turnedAway returns the reason if a request is not for a backend, whatever its
// route: it came to a listener that redirects, or under another host's
// handshake.
func (x *exchange) turnedAway() message.Reason {
	c, req := x.client, &x.req
	if port, ok := x.p.snap.Redirects[c.listener.root]; ok {
		return c.redirect(req, port)
	}
	if c.misdirected(req) {
		return message.ReasonMisdirected
	}
	return message.ReasonNone
}

// redirect has the answer to a request name the same URL with https.
func (c *client) redirect(req *message.Head, port int) message.Reason {
	host := req.Text(req.Host)
	if i := bytes.LastIndexByte(host, ':'); i > 0 && host[len(host)-1] != ']' {
		host = host[:i]
	}
	if len(host) == 0 {
		return message.ReasonBadRequest
	}
	b := append(c.x.location[:0], "https://"...)
	b = append(b, host...)
	if port != HTTPSPort {
		b = strconv.AppendInt(append(b, ':'), int64(port), 10)
	}
	if path := req.Text(req.Path); len(path) > 0 && path[0] == '/' { // not the * of OPTIONS
		b = append(append(b, path...), req.Text(req.Query)...)
	}
	c.x.location = b
	return message.ReasonRedirect
}

// HTTPSPort is where https is spoken if a URL names no port.
const HTTPSPort = 443

// misdirected reports whether a request is for a host that is spoken to under
// another certificate than the one that c's handshake was done with (RFC 9110
// 15.5.20). One of HTTP/1.0 may name none.
func (c *client) misdirected(req *message.Head) bool {
	s := c.tls
	return s != nil && req.Host.Len > 0 && s.policy.Certificates(req.Text(req.Host))[0] != s.certificate
}

// identify notes what a client's handshake came to, and who it showed itself to
// be.
func (s *session) identify() {
	state := s.tls.State()
	version, resumed := 0, 0
	s.shown = accesslog.TLS{
		Version: "1.2", Suite: tls.CipherSuiteName(state.CipherSuite), SNI: state.ServerName, Resumed: state.DidResume,
	}
	if state.Version == tls.VersionTLS13 {
		s.shown.Version, version = "1.3", 1
	}
	if state.DidResume {
		resumed = 1
	}
	s.c.p.counters.Sessions[version][resumed]++
	s.certificate = s.policy.Certificates([]byte(state.ServerName))[0]
	if len(state.VerifiedChains) > 0 {
		s.subject = subjectOf(state.PeerCertificates[0])
	}
}

// subjectOf is the subject of a certificate in the form of RFC 4514, whole:
// pkix.Name has one CommonName alone, and another order. crypto/x509 has read
// it before, so it can be read; empty otherwise.
func subjectOf(c *x509.Certificate) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(c.RawSubject, &name); err != nil {
		return ""
	}
	return printable(name.String())
}

// printable replaces what a field's value cannot hold, or what backends may
// take for something else, by its escape (RFC 4514 2.4).
func printable(s string) string {
	const hex = "0123456789ABCDEF"
	var b []byte
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			b = append(b, '\\', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
