package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// tlsVersions are those that are spoken.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// secured starts cloud-cup with TLS for cup.test and returns what its clients
// need.
func secured(t *testing.T, engine string, backends []string, more ...string) (*cup, *tls.Config) {
	t.Helper()
	a := newAuthority(t)
	c := startCup(t, engine, configOf(backends, append(more, `"ssl": {`+a.issue("cup.test", nil).ssl()+`}`)...))
	return c, a.trusting("cup.test")
}

// browseSecurely is browse over TLS.
func browseSecurely(t *testing.T, addr string, config *tls.Config) *browser {
	t.Helper()
	b, err := openSecurely(addr, config)
	require.NoError(t, err)
	t.Cleanup(func() { b.conn.Close() })
	return b
}

func TestTLSLargeTransfers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker)
		for version, id := range tlsVersions {
			config.MinVersion, config.MaxVersion = id, id
			b := browseSecurely(t, c.addr, config)
			for _, query := range []string{"", "?chunked", "?close"} {
				_, err := b.get("", 50<<20, 3, query)
				require.NoError(t, err, "TLS %s, download %s", version, query)
			}
			b = browseSecurely(t, c.addr, config)
			for _, chunked := range []bool{false, true} {
				_, err := b.post("", 20<<20, 5, chunked)
				require.NoError(t, err, "TLS %s, upload, chunked: %v", version, chunked)
			}
		}
		peak := peakRSS(t, c.workers()[0])
		t.Logf("peak RSS of the worker: %.1f MiB", float64(peak)/(1<<20))
		require.Less(t, peak, workerRSSMax)
	})
}

// piecesConn writes in pieces of a few bytes.
type piecesConn struct {
	net.Conn
	size int
}

func (c piecesConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		k, e := c.Conn.Write(b[:min(c.size, len(b))])
		n, b, err = n+k, b[k:], e
	}
	return n, err
}

// Handshakes and requests come byte by byte, too, from many at once.
func TestTLSInPieces(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker)
		l := startLoad(t, 20, func(worker, turn int) error {
			conn, err := net.Dial("tcp", c.addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			config := config.Clone()
			config.MaxVersion = uint16(tls.VersionTLS12 + turn%2)
			client := secureConn{tls.Client(piecesConn{conn, 1 + turn%3}, config), conn.(*net.TCPConn)}
			b := &browser{conn: client, r: bufio.NewReader(client)}
			if _, err = b.get("", 1000, int64(turn), ""); err == nil {
				_, err = b.post("", 3000, int64(turn), true)
			}
			return err
		})
		l.more(pick[int64](2000, 100))
		require.Empty(t, l.stop())
	})
}

// cutAfter ends a connection, by a RST if so wished, when so many bytes were
// written.
type cutAfter struct {
	*net.TCPConn
	left  int
	reset bool
}

func (c *cutAfter) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	c.left -= n
	_, err := c.TCPConn.Write(b[:n])
	if n < len(b) {
		if c.reset {
			_ = c.SetLinger(0)
		}
		c.TCPConn.Close()
		return n, net.ErrClosed
	}
	return n, err
}

// What comes to a port with TLS and is none, or ends somewhere, or goes no
// further, leaves nothing, and others are served meanwhile.
func TestTLSAbuse(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		pairs := a.issueRSA("rsa.test").ssl() + `}, {` + a.issue("cup.test", nil).ssl()
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, oneWorker,
			`"ssl": {"certificates": [{`+pairs+`}]}`, `"timeouts": {"client_head": "1s"}`))
		config := a.trusting("cup.test")
		other := browseSecurely(t, c.addr, config)
		_, err := other.get("", 1000, 1, "")
		require.NoError(t, err)
		abuse := func() {
			for i := range 200 { // vanish: hello, its answer, the last flight, the request
				config := a.trusting([]string{"cup.test", "rsa.test"}[i%2])
				config.MaxVersion = uint16(tls.VersionTLS12 + i/2%2)
				conn := &cutAfter{dial(t, c.addr), i * 11, i%3 == 0}
				if client := tls.Client(conn, config); client.Handshake() == nil {
					_, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: rsa.test\r\n\r\n")
				}
				conn.Close()
			}
			var open []*net.TCPConn
			for i := range 500 {
				conn := dial(t, c.addr)
				_, _ = conn.Write(noise[i*4099%len(noise):][:1+i*7]) // it may be refused at any place
				open = append(open, conn)
			}
			_, err := other.get("", 1000, 1, "")
			require.NoError(t, err)
			for range 50 { // half a handshake, and then nothing
				conn := dial(t, c.addr)
				_, err := conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00"))
				require.NoError(t, err)
				open = append(open, conn)
			}
			eventually(t, "only one connection to be left", func() bool { return c.status().Workers[0].Connections == 1 })
			for _, conn := range open {
				conn.Close()
			}
		}
		abuse()
		before := measure(t, c)[1]
		abuse()
		after := measure(t, c)[1]
		t.Logf("%+v, then %+v", before, after)
		require.LessOrEqual(t, after.descriptors, before.descriptors)
		require.LessOrEqual(t, after.goroutines, before.goroutines+1)
		require.Less(t, after.rss, before.rss+before.rss/4+(4<<20))
		_, err = other.get("", 1000, 1, "")
		require.NoError(t, err)
	})
}

