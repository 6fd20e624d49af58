package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// heirEnvironment is the variable that makes a program take over from a master
// that runs: its value is the descriptor of their connection.
const heirEnvironment = "CLOUD_CUP_HEIR"

// fdHeir is that descriptor.
const fdHeir = 3

// heritageVersion is that of what two masters say to each other. It changes
// when one of the next version could take it for something else: new fields
// that may be missing are no reason.
const heritageVersion = 1

// What masters say to each other at an upgrade, in this order. The new one
// speaks first.
const (
	heirHello   = "hello"   // new: I am Program
	heirLeaves  = "leaves"  // old: the heritage, in the memory file that comes with it
	heirFDs     = "fds"     // old: some of its descriptors; several times
	heirReady   = "ready"   // new: all workers serve
	heirFailed  = "failed"  // new: Error is why not
	heirYours   = "yours"   // old: the rest is yours
	heirServes  = "serves"  // new: I answer on the admin socket
	heirLetGo   = "let go"  // old: no worker accepts any more
	heirCounted = "counted" // old: a tally of what was counted since the last one, in the memory file
	heirEnd     = "end"     // old: all connections have ended
	heirAtOnce  = "at once" // new: end now; at any time after "yours"

	heirConfig   = "config"   // new: this is in force now, in the memory file; at any time after "yours"
	heirFollowed = "followed" // old: my workers end by Generation, or Error is why not
)

// heirMessage is one message between two masters.
type heirMessage struct {
	Version int    `json:"version"`
	Type    string `json:"type"`
	Program string `json:"program,omitempty"` // its version
	PID     int    `json:"pid,omitempty"`
	Error   string `json:"error,omitempty"`
	// Generation is of "followed".
	Generation uint64 `json:"generation,omitempty"`

	fds []int // that came with it; the receiver's to close
}

// heritage is what a master leaves to the next one. Descriptors travel beside
// it: those of Groups, then the admin socket's and that of the metrics.
type heritage struct {
	Config   handedConfig             `json:"config"`
	Groups   []handedGroup            `json:"groups"`
	Admin    *handedAdmin             `json:"admin,omitempty"`
	Metrics  string                   `json:"metrics,omitempty"` // its address, as configured
	Backends map[string]handedBackend `json:"backends"`
	Tally    *tally                   `json:"tally"`
	Tickets  *tickets                 `json:"tickets,omitempty"`
	FDs      int                      `json:"fds"`
}

// handedConfig is the configuration in force, wherever it came from.
type handedConfig struct {
	Number    uint64              `json:"number"`
	Last      uint64              `json:"last"` // number that was given
	Name      string              `json:"name"`
	Dir       string              `json:"dir"`
	Text      []byte              `json:"text"`
	Source    string              `json:"source"`
	Files     config.Files        `json:"files"` // as they are in use
	Loaded    time.Time           `json:"loaded"`
	Addresses map[string][]string `json:"addresses"`
	Failures  map[string]string   `json:"failures"`
}

// handedAdmin is the admin socket.
type handedAdmin struct {
	Path  string `json:"path"`
	Group int    `json:"group"`
}

// generation is c as this version understands it. Files that have changed are
// looked at later, see keepFiles: they may be of no use now.
func (c *handedConfig) generation() (g *generation, err error) {
	if c.Files == nil { // a version before this one does not hand them over
		g, err = parse(c.Name, c.Text, c.Dir, c.Source)
	} else {
		g, err = reparse(c.Name, c.Text, c.Dir, c.Source, c.Files)
	}
	if err != nil {
		return nil, err
	}
	g.number, g.loaded, g.addresses, g.failures = c.Number, c.Loaded, c.Addresses, c.Failures
	return g, nil
}

// link is one end of the connection between two masters.
type link struct {
	conn     *sys.PacketConn
	messages chan heirMessage // closed at the end of the connection

	mu  sync.Mutex
	why error // of the end, if it is none of the other side's
}

// heirMessageMax bounds a message; what may be larger is in a memory file.
const heirMessageMax = 32 << 10

func newLink(conn *sys.PacketConn) *link {
	l := &link{conn: conn, messages: make(chan heirMessage, 64)}
	go l.receive()
	return l
}

func (l *link) receive() {
	defer close(l.messages)
	buf := make([]byte, heirMessageMax)
	for {
		n, fds, err := l.conn.Recv(buf)
		m := heirMessage{fds: fds}
		if err == nil {
			err = json.Unmarshal(buf[:n], &m)
		}
		if err == nil && m.Version != heritageVersion {
			err = fmt.Errorf("it speaks version %d of the upgrade's messages, this one version %d", m.Version, heritageVersion)
		}
		if err != nil {
			closeAll(fds)
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				l.mu.Lock()
				l.why = err
				l.mu.Unlock()
			}
			return
		}
		l.messages <- m
	}
}

// failure is why nothing comes any more.
func (l *link) failure(otherwise string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != nil {
		return l.why
	}
	return errors.New(otherwise)
}

// say sends a message with copies of descriptors.
func (l *link) say(m heirMessage, fds ...int) error {
	m.Version = heritageVersion
	text, err := json.Marshal(m)
	if err == nil {
		err = l.conn.Send(text, fds...)
	}
	if err != nil {
		return fmt.Errorf("upgrade message %q: %w", m.Type, err)
	}
	return nil
}

// sayPatiently is say to somebody who may not have read what was said before.
func (l *link) sayPatiently(m heirMessage, fds ...int) error {
	for end := time.Now().Add(helloTimeout); ; {
		err := l.say(m, fds...)
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// sayWith sends a message with v in a memory file.
func (l *link) sayWith(m heirMessage, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("upgrade message %q: %w", m.Type, err)
	}
	fd, err := sys.SealedMemory("cloud-cup-heritage", text)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return l.say(m, fd)
}

// decode reads the memory file that came with m into v.
func (m *heirMessage) decode(v any) error {
	defer closeAll(m.fds)
	if len(m.fds) != 1 {
		return fmt.Errorf("upgrade message %q with %d descriptors", m.Type, len(m.fds))
	}
	text, err := sys.ReadSealed(m.fds[0])
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return fmt.Errorf("upgrade message %q: %w", m.Type, err)
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nobody uses it
	}
}
