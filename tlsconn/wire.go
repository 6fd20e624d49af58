package tlsconn

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// again is the error of an empty wire. crypto/tls keeps its state over an error
// of the connection below it only if that is a net.Error with Temporary true;
// partial records are kept then, too. A test watches that this stays so.
type again struct{}

func (again) Error() string   { return "nothing to read now" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

var errAgain net.Error = again{}

// wire is the connection that crypto/tls believes to read and write.
type wire struct {
	t Transport
	// yield lets the handshake rest; it reports whether to go on. It is nil
	// while no handshake runs.
	yield   func(struct{}) bool
	busy    atomic.Bool // an offloaded job runs
	records records     // of the peer's, as far as they were read
}

// records follows a stream of records (RFC 8446 5.1), of which crypto/tls takes
// more at a time than it can use.
type records struct {
	head [5]byte // the type, the version, the length of what follows
	got  int     // bytes of head
	left int     // bytes that the last record still misses
}

func (r *records) follow(b []byte) {
	for len(b) > 0 {
		if r.left > 0 {
			n := min(r.left, len(b))
			r.left -= n
			b = b[n:]
			continue
		}
		n := copy(r.head[r.got:], b)
		r.got += n
		b = b[n:]
		if r.got == len(r.head) {
			r.got, r.left = 0, int(r.head[3])<<8|int(r.head[4])
		}
	}
}

func (r *records) partial() bool { return r.got > 0 || r.left > 0 }

func (w *wire) Read(p []byte) (int, error) {
	for {
		if b := w.t.Received(); len(b) > 0 {
			n := copy(p, b)
			w.records.follow(p[:n])
			w.t.Consume(n)
			return n, nil
		}
		switch {
		case w.t.Ended():
			return 0, ErrTruncated
		case w.yield == nil:
			return 0, errAgain
		case !w.yield(struct{}{}):
			return 0, errStopped
		}
	}
}

func (w *wire) Write(p []byte) (int, error) {
	w.t.Send(p)
	return len(p), nil
}

// Close does nothing: the descriptor is the owner's.
func (w *wire) Close() error { return nil }

func (w *wire) LocalAddr() net.Addr              { return noAddr{} }
func (w *wire) RemoteAddr() net.Addr             { return noAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// wireKey is the key of a handshake's wire in its context.
type wireKey struct{}

// noAddr stands for addresses, which only the owner knows.
type noAddr struct{}

func (noAddr) Network() string { return "memory" }
func (noAddr) String() string  { return "memory" }

// Offloaded returns a copy of cert for the handshake that ctx is of, whose
// private key signs on another thread: an RSA signature takes about a
// millisecond. ctx is the Context of what a Conn's handshake gave to
// GetCertificate, GetConfigForClient or GetClientCertificate. A key that cannot
// sign is left to crypto/tls to refuse.
func Offloaded(ctx context.Context, cert *tls.Certificate) *tls.Certificate {
	w, ours := ctx.Value(wireKey{}).(*wire)
	key, signs := cert.PrivateKey.(crypto.Signer)
	if !ours || !signs {
		return cert
	}
	c := *cert
	c.PrivateKey = &signer{wire: w, key: key}
	return &c
}

// signer is a private key that works on another thread while the handshake
// rests.
type signer struct {
	wire *wire
	key  crypto.Signer
}

func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	w := s.wire
	if w.yield == nil {
		return s.key.Sign(random, digest, opts)
	}
	w.busy.Store(true)
	w.t.Offload(func() {
		signature, err = s.key.Sign(random, digest, opts)
		w.busy.Store(false)
	})
	for w.busy.Load() {
		if !w.yield(struct{}{}) {
			return nil, errStopped
		}
	}
	return signature, err
}
