package config

import (
	"slices"
	"time"

	"github.com/tailscale/hujson"
)

// group is the default of keys that hold an object with keys of its own.
const group = "{}"

// configKeys are the keys of the top level. Routes come last, because they
// inherit from the others.
var configKeys = object[Config]{
	what: "the configuration",
	fields: slices.Concat([]field[Config]{
		{path: "root", decode: (*decoder).root},
		integer("workers", "one per CPU", 1, 1024, false, func(c *Config) *int { return &c.Workers }),
		{path: "user", def: "the one that starts the program", decode: (*decoder).user},
		boolean("pin", false, false, func(c *Config) *bool { return &c.Pin }),
		{path: "timeouts", def: group, decode: func(d *decoder, v *hujson.Value, c *Config) {
			timeoutKeys.decode(d, v, &c.Timeouts)
		}},
		{path: "limits", def: group, decode: func(d *decoder, v *hujson.Value, c *Config) {
			d.limits(v, &c.Limits)
		}},
		{path: "admin", def: group, decode: func(d *decoder, v *hujson.Value, c *Config) {
			d.admin(v, c)
		}},
		{path: "ssl", def: group, decode: func(d *decoder, v *hujson.Value, c *Config) {
			c.SSL = d.ssl(v)
		}},
		{path: "access_log", def: group, decode: func(d *decoder, v *hujson.Value, c *Config) {
			d.accessLog(v, &logKeys, &c.AccessLog)
		}},
	}, forwardingFields(func(c *Config) *Forwarding { return &c.Forwarding }), []field[Config]{
		{path: "routes", decode: (*decoder).routes},
	}),
}

// routeKeys are the keys of a route. Headers come after what they are checked
// with.
var routeKeys = object[Route]{
	what: "a route",
	fields: slices.Concat([]field[Route]{
		{path: "backends", decode: (*decoder).backends},
		{path: "strategy", def: strategies[0], decode: (*decoder).strategy, preset: func(r *Route) {
			r.Strategy = strategies[0]
		}},
		{path: "timeouts", def: group, decode: func(d *decoder, v *hujson.Value, r *Route) {
			routeTimeoutKeys.decode(d, v, &r.Timeouts)
		}},
		{path: "limits", def: group, decode: func(d *decoder, v *hujson.Value, r *Route) {
			routeLimitKeys.decode(d, v, &r.Limits)
		}},
		{path: "access_log", def: group, decode: func(d *decoder, v *hujson.Value, r *Route) {
			d.accessLog(v, &routeLogKeys, &r.AccessLog)
		}},
	}, forwardingFields(func(r *Route) *Forwarding { return &r.Forwarding }), []field[Route]{
		{path: "headers", def: group, decode: (*decoder).headers},
		{path: "strip_prefix", def: none, decode: (*decoder).stripPrefix},
	}),
}

// forwardingFields are the keys that stand at the top level and in routes.
func forwardingFields[T any](in func(*T) *Forwarding) []field[T] {
	return []field[T]{
		{path: "trusted_proxies", def: none, routes: true, decode: func(d *decoder, v *hujson.Value, to *T) {
			d.trustedProxies(v, in(to))
		}},
		word("forwarded", true, func(to *T) *Forwarded { return &in(to).Forwarded }, ForwardedX, ForwardedRFC7239),
		word("host_header", true, func(to *T) *HostHeader { return &in(to).HostHeader }, HostPreserve, HostBackend),
		boolean("request_id", true, true, func(to *T) *bool { return &in(to).RequestID }),
	}
}

var headersKeys = object[ruleDecoder]{
	what: "headers",
	fields: []field[ruleDecoder]{
		{path: "headers.request", def: group, decode: func(d *decoder, v *hujson.Value, r *ruleDecoder) {
			r.direction(d, v, &requestRuleKeys, &r.route.Headers.Request)
		}},
		{path: "headers.response", def: group, decode: func(d *decoder, v *hujson.Value, r *ruleDecoder) {
			r.direction(d, v, &responseRuleKeys, &r.route.Headers.Response)
		}},
	},
}

var (
	requestRuleKeys  = ruleKeys("headers.request")
	responseRuleKeys = ruleKeys("headers.response")
)

// Strategies that routes may name, the default first, and those of later
// versions.
var (
	strategies      = []string{"round-robin"}
	laterStrategies = []string{"least-conn", "p2c", "random", "ip-hash", "hash"}
)