// exchangeOf sends a request on a fresh connection and returns the answer.
func exchangeOf(t *testing.T, addr string, config *tls.Config, request string) (*http.Response, string) {
	t.Helper()
	conn := dial(t, addr)
	defer conn.Close()
	var over net.Conn = conn
	if config != nil {
		over = tls.Client(conn, config)
	}
	_, err := io.WriteString(over, request)
	require.NoError(t, err)
	res, err := http.ReadResponse(bufio.NewReader(over), nil)
	require.NoError(t, err)
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res, string(text)
}

func getFrom(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

// Names choose the certificate; a Host of another one is misdirected.
func TestTLSNames(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		var list []string
		for _, name := range []string{"first.test", "*.wild.test", "exact.wild.test"} {
			list = append(list, "{"+a.issue(name, nil).ssl()+"}")
		}
		list = append(list, "{"+a.issue("Upper.TEST", nil).ssl()+"}", "{"+a.issue("Common.test", func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = nil, nil // as they were once
		}).ssl()+"}")
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, `"ssl": {"certificates": [`+strings.Join(list, ",")+`]}`))
		for _, ask := range []struct{ sni, certificate string }{
			{"first.test", "first.test"}, {"FIRST.test", "first.test"}, {"a.wild.test", "*.wild.test"},
			{"exact.wild.test", "exact.wild.test"}, {"a.b.wild.test", "first.test"}, {"wild.test", "first.test"},
			{"upper.test", "Upper.TEST"}, {"common.test", "Common.test"}, {"nobody.test", "first.test"}, {"", "first.test"},
		} {
			conn := tls.Client(dial(t, c.addr), &tls.Config{ServerName: ask.sni, InsecureSkipVerify: true})
			require.NoError(t, conn.Handshake())
			require.Equal(t, ask.certificate, conn.ConnectionState().PeerCertificates[0].Subject.CommonName, ask.sni)
			require.Equal(t, "", conn.ConnectionState().NegotiatedProtocol)
		}
		for host, status := range map[string]int{
			"a.wild.test": 400, "A.Wild.Test:443": 400, "b.wild.test.": 400, // the backend's answer
			"exact.wild.test": 421, "first.test": 421, "nobody.test": 421, "127.0.0.1": 421,
		} {
			res, text := exchangeOf(t, c.addr, a.trusting("a.wild.test"), getFrom(host))
			require.Equal(t, status, res.StatusCode, host)
			require.Equal(t, status == 421, strings.Contains(text, "misdirected"), text)
		}
		res, _ := exchangeOf(t, c.addr, a.trusting("a.wild.test"), "GET / HTTP/1.0\r\n\r\n")
		require.Equal(t, 400, res.StatusCode, "the backend's answer: no Host is no other one")
	})
}

