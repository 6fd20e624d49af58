package message

// Reason is the word that says why Cloud Cup answered by itself or cut
// something. This table is the only one: bodies, log, metrics and the
// documentation use its words.
type Reason uint8

// The reasons; the table below says what each is for.
const (
	ReasonNone Reason = iota
	ReasonBadRequest
	ReasonHeadTooLarge
	ReasonTargetTooLong
	ReasonBodyTooLarge
	ReasonVersion
	ReasonMethod
	ReasonMaxForwards
	ReasonTLSHandshake
	ReasonPlainHTTP
	ReasonMisdirected
	ReasonRedirect
	ReasonClientTimeout
	ReasonClientGone
	ReasonNoBackend
	ReasonBackendFull
	ReasonBackendUnresolved
	ReasonBackendRefused
	ReasonBackendTLS
	ReasonBackendReset
	ReasonBackendMalformed
	ReasonConnectTimeout
	ReasonBackendTimeout
	ReasonTunnelIdle
	ReasonMemory
	ReasonDraining
	reasonCount
)

// ReasonInfo describes a Reason.
type ReasonInfo struct {
	Word   string
	Status int    // of our response, 0 where there is none to send
	Phrase string // of the status line (RFC 9110 15)
	Text   string // one sentence for the person who reads the response
}

var reasons = [reasonCount]ReasonInfo{
	ReasonNone:              {"none", 0, "", ""},
	ReasonBadRequest:        {"bad_request", 400, "Bad Request", "The request does not follow HTTP/1.1."},
	ReasonHeadTooLarge:      {"head_too_large", 431, "Request Header Fields Too Large", "The request's header fields are larger than this server accepts."},
	ReasonTargetTooLong:     {"target_too_long", 414, "URI Too Long", "The request's target is longer than this server accepts."},
	ReasonBodyTooLarge:      {"body_too_large", 413, "Content Too Large", "The request's body is larger than this server accepts."},
	ReasonVersion:           {"version_not_supported", 505, "HTTP Version Not Supported", "This server speaks HTTP/1.1 and HTTP/1.0 only."},
	ReasonMethod:            {"method_not_supported", 501, "Not Implemented", "This server does not open tunnels for CONNECT."},
	ReasonMaxForwards:       {"max_forwards", 200, "OK", "The request was to be forwarded no further than to this server."},
	ReasonTLSHandshake:      {"tls_handshake", 0, "", "The TLS handshake with the client failed or took too long."},
	ReasonPlainHTTP:         {"plain_http", 400, "Bad Request", "This port speaks HTTPS; the request came without TLS."},
	ReasonMisdirected:       {"misdirected", 421, "Misdirected Request", "This connection was made for another host: open one for this host."},
	ReasonRedirect:          {"redirect", 308, "Permanent Redirect", "This address is served over HTTPS alone."},
	ReasonClientTimeout:     {"client_timeout", 408, "Request Timeout", "The request did not arrive in time."},
	ReasonClientGone:        {"client_gone", 0, "", "The client closed the connection before the exchange was complete."},
	ReasonNoBackend:         {"no_backend", 503, "Service Unavailable", "No backend of this route is available."},
	ReasonBackendFull:       {"backend_full", 503, "Service Unavailable", "Every backend of this route that is available has as many requests as it may."},
	ReasonBackendUnresolved: {"backend_unresolved", 503, "Service Unavailable", "The names of this route's backends do not resolve."},
	ReasonBackendRefused:    {"backend_refused", 502, "Bad Gateway", "The backend could not be connected to."},
	ReasonBackendTLS:        {"backend_tls", 502, "Bad Gateway", "The TLS handshake with the backend failed."},
	ReasonBackendReset:      {"backend_reset", 502, "Bad Gateway", "The backend closed the connection before it answered."},
	ReasonBackendMalformed:  {"backend_malformed", 502, "Bad Gateway", "The backend's answer does not follow HTTP/1.1."},
	ReasonConnectTimeout:    {"connect_timeout", 504, "Gateway Timeout", "The connection to the backend was not established in time."},
	ReasonBackendTimeout:    {"backend_timeout", 504, "Gateway Timeout", "The backend did not answer in time."},
	ReasonTunnelIdle:        {"tunnel_idle", 0, "", "No byte moved through the tunnel for too long."},
	ReasonMemory:            {"memory", 503, "Service Unavailable", "This server is short of memory for connections."},
	ReasonDraining:          {"draining", 0, "", "The server was stopped before the exchange was complete."},
}

// Info returns the reason's row of the table.
func (r Reason) Info() *ReasonInfo { return &reasons[r] }

// String is the reason's word.
func (r Reason) String() string { return reasons[r].Word }

// Reasons lists all reasons but ReasonNone, in the table's order.
func Reasons() []Reason {
	list := make([]Reason, 0, reasonCount-1)
	for r := ReasonNone + 1; r < reasonCount; r++ {
		list = append(list, r)
	}
	return list
}
