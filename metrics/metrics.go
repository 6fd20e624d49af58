// Package metrics writes what a master knows of its workers in the text format
// of Prometheus (version 0.0.4). Its input is a Snapshot of plain numbers, the
// sums made by the caller: where they come from is not this package's business.
//
// Every family stands in one table, with its name, help and labels; the
// documentation is held against it. Values of labels come from the
// configuration (patterns of routes, hosts of backends) or from fixed lists
// (reasons, slots, engines, classes), never from a request, so that what is
// written is bounded by the configuration.
package metrics

// ContentType is the media type of what Append writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Snapshot is what there is to tell at one moment. Totals in it never shrink
// from one Snapshot of a master to the next.
type Snapshot struct {
	Version   string // of this program
	GoVersion string
	Draining  bool

	Generation    uint64  // the configuration that every worker serves by
	ConfigLoaded  float64 // when it was loaded, in seconds since 1970
	ReloadsOK     uint64
	ReloadsFailed uint64

	Master  Process
	Workers []Worker
	// Reasons are the words of the reasons, and Errors their counts by the
	// same index. The first one is "none", which is not written.
	Reasons []string
	Errors  []uint64

	Handshakes, HandshakesFailed uint64
	Sessions                     [2][2]uint64 // of clients: TLS 1.2 and 1.3, new and resumed
	Certificates                 []Certificate
	Refused                      []string // files whose new contents are not in use

	// LatencyBounds and OverheadBounds are the upper bounds of the buckets of
	// histograms, in seconds, ascending.
	LatencyBounds  []float64
	OverheadBounds []float64
	Overhead       Histogram
	Routes         []Route
	Backends       []Backend
}

// Certificate is one of our own.
type Certificate struct {
	File     string
	NotAfter float64 // seconds since 1970
}

// Process is what the kernel knows about a process.
type Process struct {
	Started       float64 // seconds since 1970
	CPU           float64 // seconds of all threads, user and system
	ResidentBytes uint64
	Files         uint64 // open descriptors, 0 if that is not known
}

// Worker is a slot. Totals include those of its dead workers; gauges are zero
// while it has none.
type Worker struct {
	Slot     string
	Running  bool
	Engine   string // empty while there is no process
	Restarts uint64
	Process  Process // CPU includes that of dead workers

	Connections, BuffersLent, BuffersMapped, Snapshots     uint64
	Accepted, AcceptPaused, BytesIn, BytesOut, Quarantined uint64
	LoopTurns, Waits, Calls, Results, NoBuffers, Overflows uint64
	LogDropped                                             uint64
}

// Route is the statistics of a route, or of all further ones as "(other)".
type Route struct {
	Pattern           string
	Requests          [Classes]uint64
	Errors            []uint64 // by index of Snapshot.Reasons
	BytesIn, BytesOut uint64
	InFlight          uint64
	Latency           Histogram
}

// States of a backend that its administrator chose.
var backendStates = []string{"enabled", "drain", "disabled"}

// Backend is the statistics and the state of a host of the configuration.
type Backend struct {
	Host             string
	Up               bool // it is not out because of failures, and resolves
	State            int  // an index of backendStates
	Requests         [Classes]uint64
	Failures         []uint64 // by index of Snapshot.Reasons
	Retries          uint64
	Connects, Reused uint64
	InFlight, Idle   uint64
	Latency          Histogram
}

// Classes is the number of classes of responses: an index is a status divided
// by 100, or 0 where there was no response.
const Classes = 6

var classNames = [Classes]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// ClassName is the class with the index, as the label class has it.
func ClassName(i int) string { return classNames[i] }

// Append appends s to b in the text format and returns the longer slice.
func (s *Snapshot) Append(b []byte) []byte {
	e := encoder{b: b, latency: bucketLabels(s.LatencyBounds), overhead: bucketLabels(s.OverheadBounds)}
	for i := range families {
		f := &families[i]
		e.begin(&f.Family)
		f.write(&e, s)
	}
	return e.b
}
