package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// ProtocolVersion is the version of Message. Master and workers come from one
// program file, so another version is an error and never adapted to.
const ProtocolVersion = 1

// MessageBytesMax bounds a message; whatever may be larger travels as a memory
// file beside it.
const MessageBytesMax = 64 << 10

// WorkerEnvironment is the variable that makes a program a worker: its value
// is the slot's number.
const WorkerEnvironment = "CLOUD_CUP_WORKER"

// Descriptors that a worker inherits. Listeners come by TypeListen.
const (
	FDChannel  = 3
	FDCounters = 4 // the incarnation's shm.Page
	FDBackends = 5 // shm.Backends, which all processes share
)

// StopGrace is the Grace of a drain that is in a hurry: a request that is on
// its way to an idle connection then gets its answer.
const StopGrace = time.Second

// Type says what a Message asks for or tells.
type Type string

// The master sends all but TypeAck and TypeDrained, and each is answered by a
// TypeAck with its sequence number.
const (
	// TypeStart is the first message: what to serve, and how. A sealed
	// Payload comes with it. The acknowledgement says that the worker is
	// ready for listeners.
	TypeStart Type = "start"
	// TypePrepare asks to build what serving the Payload that comes with it
	// needs; the acknowledgement says that a commit would succeed.
	TypePrepare Type = "prepare"
	// TypeCommit puts the prepared generation in force; the acknowledgement
	// says that every later request is served by it.
	TypeCommit Type = "commit"
	// TypeAbort forgets the prepared generation.
	TypeAbort Type = "abort"
	// TypeSample asks for the counters to be brought up to date.
	TypeSample Type = "sample"
	// TypeBackends tells that the administrative state of backends changed in
	// shared memory: idle connections to disabled ones are to be closed.
	TypeBackends Type = "backends"
	// TypeBeat asks for a sign of life, which the loop itself gives.
	TypeBeat Type = "beat"
	// TypeTickets brings new keys of session tickets, for the generation in
	// force.
	TypeTickets Type = "tickets"
	// TypeDrain asks to stop accepting and to end within Deadline. Connections
	// without a request are closed after Grace.
	TypeDrain Type = "drain"

	// TypeListen hands over the listening socket that comes with it; the
	// acknowledgement says that the worker accepts connections from it.
	TypeListen Type = "listen"
	// TypeUnlisten asks to stop accepting from a listener. The
	// acknowledgement says that the worker has closed its descriptor.
	TypeUnlisten Type = "unlisten"
	// TypeRenew asks to look for connections that wait in listeners: another
	// worker that had them let go, or died.
	TypeRenew Type = "renew"
	// TypeLog hands over the file of an access log, opened for this worker
	// alone: one that the next commit names, or that takes the place of the
	// one it has. The acknowledgement says that nothing is written to that
	// any more.
	TypeLog Type = "log"

	TypeAck Type = "ack"
	// TypeDrained is a worker's last message.
	TypeDrained Type = "drained"
)

// Message is what travels on a Channel. Which fields count is a matter of its
// Type.
type Message struct {
	Version    int           `json:"version"`
	Seq        uint64        `json:"seq"`
	Type       Type          `json:"type"`
	Generation uint64        `json:"generation,omitempty"` // prepare, commit, abort
	Deadline   time.Duration `json:"deadline,omitempty"`   // drain
	Grace      time.Duration `json:"grace,omitempty"`      // drain
	Start      *Start        `json:"start,omitempty"`
	Listener   *Listener     `json:"listener,omitempty"` // listen, unlisten
	Log        string        `json:"log,omitempty"`      // log: the path as configured
	Error      string        `json:"error,omitempty"`    // ack: why not
	Engine     *Engine       `json:"engine,omitempty"`
	Guard      *Guard        `json:"guard,omitempty"`       // ack of a start or commit
	Cut        int           `json:"cut,omitempty"`         // drained: connections cut at the deadline
	TicketKeys [][32]byte    `json:"ticket_keys,omitempty"` // tickets: as in Payload
}

// Start is what a worker must know before its first connection.
type Start struct {
	Slot   int    `json:"slot"`
	Engine string `json:"engine"` // the one that the master chose
	// Required forbids another engine than Engine.
	Required bool `json:"required,omitempty"`
}

