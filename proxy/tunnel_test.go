package proxy_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

const upgradeHead = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"

// switching is a backend that switches to a protocol and says hello at once,
// then echoes.
func switching(t *testing.T, protocol string) string {
	return scripted(t, func(_ int, c *net.TCPConn) {
		in := bufio.NewReader(c)
		h, err := head(in)
		if err != nil || !strings.Contains(h, "Upgrade: websocket\r\n") || !strings.Contains(h, "Connection: Upgrade\r\n") {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: "+protocol+"\r\n\r\nhello")
		io.Copy(c, in)
	})
}

// Tunnels whose clients do not read end when memory is nearly used up, and others
// are served.
func TestStalledTunnels(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := scripted(t, func(_ int, c *net.TCPConn) {
			h, err := head(bufio.NewReader(c))
			if err != nil {
				return
			}
			if !strings.Contains(h, "Upgrade") {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
			for b := make([]byte, 64<<10); err == nil; {
				_, err = c.Write(b)
			}
		})
		r := start(t, engine, to(backend), func(s *proxy.Snapshot) { s.Limits.Memory = 4 << 20 })
		for range 150 {
			_, err := io.WriteString(r.dialLittle(), upgradeHead)
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool { return r.counted().Reasons[message.ReasonMemory] > 0 }, patience, 10*time.Millisecond)
		c := r.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
	})
}

func TestTunnel(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(switching(t, "WebSocket")), nil)
		c := r.dial()
		// Sent before the 101: it must wait, and arrive.
		_, err := io.WriteString(c, upgradeHead+"early")
		require.NoError(t, err)
		in := bufio.NewReader(c)
		h, err := head(in)
		require.NoError(t, err)
		require.Contains(t, h, "101 Switching Protocols\r\n")
		require.Contains(t, h, "Upgrade: WebSocket\r\n")
		b := make([]byte, 10)
		_, err = io.ReadFull(in, b)
		require.NoError(t, err)
		require.Equal(t, "helloearly", string(b))
		data := random(3 << 20)
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(in)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), "%d bytes came back", len(got))
	})
}

func TestTunnelSurvivesApplyAndIsCutByDrain(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(switching(t, "websocket")), nil)
		c := r.dial()
		_, err := io.WriteString(c, upgradeHead)
		require.NoError(t, err)
		in := bufio.NewReader(c)
		_, err = head(in)
		require.NoError(t, err)
		s := snapshot(to("127.0.0.1:1"))
		require.NoError(t, proxy.Prepare(s))
		r.onLoop(func() { r.proxy.Apply(s) })
		_, err = io.WriteString(c, "!")
		require.NoError(t, err)
		b := make([]byte, 6)
		_, err = io.ReadFull(in, b)
		require.NoError(t, err)
		require.Equal(t, "hello!", string(b))
		r.onLoop(func() { r.proxy.Drain(50*time.Millisecond, time.Second) })
		_, err = io.ReadAll(in)
		require.NoError(t, err)
		<-r.done
		require.Equal(t, 1, r.cut)
	})
}

func TestTunnelIdle(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(switching(t, "websocket")), func(s *proxy.Snapshot) {
			s.Routes[0].Timeouts.TunnelIdle = 100 * time.Millisecond
		})
		c := r.dial()
		_, err := io.WriteString(c, upgradeHead)
		require.NoError(t, err)
		begun := time.Now()
		_, err = io.ReadAll(c)
		require.NoError(t, err)
		require.Less(t, time.Since(begun), patience)
		require.EqualValues(t, 1, r.counted().Reasons[message.ReasonTunnelIdle])
	})
}

func TestRefusedUpgrade(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "no "+r.URL.Path) })
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		// What follows was meant for the tunnel: it is no request.
		_, err := io.WriteString(c, upgradeHead+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Contains(t, string(all), "no /chat")
		require.Contains(t, string(all), "Connection: close\r\n")
		require.NotContains(t, string(all), "smuggled")
		require.EqualValues(t, 1, r.counted().Requests)
	})
}

func TestUnaskedUpgrade(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		for request, protocol := range map[string]string{
			upgradeHead:                         "other",
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n": "websocket",
		} {
			backend := scripted(t, func(_ int, c *net.TCPConn) {
				head(bufio.NewReader(c))
				io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: "+protocol+"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
				io.Copy(io.Discard, c)
			})
			r := start(t, engine, to(backend), nil)
			c := r.dial()
			_, err := io.WriteString(c, request)
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, 502, res.StatusCode)
			require.Contains(t, readAll(t, res), "backend_malformed")
		}
	})
}

func TestClearTextHTTP2IsNotPassedOn(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Header.Get("Upgrade")+r.Header.Get("HTTP2-Settings")+"plain")
		})
		r := start(t, engine, to(backend), nil)
		c := r.dial()
		in := bufio.NewReader(c)
		for range 2 {
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"+
				"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
			require.NoError(t, err)
			res, err := http.ReadResponse(in, nil)
			require.NoError(t, err)
			require.Equal(t, "plain", readAll(t, res))
		}
	})
}