// Of several certificates for a name, a client gets the first whose kind of key
// it knows.
func TestTLSKindsOfKey(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		fast, slow := a.issue("cup.test", nil), a.issueRSA("cup.test")
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr},
			`"ssl": {"certificates": [{`+fast.ssl()+`}, {`+a.issue("other.test", nil).ssl()+`}, {`+slow.ssl()+`}]}`))
		for _, sni := range []string{"cup.test", "nobody.test"} {
			for suite, want := range map[uint16]*pair{
				tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: fast, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: slow, 0: fast,
			} {
				config := &tls.Config{ServerName: sni, InsecureSkipVerify: true}
				if suite != 0 {
					config.MaxVersion, config.CipherSuites = tls.VersionTLS12, []uint16{suite}
				}
				conn := tls.Client(dial(t, c.addr), config)
				require.NoError(t, conn.Handshake())
				require.Equal(t, want.Leaf.SerialNumber, conn.ConnectionState().PeerCertificates[0].SerialNumber)
				_, err := io.WriteString(conn, getFrom("cup.test"))
				require.NoError(t, err)
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				require.NoError(t, err)
				require.Equal(t, 400, res.StatusCode, "the backend's answer")
			}
		}
	})
}

// What is spoken is each address's own.
func TestTLSPerListener(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		ssl := func(name string) string { return `{` + a.issue(name, nil).ssl() + `}` }
		root := fmt.Sprintf(`[{"address": "127.0.0.1:0"}, {"address": "127.0.0.2:0", "ssl": %s},
			{"address": "127.0.0.3:0", "ssl": "off"}, {"address": "127.0.0.4:0", "redirect": "https"}]`, ssl("second.test"))
		log := filepath.Join(t.TempDir(), "access.log")
		config := configOf([]string{startBackend(t, "a").addr}, `"ssl": `+ssl("first.test"),
			fmt.Sprintf(`"access_log": {"file": %q, "format": "json"}`, log))
		c := startCup(t, engine, strings.Replace(config, `"127.0.0.1:0"`, root, 1))
		ready, err := c.await("ready")
		require.NoError(t, err)
		require.Len(t, ready.Listen, 4)
		for i, name := range []string{"first.test", "second.test"} {
			res, _ := exchangeOf(t, ready.Listen[i], a.trusting(name), getFrom(name))
			require.Equal(t, 400, res.StatusCode, "the backend's answer")
			require.NotEmpty(t, res.Header.Get("X-Backend"))
			_, text := exchangeOf(t, ready.Listen[i], nil, getFrom(name))
			require.Contains(t, text, "plain_http")
			require.Contains(t, text, "HTTPS")
		}
		eventually(t, "lines of the requests without TLS", func() bool {
			text, err := os.ReadFile(log)
			require.NoError(t, err)
			return strings.Count(string(text), `"reason":"plain_http"`) == 2
		})
		res, _ := exchangeOf(t, ready.Listen[2], nil, getFrom("first.test"))
		require.NotEmpty(t, res.Header.Get("X-Backend"))
		res, _ = exchangeOf(t, ready.Listen[3], nil, "GET /a?b HTTP/1.1\r\nHost: first.test:80\r\n\r\n")
		require.Equal(t, 308, res.StatusCode)
		require.True(t, strings.HasPrefix(res.Header.Get("Location"), "https://first.test"), res.Header.Get("Location"))
		require.True(t, strings.HasSuffix(res.Header.Get("Location"), "/a?b"), res.Header.Get("Location"))
	})
}

// What is too old or too weak is refused by an alert.
func TestTLSRefusesOldVersions(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr})
		for what, edit := range map[string]func(*tls.Config){
			"protocol version": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			"handshake failure": func(c *tls.Config) {
				c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			},
		} {
			config := config.Clone()
			edit(config)
			_, err := secure(dial(t, c.addr), config)
			require.ErrorContains(t, err, what)
		}
	})
}

// echoFields is a backend that answers with the head of the request that it got.
func echoFields(t *testing.T) string {
	t.Helper()
	return startRaw(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			head := ""
			for !strings.HasSuffix(head, "\r\n\r\n") {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				head += line
			}
			if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(head), head); err != nil {
				return
			}
		}
	})
}

