package metrics

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// parse reads a text as Prometheus does.
func parse(t testing.TB, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	require.NoError(t, err, "%s", text)
	return families
}

// find returns the sample of a family whose labels have the values.
func find(t testing.TB, families map[string]*dto.MetricFamily, name string, values ...string) *dto.Metric {
	t.Helper()
	require.Contains(t, families, name)
next:
	for _, m := range families[name].Metric {
		if len(m.Label) != len(values) {
			continue
		}
		for i, l := range m.Label {
			if l.GetValue() != values[i] {
				continue next
			}
		}
		return m
	}
	t.Fatalf("%s has no sample with %q", name, values)
	return nil
}

func someHistogram(k uint64) Histogram {
	return Histogram{Counts: []uint64{k, 2 * k, 0, 1}, Sum: 1.5 * float64(k)}
}

// full is a Snapshot in which everything is set, with routes and backends of
// the given numbers.
func full(routes, backends int) *Snapshot {
	s := &Snapshot{
		Version: `v1 "x\y"`, GoVersion: "go1", Draining: true, Generation: 7, ConfigLoaded: 1.75e9 + 0.5,
		ReloadsOK: 3, ReloadsFailed: 1, Master: Process{Started: 1.75e9, CPU: 0.25, ResidentBytes: 1 << 20, Files: 9},
		Reasons: []string{"none", "bad_request", "no_backend"}, Errors: []uint64{99, 2, 3},
		LatencyBounds: []float64{0.0001, 0.5, 60}, OverheadBounds: []float64{1e-6, 5e-6, 0.1}, Overhead: someHistogram(5),
		Handshakes: 5, HandshakesFailed: 2, Sessions: [2][2]uint64{{1, 2}, {3, 4}},
		Certificates: []Certificate{{File: "/etc/cup/\"us\".pem", NotAfter: 1.8e9}}, Refused: []string{"/etc/cup/ca.pem"},
	}
	for i := range 2 {
		s.Workers = append(s.Workers, Worker{
			Slot: fmt.Sprint(i), Running: true, Engine: "uring", Restarts: 1, Process: Process{CPU: 1.5, Files: 11},
			Connections: 12, LoopTurns: 1<<53 + 2,
		})
	}
	for i := range routes {
		s.Routes = append(s.Routes, Route{
			Pattern: fmt.Sprintf("example.com/folder-%d/*", i), Requests: [Classes]uint64{1, 0, 1234567, 3, 4, 5},
			Errors: []uint64{0, 0, 4}, BytesIn: 1, BytesOut: 2, InFlight: 3, Latency: someHistogram(1000),
		})
	}
	for i := range backends {
		s.Backends = append(s.Backends, Backend{
			Host: fmt.Sprintf("127.0.0.1:%d", i+1), Up: true, State: 1, Requests: [Classes]uint64{0, 0, 7},
			Failures: []uint64{0, 1, 2}, InFlight: 3, Idle: 4, Latency: someHistogram(2),
		})
	}
	return s
}

func TestEverythingIsWritten(t *testing.T) {
	families := parse(t, full(2, 2).Append(nil))
	for _, f := range Families() {
		got := families[f.Name]
		require.NotNil(t, got, f.Name)
		require.Equal(t, strings.ToUpper(string(f.Type)), got.GetType().String(), f.Name)
		require.Equal(t, f.Help, got.GetHelp())
		for _, m := range got.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName())
			}
			require.Equal(t, f.Labels, labels, f.Name)
		}
	}
	require.Len(t, families, len(Families()), "families that are in no table")

	counter := func(name string, values ...string) float64 {
		return find(t, families, name, values...).GetCounter().GetValue()
	}
	gauge := func(name string, values ...string) float64 {
		return find(t, families, name, values...).GetGauge().GetValue()
	}
	require.EqualValues(t, 1, gauge("cloudcup_build_info", `v1 "x\y"`, "go1"))
	require.EqualValues(t, 1.75e9+0.5, gauge("cloudcup_config_loaded_timestamp_seconds"))
	require.EqualValues(t, 1234567, counter("cloudcup_requests_total", "example.com/folder-1/*", "2xx"))
	require.EqualValues(t, 3, counter("cloudcup_errors_total", "no_backend"))
	require.Len(t, families["cloudcup_errors_total"].Metric, 2, `"none" is no reason`)
	require.EqualValues(t, 4, counter("cloudcup_route_errors_total", "example.com/folder-0/*", "no_backend"))
	require.Len(t, families["cloudcup_route_errors_total"].Metric, 2, "those that occurred")
	require.EqualValues(t, 2, counter("cloudcup_backend_failures_total", "127.0.0.1:2", "no_backend"))
	require.EqualValues(t, 0, gauge("cloudcup_backend_state", "127.0.0.1:1", "enabled"))
	require.EqualValues(t, 1, gauge("cloudcup_backend_state", "127.0.0.1:1", "drain"))
	require.EqualValues(t, 1<<53+2, counter("cloudcup_loop_turns_total", "1"))
	require.EqualValues(t, 1.5, counter("cloudcup_worker_cpu_seconds_total", "0"))
	require.EqualValues(t, 1, counter("cloudcup_reloads_total", "failed"))
	h := find(t, families, "cloudcup_request_duration_seconds", "example.com/folder-0/*").GetHistogram()
	require.EqualValues(t, 3001, h.GetSampleCount())
	require.EqualValues(t, 1500, h.GetSampleSum())
	require.Equal(t, 5e-6, find(t, families, "cloudcup_overhead_seconds").GetHistogram().Bucket[1].GetUpperBound())
	var bounds, counts []float64
	for _, b := range h.Bucket {
		bounds, counts = append(bounds, b.GetUpperBound()), append(counts, float64(b.GetCumulativeCount()))
	}
	require.Equal(t, []float64{0.0001, 0.5, 60, math.Inf(1)}, bounds)
	require.Equal(t, []float64{1000, 3000, 3000, 3001}, counts)
}

