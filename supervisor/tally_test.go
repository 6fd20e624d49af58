package supervisor

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/stretchr/testify/require"
)

// What was counted reaches a master of another version by the meaning of each
// number, whatever its place.
func TestTallyOfAnotherVersion(t *testing.T) {
	old := &tally{
		Reasons:       []string{"none", "given_up_later", "bad_request"},
		LatencyBounds: shm.LatencyBounds[:], OverheadBounds: []float64{1},
		Slots:  []slotTally{{Totals: shm.Totals{Requests: 5, Reasons: [shm.ReasonsMax]uint64{1: 7, 2: 3}}}},
		Routes: map[string]shm.RouteTotals{"*": {Requests: [shm.Classes]uint64{2: 4}, Reasons: [shm.ReasonsMax]uint64{2: 3}}},
		Backends: map[string]shm.BackendTotals{
			"b": {Failures: [shm.ReasonsMax]uint64{2: 1}, Connects: 9},
		},
	}
	r := old.Routes["*"]
	r.ObserveLatency(1)
	r.ObserveOverhead(1)
	old.Routes["*"] = r
	text, err := json.Marshal(old)
	require.NoError(t, err)
	var got tally
	require.NoError(t, json.Unmarshal(text, &got))
	got.translate([]string{"none", "bad_request"})
	require.Equal(t, [shm.ReasonsMax]uint64{1: 3}, got.Slots[0].Totals.Reasons)
	require.EqualValues(t, 5, got.Slots[0].Totals.Requests)
	require.Equal(t, [shm.ReasonsMax]uint64{1: 3}, got.Routes["*"].Reasons)
	require.Equal(t, [shm.Classes]uint64{2: 4}, got.Routes["*"].Requests)
	latency := got.Routes["*"].Latency
	require.EqualValues(t, 1, latency.Count())
	require.Zero(t, got.Routes["*"].Overhead, "its buckets mean something else")
	require.Equal(t, shm.BackendTotals{Failures: [shm.ReasonsMax]uint64{1: 1}, Connects: 9}, got.Backends["b"])
}

// What was counted since the last time is told and nothing else.
func TestTallySince(t *testing.T) {
	before := &tally{
		Slots:     []slotTally{{Totals: shm.Totals{Requests: 5}, CPU: time.Second, Restarts: 1}},
		Routes:    map[string]shm.RouteTotals{"*": {BytesIn: 1}, "/idle": {BytesIn: 2}},
		Backends:  map[string]shm.BackendTotals{"b": {Connects: 1}},
		ReloadsOK: 1,
	}
	now := &tally{
		Slots:     []slotTally{{Totals: shm.Totals{Requests: 9}, CPU: 3 * time.Second, Restarts: 1}, {Restarts: 4}},
		Routes:    map[string]shm.RouteTotals{"*": {BytesIn: 4}, "/idle": {BytesIn: 2}, "/new": {BytesIn: 8}},
		Backends:  map[string]shm.BackendTotals{"b": {Connects: 1}},
		ReloadsOK: 3,
	}
	d := now.since(before)
	require.Equal(t, []slotTally{{Totals: shm.Totals{Requests: 4}, CPU: 2 * time.Second}, {Restarts: 4}}, d.Slots)
	require.Equal(t, map[string]shm.RouteTotals{"*": {BytesIn: 3}, "/new": {BytesIn: 8}}, d.Routes)
	require.Empty(t, d.Backends)
	require.EqualValues(t, 2, d.ReloadsOK)
	require.EqualValues(t, 9, now.Slots[0].Totals.Requests, "since changes nothing")
}

// A master's tally, given to another one, is what that one has counted; orders
// and health arrive, too.
func TestMasterTakesWhatAnotherCounted(t *testing.T) {
	one := startRig(t, nil)
	for range 5 {
		ask(t, one.addresses()[0])
	}
	one.mu.Lock()
	one.slots[1].restarts = 3
	one.mu.Unlock()
	const host = "127.0.0.1:9"
	require.NoError(t, one.setBackendState(host, shm.AdminDrain))
	require.NoError(t, one.shared.setWeight(host, 3))
	row := &one.shared.shared.Rows[0]
	row.Failures.Store(6)
	row.OutUntil.Store(1000 + int64(time.Hour))

	two := startRig(t, func(o *Options, _ *Master) { o.Workers = 1 })
	two.addTally(one.tally())
	require.EqualValues(t, 5, two.Status().Totals.Requests)
	require.EqualValues(t, 3, two.Status().Workers[0].Restarts, "of a slot that it has not")
	two.shared.take(one.shared.export(1000), 5000)
	view := two.shared.backends()[0]
	require.Equal(t, shm.AdminDrain, view.State)
	require.Equal(t, 3, view.Weight)
	require.EqualValues(t, 6, view.Rows[0].Failures)
	require.Equal(t, 5000+int64(time.Hour), view.Rows[0].OutUntil)

	// The same configuration again does not end what was ordered.
	_, err := two.Reload()
	require.NoError(t, err)
	require.Equal(t, shm.AdminDrain, two.shared.backends()[0].State)
}
