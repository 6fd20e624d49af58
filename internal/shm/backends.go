package shm

import "sync/atomic"

// BackendRowsMax bounds the backends that all configurations in use name
// together. Each address of a name is one, and so is each pair of max_failure
// and cooldown that a backend has in different routes.
const BackendRowsMax = 65536

// Administrative states of a backend.
const (
	AdminEnabled  uint32 = iota
	AdminDrain           // gets no new exchanges; those under way end as they would
	AdminDisabled        // the same, and idle connections to it are closed
)

// Backends is the table of backends that all processes share.
type Backends struct {
	header header
	Load   Load
	Rows   [BackendRowsMax]BackendRow
}

// Load tells a worker whether it has more than its share of the clients. It
// fills two cache lines.
type Load struct {
	Clients atomic.Int64 // connections from clients, of all workers; they count them
	Workers atomic.Int64 // that accept; written by the master
	_       [14]uint64
}

// BackendRow is what all workers know about one backend together. It fills two
// cache lines, so that neighbours do not disturb each other. Times are
// CLOCK_MONOTONIC nanoseconds. The master clears a row before it is used for
// another backend, which is when no worker has a configuration left that names
// the one before.
type BackendRow struct {
	// Failures in a row.
	Failures atomic.Uint32
	// Admin is the administrative state, written by the master.
	Admin atomic.Uint32
	// WeightSet is 1 more than the weight that was set at run time; 0 means
	// that the configured one is in force. Written by the master.
	WeightSet atomic.Uint32
	// InFlight is the number of exchanges that the backend has, tunnels
	// included. It is counted only where a route sets max_connections for the
	// backend; BackendGauges.Counted is one worker's share of it.
	InFlight atomic.Int32
	// OutUntil is when the cooldown of a backend that is out ends, 0 if it is
	// in.
	OutUntil atomic.Int64
	// Trial is the lease of the one trial after the cooldown: when it ends,
	// 0 if none runs.
	Trial atomic.Int64

	_ [12]uint64
}

// Clear makes the row that of a backend that nobody knows anything of.
func (r *BackendRow) Clear() {
	r.Failures.Store(0)
	r.Admin.Store(AdminEnabled)
	r.WeightSet.Store(0)
	r.InFlight.Store(0)
	r.OutUntil.Store(0)
	r.Trial.Store(0)
}

// Return takes n exchanges off InFlight that ended together with the worker
// that had them. A worker counts an exchange in its own page first and takes it
// out last, so that one killed in between has too many there, never too few:
// the count does not fall below 0.
func (r *BackendRow) Return(n int32) {
	for {
		have := r.InFlight.Load()
		if r.InFlight.CompareAndSwap(have, max(0, have-n)) {
			return
		}
	}
}
