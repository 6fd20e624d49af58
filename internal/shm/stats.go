package shm

// RoutesMax bounds the routes that are counted one by one; the last index
// counts all further ones together.
const RoutesMax = 4096

// RouteOther is the index of the routes beyond the bound.
const RouteOther = RoutesMax - 1

// Classes is the number of classes of a response: its status divided by 100,
// or 0 where there was no response.
const Classes = 6

// HistogramBuckets is the number of buckets of a Histogram: one per bound, and
// one for what lies above the last.
const HistogramBuckets = 20

// Upper bounds of the buckets of histograms, in seconds. A value on a bound
// belongs to the bucket below it.
var (
	// LatencyBounds are those of RouteStats.Latency and BackendStats.Latency.
	LatencyBounds = [HistogramBuckets - 1]float64{
		.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60,
	}
	// OverheadBounds are those of RouteStats.Overhead.
	OverheadBounds = [HistogramBuckets - 1]float64{
		1e-6, 2e-6, 3e-6, 5e-6, 7e-6, 10e-6, 15e-6, 20e-6, 30e-6, 50e-6, 75e-6,
		.0001, .0002, .0005, .001, .002, .005, .01, .1,
	}
)

var latencyNanos, overheadNanos = inNanos(&LatencyBounds), inNanos(&OverheadBounds)

func inNanos(bounds *[HistogramBuckets - 1]float64) (nanos [HistogramBuckets - 1]int64) {
	for i, b := range bounds {
		nanos[i] = int64(b*1e9 + .5)
	}
	return nanos
}

// Histogram counts durations.
type Histogram struct {
	Buckets  [HistogramBuckets]uint64 // each without those below it
	SumNanos uint64
}

func (h *Histogram) observe(bounds *[HistogramBuckets - 1]int64, nanos int64) {
	i := 0
	for i < len(bounds) && nanos > bounds[i] {
		i++
	}
	h.Buckets[i]++
	h.SumNanos += uint64(max(nanos, 0))
}

// Count is the number of durations in all buckets.
func (h *Histogram) Count() uint64 {
	n := uint64(0)
	for _, b := range &h.Buckets {
		n += b
	}
	return n
}

func (h *Histogram) add(o *Histogram) {
	addWords(h.Buckets[:], o.Buckets[:])
	h.SumNanos += o.SumNanos
}

// RouteStats is what a worker counts of one route. What every request touches
// stands together: it is in four cache lines.
type RouteStats struct {
	RouteGauges
	RouteTotals
	_ [5]uint64 // to whole cache lines
}

// RouteTotals only grow while a worker lives. An exchange is counted when it
// ends.
type RouteTotals struct {
	Requests [Classes]uint64 // by class of the response that the client got
	BytesIn  uint64          // of requests' bodies; of tunnels, from the client
	BytesOut uint64          // of backends' bodies; of tunnels, to the client
	// Latency is the time from the arrival of a request's head to the end of
	// its exchange, measured with the clock of the loop's turns.
	Latency Histogram
	Reasons [ReasonsMax]uint64 // our own answers and cuts; the index is a message.Reason
	// Overhead is the part of it that was our own work: from the turn that
	// brought the head until the request was handed to the engine, and from
	// the turn that brought the response's head until that was handed over.
	// One request in 64 is measured.
	Overhead Histogram
}

// RouteGauges tell the state of now.
type RouteGauges struct {
	InFlight uint64 // exchanges, tunnels included
}

// ObserveLatency adds a duration to Latency.
func (t *RouteTotals) ObserveLatency(nanos int64) { t.Latency.observe(&latencyNanos, nanos) }

// ObserveOverhead adds a duration to Overhead.
func (t *RouteTotals) ObserveOverhead(nanos int64) { t.Overhead.observe(&overheadNanos, nanos) }

// Add adds o to t.
func (t *RouteTotals) Add(o *RouteTotals) {
	addWords(t.Requests[:], o.Requests[:])
	addWords(t.Reasons[:], o.Reasons[:])
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	t.Latency.add(&o.Latency)
	t.Overhead.add(&o.Overhead)
}

// Add adds o to g.
func (g *RouteGauges) Add(o *RouteGauges) { g.InFlight += o.InFlight }

// BackendStats is what a worker counts of one backend, in the order of
// RouteStats.
type BackendStats struct {
	BackendGauges
	BackendTotals
	_ [7]uint64 // to whole cache lines
}

// BackendTotals only grow while a worker lives. An attempt is a request on its
// way to one backend; several belong to one exchange when the first ones fail.
type BackendTotals struct {
	Requests [Classes]uint64 // attempts that ended, by class of the backend's response
	Retries  uint64          // attempts that failed and were followed by another, here or elsewhere
	Connects uint64          // connections opened
	Reused   uint64          // attempts that took an idle connection
	// Latency is the time from the beginning of an attempt to the head of its
	// response.
	Latency  Histogram
	Failures [ReasonsMax]uint64 // of attempts, as they count for max_failure; the index is a message.Reason
}

// BackendGauges tell the state of now.
type BackendGauges struct {
	InFlight uint64 // attempts under way and responses on their way, tunnels included
	Idle     uint64 // connections in the pool
	Counted  uint64 // this worker's share of BackendRow.InFlight
}

// ObserveLatency adds a duration to Latency.
func (t *BackendTotals) ObserveLatency(nanos int64) { t.Latency.observe(&latencyNanos, nanos) }

// Add adds o to t.
func (t *BackendTotals) Add(o *BackendTotals) {
	addWords(t.Requests[:], o.Requests[:])
	addWords(t.Failures[:], o.Failures[:])
	t.Retries += o.Retries
	t.Connects += o.Connects
	t.Reused += o.Reused
	t.Latency.add(&o.Latency)
}

// Add adds o to g.
func (g *BackendGauges) Add(o *BackendGauges) {
	g.InFlight += o.InFlight
	g.Idle += o.Idle
	g.Counted += o.Counted
}
