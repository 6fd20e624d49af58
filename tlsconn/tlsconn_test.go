package tlsconn

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// end is one side of a connection in memory: a Conn with the bytes on their
// way to it.
type end struct {
	*Conn
	in    []byte // from the peer, not consumed
	seen  int    // of in, how much Received shows; -1: all
	ended bool
	peer  *end
	sends int
	jobs  []func() // offloaded
}

func (e *end) Received() []byte {
	if e.seen >= 0 {
		return e.in[:min(e.seen, len(e.in))]
	}
	return e.in
}

func (e *end) Consume(n int) {
	e.in = e.in[n:]
	if e.seen >= 0 {
		e.seen -= n
	}
}

func (e *end) Ended() bool        { return e.ended && len(e.in) == 0 }
func (e *end) Send(b []byte)      { e.sends++; e.peer.in = append(e.peer.in, b...) }
func (e *end) Offload(job func()) { e.jobs = append(e.jobs, job) }

// pair returns a client and a server that are connected, all of whose bytes
// show at once.
func pair(client, server *tls.Config) (c, s *end) {
	c, s = &end{seen: -1}, &end{seen: -1}
	c.peer, s.peer = s, c
	c.Conn, s.Conn = Client(c, client), Server(s, server)
	return c, s
}

// shake brings both handshakes to their ends.
func shake(c, s *end) (clientErr, serverErr error) {
	for range 10_000 {
		clientErr, serverErr = c.Handshake(), s.Handshake()
		for _, e := range []*end{c, s} {
			for _, job := range e.jobs {
				job()
			}
			e.jobs = nil
		}
		if clientErr != ErrAgain && serverErr != ErrAgain {
			break
		}
		if clientErr != ErrAgain && clientErr != nil {
			s.ended = true
		}
		if serverErr != ErrAgain && serverErr != nil {
			c.ended = true
		}
	}
	return clientErr, serverErr
}

// upPair is a pair whose handshakes are complete.
func upPair(t testing.TB, version uint16) (c, s *end) {
	t.Helper()
	c, s = pair(clientConfig(version), serverConfig(t, ecdsaKey(t)))
	clientErr, serverErr := shake(c, s)
	require.NoError(t, clientErr)
	require.NoError(t, serverErr)
	return c, s
}

func ecdsaKey(t testing.TB) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func serverConfig(t testing.TB, key crypto.Signer) *tls.Config {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cup.test"}, DNSNames: []string{"cup.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// clientConfig does not verify: what is tested is not x509.
func clientConfig(version uint16) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "cup.test", MinVersion: version, MaxVersion: version}
}

var versions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func eachVersion(t *testing.T, f func(*testing.T, uint16)) {
	for name, version := range versions {
		t.Run(name, func(t *testing.T) { f(t, version) })
	}
}

// If this fails, a release of Go has changed what Read stands on: an error of
// the connection below that is Temporary keeps the connection alive, and a part
// of a record that came before it is not lost.
func TestTemporaryErrorsAreNotFinal(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		c, s := upPair(t, version)
		p := make([]byte, 100)
		require.NoError(t, c.Write([]byte("message")))
		record := s.in
		for i := range record {
			s.in = record[i : i+1 : i+1]
			n, err := s.Read(p)
			if i < len(record)-1 || err != nil {
				require.Zero(t, n, "after %d of %d bytes", i+1, len(record))
				require.Equal(t, ErrAgain, err)
				continue
			}
			require.Equal(t, "message", string(p[:n]))
		}
		n, err := s.Read(p)
		require.Zero(t, n)
		require.Equal(t, ErrAgain, err)
	})
}

func TestHandshakeByteByByte(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		c, s := pair(clientConfig(version), serverConfig(t, ecdsaKey(t)))
		c.seen, s.seen = 0, 0
		for range 100_000 {
			clientErr, serverErr := c.Handshake(), s.Handshake()
			if clientErr == nil && serverErr == nil {
				break
			}
			if clientErr != nil {
				require.Equal(t, ErrAgain, clientErr)
			}
			if serverErr != nil {
				require.Equal(t, ErrAgain, serverErr)
			}
			c.seen, s.seen = max(c.seen, 0)+1, max(s.seen, 0)+1
		}
		require.Equal(t, version, s.State().Version)
		require.Equal(t, "cup.test", s.State().ServerName)
	})
}

// Both sides write and read a thousand messages, whose records come in pieces.
func TestMessagesInPieces(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		c, s := upPair(t, version)
		random := mathrand.New(mathrand.NewPCG(1, 2))
		agains := 0
		send := func(from, to *end, i int) {
			message := bytes.Repeat([]byte{byte(i)}, 1+random.IntN(3000))
			require.NoError(t, from.Write(message))
			var got []byte
			p := make([]byte, 700)
			for len(got) < len(message) {
				to.seen = min(len(to.in), 1+random.IntN(37))
				n, err := to.Read(p)
				got = append(got, p[:n]...)
				if err != nil {
					require.Equal(t, ErrAgain, err)
					agains++
				}
			}
			require.Equal(t, message, got)
		}
		for i := range 500 {
			send(c, s, i)
			send(s, c, i)
		}
		require.Greater(t, agains, 1000)
	})
}

