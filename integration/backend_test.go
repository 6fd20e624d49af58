package integration

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// noise is what contents are made of: bytes in which no two places look alike.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

// content is size bytes that are told by seed, readable once.
func content(seed, size int64) io.Reader {
	return io.LimitReader(&noiseReader{int(seed*4099) % len(noise)}, size)
}

type noiseReader struct{ at int }

func (r *noiseReader) Read(p []byte) (int, error) {
	n := copy(p, noise[r.at:])
	r.at = (r.at + n) % len(noise)
	return n, nil
}

// checkContent reads r to its end, which must be the content's.
func checkContent(r io.Reader, seed, size int64) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	want := &noiseReader{int(seed*4099) % len(noise)}
	total := int64(0)
	for {
		n, err := r.Read(*buf)
		for got := (*buf)[:n]; len(got) > 0; {
			k := min(len(got), len(noise)-want.at)
			if !bytes.Equal(got[:k], noise[want.at:want.at+k]) {
				return fmt.Errorf("wrong bytes between %d and %d of content %d", total, total+int64(n), seed)
			}
			want.at = (want.at + k) % len(noise)
			got = got[k:]
		}
		total += int64(n)
		if err == io.EOF && total == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("content %d: %d of %d bytes: %w", seed, total, size, err)
		}
	}
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// backend is an HTTP server that says its name, sends contents and checks
// those that it gets:
//
//	GET  /SIZE/SEED           the content, with its length
//	GET  /SIZE/SEED?chunked   in chunks
//	GET  /SIZE/SEED?close     until the connection's end
//	GET  /held/NAME           one byte at once, the other when release is called
//	POST /SIZE/SEED           "ok", if the body is the content
//	with Upgrade              a tunnel to an echo
type backend struct {
	name   string
	addr   string
	server *http.Server
	served atomic.Int64
	held   chan struct{} // gets one for each request that is held
	let    chan struct{} // closed by release
}

func startBackend(t testing.TB, name string) *backend {
	t.Helper()
	b := &backend{name: name, held: make(chan struct{}, 1000), let: make(chan struct{})}
	b.listen(t, "127.0.0.1:0")
	t.Cleanup(b.kill)
	return b
}

func (b *backend) listen(t testing.TB, addr string) {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	require.NoError(t, err)
	b.addr = l.Addr().String()
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}
	server := b.server
	go func() { _ = server.Serve(l) }() // until kill
}

// kill ends the backend with all its connections.
func (b *backend) kill() { b.server.Close() }

// back starts it again where it was.
func (b *backend) back(t testing.TB) { b.listen(t, b.addr) }

// release lets held requests end.
func (b *backend) release() { close(b.let) }

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.served.Add(1)
	w.Header().Set("X-Backend", b.name)
	if r.Header.Get("Upgrade") != "" {
		serveTunnel(w)
		return
	}
	if strings.Contains(r.URL.Path, "/held/") {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		b.held <- struct{}{}
		select {
		case <-b.let:
		case <-r.Context().Done():
		}
		_, _ = w.Write([]byte("y")) // the client sees by itself what fails
		return
	}
	size, seed, err := contentOf(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodPost {
		if err := checkContent(r.Body, seed, size); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		_, _ = w.Write([]byte("ok"))
		return
	}
	switch r.URL.RawQuery {
	case "":
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	case "close":
		w.Header().Set("Connection", "close")
		w.Header().Set("Transfer-Encoding", "identity")
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, content(seed, size), *buf)
}

// contentOf reads "/SIZE/SEED", behind any folders.
func contentOf(path string) (size, seed int64, err error) {
	parts := strings.Split(path, "/")
	if len(parts) < 3 {
		return 0, 0, fmt.Errorf("no content %q", path)
	}
	size, err = strconv.ParseInt(parts[len(parts)-2], 10, 64)
	if err == nil {
		seed, err = strconv.ParseInt(parts[len(parts)-1], 10, 64)
	}
	return size, seed, err
}
