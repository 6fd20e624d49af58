package control

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
)

// Probe is a question to a backend: whether it can be connected to, and what
// it answers.
type Probe struct {
	Timeout time.Duration // for all of it
	// Method and Path of the request that is sent; nothing is if Method is
	// empty.
	Method, Path string
}

// Probed is the answer of a backend to a Probe.
type Probed struct {
	Backend string  `json:"backend"` // its host in the configuration
	Address string  `json:"address"`
	Green   bool    `json:"green"`
	Seconds float64 `json:"seconds"`
	TLS     string  `json:"tls,omitempty"` // the version: "1.2" or "1.3"
	// NotAfter is when the certificate that it shows expires, also if it is
	// one that is not trusted.
	NotAfter *time.Time `json:"certificate_not_after,omitempty"`
	Status   int        `json:"status,omitempty"` // of the response
	Error    string     `json:"error,omitempty"`
}

// statusRed is the first status that says that a backend is not well.
const statusRed = 500

// Ask asks the backend b at an address, which is "IP:port", "name:port" or
// "unix:PATH". It is green if it can be connected to, if TLS with it comes about
// as requests would have it, and if it answers with a status below 500 to a
// request that is sent. The files of b.TLS are read, and must be readable.
func (p *Probe) Ask(b *config.Backend, address string) Probed {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	begin := time.Now()
	result := Probed{Backend: b.Host, Address: address}
	err := p.ask(ctx, b, address, &result)
	result.Seconds = time.Since(begin).Seconds()
	if err == nil {
		result.Green = result.Status < statusRed
		return result
	}
	result.Error = err.Error()
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Net != "" {
		result.Error = op.Err.Error() // the address stands beside it
	}
	return result
}

func (p *Probe) ask(ctx context.Context, b *config.Backend, address string, result *Probed) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close() // whatever was said
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	scheme := "http"
	if b.Secure() {
		scheme = "https"
		s, err := secured(conn, b, result)
		if err != nil {
			return err
		}
		if p.Method == "" {
			return taken(s)
		}
		conn = s
	}
	if p.Method == "" {
		return nil
	}
	return p.request(ctx, conn, scheme, b, result)
}

// request sends the request over conn and reads the head of the response.
func (p *Probe) request(ctx context.Context, conn net.Conn, scheme string, b *config.Backend, result *Probed) error {
	name := b.Address()
	if strings.HasPrefix(name, "unix:") {
		name = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, p.Method, scheme+"://"+name+p.Path, nil)
	if err != nil {
		return err
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	once := &http.Transport{DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true}
	resp, err := once.RoundTrip(req)
	if err != nil {
		return err
	}
	result.Status = resp.StatusCode
	return resp.Body.Close()
}

// secured does the handshake that a worker does with b, and notes what the
// backend showed in result. Its error is the one that the log tells for a
// response of backend_tls.
func secured(conn net.Conn, b *config.Backend, result *Probed) (*tls.Conn, error) {
	files, err := b.TLS.Read()
	if err != nil {
		return nil, err
	}
	how, err := b.ClientTLS(files)
	if err != nil {
		return nil, err
	}
	s := tls.Client(conn, how)
	err = s.Handshake()
	shown := s.ConnectionState().PeerCertificates
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		shown = untrusted.UnverifiedCertificates
	case err == nil:
		result.TLS = strings.TrimPrefix(tls.VersionName(s.ConnectionState().Version), "TLS ")
	}
	if len(shown) > 0 {
		result.NotAfter = &shown[0].NotAfter
	}
	return s, err
}

// taken tells why the backend refuses our certificate: in TLS 1.3 it says so
// behind the handshake. A backend that takes it closes, being told that nothing
// will come, or waits for the end of the Probe.
func taken(s *tls.Conn) error {
	err := s.CloseWrite()
	if err == nil {
		_, err = s.Read(make([]byte, 1))
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Net == "" { // an alert
		return err
	}
	return nil
}
