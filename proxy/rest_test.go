package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/proxy"
)

// There are ten thousands of clients that rest: they are three lines of a cache.
func TestClientBytes(t *testing.T) {
	require.LessOrEqual(t, proxy.ClientBytes, uintptr(3*64))
}

// Connections that rest between requests have no memory for their queues: what
// one request needs serves all of them.
func TestRest(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(serve(t, echo)), nil)
		const n = 20
		var clients [n]net.Conn
		var in [n]*bufio.Reader
		for i := range clients {
			clients[i] = r.dial()
			in[i] = bufio.NewReader(clients[i])
		}
		for range 3 {
			for i := range clients {
				_, err := io.WriteString(clients[i], "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				require.NoError(t, err)
				res, err := http.ReadResponse(in[i], nil)
				require.NoError(t, err)
				readAll(t, res)
				require.Eventually(t, func() bool {
					conns, free := -1, -1
					r.onLoop(func() { conns, free = r.proxy.Works() })
					return conns == 0 && free <= 2
				}, patience, time.Millisecond)
			}
		}
	})
}