// A read that empties the wire returns what it has, and says so with the next.
func TestEndOfStream(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		p := make([]byte, 100)
		t.Run("close_notify", func(t *testing.T) {
			c, s := upPair(t, version)
			require.NoError(t, c.Write([]byte("last")))
			require.NoError(t, c.CloseWrite())
			n, err := s.Read(p)
			require.Equal(t, "last", string(p[:n]))
			if err == nil {
				_, err = s.Read(p)
			}
			require.Equal(t, io.EOF, err)
			require.NoError(t, s.Write([]byte("still")), "the other direction goes on")
			n, err = c.Read(p)
			require.NoError(t, err)
			require.Equal(t, "still", string(p[:n]))
		})
		t.Run("truncated", func(t *testing.T) {
			c, s := upPair(t, version)
			require.NoError(t, c.Write([]byte("last")))
			s.ended = true
			n, err := s.Read(p)
			require.Equal(t, "last", string(p[:n]))
			if err == nil {
				_, err = s.Read(p)
			}
			require.ErrorIs(t, err, ErrTruncated)
		})
		t.Run("inside a record", func(t *testing.T) {
			c, s := upPair(t, version)
			require.NoError(t, c.Write([]byte("last")))
			s.in, s.ended = s.in[:len(s.in)-1], true
			_, err := s.Read(p)
			require.ErrorIs(t, err, ErrTruncated)
		})
	})
}

func TestForgedRecord(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		c, s := upPair(t, version)
		require.NoError(t, c.Write([]byte("message")))
		s.in[len(s.in)-1] ^= 1
		n, err := s.Read(make([]byte, 100))
		require.Zero(t, n)
		require.Error(t, err)
		require.NotEqual(t, ErrAgain, err)
		require.NotEmpty(t, c.in, "an alert tells the peer")
		_, again := s.Read(make([]byte, 100))
		require.Equal(t, err, again, "it is final")
	})
}

// What comes with a client's last message of the handshake is not lost.
func TestDataBehindTheHandshake(t *testing.T) {
	c, s := pair(clientConfig(tls.VersionTLS13), serverConfig(t, ecdsaKey(t)))
	require.Equal(t, ErrAgain, c.Handshake())
	require.Equal(t, ErrAgain, s.Handshake())
	require.NoError(t, c.Handshake())
	require.NoError(t, c.Write([]byte("early bird")))
	require.NoError(t, s.Handshake())
	p := make([]byte, 100)
	n, err := s.Read(p)
	require.NoError(t, err)
	require.Equal(t, "early bird", string(p[:n]))
}

// A part of a record is known of, however it is cut, and no whole one is taken
// for a part.
func TestPartialRecord(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		c, s := upPair(t, version)
		p := make([]byte, 100)
		read := func() (n int) {
			n, err := c.Read(p)
			if err == nil {
				_, err = c.Read(p[n:])
			}
			require.Equal(t, ErrAgain, err)
			return n
		}
		read() // tickets
		require.False(t, c.Partial())
		for cut := 1; ; cut++ {
			c.seen = 0
			require.NoError(t, s.Write([]byte("one")))
			whole := len(c.in)
			require.NoError(t, s.Write([]byte("two")))
			if whole+cut == len(c.in) {
				break
			}
			c.seen = whole + cut
			require.Equal(t, 3, read(), "at byte %d", cut)
			require.True(t, c.Partial(), "at byte %d", cut)
			c.seen = -1
			require.Equal(t, 3, read())
			require.False(t, c.Partial())
		}
	})
}

func TestResumption(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		client, server := clientConfig(version), serverConfig(t, ecdsaKey(t))
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for i := range 3 {
			c, s := pair(client, server)
			clientErr, serverErr := shake(c, s)
			require.NoError(t, clientErr)
			require.NoError(t, serverErr)
			require.Equal(t, i > 0, s.State().DidResume)
			require.NoError(t, s.Write([]byte("x"))) // 1.3: the client reads the ticket with it
			_, err := c.Read(make([]byte, 10))
			require.NoError(t, err)
		}
	})
}

func TestOffloadedSignature(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	eachVersion(t, func(t *testing.T, version uint16) {
		server := serverConfig(t, key)
		cert := &server.Certificates[0]
		server.Certificates = nil
		server.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return Offloaded(hello.Context(), cert), nil
		}
		client := &end{seen: -1}
		s := &end{seen: -1, peer: client}
		client.peer = s
		client.Conn, s.Conn = Client(client, clientConfig(version)), Server(s, server)
		for len(s.jobs) == 0 {
			require.Equal(t, ErrAgain, client.Handshake())
			require.Equal(t, ErrAgain, s.Handshake())
		}
		require.True(t, s.Busy())
		require.Equal(t, ErrAgain, s.Handshake(), "it rests while the job runs")
		require.Len(t, s.jobs, 1)
		done := make(chan struct{})
		go func() { s.jobs[0](); close(done) }()
		<-done
		s.jobs = nil
		clientErr, serverErr := shake(client, s)
		require.NoError(t, clientErr)
		require.NoError(t, serverErr)
	})
}