var backendKeys = object[Backend]{
	what: "a backend",
	fields: []field[Backend]{
		{path: "host", decode: (*decoder).host},
		integer("weight", "1", 1, WeightMax, false, func(b *Backend) *int { return &b.Weight }),
		integer("max_connections", "0", 0, 1_000_000, false, func(b *Backend) *int { return &b.MaxConnections }),
		integer("max_failure", "5", 0, 1_000_000, false, func(b *Backend) *int { return &b.MaxFailure }),
		duration("cooldown", "2s", timeoutMin, timeoutMax, false, func(b *Backend) *time.Duration { return &b.Cooldown }),
		{path: "tls", def: group, decode: (*decoder).backendTLS},
	},
}

// Bounds of timeouts. Timers are no finer than the lower one.
const (
	timeoutMin = 10 * time.Millisecond
	timeoutMax = 168 * time.Hour
)

var timeoutKeys = object[Timeouts]{
	what: "timeouts",
	fields: []field[Timeouts]{
		duration("timeouts.client_head", "10s", timeoutMin, timeoutMax, false, func(t *Timeouts) *time.Duration { return &t.ClientHead }),
		duration("timeouts.client_body", "30s", timeoutMin, timeoutMax, true, func(t *Timeouts) *time.Duration { return &t.ClientBody }),
		duration("timeouts.client_idle", "60s", timeoutMin, timeoutMax, false, func(t *Timeouts) *time.Duration { return &t.ClientIdle }),
		duration("timeouts.connect", "2s", timeoutMin, timeoutMax, true, func(t *Timeouts) *time.Duration { return &t.Connect }),
		duration("timeouts.response", "60s", timeoutMin, timeoutMax, true, func(t *Timeouts) *time.Duration { return &t.Response }),
		duration("timeouts.backend_idle", "55s", timeoutMin, timeoutMax, true, func(t *Timeouts) *time.Duration { return &t.BackendIdle }),
		duration("timeouts.tunnel_idle", "1h", timeoutMin, timeoutMax, true, func(t *Timeouts) *time.Duration { return &t.TunnelIdle }),
		duration("timeouts.drain", "30s", 0, timeoutMax, false, func(t *Timeouts) *time.Duration { return &t.Drain }),
		duration("timeouts.drain_delay", "0s", 0, timeoutMax, false, func(t *Timeouts) *time.Duration { return &t.DrainDelay }),
	},
}

// Bounds of limits. A head lies in one buffer of 256 KiB at most, as received
// and as it is sent on, with the fields that the proxy adds.
const (
	headBytesMin = 1 << 10
	headBytesMax = 192 << 10
	bodyBytesMax = 1 << 60
	memoryMin    = 16 << 20
	memoryMax    = 1 << 40
)

var limitKeys = object[Limits]{
	what: "limits",
	fields: []field[Limits]{
		size("limits.head_bytes", "32KiB", headBytesMin, headBytesMax, false, func(l *Limits) *int64 { return &l.HeadBytes }),
		integer("limits.headers", "100", 1, 10_000, false, func(l *Limits) *int { return &l.Headers }),
		size("limits.target_bytes", "8KiB", 64, headBytesMax, false, func(l *Limits) *int64 { return &l.TargetBytes }),
		size("limits.body_bytes", none, 0, bodyBytesMax, true, func(l *Limits) *int64 { return &l.BodyBytes }),
		integer("limits.connections", "50000", 1, 10_000_000, false, func(l *Limits) *int { return &l.Connections }),
		integer("limits.requests_per_connection", "0", 0, 1_000_000_000, false, func(l *Limits) *int { return &l.RequestsPerConnection }),
		size("limits.memory", "512MiB", memoryMin, memoryMax, false, func(l *Limits) *int64 { return &l.Memory }),
	},
}

var adminKeys = object[Admin]{
	what: "admin",
	fields: []field[Admin]{
		{path: "admin.socket", def: "/run/cloud-cup/admin.sock, or $XDG_RUNTIME_DIR/cloud-cup/admin.sock", decode: (*decoder).socket},
		{path: "admin.group", def: none, decode: (*decoder).adminGroup},
		{path: "admin.metrics", def: none, decode: (*decoder).metrics},
	},
}