// startRaw accepts connections and serves each.
func startRaw(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// The subject of a client's certificate is told whole and in its order: two of
// them that differ are never told alike.
func TestTLSClientSubjects(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		name := func(list ...string) (names pkix.RDNSequence) {
			for _, s := range list {
				names = append(names, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: s}})
			}
			return names
		}
		mixed := append(name("Zoë; +=\"<>#\\"), pkix.RelativeDistinguishedNameSET{
			{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "Cup"},
			{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "z@cup.test"},
		})
		c := startCup(t, engine, configOf([]string{echoFields(t)}, `"ssl": {`+a.issue("cup.test", nil).ssl()+
			fmt.Sprintf(`, "client": {"mode": "require", "ca_file": %q}}`, a.file)))
		for want, subject := range map[string]pkix.RDNSequence{
			"CN=bob,CN=tenant-a": name("tenant-a", "bob"),
			"CN=bob,CN=tenant-b": name("tenant-b", "bob"),
			"CN=tenant-a,CN=bob": name("bob", "tenant-a"),
			`O=Cup+1.2.840.113549.1.9.1=#0c0a7a406375702e74657374,CN=Zo\C3\AB\; \+=\"\<\>#\\`: mixed,
			"": name(),
		} {
			raw, err := asn1.Marshal(subject)
			require.NoError(t, err)
			config := a.trusting("cup.test")
			config.Certificates = []tls.Certificate{a.issue("", func(c *x509.Certificate) {
				c.RawSubject, c.DNSNames, c.ExtKeyUsage = raw, nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			}).Certificate}
			res, text := exchangeOf(t, c.addr, config, getFrom("cup.test"))
			require.Equal(t, 200, res.StatusCode)
			if want == "" {
				require.NotContains(t, text, "X-Client-Cert-Subject")
			} else {
				require.Contains(t, text, "\r\nX-Client-Cert-Subject: "+want+"\r\n")
			}
		}
	})
}

// Who a client is comes from its certificate, and never from itself.
func TestTLSClientCertificates(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a, strangers := newAuthority(t), newAuthority(t)
		server := a.issue("cup.test", nil)
		asClient := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
		alice, mallory := a.issue("Alice \r\nX: y", asClient), strangers.issue("Mallory", asClient)
		request := "GET / HTTP/1.1\r\nHost: cup.test\r\nX-Client-Cert-Subject: CN=root\r\nx-client-cert-subject: CN=root\r\n" +
			"X_Client_Cert_Subject: CN=root\r\nX-Client_CERT-Subject: CN=root\r\nConnection: X-Client-Cert-Subject\r\n\r\n"
		for _, mode := range []string{"off", "request", "require", "plain"} {
			ssl := `"ssl": {` + server.ssl() + fmt.Sprintf(`, "client": {"mode": %q, "ca_file": %q}}`, mode, a.file)
			switch mode {
			case "off":
				ssl = `"ssl": {` + server.ssl() + `}`
			case "plain":
				ssl = `"workers": 1`
			}
			c := startCup(t, engine, configOf([]string{echoFields(t)}, ssl))
			if mode == "plain" {
				_, text := exchangeOf(t, c.addr, nil, request)
				require.NotContains(t, text, "CN=root")
				continue
			}
			for _, version := range tlsVersions {
				ask := func(who *pair) (string, error) {
					config := a.trusting("cup.test")
					config.MaxVersion = version
					if who != nil { // also if the server would not ask for it
						config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &who.Certificate, nil }
					}
					conn := tls.Client(dial(t, c.addr), config)
					if _, err := io.WriteString(conn, request); err != nil {
						return "", err
					}
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						return "", err
					}
					text, err := io.ReadAll(res.Body)
					return string(text), err
				}
				text, err := ask(nil)
				if mode == "require" {
					require.ErrorContains(t, err, "remote error: tls:", "the alert comes")
					told, err := c.await("TLS with a client failed")
					require.NoError(t, err)
					require.Contains(t, told.Err, "client didn't provide a certificate")
					require.Contains(t, told.line, "cup.test")
					require.Contains(t, told.line, "127.0.0.1")
				} else {
					require.NoError(t, err)
					require.NotContains(t, text, "CN=root")
				}
				text, err = ask(alice)
				require.NoError(t, err)
				require.Equal(t, mode != "off", strings.Contains(text, "\r\nX-Client-Cert-Subject: CN=Alice \\0D\\0AX: y,O=Cup\r\n"), text)
				require.NotContains(t, text, "CN=root")
				text, err = ask(mallory)
				if mode == "off" {
					require.NoError(t, err)
					require.NotContains(t, text, "CN=")
				} else {
					require.ErrorContains(t, err, "remote error: tls:")
				}
			}
		}
	})
}

