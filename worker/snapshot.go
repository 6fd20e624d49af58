package worker

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
)

// newPrepared parses a payload and builds its snapshot.
func newPrepared(p *control.Payload) (*prepared, error) {
	cfg, err := config.Reparse(p.Name, p.Text, p.Dir, p.Files)
	if err != nil {
		return nil, err
	}
	files, err := sys.RaiseFileLimit()
	if err != nil {
		return nil, err
	}
	s, err := newSnapshot(cfg, p, connectionsFor(files))
	if err != nil {
		return nil, err
	}
	ticketed, err := addPolicies(s, cfg, p)
	if err != nil {
		return nil, err
	}
	if err := proxy.Prepare(s); err != nil {
		return nil, err
	}
	return &prepared{snapshot: s, drain: cfg.Timeouts.Drain, pin: cfg.Pin, large: len(p.Text) >= largeConfig, ticketed: ticketed}, nil
}

// ownFiles are descriptors that are no connections: of listeners, logs, the
// engine and the control channel.
const ownFiles = 32

// pipesFor is the number of pipes for bodies that a process with that many
// descriptors makes at most: they take a 32nd part of them.
func pipesFor(files uint64) int { return int(min(files/64, loop.PipesMax)) }

// connectionsFor is the number of client connections that a process with that
// many descriptors may take. As many again are left to connections to backends,
// so that each client can have a request under way: who waits in the accept
// queue is served later, and a request without a descriptor is refused.
func connectionsFor(files uint64) int {
	files -= 2 * uint64(pipesFor(files))
	return int(min(max(files, 2*ownFiles)-ownFiles, 1<<31) / 2)
}

// newSnapshot translates a configuration, with the addresses that came with it,
// into the proxy's terms.
func newSnapshot(cfg *config.Config, p *control.Payload, connections int) (*proxy.Snapshot, error) {
	limits := limitsOf(&cfg.Limits)
	limits.Connections = min(limits.Connections, connections)
	s := &proxy.Snapshot{
		Generation: p.Generation,
		Timeouts:   timeoutsOf(&cfg.Timeouts),
		Limits:     limits,
		Log:        logOf(&cfg.AccessLog),
		Routes:     make([]proxy.RouteSpec, 0, len(cfg.Routes)),
		TLS:        map[string]*proxy.ListenerTLS{},
		Redirects:  map[string]int{},
	}
	if len(p.RouteIndex) != len(cfg.Routes) {
		return nil, fmt.Errorf("%d routes have %d indices", len(cfg.Routes), len(p.RouteIndex))
	}
	for i := range cfg.Routes {
		r := &cfg.Routes[i]
		spec := proxy.RouteSpec{
			Pattern:        r.Pattern,
			Index:          p.RouteIndex[i],
			Timeouts:       timeoutsOf(&r.Timeouts),
			Limits:         limitsOf(&r.Limits),
			TrustedProxies: r.TrustedProxies,
			TrustedUnix:    r.TrustedUnix,
			RFC7239:        r.Forwarded == config.ForwardedRFC7239,
			HostBackend:    r.HostHeader == config.HostBackend,
			RequestID:      r.RequestID,
			StripPrefix:    r.StripPrefix,
			Log:            logOf(&r.AccessLog),
			Request:        rulesOf(&r.Headers.Request),
			Response:       rulesOf(&r.Headers.Response),
		}
		for j := range r.Backends {
			b, err := backendOf(&r.Backends[j], p)
			if err != nil {
				return nil, err
			}
			spec.Backends = append(spec.Backends, b)
		}
		s.Routes = append(s.Routes, spec)
	}
	return s, nil
}

// backendOf translates a backend with its addresses, none if its name does not
// resolve, and their rows.
func backendOf(b *config.Backend, p *control.Payload) (spec proxy.BackendSpec, err error) {
	spec = proxy.BackendSpec{Host: b.Host, Weight: b.Weight, MaxFailure: b.MaxFailure, Cooldown: b.Cooldown, MaxConnections: b.MaxConnections}
	for _, text := range control.BackendAddresses(b.Host, p.Addresses) {
		addr, err := addressOf(text)
		if err != nil {
			return spec, fmt.Errorf("address of backend %s: %w", b.Host, err)
		}
		row, ok := p.Rows[control.BackendKey(text, b)]
		if !ok || row < 0 || row >= shm.BackendRowsMax {
			return spec, fmt.Errorf("backend %s (%s) has no row in shared memory", b.Host, text)
		}
		spec.Addrs = append(spec.Addrs, proxy.BackendAddr{Addr: addr, Row: row})
	}
	if b.Secure() {
		spec.TLS, err = backendTLS(b, p.Files)
	}
	return spec, err
}

func addressOf(text string) (loop.Addr, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		return loop.Addr{Path: path}, nil
	}
	addr, err := netip.ParseAddrPort(text)
	return loop.Addr{AddrPort: addr}, err
}

// logFormats are the formats of access logs by their words.
var logFormats = map[config.LogFormat]accesslog.Format{
	config.LogCombined: accesslog.Combined, config.LogCup: accesslog.Cup, config.LogJSON: accesslog.JSON,
}

func logOf(l *config.AccessLog) proxy.LogSpec {
	return proxy.LogSpec{File: l.File, Format: logFormats[l.Format]}
}

func timeoutsOf(t *config.Timeouts) proxy.Timeouts {
	return proxy.Timeouts{
		ClientHead:  t.ClientHead,
		ClientBody:  t.ClientBody,
		ClientIdle:  t.ClientIdle,
		Connect:     t.Connect,
		Response:    t.Response,
		BackendIdle: t.BackendIdle,
		TunnelIdle:  t.TunnelIdle,
	}
}

func rulesOf(r *config.HeaderRules) proxy.FieldRules {
	fields := func(list []config.HeaderField) []proxy.FieldRule {
		rules := make([]proxy.FieldRule, 0, len(list))
		for _, f := range list {
			rules = append(rules, proxy.FieldRule{Name: f.Name, Value: f.Value})
		}
		return rules
	}
	return proxy.FieldRules{Set: fields(r.Set), Add: fields(r.Add), Remove: r.Remove}
}

func limitsOf(l *config.Limits) proxy.Limits {
	return proxy.Limits{
		HeadBytes:             int(l.HeadBytes),
		Headers:               l.Headers,
		TargetBytes:           int(l.TargetBytes),
		BodyBytes:             l.BodyBytes,
		Connections:           l.Connections,
		RequestsPerConnection: l.RequestsPerConnection,
		Memory:                int(l.Memory),
	}
}
