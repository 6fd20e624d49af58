package proxy_test

import (
	"bytes"
	"crypto/tls"
	"net"
	"runtime"
	"testing"

	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// TestAllocationsOfTLS compares the heap objects of requests over TLS with those
// of the same records between two tls.Conns, that block. crypto/tls makes one for
// each look at its connection (the atLeastReader of readFromUntil), and one more
// look is needed to see that nothing else has come. Nothing is of ours.
func TestAllocationsOfTLS(t *testing.T) {
	request := []byte("GET /some/path?and=query HTTP/1.1\r\nHost: example.com\r\n\r\n")
	body := bytes.Repeat([]byte("z"), 100)
	response := append([]byte("HTTP/1.1 200 OK\r\nServer: t\r\nContent-Length: 100\r\n\r\n"), body...)
	answer := func(c net.Conn) {
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := c.Write(response); err != nil {
				return
			}
		}
	}
	server, client := serverTLS(t)
	const requests = 4000
	count := func(addr string) (objects uint64) {
		c, err := tls.Dial("tcp", addr, client)
		require.NoError(t, err)
		defer c.Close()
		b := make([]byte, 4096)
		round := func() {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			for n := 0; !bytes.HasSuffix(b[:n], body); {
				k, err := c.Read(b[n:])
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
		}
		for range 100 {
			round()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range requests {
			round()
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}

	ln, err := tls.Listen("tcp4", "127.0.0.1:0", server)
	require.NoError(t, err)
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			answer(c)
			c.Close()
		}
	}()
	bare := count(ln.Addr().String())

	each(t, func(t *testing.T, engine string) {
		plain := scripted(t, func(_ int, c *net.TCPConn) { answer(c) })
		r := start(t, engine, to(plain), func(s *proxy.Snapshot) { s.TLS = onListener(server) })
		got := count(r.addr)
		t.Logf("%d heap objects for %d requests, %d of them crypto/tls's", got, requests, bare)
		require.Less(t, got, bare+requests+requests/50)
	})
}