// Listener is a listening socket in a worker's hands.
type Listener struct {
	ID uint32 `json:"id"` // never used again by the same master
	// Address is as configured, with the port in use; in TypeListen.
	Address string `json:"address,omitempty"`
	// Root, in TypeListen, is the address as it stands in config.Config.Root.
	Root string `json:"root,omitempty"`
	// Shared, in TypeListen, says that all workers accept from this socket,
	// and not one alone.
	Shared bool `json:"shared,omitempty"`
	// Empty, in TypeUnlisten, asks to take all that waits in the accept queue
	// first: the address is given up. Otherwise another worker has the socket.
	Empty bool `json:"empty,omitempty"`
}

// Engine tells what a worker uses.
type Engine struct {
	Name     string `json:"name"`
	Detail   string `json:"detail,omitempty"`
	Fallback string `json:"fallback,omitempty"` // why it is not the one that was asked for
}

// Payload is a configuration on its way to a worker, as JSON in a sealed
// memory file.
type Payload struct {
	Generation uint64 `json:"generation"`
	Name       string `json:"name"` // for errors
	Dir        string `json:"dir"`  // what relative paths are relative to
	Text       []byte `json:"text"`
	// Addresses holds what the names among the backends' hosts resolve to,
	// as "IP:port". An absent or empty one did not resolve.
	Addresses map[string][]string `json:"addresses"`
	// Rows holds each backend's place in shm.Backends, by BackendKey.
	Rows map[string]int `json:"rows"`
	// RouteIndex holds each route's place in shm.Page.Routes, in the order of
	// the file.
	RouteIndex []int `json:"route_index"`
	// Files are the contents of the files that Text names.
	Files config.Files `json:"files,omitempty"`
	// TicketKeys encrypt session tickets (RFC 8446 4.6.1): the first new
	// ones, all of them those that clients come back with.
	TicketKeys [][32]byte `json:"ticket_keys,omitempty"`
}

// Channel is one end of the connection between master and worker. Receive
// belongs to one goroutine; Send may be called from any.
type Channel struct {
	conn *sys.PacketConn
	in   [MessageBytesMax]byte
}

// Pair returns the master's end of a new connection, and the worker's as a file
// that is to be inherited and then closed.
func Pair() (*Channel, *os.File, error) {
	conn, other, err := sys.PacketPair()
	if err != nil {
		return nil, nil, fmt.Errorf("control channel: %w", err)
	}
	return &Channel{conn: conn}, other, nil
}

// Inherited returns the Channel whose descriptor is fd, which it takes over.
// Another kind of descriptor is an error and stays open.
func Inherited(fd int) (*Channel, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("control channel: descriptor %d: %w", fd, err)
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("control channel: descriptor %d is another kind of socket", fd)
	}
	conn, err := sys.NewPacketConn(fd)
	if err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	return &Channel{conn: conn}, nil
}

// Send sends m, and a copy of the descriptor fd unless it is negative. It
// never waits: that the peer does not read is an error (EAGAIN).
func (c *Channel) Send(m Message, fd int) error {
	m.Version = ProtocolVersion
	text, err := json.Marshal(&m)
	if err != nil {
		return fmt.Errorf("control message %s: %w", m.Type, err)
	}
	if len(text) > MessageBytesMax {
		return fmt.Errorf("control message %s: %d bytes are more than %d", m.Type, len(text), MessageBytesMax)
	}
	var fds []int
	if fd >= 0 {
		fds = []int{fd}
	}
	if err := c.conn.Send(text, fds...); err != nil {
		return fmt.Errorf("control message %s: %w", m.Type, err)
	}
	return nil
}

// Receive waits for a message. fd is the descriptor that came with it, the
// caller's to close, or -1. The error is io.EOF when the other side is gone.
func (c *Channel) Receive() (m Message, fd int, err error) {
	n, fds, err := c.conn.Recv(c.in[:])
	if err != nil {
		if errors.Is(err, unix.ECONNRESET) { // the peer left messages unread
			err = io.EOF
		}
		return m, -1, err
	}
	fd = -1
	if len(fds) == 1 {
		fd = fds[0]
	}
	switch err = json.Unmarshal(c.in[:n], &m); {
	case len(fds) > 1:
		err = fmt.Errorf("control message with %d descriptors", len(fds))
	case err != nil:
		err = fmt.Errorf("control message: %w", err)
	case m.Version != ProtocolVersion:
		err = fmt.Errorf("control message has version %d, want %d", m.Version, ProtocolVersion)
	default:
		return m, fd, nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // nobody will use it
	}
	return m, -1, err
}

// Close ends the connection; the other side's Receive returns io.EOF.
func (c *Channel) Close() error { return c.conn.Close() }
