// Package config reads Cloud Cup's configuration: one JSON file, in which
// comments and trailing commas are allowed. Parse fills in defaults, checks
// everything that can be checked without the network, and reports all mistakes
// at once, each with its place in the text.
//
// The package knows what the file says, not what is done with it: it opens no
// socket and resolves no name. It reads no files but the certificates and keys
// that the text names.
package config

import (
	"net/netip"
	"strings"
	"time"
)

// Config is a valid configuration with all defaults filled in.
type Config struct {
	// Root holds the addresses to listen on, at least one, without
	// duplicates, each either "IP:port" in netip's canonical form
	// ("127.0.0.1:8080", "[::1]:8080"), ":port" for all addresses of both
	// families, or "unix:PATH" as in Backend.Host. "localhost" in the file is
	// 127.0.0.1. Port 0 asks the kernel for a free port.
	Root []string
	// Policies tell for each of Root what is spoken there.
	Policies []Policy
	// Workers is the number of worker processes, 0 for one per CPU that this
	// process may use.
	Workers int
	// User is who the workers are; the zero User is whoever the master is.
	User User
	// Pin binds the loop of each worker to a CPU of its own.
	Pin bool
	// Routes stand in the order of the file. The pattern "*" is among them.
	Routes   []Route
	Timeouts Timeouts
	Limits   Limits
	Forwarding
	// AccessLog is that of requests that no route could be found for, and
	// what routes inherit.
	AccessLog AccessLog
	// LogFiles are the distinct paths among all AccessLog.File, in the order
	// of the file.
	LogFiles []LogFile
	Admin    Admin
	// SSL is that of addresses that say nothing of their own; nil without an
	// ssl key. See Policies.
	SSL *SSL
	// Files are the certificates, keys and authorities that the text names.
	Files Files
}

// Policy is what is spoken on an address.
type Policy struct {
	SSL *SSL // nil: plain HTTP
	// Redirect answers every request by the same URL with https.
	Redirect bool

	plain bool // set for this address, whatever Config.SSL says
}

// Route sends the requests that its pattern matches to its backends.
type Route struct {
	// Pattern is "*", or an optional host followed by "/exact/path" or
	// "/prefix/*". The host is in lower case.
	Pattern string
	// Strategy is "round-robin".
	Strategy string
	// Backends has at least one element, no two with the same Host.
	Backends []Backend
	// Timeouts, Limits and Forwarding are the global ones, overridden by the
	// route's.
	Timeouts Timeouts
	Limits   Limits
	Forwarding
	AccessLog AccessLog // the global one, overridden by the route's
	Headers   Headers
	// StripPrefix is taken off the path that a backend is asked for; nothing if
	// it is empty. It begins with a slash and does not end in one, and every
	// path that Pattern matches is StripPrefix itself, which becomes "/", or
	// begins with StripPrefix and a slash, which stays.
	StripPrefix string
}

// Forwarding is what a backend is told about a request's way here, and who is
// believed when it says where a request came from.
type Forwarding struct {
	// TrustedProxies are the clients whose own fields about a request's way
	// are believed, masked, in the order of the file. No IPv4 address stands
	// in IPv6 form: unmap an address before it is looked up. Routes may share
	// the slice.
	TrustedProxies []netip.Prefix
	// TrustedUnix says the same of clients that connect to unix sockets.
	TrustedUnix bool
	Forwarded   Forwarded
	HostHeader  HostHeader
	// RequestID gives a request an X-Request-Id if it has none.
	RequestID bool
}

// Forwarded chooses the fields that tell a backend who sent a request.
type Forwarded string

// The fields that a route may choose, the default first.
const (
	ForwardedX       Forwarded = "x-forwarded" // X-Forwarded-For, -Proto, -Host and -Port
	ForwardedRFC7239 Forwarded = "rfc7239"     // Forwarded
)

// HostHeader chooses the Host field that a backend sees.
type HostHeader string

