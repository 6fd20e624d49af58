package proxy_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Types of records and messages (RFC 8446 B).
const (
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
)

// oddRequest is what is said in odd records, and keyUpdate a message that asks
// for one, too.
const (
	oddRequest = "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
	keyUpdate  = "\x18\x00\x00\x01\x01"
)

// say sends a record.
type say func(kind byte, text string)

// oddRecords are conversations behind a handshake, and whether they are answered.
var oddRecords = map[string]struct {
	say      func(say say, keys *clientKeys)
	answered bool
}{
	"a byte a record": {func(say say, _ *clientKeys) {
		for i := range len(oddRequest) {
			say(recordData, oddRequest[i:i+1])
		}
	}, true},
	"some empty records": {func(say say, _ *clientKeys) {
		for i := range len(oddRequest) {
			say(recordData, "")
			say(recordData, oddRequest[i:i+1])
		}
	}, true},
	"nothing but empty records": {func(say say, _ *clientKeys) {
		for range 1000 {
			say(recordData, "")
		}
		say(recordData, oddRequest)
	}, false},
	"some updates of keys": {func(say say, keys *clientKeys) {
		for i := range 10 { // of Go's client, no more than 16 answers may come in a row
			say(recordHandshake, keyUpdate)
			keys.use(expand(keys.secret, "traffic upd", 32))
			say(recordData, oddRequest[i:i+1])
		}
		say(recordData, oddRequest[10:])
	}, true},
	"nothing but updates of keys": {func(say say, keys *clientKeys) {
		for range 3000 {
			say(recordHandshake, keyUpdate)
			keys.use(expand(keys.secret, "traffic upd", 32))
		}
		say(recordData, oddRequest)
	}, false},
	"many updates in a record": {func(say say, _ *clientKeys) {
		say(recordHandshake, strings.Repeat(keyUpdate, 40))
		say(recordData, oddRequest)
	}, false},
	"a record that is too large": {func(say say, _ *clientKeys) { say(recordData, oddRequest+strings.Repeat("x", 16<<10)) }, false},
	"a type that there is not":   {func(say say, _ *clientKeys) { say(99, oddRequest) }, false},
	"another handshake": {func(say say, _ *clientKeys) {
		say(recordHandshake, "\x01\x00\x00\x00")
		say(recordData, oddRequest)
	}, false},
	"half a message, then data":       {func(say say, _ *clientKeys) { say(recordHandshake, keyUpdate[:3]); say(recordData, oddRequest) }, false},
	"a fatal alert":                   {func(say say, _ *clientKeys) { say(recordAlert, "\x02\x50"); say(recordData, oddRequest) }, false},
	"an alert in the head":            {func(say say, _ *clientKeys) { say(recordData, oddRequest[:9]); say(recordAlert, "\x02\x28") }, false},
	"a request behind a close_notify": {func(say say, _ *clientKeys) { say(recordAlert, "\x01\x00"); say(recordData, oddRequest) }, false},
	"a close_notify behind it":        {func(say say, _ *clientKeys) { say(recordData, oddRequest); say(recordAlert, "\x01\x00") }, true},
	"it gives up":                     {func(say say, _ *clientKeys) { say(recordAlert, "\x01\x5a"); say(recordData, oddRequest) }, true},
}

// Records that no usual client sends, after a handshake of TLS 1.3: what is
// within the rules is taken, and what is not ends the connection with an alert.
func TestTLSOddRecords(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r, client := startTLS(t, engine, to(serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here it is") })))
		for name, c := range oddRecords {
			conn, err := net.Dial("tcp", r.addr)
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
			var secrets bytes.Buffer
			config := client.Transport.(*http.Transport).TLSClientConfig.Clone()
			config.KeyLogWriter = &secrets
			s := tls.Client(conn, config)
			require.NoError(t, s.Handshake())
			keys := newClientKeys(secrets.String(), s.ConnectionState().CipherSuite)
			if keys == nil {
				t.Skip("this machine prefers another cipher than AES")
			}
			var records []byte
			c.say(func(kind byte, text string) { records = append(records, keys.seal(kind, []byte(text))...) }, keys)
			told := make(chan error)
			go func() {
				_, err := conn.Write(records)
				told <- err
			}()
			got, err := io.ReadAll(s)
			require.Equal(t, c.answered, strings.HasSuffix(string(got), "\r\n\r\nhere it is"), "%s: %q, %v", name, got, err)
			if c.answered {
				require.NoError(t, err, name)
			} else {
				require.Empty(t, got, name)
			}
			conn.Close()
			<-told // it may not have been read to the end
		}
		res, err := client.Get("https://" + r.addr + "/")
		require.NoError(t, err)
		require.Equal(t, "here it is", readAll(t, res))
	})
}
