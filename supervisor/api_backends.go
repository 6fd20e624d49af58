package supervisor

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// adminStates are the words of shm's administrative states.
var adminStates = []string{
	shm.AdminEnabled: control.BackendEnabled, shm.AdminDrain: control.BackendDrain, shm.AdminDisabled: control.BackendDisabled,
}

// backendStatus lists the backends of g, the generation in force, by host.
func (m *Master) backendStatus(g *generation, failures map[string]string) []control.BackendStatus {
	routes, weights, ways := g.hosts(), g.weights(), g.backendTLS()
	views := m.shared.backends()
	list := make([]control.BackendStatus, 0, len(views))
	now := sys.Monotonic()
	for i := range views {
		v := &views[i]
		b := control.BackendStatus{
			Host: v.Host, Routes: routes[v.Host], Error: failures[v.Host], Addresses: []string{}, TLS: ways[v.Host],
			State: adminStates[v.State], Weights: weights[v.Host], Health: control.HealthUnresolved,
			InFlight: v.Gauges.InFlight, Idle: v.Gauges.Idle, Requests: classesOf(&v.Totals.Requests),
			Reasons: m.reasonCounts(v.Totals.Failures[:]), Retries: v.Totals.Retries, Connects: v.Totals.Connects, Reused: v.Totals.Reused,
		}
		if v.Weight != weightConfigured {
			b.WeightSet = &v.Weight
		}
		b.Addresses = append(b.Addresses, control.BackendAddresses(v.Host, g.addresses)...)
		healthOf(v.Rows, now, &b)
		list = append(list, b)
	}
	return list
}

// healthOf fills in the health of a backend from that of its addresses: the
// best of them counts.
func healthOf(rows []rowView, now int64, b *control.BackendStatus) {
	rank := []string{control.HealthUnresolved, control.HealthOut, control.HealthTrial, control.HealthUp}
	for i := range rows {
		r := &rows[i]
		if !r.Named {
			continue
		}
		health, wait := control.HealthUp, 0.0
		switch {
		case r.OutUntil > now:
			health, wait = control.HealthOut, float64(r.OutUntil-now)/1e9
		case r.OutUntil != 0:
			health = control.HealthTrial
		}
		if slices.Index(rank, health) > slices.Index(rank, b.Health) {
			b.Health, b.OutFor = health, wait
		} else if health == b.Health {
			b.OutFor = min(b.OutFor, wait)
		}
		b.Failures = max(b.Failures, r.Failures)
	}
}

// weights are the distinct weights of each host, in ascending order.
func (g *generation) weights() map[string][]int {
	found := map[string][]int{}
	for i := range g.cfg.Routes {
		for _, b := range g.cfg.Routes[i].Backends {
			if !slices.Contains(found[b.Host], b.Weight) {
				found[b.Host] = append(found[b.Host], b.Weight)
			}
		}
	}
	for _, list := range found {
		slices.Sort(list)
	}
	return found
}

// backendTLS is how each host with TLS is spoken to, in the order of the file.
func (g *generation) backendTLS() map[string][]config.BackendTLS {
	found := map[string][]config.BackendTLS{}
	for i := range g.cfg.Routes {
		for _, b := range g.cfg.Routes[i].Backends {
			if b.Secure() && !slices.Contains(found[b.Host], b.TLS) {
				found[b.Host] = append(found[b.Host], b.TLS)
			}
		}
	}
	return found
}

// serveBackend changes the state or the weight of a backend.
func (m *Master) serveBackend(w http.ResponseWriter, r *http.Request) {
	host := r.PathValue("host")
	var change control.BackendChange
	changed := new(control.BackendChanged)
	err := asked(w, r, &change)
	if err == nil {
		err = checkChange(&change)
	}
	if err == nil {
		changed, err = m.orderBackend(host, &change)
	}
	uid := peerFrom(r.Context()).uid
	if err != nil {
		m.log.Warn("admin socket", "refused", "backend", "uid", uid, "backend", host, "err", err)
		refuse(w, err)
		return
	}
	m.log.Info("admin socket", "did", "backend", "uid", uid, "backend", host,
		"from_state", changed.Before.State, "state", changed.After.State,
		"from_weight", weightText(&changed.Before), "weight", weightText(&changed.After))
	answer(w, http.StatusOK, changed)
}

// weightText is a backend's weight for the log.
func weightText(b *control.BackendStatus) string {
	if b.WeightSet != nil {
		return fmt.Sprint(*b.WeightSet)
	}
	return "configured"
}

// checkChange finds what is wrong with a change whatever the backend is.
func checkChange(c *control.BackendChange) error {
	switch {
	case c.State == "" && c.Weight == nil && !c.ConfiguredWeight:
		return badRequest("nothing to change: want state, weight or configured_weight")
	case c.State != "" && !slices.Contains(adminStates, c.State):
		return badRequest("state %q: want %s, %s or %s", c.State, adminStates[0], adminStates[1], adminStates[2])
	case c.Weight != nil && c.ConfiguredWeight:
		return badRequest("weight and configured_weight exclude each other")
	case c.Weight != nil && (*c.Weight < 0 || *c.Weight > config.WeightMax):
		return badRequest("weight %d: want 0 to %d", *c.Weight, config.WeightMax)
	}
	return nil
}

// orderBackend is changeBackend in turn with what else changes the state of
// things.
func (m *Master) orderBackend(host string, c *control.BackendChange) (*control.BackendChanged, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.retired.Load() {
		return nil, errRetired
	}
	return m.changeBackend(host, c)
}

// changeBackend makes a change that checkChange took. Workers see it at once.
func (m *Master) changeBackend(host string, c *control.BackendChange) (*control.BackendChanged, error) {
	before, ok := m.backend(host)
	if !ok {
		return nil, &apiError{http.StatusNotFound, fmt.Sprintf("there is no backend %q in the configuration in force", host)}
	}
	var stateErr, weightErr error
	if c.State != "" {
		stateErr = m.setBackendState(host, uint32(slices.Index(adminStates, c.State)))
	}
	switch {
	case c.ConfiguredWeight:
		weightErr = m.shared.setWeight(host, weightConfigured)
	case c.Weight != nil:
		weightErr = m.shared.setWeight(host, *c.Weight)
	}
	if err := errors.Join(stateErr, weightErr); err != nil {
		return nil, err
	}
	m.sample()
	after, _ := m.backend(host)
	return &control.BackendChanged{Before: before, After: after}, nil
}

// backend is one backend of the configuration in force.
func (m *Master) backend(host string) (control.BackendStatus, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.backendStatus(m.current, m.failures) {
		if b.Host == host {
			return b, true
		}
	}
	return control.BackendStatus{}, false
}