// A response that ends with its connection is known to be whole, or not.
func TestTLSCloseDelimited(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for _, whole := range []bool{true, false} {
			cut := make(chan struct{})
			addr := startRaw(t, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome bytes")
				if !whole {
					<-cut
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
			})
			c, config := secured(t, engine, []string{addr})
			conn := tls.Client(dial(t, c.addr), config)
			_, err := io.WriteString(conn, "GET / HTTP/1.0\r\nHost: cup.test\r\n\r\n")
			require.NoError(t, err)
			var got bytes.Buffer
			for !strings.HasSuffix(got.String(), "some bytes") {
				_, err := io.CopyN(&got, conn, 1)
				require.NoError(t, err)
			}
			close(cut)
			_, err = io.Copy(&got, conn)
			require.Equal(t, whole, err == nil, "%v", err)
		}
	})
}

// Tunnels go through, and end one side after the other.
func TestTLSTunnel(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		ended := make(chan string, 1)
		addr := startRaw(t, func(conn net.Conn) {
			r := bufio.NewReader(conn)
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome ")
			got, err := io.ReadAll(r)
			ended <- fmt.Sprint(len(got), err)
			_, _ = conn.Write(got)
		})
		c, config := secured(t, engine, []string{addr})
		b := browseSecurely(t, c.addr, config)
		require.NoError(t, b.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: echo\r\n"))
		res, err := http.ReadResponse(b.r, nil)
		require.NoError(t, err)
		require.Equal(t, 101, res.StatusCode)
		_, err = b.r.Discard(len("welcome "))
		require.NoError(t, err)
		const size = 3 << 20
		require.NoError(t, b.sendContent(size, 9, false))
		require.NoError(t, b.conn.CloseWrite())
		require.Equal(t, fmt.Sprint(size, error(nil)), <-ended)
		require.NoError(t, checkContent(b.r, 9, size), "up to the close_notify")
	})
}

// Requests that come at once are answered in order.
func TestTLSPipelined(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker)
		b := browseSecurely(t, c.addr, config)
		const count = 200
		go func() {
			for i := range count {
				if b.ask("GET", fmt.Sprintf("/%d/%d", i*300, i), "") != nil {
					return // the reader sees it
				}
			}
		}()
		for i := range count {
			res, err := b.response()
			require.NoError(t, err)
			require.NoError(t, checkContent(res.Body, int64(i), int64(i*300)))
		}
	})
}

// Draining ends idle connections by a close_notify, and busy ones after their
// response.
func TestTLSDrain(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		back := startBackend(t, "a")
		c, config := secured(t, engine, []string{back.addr}, oneWorker)
		idle, busy := browseSecurely(t, c.addr, config), browseSecurely(t, c.addr, config)
		_, err := idle.get("", 1000, 1, "")
		require.NoError(t, err)
		require.NoError(t, busy.ask("GET", "/held/x", ""))
		<-back.held
		c.signal(syscall.SIGTERM)
		_, err = idle.r.ReadByte()
		require.Equal(t, io.EOF, err, "a close_notify")
		idle.conn.Close()
		back.release()
		res, err := busy.response()
		require.NoError(t, err)
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, "xy", string(text))
		_, err = busy.r.ReadByte()
		require.Equal(t, io.EOF, err, "a close_notify")
		busy.conn.Close()
		require.Zero(t, c.wait())
		c.allGone()
	})
}

// A reload brings a certificate to new handshakes and leaves what is there.
func TestTLSReload(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		first, second := a.issue("cup.test", nil), a.issue("cup.test", nil)
		back := startBackend(t, "a")
		with := func(p *pair) string { return configOf([]string{back.addr}, `"ssl": {`+p.ssl()+`}`, `"workers": 2`) }
		c := startCup(t, engine, with(first))
		l := startLoad(t, 8, func(worker, turn int) error { // handshakes all the time
			b, err := openSecurely(c.addr, a.trusting("cup.test"))
			if err != nil {
				return err
			}
			defer b.conn.Close()
			_, err = b.get("", 1000, int64(turn), "")
			return err
		})
		old := browseSecurely(t, c.addr, a.trusting("cup.test"))
		for turn := range 4 {
			now := []*pair{second, first}[turn%2]
			c.write(with(now))
			_, stderr, code := c.cupctl("reload")
			require.Zero(t, code, stderr)
			b := browseSecurely(t, c.addr, a.trusting("cup.test"))
			serial := b.conn.(secureConn).ConnectionState().PeerCertificates[0].SerialNumber
			require.Equal(t, now.Leaf.SerialNumber, serial)
			_, err := old.get("", 1000, 1, "")
			require.NoError(t, err, "the connection from before")
		}
		l.more(100)
		require.Empty(t, l.stop())
	})
}

