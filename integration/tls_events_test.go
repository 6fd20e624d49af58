package integration

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stop in the middle of handshakes: those that go on are completed, those
// that do not hold nothing up, and nothing is left.
func TestTLSDrainInHandshakes(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker, `"timeouts": {"client_head": "2s"}`)
		var going []*tls.Conn
		for i := range 20 {
			conn := &heldConn{TCPConn: dial(t, c.addr), release: make(chan struct{})}
			if i%2 == 0 { // it says the first half of its hello, and nothing more
				_, err := conn.TCPConn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00"))
				require.NoError(t, err)
				continue
			}
			config := config.Clone()
			config.MaxVersion = uint16(tls.VersionTLS12 + i/2%2)
			going = append(going, tls.Client(conn, config))
		}
		shaken := make(chan error, len(going))
		for _, s := range going {
			go func() { shaken <- s.Handshake() }()
		}
		eventually(t, "all of them", func() bool { return c.status().Workers[0].Connections == 20 })
		c.signal(syscall.SIGTERM)
		_, err := c.await("stopping")
		require.NoError(t, err)
		for _, s := range going {
			close(s.NetConn().(*heldConn).release)
		}
		for range going {
			require.NoError(t, <-shaken)
		}
		for _, s := range going {
			_, err := io.WriteString(s, "GET /100/1 HTTP/1.1\r\nHost: cup.test\r\n\r\n")
			require.NoError(t, err)
			text, err := io.ReadAll(bufio.NewReader(s))
			require.NoError(t, err, "up to the close_notify")
			require.True(t, len(text) == 0 || strings.HasPrefix(string(text), "HTTP/1.1 200 "), "%q", text)
		}
		require.Zero(t, c.wait())
		c.allGone()
	})
}

// heldConn writes its first bytes, and the next ones when it is released.
type heldConn struct {
	*net.TCPConn
	release chan struct{}
	writes  int
}

func (c *heldConn) Write(b []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		<-c.release
	}
	return c.TCPConn.Write(b)
}

// Reloads take TLS off an address, put it back, and change its certificate,
// while signatures for its handshakes are being made.
func TestTLSReloadInSignatures(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, back := newAuthority(t), startBackend(t, "a")
		first, second := a.issueRSA("cup.test"), a.issueRSA("cup.test")
		root := freePort(t)
		with := func(ssl string) string {
			return strings.Replace(configOf([]string{back.addr}, oneWorker, ssl), "127.0.0.1:0", root, 1)
		}
		c := startCup(t, engine, with(`"ssl": {`+first.ssl()+`}`))
		l := startLoad(t, 12, func(worker, turn int) error {
			b, err := openSecurely(c.addr, a.trusting("cup.test"))
			if err != nil {
				return nil // there may be no TLS now
			}
			defer b.conn.Close()
			_, err = b.get("", 1000, int64(turn), "")
			return err
		})
		old := browseSecurely(t, c.addr, a.trusting("cup.test"))
		for i := range pick(60, 9) {
			c.write(with([]string{`"ssl": {` + second.ssl() + `}`, `"limits": {}`, `"ssl": {` + first.ssl() + `}`}[i%3]))
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
			l.more(10)
			_, err := old.get("", 1000, int64(i), "")
			require.NoError(t, err, "a connection from before keeps what it speaks")
		}
		require.Empty(t, l.stop())
		b := browseSecurely(t, c.addr, a.trusting("cup.test"))
		require.Equal(t, first.Leaf.SerialNumber, b.conn.(secureConn).ConnectionState().PeerCertificates[0].SerialNumber)
		b.conn.Close()
		eventually(t, "the others to be gone", func() bool { return c.status().Workers[0].Connections == 1 })
		require.Zero(t, c.status().Workers[0].Restarts)
	})
}

// Handshakes and sealing that find no memory end their connections, and only
// them: when it is there again, others are served.
func TestTLSWithoutMemory(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		const size = 4 << 20
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker, `"limits": {"memory": "16MiB"}`)
		var slow []*browser
		for i := range 90 { // they read nothing
			conn := dial(t, c.addr)
			require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			s, err := secure(conn, config)
			if err != nil {
				continue // there was no memory for it
			}
			b := &browser{conn: s, r: bufio.NewReader(s)}
			if b.ask("GET", "/4194304/"+string(rune('0'+i%10)), "") == nil {
				slow = append(slow, b)
			}
		}
		require.NotEmpty(t, slow)
		for i, s := range slow {
			_ = s.conn.SetDeadline(time.Now().Add(patience)) // it may be closed
			res, err := s.response()
			if err == nil && res.StatusCode == 200 {
				err = checkContent(res.Body, int64(i%10), size)
			}
			if err != nil {
				require.NotContains(t, err.Error(), "wrong bytes")
			}
			s.conn.Close()
		}
		eventually(t, "all of them to be gone", func() bool { return c.status().Workers[0].Connections == 0 })
		_, err := browseSecurely(t, c.addr, config).get("", 100_000, 1, "")
		require.NoError(t, err)
		w := c.status().Workers[0]
		t.Logf("%d of 90 got their turn, %d connections ended for want of memory", len(slow), c.status().Totals.Reasons["memory"])
		require.Zero(t, w.Restarts)
		require.LessOrEqual(t, int(w.BuffersLent), 16<<20)
	})
}
