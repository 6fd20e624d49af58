package proxy_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/proxy"
)

// TestAllocations counts the heap objects of the whole process while requests
// pass on kept connections: the proxy's, the engine's, and those of a client
// and a backend that allocate nothing either.
func TestAllocations(t *testing.T) {
	each(t, func(t *testing.T, engine string) { countAllocations(t, engine, proxy.LogSpec{}) })
}

func TestAllocationsOfLogs(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		countAllocations(t, engine, proxy.LogSpec{File: "x", Format: accesslog.JSON})
	})
}

func countAllocations(t *testing.T, engine string, log proxy.LogSpec) {
	request := []byte("GET /some/path?and=query HTTP/1.1\r\nHost: cup.test\r\nUser-Agent: t\r\nAccept: */*\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" +
		string(bytes.Repeat([]byte("z"), 100)))
	backend := scripted(t, func(_ int, c *net.TCPConn) {
		b := make([]byte, 4096)
		n := 0
		for {
			k, err := c.Read(b[n:])
			if err != nil {
				return
			}
			if n += k; bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
				n = 0
				if _, err := c.Write(response); err != nil {
					return
				}
			}
		}
	})
	routes := to(backend)
	routes[0].Log = log
	r := start(t, engine, routes, nil)
	c := r.dial()
	b := make([]byte, 4096)
	round := func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; {
			k, err := c.Read(b[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += k
			if bytes.Count(b[:n], []byte("z")) == 100 {
				return
			}
		}
	}
	for range 100 {
		round()
	}
	const requests = 5000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range requests {
		round()
	}
	runtime.ReadMemStats(&after)
	// The runtime itself and the once-a-second housekeeping have a few.
	require.Less(t, after.Mallocs-before.Mallocs, uint64(50), "heap objects for %d requests", requests)
	require.EqualValues(t, requests+100, r.counted().Requests)
	c.Close()
	_, err := io.ReadAll(c)
	require.Error(t, err)
}
