package proxy

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/balance"
	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/route"
)

// Snapshot is one generation of the configuration as the proxy uses it. The
// exported part is filled by the caller, Prepare adds the rest, and Apply puts
// it in force; it never changes afterwards.
type Snapshot struct {
	Generation uint64
	Routes     []RouteSpec
	Timeouts   Timeouts
	Limits     Limits
	Log        LogSpec // of requests that are none, and belong to no route
	// TLS is how listeners speak TLS, by their root as given to Listen; those
	// that do not are not in it.
	TLS map[string]*ListenerTLS
	// Redirects are the listeners that answer every request by the same URL
	// with https, by root, each with the port to go to.
	Redirects map[string]int

	log   logRef       // set by Apply
	logs  []*accessLog // that it names, likewise
	table *route.Table[*routeState]
	heads http1.Limits
	all   []*routeState

	exchanges int // under way that go by it
}

// RouteSpec is one route. Timeouts and Limits are complete: where the route
// says nothing, the caller has put the global values.
type RouteSpec struct {
	Pattern  string
	Index    int // in shm.Page.Routes
	Backends []BackendSpec
	Timeouts Timeouts
	Limits   Limits

	TrustedProxies []netip.Prefix // whose forwarding fields are believed and extended
	TrustedUnix    bool           // clients of unix sockets are believed, too
	RFC7239        bool           // Forwarded instead of X-Forwarded-*
	HostBackend    bool           // backends get their own name as Host, not the client's
	RequestID      bool           // requests without X-Request-Id get one
	StripPrefix    string         // taken off the path; the route matches only paths below it
	Request        FieldRules
	Response       FieldRules
	Log            LogSpec
}

// FieldRules change the fields of a message. Names and values are valid.
type FieldRules struct {
	Set    []FieldRule // in place of the sender's
	Add    []FieldRule
	Remove []string
}

// FieldRule is one field.
type FieldRule struct{ Name, Value string }

// BackendSpec is one backend of a route.
type BackendSpec struct {
	Host       string        // as configured
	Addrs      []BackendAddr // every address of the name; empty while it does not resolve
	Weight     int           // at least 1; shared among the addresses
	MaxFailure int           // consecutive failures that take it out; 0: never
	Cooldown   time.Duration
	// MaxConnections bounds the exchanges that all workers together have with
	// one of the addresses; 0: no bound.
	MaxConnections int
	TLS            *tls.Config // nil: without
}

// BackendAddr is an address of a backend with its row in shm.Backends. The row
// is the backend's identity: as long as configurations name it, its connections
// and its health live on. Backends of one row have the same host, address,
// MaxFailure and Cooldown.
type BackendAddr struct {
	loop.Addr
	Row int
}

// Timeouts are the time limits of connections and exchanges. All are positive.
type Timeouts struct {
	ClientHead  time.Duration // from a request head's first byte to its last
	ClientBody  time.Duration // of a request body without progress
	ClientIdle  time.Duration // between requests, and of a response that the client does not take
	Connect     time.Duration // to a backend
	Response    time.Duration // to the response's head, and between its bytes
	BackendIdle time.Duration // of a pooled connection
	TunnelIdle  time.Duration // of a tunnel in which no byte moves
}

// Limits bound what clients may send and what a worker holds.
type Limits struct {
	HeadBytes             int
	Headers               int
	TargetBytes           int
	BodyBytes             int64 // of a request; negative: no limit
	Connections           int   // client connections of this worker
	RequestsPerConnection int   // 0: no limit
	Memory                int   // bytes of buffers that the worker lends at most
}

// routeState is a route as exchanges use it.
type routeState struct {
	spec     *RouteSpec
	snap     *Snapshot       // set by Apply
	stats    *shm.RouteStats // this worker's, set by Apply
	balancer *balance.RoundRobin
	backends []*backend // the balancer's members, set by Apply
	members  []memberSpec
	plain    bool   // no member has TLS: a request may go to any of them in the end
	log      logRef // set by Apply
	host     string // what requests without Host are sent with
	request  fieldRules
	response fieldRules
}