var sslKeys = object[sslReader]{
	what: "ssl",
	fields: []field[sslReader]{
		{path: "ssl.ssl_certificate", def: none, decode: func(d *decoder, v *hujson.Value, r *sslReader) {
			r.pair.Certificate = d.path(v, "ssl_certificate")
		}},
		{path: "ssl.ssl_certificate_key", def: none, decode: func(d *decoder, v *hujson.Value, r *sslReader) {
			r.pair.Key = d.path(v, "ssl_certificate_key")
		}},
		{path: "ssl.certificates", def: none, decode: (*decoder).certificates},
		word("ssl.min_version", false, func(r *sslReader) *SSLVersion { return &r.MinVersion }, SSLVersion12, SSLVersion13),
		{path: "ssl.curves", def: "Go's", decode: (*decoder).curves},
		{path: "ssl.client", def: group, decode: (*decoder).clientCerts},
	},
}

// listenerKeys are those of an element of root that is an object.
var listenerKeys = object[listener]{
	what: "an address of root",
	fields: []field[listener]{
		{path: "root.address", decode: (*decoder).address},
		{path: "root.ssl", def: none, decode: (*decoder).listenerSSL},
		{path: "root.redirect", def: none, decode: (*decoder).redirect},
	},
}

// pairKeys are those of an element of ssl.certificates.
var pairKeys = object[KeyPair]{
	what: "a certificate",
	fields: []field[KeyPair]{
		{path: "ssl.certificates.ssl_certificate", decode: func(d *decoder, v *hujson.Value, p *KeyPair) {
			p.Certificate = d.path(v, "ssl_certificate")
		}},
		{path: "ssl.certificates.ssl_certificate_key", decode: func(d *decoder, v *hujson.Value, p *KeyPair) {
			p.Key = d.path(v, "ssl_certificate_key")
		}},
	},
}

var clientKeys = object[ClientCerts]{
	what: "ssl.client",
	fields: []field[ClientCerts]{
		word("ssl.client.mode", false, func(c *ClientCerts) *ClientMode { return &c.Mode }, ClientOff, ClientRequest, ClientRequire),
		{path: "ssl.client.ca_file", def: none, decode: func(d *decoder, v *hujson.Value, c *ClientCerts) {
			c.CAFile = d.path(v, "ca_file")
		}},
	},
}

var backendTLSKeys = object[BackendTLS]{
	what: "tls",
	fields: []field[BackendTLS]{
		{path: "tls.ca_file", def: "the system's", decode: func(d *decoder, v *hujson.Value, t *BackendTLS) {
			t.CAFile = d.path(v, "ca_file")
		}},
		{path: "tls.server_name", def: "the host's", decode: func(d *decoder, v *hujson.Value, t *BackendTLS) {
			d.serverName(v, t)
		}},
		{path: "tls.certificate", def: none, decode: func(d *decoder, v *hujson.Value, t *BackendTLS) {
			t.Certificate = d.path(v, "certificate")
		}},
		{path: "tls.key", def: none, decode: func(d *decoder, v *hujson.Value, t *BackendTLS) {
			t.Key = d.path(v, "key")
		}},
	},
}

// What a route may override.
var (
	routeTimeoutKeys = forRoutes(timeoutKeys)
	routeLimitKeys   = forRoutes(limitKeys)
	routeLogKeys     = forRoutes(logKeys)
)

func forRoutes[T any](o object[T]) object[T] {
	o.inRoute = true
	return o
}

// config decodes the top level.
func (d *decoder) config(v *hujson.Value, c *Config) {
	configKeys.preset(c)
	timeoutKeys.preset(&c.Timeouts)
	limitKeys.preset(&c.Limits)
	logKeys.preset(&c.AccessLog)
	seen := configKeys.decode(d, v, c)
	configKeys.require(d, v, seen)
	if used := c.inheritSSL(); !used && c.SSL != nil && len(c.Policies) > 0 {
		d.at(seen["ssl"].StartOffset, "", "ssl is of no use: no address of root takes it from here")
	}
}

// admin decodes admin.
func (d *decoder) admin(v *hujson.Value, c *Config) {
	seen := adminKeys.decode(d, v, &c.Admin)
	for _, root := range c.Root {
		if c.Admin.Metrics != "" && collide(c.Admin.Metrics, root) {
			d.at(seen["metrics"].StartOffset, "take another port", "admin.metrics %q is what root %q listens on", c.Admin.Metrics, root)
			return
		}
	}
}

