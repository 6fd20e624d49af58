package proxy

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/http1"
)

// Addresses of version 6 stand in quotes and brackets in Forwarded (RFC 7239
// 6), and bare in X-Forwarded-For.
func TestForwardedOfIPv6Clients(t *testing.T) {
	var p http1.RequestParser
	x := &exchange{client: &client{listener: &listener{port: portLine("[::1]:8080")}}, route: &routeState{spec: new(RouteSpec)}}
	x.client.addr = netip.MustParseAddr("2001:db8::1").As16()
	x.take(x.client)
	_, err := p.Parse(&x.req, []byte("GET / HTTP/1.1\r\nHost: cup.test\r\n\r\n"), nil)
	require.NoError(t, err)
	require.Equal(t, "X-Forwarded-For: 2001:db8::1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: cup.test\r\n"+
		"X-Forwarded-Port: 8080\r\n", string(x.appendForwarded(nil, false)))
	x.route.spec.RFC7239 = true
	require.Equal(t, "Forwarded: for=\"[2001:db8::1]\";host=\"cup.test\";proto=http\r\n", string(x.appendForwarded(nil, false)))

	x.route.spec.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
	require.True(t, x.trusted())
	x.client.addr = netip.MustParseAddr("2001:db9::1").As16()
	x.take(x.client)
	require.False(t, x.trusted())
	require.Empty(t, portLine("unix:/run/x:80"))
}