// The hosts that a route may choose, the default first. HostBackend is never
// that of a route with a unix socket among its backends, which has no name.
const (
	HostPreserve HostHeader = "preserve" // the client's
	HostBackend  HostHeader = "backend"  // Backend.Host
)

// Headers are a route's rules for header fields.
type Headers struct {
	Request  HeaderRules // on the way to a backend
	Response HeaderRules // on the way to a client
}

// HeaderRules change the fields of a head. No name, in any case, stands in two
// of the three, and none is a field that the proxy itself writes or needs. See
// RuleBytesMax.
type HeaderRules struct {
	// Set replaces all lines of a name by one, or adds it. No name twice.
	Set []HeaderField
	// Add adds lines behind those that are there. A name may stand in it
	// several times, next to each other.
	Add []HeaderField
	// Remove takes off all lines of a name. No name twice.
	Remove []string
}

// HeaderField is one line of a head.
type HeaderField struct {
	Name  string // a token, in the case of the file
	Value string // neither empty nor with blanks around it; it may hold UTF-8
}

// WeightMax bounds Backend.Weight.
const WeightMax = 1000

// Backend is a server that requests are sent to.
type Backend struct {
	// Host is "IP:port" in netip's canonical form, "name:port" in lower
	// case, either of them behind "https://" for TLS, or "unix:PATH" (PATH is joined to the given folder if it is
	// relative; it begins with '@' for an abstract socket). It is the
	// backend's identity.
	Host string
	// Weight is its share of the route's requests, relative to that of the
	// others: 1 to WeightMax.
	Weight int
	// MaxConnections bounds the exchanges that all workers together have with
	// the backend at a time, with each address of a name; 0: no bound.
	MaxConnections int
	// MaxFailure consecutive failures take the backend out; 0 never.
	MaxFailure int
	// Cooldown is how long it stays out.
	Cooldown time.Duration
	// TLS counts for a Host that begins with "https://".
	TLS BackendTLS
}

// Secure reports whether the backend is spoken to with TLS.
func (b *Backend) Secure() bool { return strings.HasPrefix(b.Host, schemeTLS) }

// Address is Host without a scheme: what is resolved and connected to.
func (b *Backend) Address() string { return Address(b.Host) }

// Address is a Backend.Host without its scheme.
func Address(host string) string { return strings.TrimPrefix(host, schemeTLS) }

// schemeTLS begins the Host of a backend that is spoken to with TLS.
const schemeTLS = "https://"

// Timeouts are positive, but for Drain and DrainDelay, which may be 0.
type Timeouts struct {
	ClientHead  time.Duration // for a request head to arrive
	ClientBody  time.Duration // without progress of a request's body
	ClientIdle  time.Duration // between two requests of a connection
	Connect     time.Duration // to a backend
	Response    time.Duration // to a response's head, and between bytes of its body
	BackendIdle time.Duration // an unused connection to a backend is kept
	TunnelIdle  time.Duration // without a byte in either direction of a tunnel
	Drain       time.Duration // for exchanges to end when stopping; global
	DrainDelay  time.Duration // accepting goes on when stopping; global
}

// Limits bound what one client, or all clients of a worker, may use.
type Limits struct {
	HeadBytes             int64 // of a request or response head; fits one buffer
	Headers               int   // fields of a head
	TargetBytes           int64 // of a request's target; at most HeadBytes
	BodyBytes             int64 // of a request's body; negative: no limit
	Connections           int   // of clients, per worker
	RequestsPerConnection int   // 0: no limit
	Memory                int64 // bytes lent to connections, per worker
}

// Admin is where cupctl finds the master.
type Admin struct {
	// Socket is the path of the admin socket, empty for the default.
	Socket string
	// Metrics is the address on which metrics are served over TCP, in the form
	// of Config.Root; empty for none. It overlaps with none of Root.
	Metrics string
	// Group is the name or the number of the group whose members may use the
	// socket; empty for none.
	Group string
}
