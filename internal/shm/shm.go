// Package shm is the layout of the memory that the master shares with its
// workers. There are two kinds of it, both made by the master.
//
// Each incarnation of a worker has a Page of its own, written by that worker
// alone with plain stores of aligned words; the master reads it at any time,
// also when the worker is gone. What the numbers of several workers come to is
// the master's to say. What lies in a Page at an index of a route or a backend
// that is free, the master sets back to zero before the index is used again.
//
// All processes share one Backends: a row of atomic words per backend, which
// all workers and the master write.
//
// The files are sparse: what nobody touches takes no memory. A reader must not
// touch what was never written, for that would allocate it.
package shm

import (
	"errors"
	"fmt"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// layoutVersion changes with every change of Page or Backends that keeps their
// size.
const layoutVersion = 5

// What a memory file begins with.
const (
	magicPage     = 0x636c6f7564637570 // "cloudcup" in ASCII
	magicBackends = 0x637570726f777321 // "cuprows!"
)

// ReasonsMax bounds the reasons that are counted.
const ReasonsMax = 32

// header begins every memory file and tells its layout.
type header struct {
	magic   uint64
	version uint64
	size    uint64 // of the whole file in bytes
	_       [13]uint64
}

// Counters are what a worker counts. A single goroutine writes them: the loop.
type Counters struct {
	Totals
	Gauges
}

// Totals only grow while a worker lives; those of the dead are added up, so
// that a slot's sums never shrink.
type Totals struct {
	Accepted         uint64 // client connections
	Requests         uint64 // heads of requests taken in, well-formed or not
	BackendConnects  uint64 // connections opened to backends
	BackendReused    uint64 // exchanges that took an idle connection to a backend
	Retries          uint64 // exchanges sent again on another connection
	BytesIn          uint64 // from clients
	BytesOut         uint64 // to clients
	AcceptPaused     uint64 // times that accepting paused: connections, descriptors or memory
	Handshakes       uint64 // TLS handshakes completed, with clients and backends
	HandshakesFailed uint64
	// Sessions are the handshakes completed with clients: by version, TLS 1.2
	// and 1.3, then new or resumed.
	Sessions    [2][2]uint64
	Quarantined uint64 // connections ended because they broke a rule of ours
	LoopTurns   uint64
	Waits       uint64 // system calls that may have slept
	Calls       uint64 // other system calls of the engine
	Results     uint64 // results of operations that the engine delivered
	NoBuffers   uint64 // times that a receive had to wait for a buffer
	Overflows   uint64 // io_uring: completion queue overflows
	HeapObjects uint64 // objects allocated on the Go heap
	LogDropped  uint64 // lines of access logs that could not be written
	// Reasons counts our own answers and cuts; the index is a
	// message.Reason.
	Reasons [ReasonsMax]uint64
	// Unrouted are those of Reasons that no route has, because the request's
	// head was refused or never whole.
	Unrouted [ReasonsMax]uint64
}

// Gauges tell the state of now; those of a dead worker are zero.
type Gauges struct {
	Connections   uint64 // client connections open
	BackendIdle   uint64 // idle connections to backends
	BuffersLent   uint64 // bytes that connections hold; none while all are idle
	BuffersMapped uint64 // bytes, also of buffers for the kernel to fill and free ones
	Goroutines    uint64
	Generation    uint64 // the configuration in force
	// OldestGeneration is the oldest one that an exchange under way still
	// goes by; Generation if there is none. It is 0 until the worker serves.
	OldestGeneration uint64
	// Snapshots is the number of generations that are held: the one in force,
	// and those of exchanges under way.
	Snapshots uint64
}

// Add adds o to t.
func (t *Totals) Add(o *Totals) {
	t.Accepted += o.Accepted
	t.Requests += o.Requests
	t.BackendConnects += o.BackendConnects
	t.BackendReused += o.BackendReused
	t.Retries += o.Retries
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	t.AcceptPaused += o.AcceptPaused
	t.Handshakes += o.Handshakes
	t.HandshakesFailed += o.HandshakesFailed
	for i := range t.Sessions {
		addWords(t.Sessions[i][:], o.Sessions[i][:])
	}
	t.Quarantined += o.Quarantined
	t.LoopTurns += o.LoopTurns
	t.Waits += o.Waits
	t.Calls += o.Calls
	t.Results += o.Results
	t.NoBuffers += o.NoBuffers
	t.Overflows += o.Overflows
	t.HeapObjects += o.HeapObjects
	t.LogDropped += o.LogDropped
	addWords(t.Reasons[:], o.Reasons[:])
	addWords(t.Unrouted[:], o.Unrouted[:])
}

// Page is one incarnation's shared memory.
type Page struct {
	header   header
	Counters Counters
	// Routes are indexed by the number that the master gave to a pattern, and
	// Backends by a backend's row.
	Routes   [RoutesMax]RouteStats
	Backends [BackendRowsMax]BackendStats
}

// Create makes an empty page and maps it. fd is to be inherited by the worker
// and closed by the caller.
func Create() (page *Page, fd int, err error) {
	page, fd, err = create[Page]("cloud-cup-counters")
	if err == nil {
		page.header.set(magicPage, sys.SizeOf[Page]())
	}
	return page, fd, err
}

// Map maps a page made by Create in another process. A page of another layout
// is an error. fd may be closed afterwards.
func Map(fd int) (*Page, error) {
	page, err := sys.MapShared[Page](fd)
	if err != nil {
		return nil, err
	}
	if err := page.header.check(magicPage, sys.SizeOf[Page]()); err != nil {
		return nil, errors.Join(err, page.Close())
	}
	return page, nil
}

// Close unmaps the page.
func (p *Page) Close() error { return sys.UnmapShared(p) }

// CreateBackends makes an empty table of backends and maps it. fd is to be
// inherited by workers; it stays the caller's.
func CreateBackends() (backends *Backends, fd int, err error) {
	backends, fd, err = create[Backends]("cloud-cup-backends")
	if err == nil {
		backends.header.set(magicBackends, sys.SizeOf[Backends]())
	}
	return backends, fd, err
}

// MapBackends maps a table made by CreateBackends in another process. One of
// another layout is an error. fd may be closed afterwards.
func MapBackends(fd int) (*Backends, error) {
	backends, err := sys.MapShared[Backends](fd)
	if err != nil {
		return nil, err
	}
	if err := backends.header.check(magicBackends, sys.SizeOf[Backends]()); err != nil {
		return nil, errors.Join(err, backends.Close())
	}
	return backends, nil
}

// Close unmaps the table.
func (b *Backends) Close() error { return sys.UnmapShared(b) }

func create[T any](name string) (memory *T, fd int, err error) {
	fd, err = sys.NewMemory(name, sys.SizeOf[T]())
	if err != nil {
		return nil, -1, err
	}
	memory, err = sys.MapShared[T](fd)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	return memory, fd, nil
}

func (h *header) set(magic uint64, size int) {
	h.magic, h.version, h.size = magic, layoutVersion, uint64(size)
}

func (h *header) check(magic uint64, size int) error {
	if h.magic == magic && h.version == layoutVersion && h.size == uint64(size) {
		return nil
	}
	return fmt.Errorf("shared memory %x has layout %d of %d bytes, want %x with %d of %d",
		h.magic, h.version, h.size, uint64(magic), layoutVersion, size)
}

// addWords adds each of from to the word of to at its place.
func addWords(to, from []uint64) {
	for i, n := range from {
		to[i] += n
	}
}