// fieldRules is FieldRules in the form that heads are written with.
type fieldRules struct {
	drop  []string // names in lower case
	lines []byte   // to be added
	date  bool     // Date is the rules' affair
}

func newFieldRules(f *FieldRules) (r fieldRules) {
	for _, name := range f.Remove {
		r.drop = append(r.drop, strings.ToLower(name))
	}
	for i := range f.Set {
		r.drop = append(r.drop, strings.ToLower(f.Set[i].Name))
		r.lines = f.Set[i].append(r.lines)
	}
	for i := range f.Add {
		r.lines = f.Add[i].append(r.lines)
	}
	r.date = slices.Contains(r.drop, "date")
	return r
}

func (f *FieldRule) append(b []byte) []byte {
	b = append(b, f.Name...)
	b = append(b, ": "...)
	b = append(b, f.Value...)
	return append(b, '\r', '\n')
}

// memberSpec is one address of one backend of a route.
type memberSpec struct {
	row     int
	host    string
	addr    loop.Addr
	counted bool // a route bounds the exchanges with it
	tls     *tls.Config
}

// hostOf is the Host field of a backend.
func hostOf(host string) string {
	if strings.HasPrefix(host, "unix:") {
		return "localhost"
	}
	if name, secure := strings.CutPrefix(host, "https://"); secure {
		return strings.TrimSuffix(name, ":443")
	}
	return host
}

// name is the backend as the log tells it.
func (m *memberSpec) name() string {
	if addr := m.addr.String(); addr != m.host {
		return m.host + " (" + addr + ")"
	}
	return m.host
}

// Prepare builds what serving s needs, off the loop: it may take long for
// large configurations. An error names what no worker could serve.
func Prepare(s *Snapshot) error {
	s.heads = http1.Limits{
		HeadBytes:   s.Limits.HeadBytes,
		Fields:      s.Limits.Headers,
		TargetBytes: s.Limits.TargetBytes,
	}
	entries := make([]route.Entry[*routeState], 0, len(s.Routes))
	s.all = make([]*routeState, 0, len(s.Routes))
	counted := s.countedRows()
	for i := range s.Routes {
		spec := &s.Routes[i]
		r := &routeState{
			spec:     spec,
			plain:    true,
			host:     hostOf(spec.Backends[0].Host),
			request:  newFieldRules(&spec.Request),
			response: newFieldRules(&spec.Response),
		}
		var members []balance.Member
		for j := range spec.Backends {
			b := &spec.Backends[j]
			r.plain = r.plain && b.TLS == nil
			for _, a := range b.Addrs {
				r.members = append(r.members, memberSpec{a.Row, b.Host, a.Addr, counted[a.Row], b.TLS})
				members = append(members, balance.Member{
					Weight:      b.Weight,
					Addresses:   len(b.Addrs),
					MaxFailure:  uint32(b.MaxFailure),
					Cooldown:    int64(b.Cooldown),
					MaxInFlight: int32(b.MaxConnections),
				})
			}
		}
		r.backends = make([]*backend, len(members))
		r.balancer = balance.NewRoundRobin(members)
		s.all = append(s.all, r)
		entries = append(entries, route.Entry[*routeState]{Pattern: spec.Pattern, Value: r})
	}
	table, err := route.Build(entries)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	s.table = table
	return nil
}

// countedRows are the rows of the backends whose exchanges any route bounds.
func (s *Snapshot) countedRows() map[int]bool {
	var rows map[int]bool
	for i := range s.Routes {
		for j := range s.Routes[i].Backends {
			b := &s.Routes[i].Backends[j]
			if b.MaxConnections == 0 {
				continue
			}
			if rows == nil {
				rows = map[int]bool{}
			}
			for _, a := range b.Addrs {
				rows[a.Row] = true
			}
		}
	}
	return rows
}
