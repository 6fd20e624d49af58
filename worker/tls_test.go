package worker

import (
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/stretchr/testify/require"
)

// meet lets a client do a handshake with a server, and tells whether it resumed
// a session.
func meet(t *testing.T, client, server *tls.Config) bool {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		_, err := tls.Server(far, server).Write([]byte("x")) // tickets of TLS 1.3 come before it
		served <- err
	}()
	conn := tls.Client(near, client)
	_, err := io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, <-served)
	return conn.ConnectionState().DidResume
}

// A ticket is good at every worker, for as long as its key is, and nowhere where
// another certificate is shown or asked for.
func TestTickets(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	files := config.Files{"ca": []byte("one"), "other-ca": []byte("two")}
	policy := func(certificate string, mode config.ClientMode, ca string) *config.SSL {
		return &config.SSL{
			Certificates: []config.KeyPair{{Certificate: certificate, Key: "key"}}, Client: config.ClientCerts{Mode: mode, CAFile: ca},
		}
	}
	plain := policy("cert", config.ClientOff, "")
	server := func(ssl *config.SSL, keys ...[32]byte) *worker {
		c := &tls.Config{Certificates: s.TLS.Certificates}
		w := &worker{ticketed: []ticketed{newTicketed(c, ssl, files)}}
		require.NoError(t, w.useTickets(keys))
		return w
	}
	config1 := func(w *worker) *tls.Config { return w.ticketed[0].config }
	a, b, c := [32]byte{1}, [32]byte{2}, [32]byte{3}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		fresh := func() *tls.Config {
			client := &tls.Config{
				InsecureSkipVerify: true, ServerName: "example.com", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			require.False(t, meet(t, client, config1(server(plain, a, b))))
			return client
		}
		require.True(t, meet(t, fresh(), config1(server(plain, a, b))), "another worker")
		require.True(t, meet(t, fresh(), config1(server(plain, b, c, a))), "a rotation later")
		require.False(t, meet(t, fresh(), config1(server(plain, b, c))), "the key is gone")
		w := server(plain, b, c)
		require.NoError(t, w.useTickets([][32]byte{c, b, a}))
		require.True(t, meet(t, fresh(), config1(w)), "told later")
		for what, other := range map[string]*config.SSL{
			"another certificate": policy("other", config.ClientOff, ""),
			"clients may show":    policy("cert", config.ClientRequest, "ca"),
		} {
			require.False(t, meet(t, fresh(), config1(server(other, a, b))), what)
		}
	}
	require.NotEqual(t, newTicketed(nil, policy("cert", config.ClientRequire, "ca"), files).policy,
		newTicketed(nil, policy("cert", config.ClientRequire, "other-ca"), files).policy)
	require.Error(t, new(worker).useTickets(nil))
}
