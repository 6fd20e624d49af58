package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/cloud-cup/cloud-cup/message"
)

// Forwarding fields tell backends who asked, for what, and how. What a client
// says there is replaced, unless it is a proxy that the route trusts: then it
// is extended.

// trusted reports whether the client's forwarding fields are believed.
func (x *exchange) trusted() bool {
	if !x.addr.IsValid() {
		return x.route.spec.TrustedUnix
	}
	for _, p := range x.route.spec.TrustedProxies {
		if p.Contains(x.addr) {
			return true
		}
	}
	return false
}

// dropped are the fields that we write ourselves, by ID.
func (x *exchange) dropped(trusted bool) *[256]bool {
	switch {
	case !trusted:
		return &dropUntrusted
	case x.route.spec.RFC7239:
		return &dropForwarded
	}
	return &dropXForwarded
}

var (
	dropUntrusted = [256]bool{
		message.FieldHost:               true,
		message.FieldForwarded:          true,
		message.FieldLookalike:          true,
		message.FieldXClientCertSubject: true,
		message.FieldXForwardedFor:      true,
		message.FieldXForwardedHost:     true,
		message.FieldXForwardedPort:     true,
		message.FieldXForwardedProto:    true,
	}
	// Not even a trusted proxy tells who its client is by a certificate.
	dropForwarded = [256]bool{
		message.FieldHost: true, message.FieldXClientCertSubject: true, message.FieldLookalike: true, message.FieldForwarded: true,
	}
	dropXForwarded = [256]bool{
		message.FieldHost: true, message.FieldXClientCertSubject: true, message.FieldLookalike: true, message.FieldXForwardedFor: true,
	}
)

// appendForwarded appends the route's kind of forwarding fields, and who the
// client showed itself to be.
func (x *exchange) appendForwarded(b []byte, trusted bool) []byte {
	if s := x.client.tls; s != nil && s.subject != "" {
		b = append(b, "X-Client-Cert-Subject: "...)
		b = append(b, s.subject...)
		b = append(b, '\r', '\n')
	}
	if x.route.spec.RFC7239 {
		return x.appendRFC7239(b, trusted)
	}
	req, c := &x.req, x.client
	b = append(b, "X-Forwarded-For: "...)
	if trusted {
		b = appendList(b, req, message.FieldXForwardedFor)
	}
	b = x.appendAddr(b)
	// A trusted proxy knows what the first client asked for.
	switch {
	case trusted && req.Find(message.FieldXForwardedProto) != nil:
		b = append(b, '\r', '\n')
	case c.tls != nil:
		b = append(b, "\r\nX-Forwarded-Proto: https\r\n"...)
	default:
		b = append(b, "\r\nX-Forwarded-Proto: http\r\n"...)
	}
	if host := req.Text(req.Host); len(host) > 0 && (!trusted || req.Find(message.FieldXForwardedHost) == nil) {
		b = append(b, "X-Forwarded-Host: "...)
		b = append(b, host...)
		b = append(b, '\r', '\n')
	}
	if !trusted || req.Find(message.FieldXForwardedPort) == nil {
		b = append(b, c.listener.port...)
	}
	return b
}

// appendRFC7239 appends Forwarded (RFC 7239).
func (x *exchange) appendRFC7239(b []byte, trusted bool) []byte {
	req, c := &x.req, x.client
	b = append(b, "Forwarded: "...)
	if trusted {
		b = appendList(b, req, message.FieldForwarded)
	}
	switch {
	case !x.addr.IsValid():
		b = append(b, "for=unknown"...)
	case x.addr.Is4():
		b = append(b, "for="...)
		b = append(b, x.from...)
	default:
		b = append(b, `for="[`...)
		b = append(b, x.from...)
		b = append(b, `]"`...)
	}
	if host := req.Text(req.Host); len(host) > 0 {
		b = append(b, `;host="`...) // a valid Host needs no escapes
		b = append(b, host...)
		b = append(b, '"')
	}
	b = append(b, ";proto="...)
	b = append(b, c.scheme()...)
	return append(b, '\r', '\n')
}

// scheme is how c's client speaks to us.
func (c *client) scheme() string {
	if c.tls != nil {
		return "https"
	}
	return "http"
}

// appendList appends the values of all fields with the ID as one list, with a
// comma behind.
func appendList(b []byte, h *message.Head, id message.FieldID) []byte {
	for i := range h.Fields {
		if f := &h.Fields[i]; f.ID == id && f.Value.Len > 0 {
			b = append(b, h.Text(f.Value)...)
			b = append(b, ", "...)
		}
	}
	return b
}

// appendAddr appends the client's address as X-Forwarded-For has it.
func (x *exchange) appendAddr(b []byte) []byte {
	if len(x.from) == 0 {
		return append(b, "unix:"...)
	}
	return append(b, x.from...)
}

// portLine tells the port of a listener's address; it is empty for unix sockets.
func portLine(address string) []byte {
	if strings.HasPrefix(address, "unix:") {
		return nil
	}
	return []byte("X-Forwarded-Port: " + address[strings.LastIndexByte(address, ':')+1:] + "\r\n")
}

// appendID appends a new request id: 128 random bits, in hexadecimal.
func (p *Proxy) appendID(b []byte) []byte {
	var id [16]byte
	binary.NativeEndian.PutUint64(id[:], p.random.Uint64())
	binary.NativeEndian.PutUint64(id[8:], p.random.Uint64())
	return hex.AppendEncode(b, id[:])
}
