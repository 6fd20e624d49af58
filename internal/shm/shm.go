// Package shm is the layout of the pages that the master shares with its
// workers. Each incarnation of a worker has a page of its own, made by the
// master and written by that worker alone with plain stores of aligned words;
// the master reads it at any time, also when the worker is gone. What the
// numbers of several workers come to is the master's to say.
package shm

import (
	"fmt"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// layoutVersion changes with every change of page that keeps its size.
const layoutVersion = 1

// magic begins a page: "cloudcup" in ASCII.
const magic = 0x636c6f7564637570

// ReasonsMax bounds the reasons that are counted.
const ReasonsMax = 32

// Counters are what a worker counts. A single goroutine writes them: the loop.
type Counters struct {
	Totals
	Gauges
}

// Totals only grow while a worker lives; those of the dead are added up, so
// that a slot's sums never shrink.
type Totals struct {
	Accepted        uint64 // client connections
	Requests        uint64 // heads of requests taken in, well-formed or not
	BackendConnects uint64 // connections opened to backends
	BackendReused   uint64 // exchanges that took an idle connection to a backend
	Retries         uint64 // exchanges sent again on another connection
	BytesIn         uint64 // from clients
	BytesOut        uint64 // to clients
	AcceptPaused    uint64 // times that accepting paused: connections, descriptors or memory
	Quarantined     uint64 // connections ended because they broke a rule of ours
	LoopTurns       uint64
	Waits           uint64 // system calls that may have slept
	Calls           uint64 // other system calls of the engine
	HeapObjects     uint64 // objects allocated on the Go heap
	// Reasons counts our own answers and cuts; the index is a
	// message.Reason.
	Reasons [ReasonsMax]uint64
}

// Gauges tell the state of now; those of a dead worker are zero.
type Gauges struct {
	Connections   uint64 // client connections open
	BackendIdle   uint64 // idle connections to backends
	BuffersLent   uint64 // bytes
	BuffersMapped uint64 // bytes
	Goroutines    uint64
	Generation    uint64 // the configuration in force
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
	t.Quarantined += o.Quarantined
	t.LoopTurns += o.LoopTurns
	t.Waits += o.Waits
	t.Calls += o.Calls
	t.HeapObjects += o.HeapObjects
	for i := range t.Reasons {
		t.Reasons[i] += o.Reasons[i]
	}
}

// Page is one incarnation's shared memory.
type Page struct {
	magic    uint64
	version  uint64
	size     uint64 // of the whole page in bytes
	_        [5]uint64
	Counters Counters
}

const pageBytes = 8*8 + (13+ReasonsMax)*8 + 6*8

// Create makes an empty page and maps it. fd is to be inherited by the worker
// and closed by the caller.
func Create() (page *Page, fd int, err error) {
	fd, err = sys.NewMemory("cloud-cup-counters", pageBytes)
	if err != nil {
		return nil, -1, err
	}
	page, err = sys.MapShared[Page](fd)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	page.magic, page.version, page.size = magic, layoutVersion, pageBytes
	return page, fd, nil
}

// Map maps a page made by Create in another process. A page of another layout
// is an error. fd may be closed afterwards.
func Map(fd int) (*Page, error) {
	page, err := sys.MapShared[Page](fd)
	if err != nil {
		return nil, err
	}
	if page.magic != magic || page.version != layoutVersion || page.size != pageBytes {
		err := fmt.Errorf("shared memory has layout %d of %d bytes, want %d of %d",
			page.version, page.size, layoutVersion, pageBytes)
		_ = sys.UnmapShared(page) // the layout is what went wrong
		return nil, err
	}
	return page, nil
}

// Close unmaps the page.
func (p *Page) Close() error { return sys.UnmapShared(p) }
