package integration

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// scrape is what /metrics said at one moment: values by series. A histogram's
// buckets, sum and count are series of their own.
type scrape struct {
	values   map[string]float64
	counters map[string]bool // the series that never shrink
}

// scrapeOver reads /metrics with Prometheus' parser.
func scrapeOver(client *http.Client, url string) (*scrape, error) {
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	s := &scrape{map[string]float64{}, map[string]bool{}}
	for name, f := range families {
		for _, m := range f.Metric {
			s.take(name, m)
		}
	}
	return s, nil
}

// take adds a sample.
func (s *scrape) take(name string, m *dto.Metric) {
	var labels []string
	for _, l := range m.Label {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	put := func(suffix string, v float64, counter bool, more ...string) {
		series := name + suffix + "{" + strings.Join(append(labels[:len(labels):len(labels)], more...), ",") + "}"
		s.values[series] = v
		s.counters[series] = counter
	}
	switch h := m.Histogram; {
	case h != nil:
		for _, b := range h.Bucket {
			put("_bucket", float64(b.GetCumulativeCount()), true, fmt.Sprintf("le=%v", b.GetUpperBound()))
		}
		put("_sum", h.GetSampleSum(), true)
		put("_count", float64(h.GetSampleCount()), true)
	case m.Counter != nil:
		put("", m.Counter.GetValue(), true)
	default:
		put("", m.Gauge.GetValue(), false)
	}
}

// sum adds up the series that begin with prefix.
func (s *scrape) sum(prefix string) (sum float64) {
	for series, v := range s.values {
		if strings.HasPrefix(series, prefix) {
			sum += v
		}
	}
	return sum
}

// valid is what is wrong with s by itself.
func (s *scrape) valid() error {
	for series, v := range s.values {
		if math.IsNaN(v) || v < 0 {
			return fmt.Errorf("%s is %v", series, v)
		}
		if base, rest, ok := strings.Cut(series, "_bucket{"); ok && strings.HasSuffix(rest, "le=+Inf}") {
			labels := strings.TrimSuffix(strings.TrimSuffix(rest, "le=+Inf}"), ",")
			if count := s.values[base+"_count{"+labels+"}"]; count != v {
				return fmt.Errorf("%s is %v, but the count %v", series, v, count)
			}
		}
	}
	return nil
}

// follows is how s contradicts what was said before.
func (s *scrape) follows(before *scrape) error {
	for series, v := range before.values {
		now, ok := s.values[series]
		if before.counters[series] && (!ok || now < v) {
			return fmt.Errorf("%s was %v and is %v (there: %v)", series, v, now, ok)
		}
	}
	return nil
}

// scraper asks for the metrics on the admin socket.
func (c *cup) scraper() func() (*scrape, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		},
	}}
	c.t.Cleanup(client.CloseIdleConnections)
	return func() (*scrape, error) { return scrapeOver(client, "http://cloud-cup/metrics") }
}

// resting waits until no request is under way and nobody is connected, and
// returns what is said then.
func resting(t *testing.T, ask func() (*scrape, error)) (last *scrape) {
	t.Helper()
	eventually(t, "the gauges to say that nothing is under way", func() bool {
		s, err := ask()
		require.NoError(t, err)
		last = s
		return s.sum("cloudcup_requests_in_flight")+s.sum("cloudcup_backend_in_flight")+s.sum("cloudcup_connections{") == 0
	})
	return last
}

