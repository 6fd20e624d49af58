package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/stretchr/testify/require"
)

// fetch gets a URL.
func fetch(t *testing.T, url string) (status int, body string) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// withMetrics is a configuration that serves metrics at an address.
func withMetrics(root, metrics string) string {
	return strings.Replace(configText(root), "{", fmt.Sprintf(`{"admin": {"metrics": %q}, `, metrics), 1)
}

func TestMetricsOverTCP(t *testing.T) {
	r := startRig(t, func(o *Options, _ *Master) {
		require.NoError(t, os.WriteFile(o.Path, []byte(withMetrics("127.0.0.1:0", "127.0.0.1:0")), 0o600))
	})
	first := r.Status().Metrics
	_, port, err := net.SplitHostPort(first)
	require.NoError(t, err)
	status, text := fetch(t, "http://"+first+"/metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, text, `cloudcup_worker_running{slot="1"} 1`+"\n")
	require.Contains(t, text, `cloudcup_requests_total{route="*",class="2xx"} 0`+"\n")
	require.Contains(t, text, `cloudcup_backend_up{backend="127.0.0.1:9"} 1`+"\n")
	status, text = fetch(t, "http://"+first+"/readyz")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "ready\n", text)
	for _, path := range []string{"/", "/v1/status", "/v1/config"} {
		status, _ = fetch(t, "http://"+first+path)
		require.Equal(t, http.StatusNotFound, status, path)
	}
	resp, err := http.Post("http://"+first+"/metrics", "", nil)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)

	// To an address that holds the one before.
	reload := func(address string) error {
		require.NoError(t, os.WriteFile(r.path, []byte(withMetrics("127.0.0.1:0", address)), 0o600))
		_, err := r.client.Reload()
		return err
	}
	for _, address := range []string{"127.0.0.1:" + port, "0.0.0.0:" + port, "127.0.0.1:" + port} {
		require.NoError(t, reload(address))
		require.Equal(t, address, r.Status().Metrics)
		_, text = fetch(t, "http://"+first+"/metrics")
		require.Contains(t, text, "cloudcup_build_info")
		_, err := net.Listen("tcp4", address)
		require.Error(t, err, "nobody else listens there")
	}

	// To one that somebody has: nothing is changed.
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	require.ErrorContains(t, reload(taken.Addr().String()), "admin.metrics")
	require.Equal(t, first, r.Status().Metrics)
	_, text = fetch(t, "http://"+first+"/metrics")
	require.Contains(t, text, `cloudcup_reloads_total{result="ok"} 3`+"\n")
	require.Contains(t, text, `cloudcup_reloads_total{result="failed"} 1`+"\n")
	require.Contains(t, text, "cloudcup_config_generation 4\n")

	// A reload that a worker refuses does not move it either.
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	text = strings.Replace(withMetrics("127.0.0.1:0", address), "127.0.0.1:9", "refuse.test:1", 1)
	_, err = r.client.Apply("x", []byte(text), control.ApplyInMemory)
	require.ErrorContains(t, err, "refused by the test")
	require.Equal(t, first, r.Status().Metrics)
	_, err = net.Dial("tcp4", address)
	require.Error(t, err)

	// Away with it.
	require.NoError(t, os.WriteFile(r.path, []byte(configText("127.0.0.1:0")), 0o600))
	_, err = r.client.Reload()
	require.NoError(t, err)
	require.Empty(t, r.Status().Metrics)
	_, err = net.Dial("tcp4", first)
	require.Error(t, err)
}

// A start with an address that is taken is refused.
func TestMetricsAddressTaken(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	m := newMaster(testOptions(writeConfig(t, withMetrics("127.0.0.1:0", taken.Addr().String())), io.Discard))
	_, err = m.start()
	require.ErrorContains(t, err, "admin.metrics: listen tcp4 "+taken.Addr().String())
	require.NoFileExists(t, strings.TrimPrefix(m.options.Admin, "unix:"))
}

// Readers that take nothing hold four texts at most, and no one else up.
func TestSlowScrapers(t *testing.T) {
	made := 0
	s := &scraper{make: func(b []byte) []byte {
		made++
		return fmt.Appendf(b, "text %d", made)
	}}
	var slow []*scrapeText
	for range scrapeTextsMax + 6 {
		slow = append(slow, s.get())
	}
	require.Equal(t, scrapeTextsMax, made)
	require.Equal(t, "text 4", string(slow[9].text))
	s.put(slow[0])
	text := s.get()
	require.Equal(t, "text 5", string(text.text))
	s.put(text)
	for _, text := range slow[1:] {
		s.put(text)
	}
	require.Zero(t, s.alive)
	require.Equal(t, "text 6", string(s.get().text))
}

