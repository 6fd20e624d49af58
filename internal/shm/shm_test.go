package shm

import (
	"reflect"
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPageIsSharedByItsMappings(t *testing.T) {
	page, fd, err := Create()
	require.NoError(t, err)
	defer unix.Close(fd)
	other, err := Map(fd)
	require.NoError(t, err)
	other.Counters.Requests = 7
	other.Counters.Reasons[ReasonsMax-1] = 9
	other.Counters.Generation = 3
	require.Equal(t, other.Counters, page.Counters)
	require.EqualValues(t, 7, page.Counters.Requests)
	require.NoError(t, other.Close())
	require.NoError(t, page.Close())
}

// Rows that shared a cache line would make workers disturb each other; words
// that were not aligned would be torn.
func TestLayout(t *testing.T) {
	require.EqualValues(t, 128, reflect.TypeFor[BackendRow]().Size())
	rows, ok := reflect.TypeFor[Backends]().FieldByName("Rows")
	require.True(t, ok)
	require.Zero(t, rows.Offset%128)
	require.Zero(t, reflect.TypeFor[RouteStats]().Size()%64)
	require.Zero(t, reflect.TypeFor[BackendStats]().Size()%64)
}

// What nobody has touched takes no memory.
func TestMemoryIsSparse(t *testing.T) {
	page, fd, err := Create()
	require.NoError(t, err)
	defer unix.Close(fd)
	defer page.Close()
	page.Routes[5].BytesIn = 1
	page.Backends[BackendRowsMax-1].Connects = 1
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.Greater(t, st.Size, int64(8<<20))
	require.LessOrEqual(t, st.Blocks*512, int64(4*64<<10), "pages of up to 64 KiB")
}

func TestBackendsAreSharedByTheirMappings(t *testing.T) {
	backends, fd, err := CreateBackends()
	require.NoError(t, err)
	defer unix.Close(fd)
	other, err := MapBackends(fd)
	require.NoError(t, err)
	row := &other.Rows[BackendRowsMax-1]
	row.Admin.Store(AdminDisabled)
	row.InFlight.Store(7)
	mine := &backends.Rows[BackendRowsMax-1]
	require.Equal(t, AdminDisabled, mine.Admin.Load())
	mine.Return(3)
	require.EqualValues(t, 4, row.InFlight.Load())
	mine.Return(5)
	require.Zero(t, row.InFlight.Load(), "a worker may have counted one exchange too many in its page")
	mine.Failures.Store(1)
	mine.WeightSet.Store(1)
	mine.OutUntil.Store(1)
	mine.Trial.Store(1)
	mine.Clear()
	require.Zero(t, row.Failures.Load())
	require.Zero(t, row.Admin.Load())
	require.Zero(t, row.WeightSet.Load())
	require.Zero(t, row.OutUntil.Load())
	require.Zero(t, row.Trial.Load())
	require.NoError(t, other.Close())
	require.NoError(t, backends.Close())
}

func TestHistogramBuckets(t *testing.T) {
	var r RouteTotals
	r.ObserveLatency(-5) // a clock cannot go back, but a mistake must not end a worker
	r.ObserveLatency(100_000)
	r.ObserveLatency(100_001)
	r.ObserveLatency(60e9)
	r.ObserveLatency(60e9 + 1)
	require.EqualValues(t, 2, r.Latency.Buckets[0])
	require.EqualValues(t, 1, r.Latency.Buckets[1])
	require.EqualValues(t, 1, r.Latency.Buckets[HistogramBuckets-2])
	require.EqualValues(t, 1, r.Latency.Buckets[HistogramBuckets-1])
	require.EqualValues(t, 200_001+120e9+1, r.Latency.SumNanos)
	require.EqualValues(t, 5, r.Latency.Count())
	r.ObserveOverhead(1000)
	require.EqualValues(t, 1, r.Overhead.Buckets[0])
	for _, bounds := range [][HistogramBuckets - 1]float64{LatencyBounds, OverheadBounds} {
		require.IsIncreasing(t, bounds[:])
	}
}

func TestMapRefusesAnotherLayout(t *testing.T) {
	changes := map[string]func(*header){
		"magic":   func(h *header) { h.magic++ },
		"version": func(h *header) { h.version++ },
		"size":    func(h *header) { h.size-- },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			page, fd, err := Create()
			require.NoError(t, err)
			defer unix.Close(fd)
			change(&page.header)
			_, err = Map(fd)
			require.ErrorContains(t, err, "has layout")
			require.NoError(t, page.Close())

			backends, backendsFD, err := CreateBackends()
			require.NoError(t, err)
			defer unix.Close(backendsFD)
			change(&backends.header)
			_, err = MapBackends(backendsFD)
			require.ErrorContains(t, err, "has layout")
			require.NoError(t, backends.Close())
		})
	}
	fd, err := sys.NewMemory("short", 16)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = Map(fd)
	require.ErrorContains(t, err, "16 bytes")
	_, err = MapBackends(fd)
	require.ErrorContains(t, err, "16 bytes")
}

// Every word of totals must be added: a forgotten one would go back to zero
// whenever a worker dies.
func TestAddAddsEveryWord(t *testing.T) {
	t.Run("worker", func(t *testing.T) { testAdd(t, (*Totals).Add) })
	t.Run("route", func(t *testing.T) { testAdd(t, (*RouteTotals).Add) })
	t.Run("route gauges", func(t *testing.T) { testAdd(t, (*RouteGauges).Add) })
	t.Run("backend", func(t *testing.T) { testAdd(t, (*BackendTotals).Add) })
	t.Run("backend gauges", func(t *testing.T) { testAdd(t, (*BackendGauges).Add) })
}

func testAdd[T any](t *testing.T, add func(to, from *T)) {
	var a, b T
	n := uint64(0)
	words(reflect.ValueOf(&a).Elem(), func(v reflect.Value) { n++; v.SetUint(n) })
	words(reflect.ValueOf(&b).Elem(), func(v reflect.Value) { v.SetUint(1000) })
	add(&b, &a)
	n = 0
	words(reflect.ValueOf(&b).Elem(), func(v reflect.Value) { n++; require.Equal(t, 1000+n, v.Uint()) })
	require.NotZero(t, n)
}

// words calls each for every word in v.
func words(v reflect.Value, each func(v reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			words(v.Field(i), each)
		}
	case reflect.Array:
		for i := range v.Len() {
			words(v.Index(i), each)
		}
	default:
		each(v)
	}
}