// Workers are killed under load while others look: totals never go down, and
// gauges are those of the living.
func TestMetricsWhileWorkersDie(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, b := startBackend(t, "a"), startBackend(t, "b")
		c := startCup(t, engine, fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "routes": {
			"*": {"backends": [{"host": %q}, {"host": %q}, {"host": %q, "cooldown": "100ms"}]},
			"/other/*": {"backends": [{"host": %q}]}}}`, a.addr, b.addr, refusingPort(t), b.addr))
		ask := c.scraper()
		before, err := ask()
		require.NoError(t, err)

		var wg sync.WaitGroup
		done := make(chan struct{})
		scrapes := 0
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				s, err := ask()
				if err == nil {
					err = s.valid()
				}
				if err == nil {
					err = s.follows(before)
				}
				if err != nil {
					t.Error(err)
					return
				}
				before = s
				scrapes++
				select {
				case <-done:
					return
				default:
				}
			}
		}()
		l := startLoad(t, 8, mixed(c.addr))
		for i := range pick(20, 4) {
			l.more(100)
			c.kill(i % 2)
		}
		l.more(200)
		l.stop() // what the killed had in their hands failed
		close(done)
		wg.Wait()
		t.Logf("%d scrapes", scrapes)
		require.Greater(t, scrapes, 5)

		s := resting(t, ask)
		require.NoError(t, s.valid())
		require.NoError(t, s.follows(before))
		requests := s.sum("cloudcup_requests_total{")
		require.GreaterOrEqual(t, requests, float64(l.done.Load()))
		require.Equal(t, requests, s.sum("cloudcup_request_duration_seconds_count{"))
		require.EqualValues(t, pick(20, 4), s.sum("cloudcup_worker_restarts_total{"))
		require.EqualValues(t, 2, s.sum("cloudcup_worker_engine{"))
		require.NotZero(t, s.sum("cloudcup_overhead_seconds_count{"))
		require.NotZero(t, s.sum("cloudcup_ring_results_total{"))
	})
}

// What is counted is what was asked for.
func TestMetricsCount(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		refused := refusingPort(t)
		metricsAddr := freePort(t)
		c := startCup(t, engine, fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "admin": {"metrics": %q}, "routes": {
			"*": {"backends": [{"host": %q}]}, "/bad/*": {"backends": [{"host": %q, "max_failure": 2, "cooldown": "1h"}]}}}`,
			metricsAddr, b.addr, refused))
		good := browse(t, c.addr)
		for i := range 100 {
			_, err := good.get("", 1000, int64(i), "")
			require.NoError(t, err)
		}
		_, err := good.post("", 5000, 7, false)
		require.NoError(t, err)
		bad := browse(t, c.addr)
		for range 5 {
			require.NoError(t, bad.ask("GET", "/bad/1/1", ""))
			_, err := bad.response()
			require.ErrorIs(t, err, errStatus)
		}
		sendBroken(t, c.addr)
		held := browse(t, c.addr)
		require.NoError(t, held.ask("GET", "/held/1", ""))
		<-b.held

		s, err := scrapeOver(http.DefaultClient, "http://"+metricsAddr+"/metrics")
		require.NoError(t, err)
		for series, want := range map[string]float64{
			"cloudcup_requests_total{route=*,class=2xx}":                                      101,
			"cloudcup_requests_total{route=/bad/*,class=5xx}":                                 5,
			"cloudcup_requests_in_flight{route=*}":                                            1,
			"cloudcup_requests_in_flight{route=/bad/*}":                                       0,
			"cloudcup_request_duration_seconds_count{route=*}":                                101,
			"cloudcup_request_body_bytes_total{route=*}":                                      5000,
			"cloudcup_errors_total{reason=backend_refused}":                                   2,
			"cloudcup_errors_total{reason=no_backend}":                                        3,
			"cloudcup_errors_total{reason=bad_request}":                                       1,
			"cloudcup_route_errors_total{route=/bad/*,reason=backend_refused}":                2,
			"cloudcup_route_errors_total{route=/bad/*,reason=no_backend}":                     3,
			"cloudcup_backend_requests_total{backend=" + b.addr + ",class=2xx}":               101,
			"cloudcup_backend_in_flight{backend=" + b.addr + "}":                              1,
			"cloudcup_backend_up{backend=" + b.addr + "}":                                     1,
			"cloudcup_backend_up{backend=" + refused + "}":                                    0,
			"cloudcup_backend_failures_total{backend=" + refused + ",reason=backend_refused}": 2,
			"cloudcup_config_generation{}":                                                    1,
		} {
			got, ok := s.values[series]
			require.True(t, ok, "%s is not there", series)
			require.EqualValues(t, want, got, series)
		}
		require.GreaterOrEqual(t, s.sum("cloudcup_connections{"), 3.0) // that of the broken one may not be gone yet

		requireStats(t, c)
		requireErrors(t, c, refused)

		b.release()
		resp, err := held.response()
		require.NoError(t, err)
		_, err = io.ReadFull(resp.Body, make([]byte, 2))
		require.NoError(t, err)
		for _, conn := range []*browser{good, bad, held} {
			require.NoError(t, conn.conn.Close())
		}
		last := resting(t, c.scraper())
		require.EqualValues(t, 102, last.values["cloudcup_requests_total{route=*,class=2xx}"])
		require.EqualValues(t, 1, last.values["cloudcup_errors_total{reason=bad_request}"])
	})
}

