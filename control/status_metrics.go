package control

import (
	"net/http"
	"time"
)

// Stats is the answer to GET /v1/stats: what routes and backends did.
type Stats struct {
	Time time.Time `json:"time"`
	// LatencyWindow is how far back Latency looks, in seconds: one to two
	// minutes, less while the master is younger.
	LatencyWindow float64        `json:"latency_window_seconds"`
	Routes        []RouteStats   `json:"routes"`   // by pattern
	Backends      []BackendStats `json:"backends"` // by host
}

// RouteStats is one route, or as "(other)" all those beyond the number that is
// counted one by one.
type RouteStats struct {
	Route    string            `json:"route"`
	Requests uint64            `json:"requests"` // that have ended
	Classes  map[string]uint64 `json:"classes"`  // of those, "2xx" for example; "none" without a response
	Errors   uint64            `json:"errors"`   // responses of our own and cuts
	Rate     Rate              `json:"rate"`
	Latency  *Latency          `json:"latency,omitempty"` // from the head to the end of a request
	InFlight uint64            `json:"in_flight"`
	BytesIn  uint64            `json:"bytes_in"` // of bodies of requests
	BytesOut uint64            `json:"bytes_out"`
}

// BackendStats is one backend. A request that is retried is an attempt at each
// backend that it goes to.
type BackendStats struct {
	Backend  string            `json:"backend"`
	Requests uint64            `json:"requests"` // attempts that have ended
	Classes  map[string]uint64 `json:"classes"`
	Failures uint64            `json:"failures"` // as they count for max_failure
	Retries  uint64            `json:"retries"`
	Connects uint64            `json:"connects"`
	Reused   uint64            `json:"reused"`
	Rate     Rate              `json:"rate"`
	Latency  *Latency          `json:"latency,omitempty"` // to the head of a response
	InFlight uint64            `json:"in_flight"`
	Idle     uint64            `json:"idle"` // connections
}

// Rate is requests per second, over spans that are shorter while the master is
// younger.
type Rate struct {
	TenSeconds float64 `json:"10s"`
	Minute     float64 `json:"1m"`
}

// Latency is estimated from a histogram, in seconds; nil if there was no
// request in Stats.LatencyWindow.
type Latency struct {
	Requests uint64  `json:"requests"` // in the window
	Mean     float64 `json:"mean_seconds"`
	P50      float64 `json:"p50_seconds"`
	P90      float64 `json:"p90_seconds"`
	P99      float64 `json:"p99_seconds"`
}

// Errors is the answer to GET /v1/errors: what went wrong lately.
type Errors struct {
	Time time.Time `json:"time"`
	// Window is how far back the counts go, in seconds; less while the master
	// is younger.
	Window float64 `json:"window_seconds"`
	// Routes counts responses of our own and cuts by route and reason, and
	// Backends failures by backend and reason, the most first.
	Routes   []ErrorCount `json:"routes"`
	Backends []ErrorCount `json:"backends"`
}

// ErrorCount is how often a reason occurred at one route or one backend.
type ErrorCount struct {
	Route   string    `json:"route,omitempty"` // empty also where a request had none, being malformed for example
	Backend string    `json:"backend,omitempty"`
	Reason  string    `json:"reason"`
	Count   uint64    `json:"count"`
	Last    time.Time `json:"last"` // the latest one came in the seconds before
	// PerMinute are the counts of each minute of the window, the latest first.
	// The first minute has not ended.
	PerMinute []uint64 `json:"per_minute"`
}

// Stats asks what routes and backends did.
func (c *Client) Stats() (*Stats, error) {
	s := new(Stats)
	return s, c.do(http.MethodGet, "/v1/stats", nil, s)
}

// Errors asks what went wrong lately.
func (c *Client) Errors() (*Errors, error) {
	e := new(Errors)
	return e, c.do(http.MethodGet, "/v1/errors", nil, e)
}
