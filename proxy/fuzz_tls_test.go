package proxy_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/cloud-cup/cloud-cup/tlsconn"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Further marks of clients that speak TLS.
const (
	markForged = 0x16 // a record comes that is none of the session's
	markUpdate = 0x17 // a KeyUpdate comes, that asks for one, too (TLS 1.3)
)

// What a seed says of TLS.
const (
	seedOldClient  = 1 << 5 // TLS 1.2
	seedOldBackend = 1 << 6
	seedTruncates  = 1 << 7 // both sides end without a close_notify, in the middle of a record
)

// FuzzProxyTLS is FuzzProxy with TLS on both sides: what is told must be the
// same, wherever the records are cut.
func FuzzProxyTLS(f *testing.F) {
	entries, err := filepath.Glob("testdata/fuzz/FuzzProxy/*")
	require.NoError(f, err)
	for i, entry := range entries {
		client, backend, seed := readEntry(f, entry)
		f.Add(client, backend, seed|uint64(i%8)<<5)
	}
	request, answer := "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, client := range []string{
		request + "\x17" + request + "\x17\x17" + request, "\x17" + request + "\x16" + request, "\x16", request[:9] + "\x16" + request,
		request + "\x13", request[:9] + "\x13", "\x13", request + "\x14", "\x1e\x14",
	} {
		for seed := range uint64(16) { // both engines and versions, pieces and truncations
			f.Add([]byte(client), []byte(answer), seed&1*seedRing|seed>>1&1*seedOldClient|seed>>2&1*seedTruncates|seed>>3&1*seedPieces)
		}
	}
	fuzzWorlds(f, func(worlds map[string]*world) {
		f.Fuzz(func(t *testing.T, client, backend []byte, seed uint64) {
			if len(client)+len(backend) > 16<<10 {
				t.Skip("longer than what is of interest")
			}
			require.NoError(t, onWorlds(func() error { return playIn(worlds, secure, client, backend, seed) }))
		})
	})
}

// FuzzTLSListener sends whatever it likes to a listener with TLS.
func FuzzTLSListener(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint64(0))
	f.Add([]byte("\x15\x03\x01\x00\x02\x02\x28"), uint64(seedRing))
	for seed := range uint64(4) {
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS12, tls.VersionTLS13} {
			hello := &tlsSide{}
			config := &tls.Config{ServerName: "cup.test", MinVersion: version, MaxVersion: version}
			hello.conn = tlsconn.Client(hello, config)
			require.Equal(f, tlsconn.ErrAgain, hello.conn.Handshake())
			hello.conn.Abort()
			f.Add(hello.out, seed*seedRing)
			f.Add(append(hello.out, hello.out...), seed*seedRing)
		}
	}
	fuzzWorlds(f, func(worlds map[string]*world) {
		f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
			require.NoError(t, onWorlds(func() error {
				return inWorld(worlds, secure, seed, func(p *play) error { return p.shout(text) })
			}))
		})
	})
}

// shout has a client without TLS say text, which cannot be a handshake: nobody
// has its keys.
func (p *play) shout(text []byte) error {
	requests := p.counters.Requests
	fd, err := p.dial()
	if err != nil {
		return err
	}
	c := &side{fd: fd}
	p.clients = append(p.clients, c)
	for len(text) > 0 {
		n := p.next(len(text))
		if c.write(text[:n]) {
			text = text[n:]
		}
		if _, err := p.step(); err != nil {
			return err
		}
	}
	c.sendFin()
	if err := p.settle(); err != nil {
		return err
	}
	if err := p.await(p.checkEnded); err != nil {
		return err
	}
	records := len(c.got) == 0 || c.got[0] == 21 || c.got[0] == 22 // an alert, or our part of a handshake
	if !records && !bytes.HasPrefix(c.got, []byte("HTTP/1.1 400 ")) {
		return p.explain(fmt.Errorf("it was told %q", c.got))
	}
	if p.counters.Requests != requests || len(p.servers) > 0 {
		return p.explain(fmt.Errorf("it was taken for a request"))
	}
	c.sendReset()
	return p.await(p.left)
}

