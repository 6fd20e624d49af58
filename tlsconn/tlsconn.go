// Package tlsconn is TLS as bytes in, bytes out: crypto/tls, unmodified, driven
// by an event loop. It does no I/O and starts no thread. Its owner is told what
// the peer sent and asked to send records, by a Transport; deadlines are the
// owner's, too.
//
// The handshake of crypto/tls can only block. It runs as a coroutine
// ([iter.Pull]) on the thread of whoever calls Handshake, and rests there while
// the peer has not sent enough. After it, Read and Write return at once.
package tlsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
)

// Errors of a Conn that are not crypto/tls's.
var (
	// ErrAgain says that nothing can be done until the peer has sent more,
	// or until what Transport.Offload was given is done.
	ErrAgain = errors.New("tls: needs more of the peer")
	// ErrTruncated says that the peer's stream ended without a close_notify
	// (RFC 8446 6.1): what came before may be a part of what was meant.
	ErrTruncated = errors.New("tls: the peer's stream ended without close_notify")

	errStopped = errors.New("tls: handshake given up")
)

// Transport is the owner's side of a Conn. Its methods are called from within
// the Conn's own methods, on the same thread, but for job of Offload.
type Transport interface {
	// Received returns bytes that the peer sent and that were not consumed
	// yet; none if there are none now. They are read and not kept.
	Received() []byte
	// Consume is told that n of Received were used.
	Consume(n int)
	// Ended reports whether the peer's stream ended behind Received.
	Ended() bool
	// Send takes records for the peer. It copies b, and takes all of it:
	// an owner that has no room holds back its calls of Write.
	Send(b []byte)
	// Offload runs job, which may take long, on another thread, and calls
	// Handshake again when it is done.
	Offload(job func())
}

// Conn is one TLS connection. It belongs to one goroutine.
type Conn struct {
	tls  *tls.Conn
	wire wire

	// The handshake's coroutine; nil once it has ended.
	next func() (struct{}, bool)
	stop func()
	err  error // of the handshake
	up   bool  // the handshake is complete
}

// Server returns the server's side of a connection. Nothing happens before
// Handshake.
func Server(t Transport, config *tls.Config) *Conn {
	c := &Conn{wire: wire{t: t}}
	c.tls = tls.Server(&c.wire, config)
	return c
}

// Client returns the client's side of a connection. Nothing happens before
// Handshake.
func Client(t Transport, config *tls.Config) *Conn {
	c := &Conn{wire: wire{t: t}}
	c.tls = tls.Client(&c.wire, config)
	return c
}

// Handshake takes the handshake as far as the peer's bytes allow. It returns
// nil once it is complete, ErrAgain if it has to be called again, and else why
// it failed, which is final; an alert for the peer was then sent. Until it
// has returned nil or failed, or Abort was called, it holds a coroutine.
func (c *Conn) Handshake() error {
	switch {
	case c.up:
		return nil
	case c.err != nil:
		return c.err
	case c.next == nil:
		c.next, c.stop = iter.Pull(c.handshake)
	case c.wire.busy.Load():
		return ErrAgain
	}
	if _, rests := c.next(); rests {
		return ErrAgain
	}
	c.next, c.stop, c.wire.yield = nil, nil, nil
	c.up = c.err == nil
	return c.err
}

// handshake is the coroutine.
func (c *Conn) handshake(yield func(struct{}) bool) {
	c.wire.yield = yield
	c.err = c.tls.HandshakeContext(context.WithValue(context.Background(), wireKey{}, &c.wire))
}

// Abort gives up a handshake that is under way. It must not be called while an
// offloaded job runs: see Busy.
func (c *Conn) Abort() {
	if c.stop == nil {
		return
	}
	c.stop()
	c.next, c.stop, c.wire.yield = nil, nil, nil
	if c.err == nil {
		c.err = errStopped
	}
}

// Busy reports whether an offloaded job of the handshake runs.
func (c *Conn) Busy() bool { return c.wire.busy.Load() }

// Read reads what the peer sent into p, which must not be empty. It can return
// n > 0 together with an error: the bytes come first. The error is ErrAgain if
// there is nothing more now, io.EOF after the peer's close_notify, ErrTruncated
// if its stream ended without. Read may call Transport.Send: tickets, key
// updates and alerts are dealt with here.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.up {
		return 0, ErrAgain
	}
	n, err := c.tls.Read(p)
	if err == errAgain {
		err = ErrAgain
	}
	return n, err
}

// Partial reports whether the last record that was taken of the peer's stream has
// not come whole: after a Read with ErrAgain, whether part of one is there.
func (c *Conn) Partial() bool { return c.wire.records.partial() }

// Write sends p as records by Transport.Send. The handshake must be complete.
func (c *Conn) Write(p []byte) error {
	_, err := c.tls.Write(p)
	return err
}

// CloseWrite sends a close_notify: nothing may be written afterwards. Without a
// complete handshake it does nothing.
func (c *Conn) CloseWrite() error {
	if !c.up {
		return nil
	}
	return c.tls.CloseWrite()
}

// State describes the connection once the handshake is complete.
func (c *Conn) State() tls.ConnectionState { return c.tls.ConnectionState() }

var _ io.Reader = (*Conn)(nil)
