package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProtocolVersion is the version of Message. Master and workers come from one
// program file, so another version is an error and never adapted to.
const ProtocolVersion = 1

// MessageBytesMax bounds a message; whatever may be larger travels as a memory
// file beside it.
const MessageBytesMax = 64 << 10

// sendTimeout bounds a send to a peer that does not read.
const sendTimeout = 100 * time.Millisecond

// WorkerEnvironment is the variable that makes a program a worker: its value
// is the slot's number.
const WorkerEnvironment = "CLOUD_CUP_WORKER"

// Descriptors that a worker inherits. Listeners follow from FDListeners on, in
// the order of Start.Listeners.
const (
	FDChannel   = 3
	FDCounters  = 4
	FDListeners = 5
)

// Type says what a Message asks for or tells.
type Type string

// The master sends all but TypeAck and TypeDrained, and each is answered by a
// TypeAck with its sequence number.
const (
	// TypeStart is the first message: what to serve, and how. A sealed
	// Payload comes with it. The acknowledgement says that the worker
	// accepts connections.
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
	// TypeDrain asks to stop accepting and to end within Deadline.
	TypeDrain Type = "drain"

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
	Start      *Start        `json:"start,omitempty"`
	Error      string        `json:"error,omitempty"` // ack: why not
	Engine     *Engine       `json:"engine,omitempty"`
	Cut        int           `json:"cut,omitempty"` // drained: connections cut at the deadline
}

// Start is what a worker must know before its first connection.
type Start struct {
	Slot      int      `json:"slot"`
	Slots     int      `json:"slots"`
	Listeners []string `json:"listeners"` // addresses, one per inherited listener
	Engine    string   `json:"engine"`    // the one that the master chose
	// Required forbids another engine than Engine.
	Required bool `json:"required,omitempty"`
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
}

// Channel is one end of the connection between master and worker. Send and
// Receive may be called from different goroutines, each from one at a time.
type Channel struct {
	conn *net.UnixConn
	in   [MessageBytesMax + 1]byte
	oob  []byte
}

// Pair returns the master's end of a new connection, and the descriptor of the
// worker's, which is to be inherited and then closed.
func Pair() (*Channel, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	c, err := Inherited(pair[0])
	if err != nil {
		unix.Close(pair[1])
		return nil, -1, err
	}
	return c, pair[1], nil
}

// Inherited returns the Channel whose descriptor is fd, which it takes over.
func Inherited(fd int) (*Channel, error) {
	file := os.NewFile(uintptr(fd), "control channel")
	if file == nil {
		return nil, fmt.Errorf("control channel: descriptor %d is not open", fd)
	}
	defer file.Close() // FileConn has its own copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	packets, ok := conn.(*net.UnixConn)
	if !ok || packets.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, fmt.Errorf("control channel: descriptor %d is another kind of socket", fd)
	}
	return &Channel{conn: packets, oob: make([]byte, unix.CmsgSpace(4))}, nil
}

// Send sends m, and a copy of the descriptor fd unless it is negative. It does
// not wait for a peer that does not read: that is an error after a moment.
func (c *Channel) Send(m Message, fd int) error {
	m.Version = ProtocolVersion
	text, err := json.Marshal(&m)
	if err != nil {
		return fmt.Errorf("control message %s: %w", m.Type, err)
	}
	if len(text) > MessageBytesMax {
		return fmt.Errorf("control message %s: %d bytes are more than %d", m.Type, len(text), MessageBytesMax)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	if _, _, err := c.conn.WriteMsgUnix(text, rights, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	return nil
}

// Receive waits for a message. fd is the descriptor that came with it, the
// caller's to close, or -1. The error is io.EOF when the other side is gone.
func (c *Channel) Receive() (m Message, fd int, err error) {
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.in[:], c.oob)
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) { // the peer left messages unread
			err = io.EOF
		}
		return m, -1, err
	}
	if fd, err = receivedFD(c.oob[:oobn]); err != nil {
		return m, -1, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		err = fmt.Errorf("control message larger than %d bytes", MessageBytesMax)
	} else if err = json.Unmarshal(c.in[:n], &m); err != nil {
		err = fmt.Errorf("control message: %w", err)
	} else if m.Version != ProtocolVersion {
		err = fmt.Errorf("control message has version %d, want %d", m.Version, ProtocolVersion)
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return m, fd, err
}

// receivedFD returns the descriptor in control data, or -1.
func receivedFD(oob []byte) (int, error) {
	if len(oob) == 0 {
		return -1, nil
	}
	parts, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, os.NewSyscallError("control data", err)
	}
	for i := range parts {
		fds, err := unix.ParseUnixRights(&parts[i])
		if err == nil && len(fds) == 1 { // there is room for no more
			return fds[0], nil
		}
	}
	return -1, nil
}

// Close ends the connection; the other side's Receive returns io.EOF.
func (c *Channel) Close() error { return c.conn.Close() }