// readEntry reads a file of FuzzProxy's corpus.
func readEntry(f *testing.F, path string) (client, backend []byte, seed uint64) {
	text, err := os.ReadFile(path)
	require.NoError(f, err)
	lines := strings.Split(string(text), "\n")
	require.GreaterOrEqual(f, len(lines), 4)
	for i, to := range []*[]byte{&client, &backend} {
		quoted := strings.TrimSuffix(strings.TrimPrefix(lines[1+i], "[]byte("), ")")
		s, err := strconv.Unquote(quoted)
		require.NoError(f, err, path)
		*to = []byte(s)
	}
	seed, err = strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(lines[3], "uint64("), ")"), 0, 64)
	require.NoError(f, err, path)
	return client, backend, seed
}

// identity is a certificate for cup.test, and who trusts it.
type identity struct {
	cert tls.Certificate
	pool *x509.CertPool
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"cup.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool}, nil
}

func (i *identity) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{i.cert}}
}

func (i *identity) client() *tls.Config {
	return &tls.Config{RootCAs: i.pool, ServerName: "cup.test", ClientSessionCache: tls.NewLRUClientSessionCache(4)}
}

// secured has s speak TLS on both sides.
func (i *identity) secured(s *proxy.Snapshot) {
	s.TLS = map[string]*proxy.ListenerTLS{fuzzAddress: {Config: i.server()}}
	config := i.client()
	for k := range s.Routes[0].Backends {
		s.Routes[0].Backends[k].TLS = config
	}
}

// tlsSide is the TLS of a side.
type tlsSide struct {
	s         *side
	conn      *tlsconn.Conn
	next      func(int) int // length of the next piece
	in, out   []byte        // records
	up        bool
	ended     bool // the peer's FIN came
	forged    bool // we sent what is no record of the session
	truncates bool // no close_notify is sent
	notified  bool // one was
	finning   bool // our FIN follows out
	secrets   bytes.Buffer
	keys      *clientKeys // nil: conn seals what is written
}

func (p *play) speakTLS(s *side, isClient bool) {
	s.tls = &tlsSide{s: s, next: p.next, truncates: p.seed&seedTruncates != 0}
	old := uint64(seedOldBackend)
	config := p.serverTLS
	if isClient {
		config, old = p.clientTLS.Clone(), seedOldClient
		config.KeyLogWriter = &s.tls.secrets
	}
	if p.seed&old != 0 {
		config = config.Clone()
		config.MaxVersion = tls.VersionTLS12
	}
	if isClient {
		s.tls.conn = tlsconn.Client(s.tls, config)
	} else {
		s.tls.conn = tlsconn.Server(s.tls, config)
	}
}

func (t *tlsSide) Received() []byte { return t.in }
func (t *tlsSide) Consume(n int)    { t.in = t.in[n:] }
func (t *tlsSide) Ended() bool      { return t.ended }
func (t *tlsSide) Send(b []byte)    { t.out = append(t.out, b...) }
func (t *tlsSide) Offload(f func()) { f() }

// pump does what can be done with what has come, and sends a piece of what
// waits. It reports whether something was sent.
func (t *tlsSide) pump() bool {
	if !t.up {
		switch err := t.conn.Handshake(); err {
		case nil:
			t.up = true
			t.keys = newClientKeys(t.secrets.String(), t.conn.State().CipherSuite)
		case tlsconn.ErrAgain:
		default:
			t.s.lost()
			return true
		}
	}
	for b := make([]byte, 16<<10); t.up && !t.s.fin; {
		n, err := t.conn.Read(b)
		t.s.got = append(t.s.got, b[:n]...)
		if err == tlsconn.ErrAgain {
			break
		}
		if err == io.EOF {
			t.s.fin = true
		} else if err != nil {
			t.s.lost()
			return true
		}
	}
	return t.flush()
}

