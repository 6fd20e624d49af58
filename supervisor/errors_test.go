package supervisor

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/stretchr/testify/require"
)

// pastRig is a history with a clock of its own, and what two counted.
type pastRig struct {
	*history
	now            time.Time
	route, backend shm.RouteTotals
}

func newPastRig() *pastRig {
	now := time.Unix(1_700_000_000, 0)
	r := &pastRig{history: newHistory(now), now: now}
	r.note(now, nil)
	return r
}

// after lets time pass, with a note whenever the master takes one.
func (r *pastRig) after(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(min(sampleEvery, end.Sub(r.now)))
		r.take()
	}
}

func (r *pastRig) counts() []counted {
	return []counted{
		{name: "*", requests: r.route.Latency.Count(), reasons: &r.route.Reasons, latency: &r.route.Latency},
		{backend: true, name: "b:1", requests: r.backend.Latency.Count(), reasons: &r.backend.Reasons, latency: &r.backend.Latency},
	}
}

func (r *pastRig) take() { r.note(r.now, r.counts()) }

func (r *pastRig) list(backend bool) []control.ErrorCount { return r.recent(backend, strconv.Itoa) }

func TestRates(t *testing.T) {
	r := newPastRig()
	for range 100 {
		r.route.ObserveLatency(1e6)
	}
	r.after(2 * time.Second)
	c := &r.counts()[0]
	require.Equal(t, control.Rate{TenSeconds: 50, Minute: 50}, r.rates(c, r.now), "a young master")
	for range 120 { // seconds
		for range 20 {
			r.route.ObserveLatency(1e6)
		}
		r.after(time.Second)
	}
	c = &r.counts()[0]
	require.InDelta(t, 20, r.rates(c, r.now).TenSeconds, 1e-9)
	require.InDelta(t, 20, r.rates(c, r.now).Minute, 1e-9)
	r.after(15 * time.Second)
	rate := r.rates(&r.counts()[0], r.now)
	require.Zero(t, rate.TenSeconds)
	require.InDelta(t, 15, rate.Minute, 2)
	r.after(time.Minute)
	require.Zero(t, r.rates(&r.counts()[0], r.now))
	require.Zero(t, r.rates(&r.counts()[1], r.now))
}

func TestRecentLatency(t *testing.T) {
	r := newPastRig()
	require.Nil(t, func() *control.Latency { r.take(); return r.latency(&r.counts()[0]) }())
	for range 99 {
		r.route.ObserveLatency(2e6)
	}
	r.route.ObserveLatency(15e9)
	r.after(time.Second)
	l := r.latency(&r.counts()[0])
	require.EqualValues(t, 100, l.Requests)
	require.InDelta(t, 0.152, l.Mean, 0.001)
	require.True(t, l.P50 > 0.001 && l.P50 < 0.0025, "%v", l)
	require.True(t, l.P90 > l.P50 && l.P90 < 0.0025, "%v", l)
	require.LessOrEqual(t, l.P99, 0.0025)
	r.after(time.Minute)
	require.NotNil(t, r.latency(&r.counts()[0]), "the minute before")
	r.after(2 * time.Minute)
	require.Nil(t, r.latency(&r.counts()[0]), "two minutes later")
	require.Less(t, r.now.Sub(r.minuteBefore), 3*time.Minute)
}

func TestErrorsOfMinutes(t *testing.T) {
	r := newPastRig()
	r.route.Reasons[3] = 5
	r.backend.Reasons[4] = 2
	r.take()
	began := r.now
	r.after(time.Minute)
	r.route.Reasons[3] = 6
	r.take()
	r.take() // counts nothing twice
	want := make([]uint64, errorMinutes)
	want[0], want[1] = 1, 5
	require.Equal(t, []control.ErrorCount{{Route: "*", Reason: "3", Count: 6, Last: r.now, PerMinute: want}}, r.list(false))
	want = make([]uint64, errorMinutes)
	want[1] = 2
	require.Equal(t, []control.ErrorCount{{Backend: "b:1", Reason: "4", Count: 2, Last: began, PerMinute: want}}, r.list(true))
	r.after((errorMinutes - 1) * time.Minute)
	require.EqualValues(t, 1, r.list(false)[0].Count)
	require.Empty(t, r.list(true))
	r.now = r.now.Add(time.Hour) // the machine slept
	r.take()
	require.Empty(t, r.list(false))
	require.Empty(t, r.errors)
}

// What a master takes over from another is no news.
func TestHistoryBeginsWithWhatIsThere(t *testing.T) {
	r := newPastRig()
	r.history = newHistory(r.now)
	r.route.Reasons[3] = 1000
	r.route.ObserveLatency(1e6)
	r.take()
	r.after(time.Second)
	require.Empty(t, r.list(false))
	require.Zero(t, r.rates(&r.counts()[0], r.now))
	require.Nil(t, r.latency(&r.counts()[0]))
}

// A route that goes and comes back begins anew.
func TestHistoryOfReturningRoute(t *testing.T) {
	r := newPastRig()
	r.route.Reasons[3] = 7
	r.route.ObserveLatency(1e6)
	r.route.ObserveLatency(1e6)
	r.take()
	r.route = shm.RouteTotals{}
	r.route.Reasons[3] = 2
	r.route.ObserveLatency(1e6)
	r.after(time.Second)
	require.EqualValues(t, 9, r.list(false)[0].Count)
	require.InDelta(t, 1, r.rates(&r.counts()[0], r.now).Minute, 1e-9)

	r.after(time.Minute)
	r.route = shm.RouteTotals{} // again, and soon it has counted more than before
	for range 5 {
		r.route.ObserveLatency(1e9)
	}
	r.take()
	require.EqualValues(t, 5, r.latency(&r.counts()[0]).Requests)

	for range 3 { // gone
		r.now = r.now.Add(sampleEvery)
		r.note(r.now, nil)
	}
	require.Empty(t, r.routes)
	require.Empty(t, r.backends)
	require.EqualValues(t, 9, r.list(false)[0].Count, "its errors are remembered")
}

func TestErrorsAreBounded(t *testing.T) {
	r := newPastRig()
	var reasons [shm.ReasonsMax]uint64
	reasons[1] = 1
	var all []counted
	for i := range errorsMax + 10 {
		all = append(all, counted{name: fmt.Sprintf("/%d", i), reasons: &reasons, latency: new(shm.Histogram)})
	}
	r.note(r.now, all)
	list := r.list(false)
	require.Len(t, list, errorsMax+1)
	require.Equal(t, errorsOther, list[0].Route)
	require.EqualValues(t, 10, list[0].Count)
}