// Slow readers of records hold no more than limits.memory.
func TestTLSSlowReaders(t *testing.T) {
	readers, limit := pick(1000, 100), pick(128<<20, 24<<20)
	eachEngine(t, func(t *testing.T, engine string) {
		c, config := secured(t, engine, []string{startBackend(t, "a").addr}, oneWorker, fmt.Sprintf(`"limits": {"memory": %d}`, limit))
		const size = 16 << 20
		var slow []*browser
		for i := range readers {
			s := browseSecurely(t, c.addr, config)
			require.NoError(t, s.ask("GET", fmt.Sprintf("/%d/%d", size, i), ""))
			slow = append(slow, s)
		}
		out := uint64(0)
		eventually(t, "all readers to be stalled", func() bool {
			now := c.status().Totals.BytesOut
			stalled := now > 0 && now == out
			out = now
			return stalled
		})
		other := browseSecurely(t, c.addr, config)
		for i := range 20 {
			_, err := other.get("", 20_000, int64(i), "")
			require.NoError(t, err)
		}
		w := c.status().Workers[0]
		rss := wholeRSS(t, w.PID)
		t.Logf("%d slow readers: %.1f MiB lent, RSS %.1f MiB", readers, float64(w.BuffersLent)/(1<<20), float64(rss)/(1<<20))
		require.LessOrEqual(t, int(w.BuffersLent), limit)
		require.Less(t, rss, limit+(64<<20))
		for _, s := range slow[5:] {
			require.NoError(t, s.conn.(secureConn).tcp.Close())
		}
		whole := 0
		for i, s := range slow[:5] {
			require.NoError(t, s.conn.SetDeadline(time.Now().Add(requestTime)))
			res, err := s.response()
			require.NoError(t, err)
			if err := checkContent(res.Body, int64(i), size); err == nil {
				whole++
			} else {
				require.NotContains(t, err.Error(), "wrong bytes")
			}
		}
		require.GreaterOrEqual(t, whole+int(c.status().Totals.Reasons["memory"]), 5, "only the limit may have ended some")
	})
}

// Handshakes with a signature that takes its time do not hold up others, however
// many clients leave in the middle of one.
func TestTLSHandshakesWithRSA(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		a := newAuthority(t)
		c := startCup(t, engine, configOf([]string{startBackend(t, "a").addr}, oneWorker,
			`"ssl": {"certificates": [{`+a.issue("cup.test", nil).ssl()+`}, {`+a.issueRSA("rsa.test").ssl()+`}]}`))
		leave := startLoad(t, 10, func(worker, turn int) error {
			conn, err := net.Dial("tcp", c.addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			// The hello is written whole, and nothing is read.
			_ = tls.Client(&cutAfter{conn.(*net.TCPConn), 700 + turn%1500, turn%2 == 0}, a.trusting("rsa.test")).Handshake()
			return nil
		})
		shake := startLoad(t, 10, func(worker, turn int) error {
			b, err := openSecurely(c.addr, a.trusting("rsa.test"))
			if err != nil {
				return err
			}
			defer b.conn.Close()
			if err := b.ask("GET", "/100/1", ""); err != nil {
				return err
			}
			res, err := http.ReadResponse(b.r, nil)
			if err == nil && res.StatusCode != http.StatusMisdirectedRequest {
				err = fmt.Errorf("host of the other certificate: %s", res.Status)
			}
			return err
		})
		other := browseSecurely(t, c.addr, a.trusting("cup.test"))
		began := time.Now()
		for i := range pick(300, 100) {
			_, err := other.get("", 1000, int64(i), "")
			require.NoError(t, err)
		}
		t.Logf("requests on a connection: %v, besides %d handshakes and %d that were left", time.Since(began), shake.done.Load(), leave.done.Load())
		shake.more(pick[int64](5000, 200))
		require.Empty(t, shake.stop())
		require.Empty(t, leave.stop())
		eventually(t, "the others to be gone", func() bool { return c.status().Workers[0].Connections == 1 })
		require.Equal(t, control.WorkerRunning, c.status().Workers[0].State)
	})
}
