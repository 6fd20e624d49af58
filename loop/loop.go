package loop

import (
	"errors"
	"net/netip"
	"syscall"
	"time"
)

// ErrNotSupported is wrapped by the error of an engine's Open when the kernel
// lacks or refuses what the engine needs: an automatic choice moves on to the
// next engine. The error's text names the step, the errno and the likely cause.
var ErrNotSupported = errors.New("not supported here")

// Code says what an Op asks for.
type Code uint8

const (
	// Accept takes one connection from the listener FD. On success N is the
	// new descriptor (non-blocking, close-on-exec, attached) and, with a Msg,
	// Peer's AddrPort the peer's address (the zero AddrPort for unix sockets).
	Accept Code = iota + 1
	// Connect creates a socket and connects it to Peer. Submit sets FD
	// (attached; TCP_NODELAY is set, and no pacing if Peer is on the
	// loopback) or leaves it -1 when no socket could be made, which is
	// delivered as the Op's error. The submitter owns FD from Submit on and
	// closes it also after an error.
	Connect
	// Recv receives once into a buffer of class Size, of which no more than
	// is there is waited for. With ClassPipe at most Max bytes stay in the
	// kernel, for a Send to pass on; where no pipe is to be had, or urgent data
	// came, the result lends a ClassBody buffer instead.
	Recv
	// RecvMulti receives into ClassHead buffers until the engine ends the
	// series (More false): at the latest after MultiBytes and one burst of
	// the socket, so that no peer can take the pool. Engines may end it after
	// every result, and cut none short by it.
	RecvMulti
	// Send sends the bytes of Vecs in order, or those that Pipe holds.
	Send
)

// MultiBytes is the number of received bytes after which a RecvMulti ends.
const MultiBytes = 64 << 10

// RawWait is how long an engine's wait may hold the scheduler's P; a longer one
// gives it away first. Under load waits are shorter, and giving the P away for
// each of them costs 7 % of the CPU. It is longer than a tick of the usual
// kernels (4 ms at CONFIG_HZ=250): a timeout that ends before the next tick has
// the kernel set the CPU's timer anew for every wait, which in a virtual
// machine is an exit, 10 % of a request on one connection. It is shorter than
// the 10 ms after which the scheduler sends a signal to whoever holds a P.
const RawWait = 5 * time.Millisecond

// VecsMax bounds the Vecs of one Send.
const VecsMax = 16

// Token names a submitter's object by its index in the submitter's table and
// by its age there, so that a result that outlives its object is recognised.
type Token struct{ Index, Age uint32 }

// Op is one operation. It belongs to its submitter before Submit and after the
// final delivery, and to the engine in between. Ops are embedded in the
// objects they serve and used again; nothing is allocated per operation. Every
// connection has one that waits for its peer: they are kept small.
type Op struct {
	// Set by the submitter.

	Code Code
	Tag  uint8 // the submitter's: which of the object's Ops this is
	Size Class // Recv: class of the buffer to receive into, ClassHead, ClassBody or ClassPipe
	More bool  // set by the engine before delivery. RecvMulti: the series goes on
	FD   int32 // the descriptor; set by Submit for Connect
	User Token // the submitter's: the object this Op serves
	*Msg       // of a Send, a Connect, and an Accept, which may do without
	Max  int32 // Recv into a pipe: the most bytes to take

	// Engine is the engine's own: zero when the Op is not in flight. The
	// submitter may read it as "in flight" by InFlight and never writes it.
	Engine uint32

	// Set by the engine before delivery.

	N   int           // bytes moved, or the accepted descriptor
	Err syscall.Errno // 0, or why not; ECANCELED after Cancel
	Buf *Buffer       // receives with N > 0: the data is Buf.Bytes()[:N]; one count is handed over
}

// Msg is what only some Ops need, as msghdr in sendmsg(2). It is the engine's
// while the Op is in flight; several Connects may share one.
type Msg struct {
	Peer *Addr // where a Connect goes to, and where an Accept puts the peer's address
	Vecs [][]byte
	Pipe *Buffer // Send: a ClassPipe buffer that holds bytes; nil: Vecs
}

