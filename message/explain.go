package message

// Explanation is what an operator is told about a Reason, by cupctl explain
// and docs/reasons.md. Its sentences stand in the order in which one would
// look.
type Explanation struct {
	Hint    string   // a few words beside a count
	Meaning string   // what happened, and what the client saw
	Causes  []string // the likely ones, the likeliest first
	Advice  []string // what to do
}

var explanations = [reasonCount]Explanation{
	ReasonBadRequest: {
		"the client breaks HTTP/1.1",
		"A request did not follow HTTP/1.1 (RFC 9112). It was answered by 400 and the connection was closed; no backend saw it.",
		[]string{
			"a client that speaks TLS, HTTP/2 or something else to this port",
			"a scanner, or an attempt to smuggle a request past a proxy",
			"a client library with a mistake: two Host fields, Content-Length beside Transfer-Encoding, a bare line feed",
		},
		[]string{
			"look at who sends it: a few from the internet are normal",
			"if it is a client of your own, send the same request with curl -v and compare",
		},
	},
	ReasonHeadTooLarge: {
		"fields larger than limits.head_bytes",
		"The header fields of a request were larger or more than is allowed. It was answered by 431.",
		[]string{"cookies that grew", "long tokens in Authorization", "a client in a loop of redirects that add something each time"},
		[]string{"raise limits.head_bytes or limits.headers, if the client is right", "make the application set fewer or smaller cookies"},
	},
	ReasonTargetTooLong: {
		"target longer than limits.target_bytes",
		"The target of a request, its path with the query, was longer than is allowed. It was answered by 414.",
		[]string{"a form sent by GET instead of POST", "a loop of redirects that adds to the query"},
		[]string{"raise limits.target_bytes (at most limits.head_bytes), if the client is right"},
	},
	ReasonBodyTooLarge: {
		"body larger than limits.body_bytes",
		"The body of a request was larger than is allowed. It was answered by 413. With a Content-Length no backend saw it; a chunked body was cut when it exceeded the limit.",
		[]string{"an upload larger than the route allows"},
		[]string{"raise limits.body_bytes of that route"},
	},
	ReasonVersion: {
		"not HTTP/1.x",
		"A request asked for another major version than HTTP/1. It was answered by 505.",
		[]string{"a client that begins with HTTP/2 without asking before (prior knowledge)"},
		[]string{"let the client speak HTTP/1.1"},
	},
	ReasonMethod: {
		"CONNECT is not served",
		"A client asked for a tunnel by CONNECT. It was answered by 501.",
		[]string{"a client that has this server configured as its forward proxy", "a scanner that looks for open proxies"},
		[]string{"nothing, if the client is not yours", "correct the proxy settings of the client otherwise"},
	},
	ReasonMaxForwards: {
		"TRACE or OPTIONS ended here on request",
		"A TRACE or OPTIONS request said by Max-Forwards that it was to end here. It was answered by 200; this is no failure.",
		[]string{"someone traces the way of requests"},
		[]string{"nothing"},
	},
	ReasonTLSHandshake: {
		"no TLS with the client",
		"The TLS handshake of a client failed, or was not complete within timeouts.client_head. The connection was closed, after an alert where TLS has one for the cause.",
		[]string{
			"a client that speaks no version, suite or key exchange that is offered, or HTTP/2 alone (ALPN)",
			"a client that does not trust the certificate, or shows none where ssl.client asks for one",
			"a port scan, or a client that gave up",
		},
		[]string{
			"the log tells a cause: \"TLS with a client failed\", once a minute for each address and worker",
			"openssl s_client -connect HOST:PORT -servername NAME shows what a client sees",
			"cupctl certs shows which certificates are served, and until when they are valid",
			"nothing, if there are few",
		},
	},
	ReasonPlainHTTP: {
		"HTTP on a port for HTTPS",
		"A request without TLS came to an address that speaks TLS. It was answered by 400 in clear text.",
		[]string{"a URL with http:// and the port of https", "a proxy or health check in front that does not speak TLS"},
		[]string{"correct the URL", "let an address of its own redirect: \"redirect\": \"https\""},
	},
	ReasonMisdirected: {
		"another host's connection",
		"A request named a host that has another certificate than the one of its connection's handshake. It was answered by 421, on which browsers open a connection of their own.",
		[]string{"a client that uses one connection for several hosts", "a client that asks for one name by TLS (SNI) and for another by HTTP",
			"a client that asks for no name by TLS, such as a health check by address: it gets the first certificate"},
		[]string{"nothing, for browsers", "let one certificate be for both names", "curl --resolve NAME:PORT:ADDRESS https://NAME:PORT/ asks for the same name by both"},
	},
	ReasonRedirect: {
		"sent on to https",
		"The address redirects all requests to https. It was answered by 308; this is no failure.",
		[]string{"someone asked by http"},
		[]string{"nothing"},
	},
	ReasonClientTimeout: {
		"the client was too slow",
		"A client began a request and did not go on in time. It was answered by 408, or cut if a response had begun.",
		[]string{"a mobile client that lost its network", "a client that opens connections and says nothing, maybe to use them up", "a very slow upload"},
		[]string{
			"nothing, if there are few",
			"raise timeouts.client_head or timeouts.client_body of the route, if clients of your own are that slow",
		},
	},
	ReasonClientGone: {
		"the client closed early",
		"A client closed its connection before its exchange was complete. Nobody is left to answer, and the backend's work was for nothing.",
		[]string{"people who leave a page or press reload", "a client whose own timeout is shorter than the backend needs", "a health check that closes as soon as it has a status"},
		[]string{"compare the latency of the route with the timeout of the client", "nothing, if there are few"},
	},
	ReasonNoBackend: {
		"all backends are out",
		"Every backend of the route is taken out by its failures, drained or disabled. The request was answered by 503 at once, without waiting.",
		[]string{
			"the service behind the route is down: look for backend_refused, backend_reset or backend_timeout before this",
			"somebody drained or disabled the last backend of the route",
		},
		[]string{
			"cupctl backends shows each one's state, and since when it is out",
			"cupctl check connects to them from here",
			"cupctl enable BACKEND takes back a drain or disable",
		},
	},
	ReasonBackendFull: {
		"all backends at max_connections",
		"Every backend of the route that takes requests had as many under way as its max_connections allows, in all workers together. The request was answered by 503 at once, without waiting. Tunnels count as long as they are open.",
		[]string{
			"more load than the backends are allowed to have",
			"backends that have become slow, so that requests stay longer",
			"many open tunnels (WebSocket)",
			"another backend of the route is out or drained, and the rest is too few",
		},
		[]string{
			"cupctl backends shows which are out or drained, and the requests in flight",
			"raise max_connections, if the backend can take more, or add backends",
		},
	},
	ReasonBackendUnresolved: {
		"a name does not resolve",
		"The names of all the route's backends do not resolve to an address. The request was answered by 503. The names are asked for again every few seconds.",
		[]string{"a mistyped name", "a name server that does not answer, or a service that is not registered yet"},
		[]string{"cupctl backends shows the error of the resolver", "try getent ahosts NAME on this host, as the user of cloud-cup"},
	},
	ReasonBackendRefused: {
		"nothing listens there",
		"The connection to a backend failed at once, and no other backend could take the request. It was answered by 502.",
		[]string{
			"the backend's process is not running, or listens on another address or port",
			"a firewall rejects connections",
			"a unix socket that does not exist, or that this user may not open",
			"the backend's queue of connections is full (unix sockets)",
		},
		[]string{"cupctl check -b BACKEND connects to it from here", "ss -ltnp on the backend's host shows what listens"},
	},
	ReasonBackendTLS: {
		"no TLS with the backend",
		"The TLS handshake with a backend failed, and no other backend could take the request. It was answered by 502. Nothing of the request was sent, unless a backend with TLS 1.3 refused our certificate, which comes after the handshake.",
		[]string{
			"its certificate has expired, is for another name, or is signed by an authority that is not known here",
			"the backend speaks plain HTTP on that port, or wants a certificate of ours",
		},
		[]string{
			"the log tells the cause: \"TLS with a backend failed\", once a minute for each backend and worker",
			"cupctl check -b https://HOST:PORT does the handshake from here, and tells the cause and when the certificate expires",
			"openssl s_client -connect HOST:PORT -servername NAME shows the certificate",
			"set tls.ca_file or tls.server_name of the backend; its certificate is always verified",
		},
	},
	ReasonBackendReset: {
		"the backend hung up without an answer",
		"A backend closed the connection after it had taken the request and before it answered, and the request could not be sent again. It was answered by 502, or cut if the response had begun.",
		[]string{
			"the backend's process crashed or was restarted",
			"the backend closes idle connections earlier than timeouts.backend_idle",
			"the backend refuses what it reads, for example a body that is too large, by closing",
		},
		[]string{
			"look at the backend's log at that time",
			"set timeouts.backend_idle below the backend's own keep-alive timeout",
			"requests that are not idempotent are never sent again: make them so (PUT, DELETE) if you can",
		},
	},
	ReasonBackendMalformed: {
		"the backend does not answer in HTTP/1.1",
		"What a backend answered is not HTTP/1.1, or its head is larger than limits.head_bytes. The request was answered by 502, or cut if the response had begun.",
		[]string{
			"the port speaks TLS, HTTP/2 or another protocol",
			"a head that breaks the rules: several Content-Lengths, bad characters in fields",
			"a body that ends before its Content-Length or in the middle of a chunk",
		},
		[]string{"send the same request to the backend with curl -v --http1.1", "raise limits.head_bytes if the backend's cookies are that large"},
	},
	ReasonConnectTimeout: {
		"no answer to connecting",
		"The connection to a backend, with its TLS handshake where it speaks TLS, was neither made nor refused within timeouts.connect, and no other backend could take the request. It was answered by 504.",
		[]string{"the backend's host is down or its network is cut", "a firewall drops packets", "the backend is overloaded and its accept queue is full"},
		[]string{"cupctl check -b BACKEND connects to it from here", "ss -ltn on the backend's host shows the queue (Recv-Q) of the listener"},
	},
	ReasonBackendTimeout: {
		"the backend is too slow",
		"A backend took a request and did not answer, or did not go on, within timeouts.response. It was answered by 504, or cut if the response had begun.",
		[]string{"a slow query or an overloaded service", "a request that legitimately takes long: an export, a long poll"},
		[]string{"cupctl stats shows the latencies of routes and backends", "raise timeouts.response of that route if it is to take that long"},
	},
	ReasonTunnelIdle: {
		"a silent tunnel was closed",
		"No byte moved through a tunnel (WebSocket) for timeouts.tunnel_idle. Both connections were closed.",
		[]string{"a client that vanished without closing", "an application that is silent for longer"},
		[]string{"let the application send pings", "raise timeouts.tunnel_idle of the route"},
	},
	ReasonMemory: {
		"limits.memory is used up",
		"The worker had lent nearly all of limits.memory to connections. It stopped accepting for a while and ended the connections that had waited longest.",
		[]string{"many clients that read slowly", "many large uploads to slow backends at once", "TLS handshakes that were begun by a long message and not gone on with", "a limit that is too small for this number of connections"},
		[]string{"cupctl workers shows the memory lent by each worker", "raise limits.memory, or lower limits.connections"},
	},
	ReasonDraining: {
		"cut at the drain deadline",
		"cloud-cup was stopped, and the exchange was not complete when timeouts.drain passed. It was cut.",
		[]string{"long downloads, long polls and tunnels at the time of the stop"},
		[]string{"raise timeouts.drain, and the time that the service manager grants for a stop (TimeoutStopSec=)"},
	},
}

// Explain returns what an operator is told about the reason.
func (r Reason) Explain() *Explanation { return &explanations[r] }

// ReasonOf returns the reason with the word; false if there is none.
func ReasonOf(word string) (Reason, bool) {
	for _, r := range Reasons() {
		if r.String() == word {
			return r, true
		}
	}
	return ReasonNone, false
}