// flush sends a piece of what waits.
func (t *tlsSide) flush() bool {
	sent := false
	if n := t.next(len(t.out)); len(t.out) > 0 && t.s.fd >= 0 {
		n, err := unix.SendmsgN(t.s.fd, t.out[:n], nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			t.s.lost() // what came before was read
			return true
		}
		t.out, sent = t.out[n:], true
	}
	if t.finning && len(t.out) == 0 && t.s.fd >= 0 {
		t.finning = false
		_ = unix.Shutdown(t.s.fd, unix.SHUT_WR) // it may be lost already
		sent = true
	}
	return sent
}

// blamed reports whether the session may have failed by what we did.
func (t *tlsSide) blamed() bool { return t.forged || t.s.finned && !t.notified }

// write reports whether b is sealed: not before the handshake is complete and
// all is sent that was written before.
func (t *tlsSide) write(b []byte) bool {
	if !t.up || len(t.out) > 0 {
		return false
	}
	t.seal(23, b)
	t.s.sent = append(t.s.sent, b...)
	t.flush()
	return true
}

// seal queues b as records of a type.
func (t *tlsSide) seal(kind byte, b []byte) {
	for ; t.keys != nil && len(b) > 0; b = b[min(len(b), 16<<10):] {
		t.out = append(t.out, t.keys.seal(kind, b[:min(len(b), 16<<10)])...)
	}
	if t.keys == nil {
		_ = t.conn.Write(b) // as far as the session goes
	}
}

// end queues a close_notify, and then a FIN. Where the side truncates, a part of
// the last record is lost.
func (t *tlsSide) end() {
	t.finning = true
	switch {
	case t.truncates:
		t.out = t.out[:len(t.out)/2]
	case t.up && t.keys != nil:
		t.notified = true
		t.seal(21, []byte{1, 0})
	case t.up:
		t.notified = true
		_ = t.conn.CloseWrite() // as far as the session goes
	}
	t.flush()
}

// mark does what a mark of TLS says.
func (t *tlsSide) mark(m byte) {
	switch {
	case t.s.fd < 0 || t.s.finned:
	case m == markForged:
		t.forged = true
		t.out = append(t.out, "\x17\x03\x03\x00\x20no record of anybody's, for sure"...)
	case m == markUpdate && t.up && t.keys != nil:
		t.seal(22, []byte{24, 0, 0, 1, 1})
		t.keys.use(expand(t.keys.secret, "traffic upd", sha256.Size))
	}
}

// clientKeys seal a client's records in its place: crypto/tls updates its keys
// when it is asked to, and has no way to ask (RFC 8446 4.6.3).
type clientKeys struct {
	secret, iv []byte
	aead       cipher.AEAD
	number     uint64 // of the next record
}

// newClientKeys takes the client's first secret from a key log; nil if there is
// none, or for another suite than the usual one.
func newClientKeys(log string, suite uint16) *clientKeys {
	_, line, found := strings.Cut(log, "CLIENT_TRAFFIC_SECRET_0 ")
	if !found || suite != tls.TLS_AES_128_GCM_SHA256 {
		return nil
	}
	secret, err := hex.DecodeString(strings.Fields(line)[1])
	if err != nil {
		return nil
	}
	k := new(clientKeys)
	k.use(secret)
	return k
}

func (k *clientKeys) use(secret []byte) {
	block, err := aes.NewCipher(expand(secret, "key", 16))
	if err == nil {
		k.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err) // the key has a right length
	}
	k.secret, k.iv, k.number = secret, expand(secret, "iv", k.aead.NonceSize()), 0
}

// seal is one record (RFC 8446 5.2).
func (k *clientKeys) seal(kind byte, b []byte) []byte {
	nonce := bytes.Clone(k.iv)
	for i, c := range binary.BigEndian.AppendUint64(nil, k.number) {
		nonce[len(nonce)-8+i] ^= c
	}
	k.number++
	head := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(b)+1+k.aead.Overhead()))
	return k.aead.Seal(head, nonce, append(bytes.Clone(b), kind), head)
}

// expand is HKDF-Expand-Label without a context (RFC 8446 7.1).
func expand(secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(info, byte(len(label))), label...)
	b, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		panic(err) // n is small
	}
	return b
}
