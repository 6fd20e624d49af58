package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// schema is the version of the raw results' form.
const schema = 1

// Results are the raw results of one call of bench: everything that
// BENCHMARKS.md says of it is computed from them.
type Results struct {
	Schema   int               `json:"schema"`
	Started  time.Time         `json:"started"`
	Ended    time.Time         `json:"ended"`
	Command  string            `json:"command"`
	Rounds   int               `json:"rounds"`
	Seconds  float64           `json:"seconds"` // of one run
	Machine  Machine           `json:"machine"`
	Build    Build             `json:"build"`
	Old      *Build            `json:"old,omitempty"` // of a comparison: what Build is compared with
	Versions map[string]string `json:"versions"`

	// The closed loop, and comparisons.
	Backend  string    `json:"backend"` // its command
	Clients  []string  `json:"clients"` // commands, by the index of Loads; ADDRESS stands for the program's
	Loads    []Load    `json:"loads"`
	Programs []Program `json:"programs"`
	Runs     []Run     `json:"runs"` // in the order in which they were made
	// Every other part has a field of its own, absent if it did not run.
	BackendCost *BackendCost `json:"backend_cost,omitempty"`
	Open        *OpenResults `json:"open_loop,omitempty"`
	Failures    *Failures    `json:"failures,omitempty"`
	Costs       *Costs       `json:"costs,omitempty"`
	Idle        *Idle        `json:"idle,omitempty"`
	Scaling     *Scaling     `json:"scaling,omitempty"`
	Profiles    *Profiles    `json:"profiles,omitempty"`
}

// Machine is where the runs were made.
type Machine struct {
	CPU             string            `json:"cpu"`
	CPUs            int               `json:"cpus"`
	Virtual         bool              `json:"virtual"`
	MemoryMiB       int64             `json:"memory_mib"`
	System          string            `json:"system"`
	Kernel          string            `json:"kernel"`
	TCP             string            `json:"tcp_congestion_control"`
	Vulnerabilities map[string]string `json:"vulnerabilities"` // with their mitigations, as the kernel tells
	ProxyCPU        int               `json:"proxy_cpu"`
	ClientCPU       int               `json:"client_cpu"`
	SharedCore      bool              `json:"shared_core,omitempty"` // both are threads of one core
}

// Build is the measured cloud-cup, as the binary itself tells.
type Build struct {
	Commit  string `json:"commit"`
	Dirty   bool   `json:"dirty"` // built with changes that are not in Commit
	Go      string `json:"go"`
	SHA256  string `json:"sha256"`
	CheckIO string `json:"check_io"` // what --check-io says on this machine
}

// Load is one way of asking.
type Load struct {
	Name        string `json:"name"`
	Connections int    `json:"connections"`
	Path        string `json:"path"`
	Bytes       int    `json:"bytes"` // body of each response
	TLS         bool   `json:"tls,omitempty"`
	// Handshake is the kind of TLS handshakes that a client of ours makes;
	// empty if the client is wrk, which keeps its connections.
	Handshake string `json:"handshake,omitempty"`
	// RequestBytes is the body of each request; 0 for GET.
	RequestBytes int  `json:"request_bytes,omitempty"`
	Close        bool `json:"close,omitempty"`    // a connection for each request
	Pipeline     int  `json:"pipeline,omitempty"` // requests that are sent at a time; 0 is one
	Tunnel       bool `json:"tunnel,omitempty"`   // WebSocket; a request is a message and its echo
	Unix         bool `json:"unix,omitempty"`     // the proxies reach the backend by a unix socket
	Floors       bool `json:"floors,omitempty"`   // programs that do not look at bytes take part
	// Beside is the number of clients that make a full handshake after the
	// other at the same time, at the lowest priority.
	Beside int `json:"handshakes_beside,omitempty"`
}

// url is what a load asks of a program at these addresses.
func (l *Load) url(address, secure string) string {
	if l.TLS {
		return "https://" + secure + l.Path
	}
	return "http://" + address + l.Path
}

// Program is one program under test.
type Program struct {
	Name    string   `json:"name"`
	Ours    bool     `json:"ours"`
	Floor   bool     `json:"floor,omitempty"` // forwards bytes without looking at them
	Command []string `json:"command"`         // DIR stands for a temporary folder
	Config  string   `json:"config"`
}

// Run is one program under one load in one round.
type Run struct {
	Round   int    `json:"round"` // from 1
	Load    string `json:"load"`
	Program string `json:"program"`
	Wrk
	CPU
	// Failure says what made the run worthless, apart from errors that wrk
	// counts.
	Failure string `json:"failure,omitempty"`
	Beside  int64  `json:"handshakes_beside,omitempty"` // made while the load ran
}

// Wrk is what wrk reports. Latencies are in microseconds.
type Wrk struct {
	Requests      int64   `json:"requests"`
	Rate          float64 `json:"requests_per_second"`
	P50           float64 `json:"p50_us"`
	P99           float64 `json:"p99_us"`
	ConnectErrors int64   `json:"connect_errors"`
	ReadErrors    int64   `json:"read_errors"`
	WriteErrors   int64   `json:"write_errors"`
	Timeouts      int64   `json:"timeouts"`
	BadStatus     int64   `json:"bad_status"` // responses that are neither 2xx nor 3xx
}

// Errors is the number of requests that went wrong.
func (w *Wrk) Errors() int64 {
	return w.ConnectErrors + w.ReadErrors + w.WriteErrors + w.Timeouts + w.BadStatus
}

// CPU is what a run cost. Shares are of one CPU's time, 1 is all of it.
type CPU struct {
	ProxyNS     int64   `json:"proxy_cpu_ns"`          // of all the proxy's processes
	UserNS      int64   `json:"proxy_cpu_user_ns"`     // of it, in ticks of the kernel
	SystemNS    int64   `json:"proxy_cpu_system_ns"`   // of it, in ticks of the kernel
	Waits       int64   `json:"proxy_waits,omitempty"` // voluntary context switches of its threads
	WallNS      int64   `json:"wall_ns"`
	ProxyCPU    float64 `json:"proxy_cpu_busy"`  // whoever used it
	ClientCPU   float64 `json:"client_cpu_busy"` // whoever used it
	ProxySteal  float64 `json:"proxy_cpu_steal"`
	ClientSteal float64 `json:"client_cpu_steal"`
}

// save writes r into the folder dir and returns the file's path.
func (r *Results) save(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, r.stamp()+".json")
	return path, r.write(path)
}

// stamp is the beginning of the names of all files of r.
func (r *Results) stamp() string { return r.Started.UTC().Format("20060102T150405Z") }

// write writes r into the file at path.
func (r *Results) write(path string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// loadResults reads the file at path.
func loadResults(path string) (*Results, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Results)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Schema != schema {
		return nil, fmt.Errorf("%s: schema %d, want %d", path, r.Schema, schema)
	}
	return r, nil
}

// newestResults finds the last results in the folder dir; their names are
// their times.
func newestResults(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", err
	}
	if len(names) == 0 {
		return "", fmt.Errorf("no results in %s", dir)
	}
	return slices.Max(names), nil
}
