package worker

import (
	"context"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/cloud-cup/cloud-cup/tlsconn"
)

// suites12 are those of TLS 1.2 with forward secrecy and AEAD. TLS 1.3 has no
// others.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// resumptions is the number of sessions with each backend that are kept for
// resumption.
const resumptions = 64

// versions are the names of TLS versions in the configuration.
var versions = map[config.SSLVersion]uint16{
	config.SSLVersion12: tls.VersionTLS12,
	config.SSLVersion13: tls.VersionTLS13,
}

// clientAuth is what the modes of ssl.client ask for.
var clientAuth = map[config.ClientMode]tls.ClientAuthType{
	config.ClientOff:     tls.NoClientCert,
	config.ClientRequest: tls.VerifyClientCertIfGiven,
	config.ClientRequire: tls.RequireAndVerifyClientCert,
}

// listenerTLS builds what a listener does its handshakes with.
func listenerTLS(ssl *config.SSL, files config.Files) (*proxy.ListenerTLS, error) {
	l := &proxy.ListenerTLS{Names: map[string][]int{}}
	var certificates []*tls.Certificate
	for i, pair := range ssl.Certificates {
		c, err := tls.X509KeyPair(files[pair.Certificate], files[pair.Key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pair.Certificate, err)
		}
		for _, name := range config.CertificateNames(c.Leaf) {
			l.Names[name] = append(l.Names[name], i)
		}
		certificates = append(certificates, &c)
	}
	if names := config.CertificateNames(certificates[0].Leaf); len(names) > 0 {
		l.Default = l.Names[names[0]]
	}
	l.Config = &tls.Config{
		MinVersion:       versions[ssl.MinVersion],
		CipherSuites:     suites12,
		CurvePreferences: ssl.Curves,
		NextProtos:       config.Protocols,
		ClientAuth:       clientAuth[ssl.Client.Mode],
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return signing(hello.Context(), choose(hello, certificates, l.Certificates([]byte(hello.ServerName)))), nil
		},
	}
	if ssl.Client.Mode != config.ClientOff {
		pool, err := config.Authorities(ssl.Client.CAFile, files)
		if err != nil {
			return nil, err
		}
		l.Config.ClientCAs = pool
	}
	return l, nil
}

// choose is the first of the listed certificates whose key the client knows, or
// else the first.
func choose(hello *tls.ClientHelloInfo, certificates []*tls.Certificate, list []int) *tls.Certificate {
	if len(list) > 1 {
		able := *hello
		able.ServerName = "" // names were compared, and the first certificate is for all others, too
		for _, n := range list {
			if able.SupportsCertificate(certificates[n]) == nil {
				return certificates[n]
			}
		}
	}
	return certificates[list[0]]
}

// signing is cert as the handshake of ctx shows it: a key that takes its time
// signs on another thread.
func signing(ctx context.Context, cert *tls.Certificate) *tls.Certificate {
	if _, slow := cert.PrivateKey.(*rsa.PrivateKey); slow {
		return tlsconn.Offloaded(ctx, cert)
	}
	return cert
}

// backendTLS builds what connections to a backend do their handshakes with.
func backendTLS(b *config.Backend, files config.Files) (*tls.Config, error) {
	c, err := b.ClientTLS(files)
	if err != nil {
		return nil, err
	}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(resumptions)
	if len(c.Certificates) == 0 {
		return c, nil
	}
	own := &c.Certificates[0]
	c.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if asked.SupportsCertificate(own) != nil {
			return new(tls.Certificate), nil // none, as crypto/tls does by itself
		}
		return signing(asked.Context(), own), nil
	}
	return c, nil
}

// ticketed is a configuration of TLS whose session tickets need keys.
type ticketed struct {
	config *tls.Config
	// policy is what both sides went through for a ticket. Resumption shows
	// no certificate again: a ticket is good where the same ones are shown
	// and asked for. Renewed ones have the same names.
	policy []byte
}

func newTicketed(c *tls.Config, ssl *config.SSL, files config.Files) ticketed {
	h := sha256.New()
	fmt.Fprintf(h, "%q %x", ssl.Client.Mode, sha256.Sum256(files[ssl.Client.CAFile]))
	for _, pair := range ssl.Certificates {
		fmt.Fprintf(h, " %q", pair.Certificate)
	}
	return ticketed{c, h.Sum(nil)}
}

// use takes the keys of the master, at least one, in place of those before. It
// may be called while handshakes are under way.
func (t *ticketed) use(keys [][32]byte) {
	own := make([][32]byte, len(keys))
	for i := range keys {
		mac := hmac.New(sha256.New, keys[i][:])
		mac.Write(t.policy)
		mac.Sum(own[i][:0])
	}
	t.config.SetSessionTicketKeys(own)
}

// useTickets takes new keys of session tickets for the snapshot in force. The
// master sends none while one is about to take its place.
func (w *worker) useTickets(keys [][32]byte) error {
	if len(keys) == 0 {
		return errors.New("no keys of session tickets")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.ticketed {
		w.ticketed[i].use(keys)
	}
	return nil
}

// addPolicies tells s what is spoken on each address. It returns what further
// keys of session tickets are for.
func addPolicies(s *proxy.Snapshot, cfg *config.Config, p *control.Payload) (list []ticketed, err error) {
	built := map[*config.SSL]*proxy.ListenerTLS{}
	secure := proxy.HTTPSPort
	for i := len(cfg.Policies) - 1; i >= 0; i-- {
		ssl := cfg.Policies[i].SSL
		if ssl == nil {
			continue
		}
		if built[ssl] == nil {
			if built[ssl], err = listenerTLS(ssl, p.Files); err != nil {
				return nil, err
			}
			t := newTicketed(built[ssl].Config, ssl, p.Files)
			if len(p.TicketKeys) > 0 {
				t.use(p.TicketKeys)
			}
			list = append(list, t)
		}
		s.TLS[cfg.Root[i]] = built[ssl]
		if port, ok := portOf(cfg.Root[i]); ok {
			secure = port // of the first address with TLS, after all
		}
	}
	for i := range cfg.Policies {
		if cfg.Policies[i].Redirect {
			s.Redirects[cfg.Root[i]] = secure
		}
	}
	return list, nil
}

// portOf is the port of an address of root, if it has one that is known.
func portOf(root string) (port int, ok bool) {
	_, text, err := net.SplitHostPort(root)
	if err != nil {
		return 0, false
	}
	port, err = strconv.Atoi(text)
	return port, err == nil && port != 0
}
