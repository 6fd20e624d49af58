package control

import "time"

// Status is what the master says about itself and its workers: the answer to
// GET /v1/status. Names of fields in JSON do not change between versions.
type Status struct {
	Version    string    `json:"version"`
	PID        int       `json:"pid"`
	Started    time.Time `json:"started"`
	Uptime     float64   `json:"uptime_seconds"`
	Draining   bool      `json:"draining"`
	Generation uint64    `json:"generation"` // that every worker has acknowledged

	Config    ConfigStatus    `json:"config"`
	Engine    EngineStatus    `json:"engine"`
	Listeners []string        `json:"listeners"`
	Metrics   string          `json:"metrics,omitempty"` // address of /metrics over TCP
	Workers   []WorkerStatus  `json:"workers"`
	Totals    Totals          `json:"totals"`
	Backends  []BackendStatus `json:"backends"`
	// Refused are the files of certificates, keys and authorities whose new
	// contents are not in use.
	Refused []RefusedFile `json:"refused,omitempty"`
}

// ConfigStatus tells which configuration is in force.
type ConfigStatus struct {
	File   string    `json:"file,omitempty"` // empty for the built-in one
	SHA256 string    `json:"sha256"`         // of the text in force
	Source string    `json:"source"`         // file, memory or demo
	Loaded time.Time `json:"loaded"`
	Drift  string    `json:"drift,omitempty"` // how the file differs from what is in force
}

// EngineStatus tells which engine the master chose.
type EngineStatus struct {
	Asked    string `json:"asked"`
	Used     string `json:"used"`
	Detail   string `json:"detail,omitempty"`
	Fallback string `json:"fallback,omitempty"` // why not the one that comes first
}

// Worker states.
const (
	WorkerStarting = "starting" // its process does not accept yet
	WorkerRunning  = "running"
	WorkerDraining = "draining"
	WorkerWaiting  = "waiting" // no process: died repeatedly, starts again later
	WorkerEnded    = "ended"
)

// WorkerStatus is one slot. Its Totals include those of the slot's dead
// workers.
type WorkerStatus struct {
	Slot      int     `json:"slot"`
	PID       int     `json:"pid,omitempty"`
	State     string  `json:"state"`
	Engine    string  `json:"engine,omitempty"`
	Detail    string  `json:"engine_detail,omitempty"`
	Fallback  string  `json:"engine_fallback,omitempty"`
	Uptime    float64 `json:"uptime_seconds"`
	Restarts  uint64  `json:"restarts"`
	LastDeath string  `json:"last_death,omitempty"`
	// Stale says that the worker did not answer in time: its loop is stuck,
	// and the numbers are those it wrote last.
	Stale bool `json:"stale,omitempty"`

	Generation  uint64 `json:"generation"`
	Connections uint64 `json:"connections"`
	BackendIdle uint64 `json:"backend_idle"`
	// BuffersLent is what connections hold of BuffersMapped: nothing while
	// all are idle.
	BuffersLent   uint64 `json:"buffers_lent_bytes"`
	BuffersMapped uint64 `json:"buffers_mapped_bytes"`
	Goroutines    uint64 `json:"goroutines"`
	// Snapshots is the number of generations that it holds, because requests
	// go by them; OldestGeneration is the first of them.
	Snapshots        uint64 `json:"snapshots"`
	OldestGeneration uint64 `json:"oldest_generation"`
	Guard            *Guard `json:"guard,omitempty"`
	Totals
}

// Totals only grow while the master lives.
type Totals struct {
	Accepted        uint64            `json:"accepted"`
	Requests        uint64            `json:"requests"`
	BackendConnects uint64            `json:"backend_connects"`
	BackendReused   uint64            `json:"backend_reused"`
	Retries         uint64            `json:"retries"`
	BytesIn         uint64            `json:"bytes_in"`
	BytesOut        uint64            `json:"bytes_out"`
	AcceptPaused    uint64            `json:"accept_paused"`
	Quarantined     uint64            `json:"quarantined"`
	LoopTurns       uint64            `json:"loop_turns"`
	Waits           uint64            `json:"waits"`
	Calls           uint64            `json:"calls"`
	HeapObjects     uint64            `json:"heap_objects"`
	LogDropped      uint64            `json:"log_dropped"`       // lines of access logs that could not be written
	Reasons         map[string]uint64 `json:"reasons,omitempty"` // those that occurred
}

// Applied is the answer to a reload or to a new configuration.
type Applied struct {
	Generation uint64   `json:"generation"`
	Before     uint64   `json:"generation_before"`
	Workers    int      `json:"workers"` // that serve by it
	DryRun     bool     `json:"dry_run,omitempty"`
	Saved      string   `json:"saved,omitempty"` // the file that was written
	Changes    *Changes `json:"changes"`
}

// Stopping is the answer to POST /v1/stop, which comes before the end.
type Stopping struct {
	PID           int     `json:"pid"`
	DrainDelay    float64 `json:"drain_delay_seconds"`
	DrainDeadline float64 `json:"drain_deadline_seconds"` // after the delay
	Now           bool    `json:"now"`                    // nothing is waited for
}

// Upgraded is the answer to POST /v1/upgrade. It comes from the old master: the
// new one answers what is asked from now on.
type Upgraded struct {
	PID           int     `json:"pid"`
	Before        int     `json:"pid_before"` // which drains now
	Version       string  `json:"version"`
	VersionBefore string  `json:"version_before"`
	Seconds       float64 `json:"seconds"` // until the new workers served
}

// VersionInfo is the answer to GET /v1/version.
type VersionInfo struct {
	Version string `json:"version"`
}

// Failure is the body of an answer that is not a success.
type Failure struct {
	Error string `json:"error"`
}