// InFlight reports whether the Op was submitted and its final result is not
// delivered yet.
func (op *Op) InFlight() bool { return op.Engine != 0 }

// An Engine drives descriptors for one goroutine, which stays locked to the
// thread that opened it. Only Wake may be called from elsewhere.
type Engine interface {
	// Name is "uring" or "epoll".
	Name() string
	// Detail describes the engine for the log and cupctl, for example
	// "tier A, single issuer, deferred task run".
	Detail() string

	// Attach makes a descriptor that the engine did not create known to it:
	// a listener, or a connected stream socket. It must be non-blocking.
	Attach(fd int32) error
	// Submit hands op to the kernel with the next Poll at the latest. It
	// never blocks and never delivers.
	Submit(op *Op)
	// Cancel asks for an early end of an Op in flight, which is then
	// delivered as usual: with ECANCELED, or with its result if that came
	// first. It does nothing if op is not in flight.
	Cancel(op *Op)
	// Shutdown is shutdown(2) with how one of unix.SHUT_RD, SHUT_WR or
	// SHUT_RDWR. Receives in flight end with N = 0 after SHUT_RDWR, sends
	// with EPIPE.
	Shutdown(fd int32, how int) syscall.Errno
	// SendNow is send(2) without waiting, and without a result to come: the
	// last words on a connection. It returns how much of b the kernel had
	// room for. No Send may be in flight.
	SendNow(fd int32, b []byte) int
	// CloseFD closes an attached descriptor that has no Op in flight, with
	// the next Poll at the latest.
	CloseFD(fd int32)
	// Unsent is the number of bytes that the peer's kernel has not
	// acknowledged yet (SIOCOUTQ, tcp(7)): that it shrinks is progress of a
	// stalled Send. -1 if the kernel does not tell.
	Unsent(fd int32) int
	// Quiet reports whether a receive on fd would have to wait: no bytes are
	// there, urgent ones among them, and neither the peer's end nor an error.
	// No receive may be in flight.
	Quiet(fd int32) bool
	// Dead reports whether a connection is no more, for example because the
	// peer has reset it: a Send that learns of that takes the error away
	// (socket(7), SO_ERROR), and a receive then tells an end. Of unix sockets
	// it is not known.
	Dead(fd int32) bool
	// Abort makes the coming CloseFD end the connection with a RST instead
	// of a FIN: the peer can tell that what it got is not whole. What was
	// sent and not taken yet is lost.
	Abort(fd int32)

	// Poll waits at most wait (no limit if negative, not at all if 0 or if
	// results are known) for results, or until Wake, and delivers what there
	// is. It is never called from deliver. An error is final: the engine is
	// of no use any more.
	Poll(wait time.Duration, deliver func(*Op)) error
	// Now is the CLOCK_MONOTONIC time in nanoseconds read after the wait of
	// the last Poll, or at Open.
	Now() int64
	// Wake makes the current or next Poll return soon. Any goroutine may
	// call it, also after Close.
	Wake()

	// Stats are the engine's own counters.
	Stats() Stats
	// Close frees the engine. Ops still in flight are dropped, never
	// delivered; descriptors are not closed.
	Close() error
}

// Stats counts what an engine did since Open.
type Stats struct {
	Waits      uint64 // system calls that may have slept
	Calls      uint64 // other system calls
	Results    uint64 // results delivered
	NoBuffers  uint64 // times a receive had to wait for the pool
	Stale      uint64 // results dropped because their descriptor had been closed
	Overflows  uint64 // io_uring: completion queue overflows
	InFlight   int    // Ops submitted and not finally delivered
	Attached   int    // descriptors known to the engine
	BuffersOut int    // bytes of the buffers the engine holds for the kernel to fill
}

// Addr is the address of a peer's socket.
type Addr struct {
	AddrPort netip.AddrPort // a TCP address, if Path is empty
	Path     string         // a unix socket; abstract if it begins with '@'
}

// String formats the address as it is written in the configuration.
func (a *Addr) String() string {
	if a.Path != "" {
		return "unix:" + a.Path
	}
	return a.AddrPort.String()
}