// A reader that takes nothing is cut, and on a connection that goes on the
// deadline of one text is not that of the next.
func TestStuckScraper(t *testing.T) {
	large := bytes.Repeat([]byte("# x\n"), 4<<20)
	s := &scraper{make: func([]byte) []byte { return large }, timeout: 100 * time.Millisecond}
	server := httptest.NewServer(s)
	defer server.Close()
	conn, err := net.Dial("tcp4", server.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.alive == 0
	}, 10*time.Second, time.Millisecond)
	n, err := io.Copy(io.Discard, conn)
	require.Less(t, n, int64(len(large)))
	require.True(t, err == nil || errors.Is(err, syscall.ECONNRESET), "%v", err)

	large = []byte("# small\n")
	for range 2 {
		resp, err := server.Client().Get(server.URL)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, large, text)
		time.Sleep(s.timeout + 10*time.Millisecond) // on the same connection, beyond the deadline
	}
}

// Connections beyond the bound are closed at once; the others are served.
func TestScrapeConnectionsAreBounded(t *testing.T) {
	r := startRig(t, func(o *Options, _ *Master) {
		require.NoError(t, os.WriteFile(o.Path, []byte(withMetrics("127.0.0.1:0", "127.0.0.1:0")), 0o600))
	})
	address := r.Status().Metrics
	_, _ = fetch(t, "http://"+address+"/readyz")
	var idle []net.Conn
	ask := func() (net.Conn, error) {
		conn, err := net.Dial("tcp4", address)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		// One that is being closed may not take it.
		_, _ = io.WriteString(conn, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err = conn.Read(make([]byte, 1))
		return conn, err
	}
	for len(idle) < scrapeConnectionsMax {
		conn, err := ask()
		if err != nil {
			continue // the connection before is not gone yet
		}
		idle = append(idle, conn)
	}
	_, err := ask()
	require.Error(t, err)
	require.NoError(t, idle[0].Close())
	require.Eventually(t, func() bool { _, err := ask(); return err == nil }, 10*time.Second, time.Millisecond)
}

// One scrape of 1,000 routes and 200 backends that two workers serve, and what
// the master notes of them every five seconds.
func BenchmarkScrape(b *testing.B) {
	var backends []string
	for i := range 200 {
		backends = append(backends, fmt.Sprintf(`{"host": "127.0.0.1:%d"}`, i+1))
	}
	var routes strings.Builder
	for i := range 999 {
		fmt.Fprintf(&routes, `, "/folder-%d/*": {"backends": [%s]}`, i, backends[i%200])
	}
	g, err := parse("bench", fmt.Appendf(nil, `{"root": ":80", "routes": {"*": {"backends": [%s]}%s}}`,
		strings.Join(backends, ", "), routes.String()), "", sourceDemo)
	require.NoError(b, err)
	m := newMaster(testOptions("", io.Discard))
	m.current = g
	m.shared, err = newRegistry()
	require.NoError(b, err)
	g.number = 1
	require.NoError(b, m.shared.assign(g))
	m.shared.committed(g)
	for range 2 {
		page, fd, err := shm.Create()
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, errors.Join(page.Close(), syscall.Close(fd))) })
		m.shared.attach(page)
		for i := range 1000 {
			page.Routes[i].Requests[2] = 1e9
			page.Routes[i].ObserveLatency(1e6)
			page.Backends[i%200].ObserveLatency(1e6)
		}
	}
	b.Run("text", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			text := m.scraper.get()
			b.SetBytes(int64(len(text.text)))
			m.scraper.put(text)
		}
	})
	b.Run("note", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.lockedNote()
		}
	})
}

func TestUsage(t *testing.T) {
	before, err := usageOf(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, before.residentBytes, uint64(1<<20))
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	require.InDelta(t, len(list), before.files, 3)
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	for {
		now, err := usageOf(os.Getpid())
		require.NoError(t, err)
		if now.cpu > before.cpu {
			break
		}
	}
	_, err = usageOf(1 << 30)
	require.Error(t, err)
}
