package control

import "github.com/cloud-cup/cloud-cup/config"

// Administrative states of a backend.
const (
	BackendEnabled  = "enabled"
	BackendDrain    = "drain"    // gets no new requests; those in flight end as they would
	BackendDisabled = "disabled" // the same, and its idle connections are closed
)

// Health of a backend or of one of its addresses.
const (
	HealthUp         = "up"
	HealthOut        = "out"        // taken out by its failures, until a cooldown is over
	HealthTrial      = "trial"      // the cooldown is over: one request at a time tries it
	HealthUnresolved = "unresolved" // its name has no address
)

// BackendStatus is one backend of the configuration in force: an element of
// the answer to GET /v1/backends. Counts are of attempts, requests on their way
// to one backend, of which an exchange may need several.
type BackendStatus struct {
	Host      string   `json:"host"`
	Addresses []string `json:"addresses"` // empty while the name does not resolve
	Routes    int      `json:"routes"`    // that name it
	Error     string   `json:"error,omitempty"`
	// TLS is how it is spoken to, if it is with TLS: the distinct ways of its
	// routes.
	TLS []config.BackendTLS `json:"tls,omitempty"`

	State     string `json:"state"`
	Weights   []int  `json:"weights"`              // as configured: the distinct ones of its routes
	WeightSet *int   `json:"weight_set,omitempty"` // at run time, instead of these

	Health   string  `json:"health"`
	OutFor   float64 `json:"out_for_seconds,omitempty"` // until the first address is tried again
	Failures uint32  `json:"failures"`                  // in a row, of the address that has most

	InFlight uint64            `json:"in_flight"`
	Idle     uint64            `json:"idle_connections"`
	Requests map[string]uint64 `json:"requests"`                     // by class: "2xx"; "none" had no response
	Reasons  map[string]uint64 `json:"failures_by_reason,omitempty"` // that count for max_failure
	Retries  uint64            `json:"retries"`
	Connects uint64            `json:"connects"`
	Reused   uint64            `json:"reused"`
}

// BackendChange asks for another state, another weight or both: the body of
// PATCH /v1/backends/HOST. What it leaves out stays.
type BackendChange struct {
	State  string `json:"state,omitempty"`
	Weight *int   `json:"weight,omitempty"` // 0 to 1000
	// ConfiguredWeight asks for the weight of the configuration again.
	ConfiguredWeight bool `json:"configured_weight,omitempty"`
}

// BackendChanged is the answer to a BackendChange.
type BackendChanged struct {
	Before BackendStatus `json:"before"`
	After  BackendStatus `json:"after"`
}