// sendBroken makes a request that is none, and reads the answer to its end.
func sendBroken(t *testing.T, addr string) {
	t.Helper()
	b := browse(t, addr)
	_, err := io.WriteString(b.conn, "BROKEN\r\n\r\n")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, b.conn)
	require.NoError(t, err)
	require.NoError(t, b.conn.Close())
}

// requireStats checks what the API says of TestMetricsCount's requests.
func requireStats(t *testing.T, c *cup) {
	t.Helper()
	stats, err := c.admin.Stats()
	require.NoError(t, err)
	require.Equal(t, "*", stats.Routes[0].Route)
	require.EqualValues(t, 101, stats.Routes[0].Requests)
	require.Equal(t, map[string]uint64{"2xx": 101}, stats.Routes[0].Classes)
	require.EqualValues(t, 101, stats.Routes[0].Latency.Requests)
	require.Positive(t, stats.Routes[0].Latency.P50)
	require.Positive(t, stats.Routes[0].Rate.TenSeconds)
	require.EqualValues(t, 1, stats.Routes[0].InFlight)
	require.EqualValues(t, 5, stats.Routes[1].Errors)
}

// requireErrors checks what the API says went wrong in TestMetricsCount.
func requireErrors(t *testing.T, c *cup, refused string) {
	t.Helper()
	recent, err := c.admin.Errors()
	require.NoError(t, err)
	found := map[string]uint64{}
	for _, e := range append(recent.Routes, recent.Backends...) {
		require.WithinDuration(t, recent.Time, e.Last, time.Minute)
		found[e.Route+" "+e.Backend+" "+e.Reason] = e.Count
	}
	require.Equal(t, map[string]uint64{
		"/bad/*  no_backend": 3, "/bad/*  backend_refused": 2, "  bad_request": 1, " " + refused + " backend_refused": 2,
	}, found)
}

// A reload keeps what was counted for routes and backends that stay, and ends
// the series of others.
func TestMetricsOverReload(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		config := func(route string) string {
			return fmt.Sprintf(`{"root": "127.0.0.1:0", "workers": 2, "routes": {
				"*": {"backends": [{"host": %q}]}, "/%s/*": {"backends": [{"host": %q}]}}}`, b.addr, route, b.addr)
		}
		c := startCup(t, engine, config("first"))
		ask := c.scraper()
		browser := browse(t, c.addr)
		for i := range 300 {
			_, err := browser.get([]string{"", "/first"}[i%2], 100, int64(i), "")
			require.NoError(t, err)
		}
		before, err := ask()
		require.NoError(t, err)
		c.write(config("second"))
		_, stderr, code := c.cupctl("reload")
		require.Zero(t, code, stderr)
		for i := range 300 {
			_, err := browser.get("/second", 100, int64(i), "")
			require.NoError(t, err)
		}
		c.write(config("third")) // the first one's place may be taken now
		_, stderr, code = c.cupctl("reload")
		require.Zero(t, code, stderr)
		after, err := ask()
		require.NoError(t, err)
		require.EqualValues(t, 150, after.values["cloudcup_requests_total{route=*,class=2xx}"])
		require.EqualValues(t, 600, after.values["cloudcup_backend_requests_total{backend="+b.addr+",class=2xx}"])
		require.EqualValues(t, 0, after.values["cloudcup_requests_total{route=/third/*,class=2xx}"])
		require.EqualValues(t, 2, after.values["cloudcup_reloads_total{result=ok}"])
		for series := range before.values {
			if strings.Contains(series, "/first/") {
				delete(before.values, series)
			}
		}
		require.NoError(t, after.follows(before))
	})
}
