package http1

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// Two names at one place of the table would make one of them unknown.
func TestKnownFields(t *testing.T) {
	seen := map[message.FieldID]bool{}
	for name, id := range map[string]message.FieldID{
		"Connection": message.FieldConnection, "Content-Length": message.FieldContentLength,
		"Date": message.FieldDate, "Expect": message.FieldExpect, "Forwarded": message.FieldForwarded,
		"Host": message.FieldHost, "HTTP2-Settings": message.FieldHTTP2Settings,
		"Keep-Alive": message.FieldKeepAlive, "Proxy-Connection": message.FieldProxyConnection,
		"Server": message.FieldServer, "TE": message.FieldTE, "Trailer": message.FieldTrailer,
		"Transfer-Encoding": message.FieldTransferEncoding, "Upgrade": message.FieldUpgrade,
		"Via": message.FieldVia, "X-Client-Cert-Subject": message.FieldXClientCertSubject, "X-Forwarded-For": message.FieldXForwardedFor,
		"X-Forwarded-Host": message.FieldXForwardedHost, "X-Forwarded-Port": message.FieldXForwardedPort,
		"X-Forwarded-Proto": message.FieldXForwardedProto, "X-Request-Id": message.FieldXRequestID,
	} {
		seen[id] = true
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			require.Equal(t, id, fieldID([]byte(spelling)), spelling)
		}
		for _, other := range []string{name[1:], name[:len(name)-1], name + "s", "X" + name, strings.ReplaceAll(name, "-", "_") + "_"} {
			require.Equal(t, message.FieldOther, fieldID([]byte(other)), other)
		}
	}
	for _, name := range []string{"X_Client_Cert_Subject", "x-client_cert-subject", "X_FORWARDED_FOR", "X-Forwarded_Proto"} {
		require.Equal(t, message.FieldLookalike, fieldID([]byte(name)), name)
	}
	for _, name := range []string{"Content_Length", "Transfer_Encoding", "X_Client_Cert_Subjekt", "X+Forwarded+For"} {
		require.Equal(t, message.FieldOther, fieldID([]byte(name)), name)
	}
	require.Len(t, seen, int(message.FieldXRequestID), "a known field is missing in this test")
	require.Equal(t, message.FieldOther, fieldID([]byte("x")))
}