// limits decodes the global limits.
func (d *decoder) limits(v *hujson.Value, l *Limits) {
	seen := limitKeys.decode(d, v, l)
	if l.TargetBytes <= l.HeadBytes {
		return
	}
	if target := seen["target_bytes"]; target != nil {
		d.at(target.StartOffset, "", "limits.target_bytes is more than limits.head_bytes, which counts the target too")
	}
	l.TargetBytes = l.HeadBytes
}

// routes decodes all routes.
func (d *decoder) routes(v *hujson.Value, c *Config) {
	obj, ok := v.Value.(*hujson.Object)
	if !ok {
		d.at(v.StartOffset, `write {"*": {"backends": [...]}}`, "routes must be an object, not %s", kindOf(v))
		return
	}
	if len(obj.Members) > routesMax {
		d.at(v.StartOffset, "", "there are %d routes, at most %d are possible", len(obj.Members), routesMax)
		return
	}
	c.Routes = make([]Route, 0, len(obj.Members))
	places := make(map[string]int, len(obj.Members))
	for i := range obj.Members {
		m := &obj.Members[i]
		var r Route
		routeKeys.preset(&r)
		r.Timeouts, r.Limits, r.Forwarding, r.AccessLog = c.Timeouts, c.Limits, c.Forwarding, c.AccessLog
		if text, ok := d.stringOf(&m.Name, "a pattern"); ok {
			r.Pattern = d.pattern(m.Name.StartOffset, text, places)
		}
		seen := routeKeys.decode(d, &m.Value, &r)
		routeKeys.require(d, &m.Value, seen)
		d.hostHeader(seen["backends"], &r)
		c.Routes = append(c.Routes, r)
	}
	if _, ok := places["*"]; !ok {
		d.at(v.StartOffset, "it takes what no other route matches", `the route "*" is missing`)
	}
	d.unreachable(places)
}

// pattern checks a route's pattern and returns its canonical form, under which
// it is entered in places.
func (d *decoder) pattern(offset int, text string, places map[string]int) string {
	p, msg, hint := checkPattern(text)
	if msg != "" {
		d.at(offset, hint, "route %q: %s", clip(text), msg)
		return ""
	}
	if first, twice := places[p]; twice {
		d.at(offset, "", "route %q stands twice, first in line %d", clip(p), d.line(first))
		return ""
	}
	places[p] = offset
	return p
}

// strategy decodes a route's strategy.
func (d *decoder) strategy(v *hujson.Value, r *Route) {
	s, ok := d.stringOf(v, "strategy")
	switch {
	case !ok:
	case slices.Contains(strategies, s):
		r.Strategy = s
	case slices.Contains(laterStrategies, s):
		d.at(v.StartOffset, "", "strategy %q is not supported in this version", s)
	default:
		d.at(v.StartOffset, didYouMean(s, strategies), "unknown strategy %q", clip(s))
	}
}

// backends decodes a route's backends.
func (d *decoder) backends(v *hujson.Value, r *Route) {
	list, ok := v.Value.(*hujson.Array)
	switch {
	case !ok:
		d.at(v.StartOffset, `write [{"host": "127.0.0.1:8081"}]`, "backends must be a list, not %s", kindOf(v))
		return
	case len(list.Elements) == 0:
		d.at(v.StartOffset, "", "backends is empty: a route needs at least one")
		return
	case len(list.Elements) > backendsMax:
		d.at(v.StartOffset, "", "there are %d backends, a route has at most %d", len(list.Elements), backendsMax)
		return
	}
	r.Backends = make([]Backend, 0, len(list.Elements))
	for i := range list.Elements {
		e := &list.Elements[i]
		var b Backend
		backendKeys.preset(&b)
		seen := backendKeys.decode(d, e, &b)
		backendKeys.require(d, e, seen)
		if at := seen["tls"]; at != nil && b.Host != "" && !b.Secure() {
			d.at(at.StartOffset, `write the host as "https://name:port"`, "tls is of no use for a backend without https")
		}
		if b.Secure() && b.TLS.CAFile == "" {
			d.systemRoots(e)
		}
		if b.Host != "" && slices.ContainsFunc(r.Backends, func(o Backend) bool { return o.Host == b.Host }) {
			d.at(seen["host"].StartOffset, "", "backend %q stands twice in this route", b.Host)
		}
		r.Backends = append(r.Backends, b)
	}
}