// A client's certificate is signed with on another thread, too.
func TestOffloadedClientSignature(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	own := serverConfig(t, key).Certificates[0]
	eachVersion(t, func(t *testing.T, version uint16) {
		server, config := serverConfig(t, ecdsaKey(t)), clientConfig(version)
		server.ClientAuth = tls.RequireAnyClientCert
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return Offloaded(asked.Context(), &own), nil
		}
		client, s := pair(config, server)
		for len(client.jobs) == 0 {
			require.Equal(t, ErrAgain, client.Handshake())
			if len(client.jobs) == 0 {
				require.Equal(t, ErrAgain, s.Handshake())
			}
		}
		require.True(t, client.Busy())
		require.Equal(t, ErrAgain, client.Handshake(), "it rests while the job runs")
		done := make(chan struct{})
		go func() { client.jobs[0](); close(done) }()
		<-done
		client.jobs = nil
		clientErr, serverErr := shake(client, s)
		require.NoError(t, clientErr)
		require.NoError(t, serverErr)
		require.Len(t, s.State().PeerCertificates, 1)
	})
}

func TestRefusals(t *testing.T) {
	t.Run("an old client", func(t *testing.T) {
		c, s := pair(clientConfig(tls.VersionTLS11), serverConfig(t, ecdsaKey(t)))
		clientErr, serverErr := shake(c, s)
		require.Error(t, serverErr)
		require.NotEqual(t, ErrAgain, serverErr)
		require.ErrorContains(t, clientErr, "protocol version")
		require.Equal(t, serverErr, s.Handshake(), "it is final")
	})
	t.Run("no TLS", func(t *testing.T) {
		_, s := pair(clientConfig(0), serverConfig(t, ecdsaKey(t)))
		s.in = []byte("GET / HTTP/1.1\r\n\r\n")
		var header tls.RecordHeaderError
		require.ErrorAs(t, s.Handshake(), &header)
		require.Equal(t, "GET /", string(header.RecordHeader[:]))
	})
	t.Run("an end in the middle", func(t *testing.T) {
		c, s := pair(clientConfig(0), serverConfig(t, ecdsaKey(t)))
		require.Equal(t, ErrAgain, c.Handshake())
		s.in, s.ended = s.in[:len(s.in)/2], true
		require.ErrorIs(t, s.Handshake(), ErrTruncated)
		c.Abort()
	})
	t.Run("no handshake, no data", func(t *testing.T) {
		_, s := pair(clientConfig(0), serverConfig(t, ecdsaKey(t)))
		_, err := s.Read(make([]byte, 1))
		require.Equal(t, ErrAgain, err)
		require.NoError(t, s.CloseWrite())
	})
}

// Handshakes that are given up at any byte leave no goroutine.
func TestAbortLeavesNothing(t *testing.T) {
	config := serverConfig(t, ecdsaKey(t))
	before := runtime.NumGoroutine()
	for stage := range 200 {
		c, s := pair(clientConfig(0), config)
		require.Equal(t, ErrAgain, c.Handshake())
		s.seen = stage * len(s.in) / 200
		require.Equal(t, ErrAgain, s.Handshake())
		s.Abort()
		s.Abort()
		require.ErrorIs(t, s.Handshake(), errStopped)
		c.Abort()
	}
	// The last ones may be about to end.
	for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "goroutines: %d, %d before", runtime.NumGoroutine(), before)
	}
}

// Renegotiation is refused: our server asks for none, and Go's has no code for
// a client's.
func TestRenegotiationIsRefused(t *testing.T) {
	c, s := upPair(t, tls.VersionTLS12)
	// A record of type handshake under the client's keys: crypto/tls has no
	// way to write one but its own messages, so Send's bytes are changed.
	require.NoError(t, c.Write([]byte{1, 0, 0, 0}))
	s.in[0] = 22
	_, err := s.Read(make([]byte, 10))
	require.Error(t, err)
	require.NotEqual(t, ErrAgain, err)
}

func TestErrAgainIsNoNetError(t *testing.T) {
	var n net.Error
	require.False(t, errors.As(ErrAgain, &n), "callers compare it, and nobody else acts on it")
}

func BenchmarkRequest(b *testing.B) {
	c, s := upPair(b, tls.VersionTLS13)
	request, response := make([]byte, 100), make([]byte, 1024)
	p := make([]byte, 2048)
	b.ReportAllocs()
	for b.Loop() {
		if c.Write(request) != nil || s.Write(response) != nil {
			b.Fatal("write")
		}
		if _, err := s.Read(p); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(p); err != nil {
			b.Fatal(err)
		}
		c.in, s.in = c.in[:0], s.in[:0]
	}
}

func BenchmarkHandshake(b *testing.B) {
	config := serverConfig(b, ecdsaKey(b))
	b.ReportAllocs()
	for b.Loop() {
		c, s := pair(clientConfig(tls.VersionTLS13), config)
		if clientErr, serverErr := shake(c, s); clientErr != nil || serverErr != nil {
			b.Fatal(clientErr, serverErr)
		}
	}
}