// A master without anything to tell writes what is valid all the same.
func TestEmptySnapshot(t *testing.T) {
	families := parse(t, new(Snapshot).Append([]byte("# earlier\n")))
	require.EqualValues(t, 0, find(t, families, "cloudcup_overhead_seconds").GetHistogram().GetSampleCount())
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Families() {
		require.Regexp(t, `^(cloudcup|process)_[a-z0-9_]+$`, f.Name)
		require.False(t, seen[f.Name], "%s stands twice", f.Name)
		seen[f.Name] = true
		require.Equal(t, f.Type == Counter, strings.HasSuffix(f.Name, "_total"), f.Name)
		if f.Type == HistogramType {
			require.True(t, strings.HasSuffix(f.Name, "_seconds"), f.Name)
		}
		require.Regexp(t, `^[A-Z].*\.$`, f.Help, f.Name)
		require.NotContains(t, f.Labels, "le", f.Name)
	}
}

// Whatever stands in a label comes back as it was, and bytes that are no text
// do no harm.
func FuzzLabel(f *testing.F) {
	for _, s := range []string{"*", `a"b\c`, "new\nline", "\\n", "é/*", "\xff\xfe", "", "}", `",x="`, "a b\t#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		snapshot := &Snapshot{Routes: []Route{{Pattern: s, InFlight: 5}}}
		families := parse(t, snapshot.Append(nil))
		m := find(t, families, "cloudcup_requests_in_flight", strings.ToValidUTF8(s, "\uFFFD"))
		require.EqualValues(t, 5, m.GetGauge().GetValue())
	})
}

func TestQuantile(t *testing.T) {
	bounds := []float64{1, 2, 4}
	for _, c := range []struct {
		counts []uint64
		q      float64
		want   float64
	}{
		{[]uint64{0, 0, 0, 0}, 0.5, 0},
		{[]uint64{10, 0, 0, 0}, 0.5, 0.5},
		{[]uint64{10, 0, 0, 0}, 1, 1},
		{[]uint64{5, 5, 0, 0}, 0.5, 1},
		{[]uint64{5, 5, 0, 0}, 0.75, 1.5},
		{[]uint64{0, 0, 10, 0}, 0.5, 3},
		{[]uint64{1, 0, 0, 9}, 0.9, 4},
		{[]uint64{0, 1, 0, 0}, 0, 0},
	} {
		h := Histogram{Counts: c.counts}
		require.InDelta(t, c.want, h.Quantile(bounds, c.q), 1e-9, "%v %v", c.counts, c.q)
	}
	require.Zero(t, new(Histogram).Quantile(nil, 0.5))
}

// The documentation lists each family as it is written.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	var rows, want []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `cloudcup_") || strings.HasPrefix(line, "| `process_") {
			rows = append(rows, strings.TrimSuffix(line, "\n"))
		}
	}
	for _, f := range Families() {
		labels := ""
		if len(f.Labels) > 0 {
			labels = "`" + strings.Join(f.Labels, "`, `") + "`"
		}
		want = append(want, strings.ReplaceAll(fmt.Sprintf("| `%s` | %s | %s | %s |", f.Name, f.Type, labels, f.Help), "|  |", "| |"))
	}
	require.Equal(t, strings.Join(want, "\n"), strings.Join(rows, "\n"))
}

// 1,000 routes and 200 backends with the buckets that there are.
func BenchmarkAppend(b *testing.B) {
	s := full(1000, 200)
	s.LatencyBounds = nil
	for i := range 19 {
		s.LatencyBounds = append(s.LatencyBounds, 0.0001*math.Pow(1.75, float64(i)))
	}
	text := s.Append(nil)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		text = s.Append(text[:0])
	}
}
