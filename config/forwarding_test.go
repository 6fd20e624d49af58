package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTrustedProxies(t *testing.T) {
	c := parse(t, with(`"trusted_proxies": ["10.0.0.0/8", "192.0.2.7", "2001:DB8::/32", "0::1", "0.0.0.0/0", "::/0", "192.0.2.6/31"]`))
	var got []string
	for _, p := range c.TrustedProxies {
		got = append(got, p.String())
	}
	require.Equal(t, []string{"10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::1/128", "0.0.0.0/0", "::/0", "192.0.2.6/31"}, got)
	require.Equal(t, c.TrustedProxies, c.Routes[0].TrustedProxies)
	require.False(t, c.TrustedUnix)
	c = parse(t, with(`"trusted_proxies": ["unix:", "::1"]`))
	require.True(t, c.Routes[0].TrustedUnix)
	require.Len(t, c.TrustedProxies, 1)
	_, err := Parse("cup.json", []byte(with(`"trusted_proxies": ["unix:", "unix:"]`)), "")
	require.ErrorContains(t, err, `trusted_proxies "unix:": it stands twice`)

	var many strings.Builder
	for i := range trustedMax + 1 {
		fmt.Fprintf(&many, `"10.0.%d.%d",`, i>>8, i&255)
	}
	_, err = Parse("cup.json", []byte(with(`"trusted_proxies": [`+many.String()+`]`)), "")
	require.ErrorContains(t, err, "trusted_proxies has 1001 ranges, at most 1000 are possible")
}

// What a route sets takes the place of the global value, the rest is inherited,
// also from further down.
func TestRoutesInheritForwarding(t *testing.T) {
	const backends = `"backends": [{"host": "127.0.0.1:1"}]`
	c := parse(t, `{
		"root": ":80",
		"routes": {
			"*": {`+backends+`},
			"/a": {`+backends+`, "trusted_proxies": ["192.0.2.1"], "forwarded": "x-forwarded"},
			"/b": {`+backends+`, "trusted_proxies": [], "host_header": "preserve", "request_id": true},
			"/c": {"backends": [{"host": "unix:/x"}], "host_header": "preserve", "timeouts": {"tunnel_idle": "24h"}},
		},
		"trusted_proxies": ["10.0.0.0/8"], "forwarded": "rfc7239", "host_header": "backend", "request_id": false,
		"timeouts": {"tunnel_idle": "5m"},
	}`)
	ten := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	global := Forwarding{TrustedProxies: ten, Forwarded: ForwardedRFC7239, HostHeader: HostBackend}
	require.Equal(t, global, c.Forwarding)
	require.Equal(t, global, c.Routes[0].Forwarding)
	require.Equal(t, Forwarding{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Forwarded: ForwardedX, HostHeader: HostBackend,
	}, c.Routes[1].Forwarding)
	require.Equal(t, Forwarding{Forwarded: ForwardedRFC7239, HostHeader: HostPreserve, RequestID: true}, c.Routes[2].Forwarding)
	require.Equal(t, Forwarding{TrustedProxies: ten, Forwarded: ForwardedRFC7239, HostHeader: HostPreserve}, c.Routes[3].Forwarding)
	require.Equal(t, 5*time.Minute, c.Routes[0].Timeouts.TunnelIdle)
	require.Equal(t, 24*time.Hour, c.Routes[3].Timeouts.TunnelIdle)
}

// A global host_header is held against the backends of every route that takes
// it over.
func TestHostHeaderNeedsAName(t *testing.T) {
	text := strings.Replace(withHosts("127.0.0.1:1", "unix:/x"), `"routes"`, `"host_header": "backend", "routes"`, 1)
	_, err := Parse("cup.json", []byte(text), "")
	require.Len(t, err, 1)
	one := err.(Errors)[0]
	require.Contains(t, one.Msg, "a unix socket has no name")
	require.True(t, strings.HasPrefix(text[one.Col-1:], `{"host": "unix:/x"}`))
}

// checkForwarding checks what the proxy relies on.
func checkForwarding(t *testing.T, r *Route) {
	for _, p := range r.TrustedProxies {
		require.True(t, p.IsValid())
		require.Equal(t, p.Masked(), p)
		require.False(t, p.Addr().Is4In6())
	}
	require.Contains(t, []Forwarded{ForwardedX, ForwardedRFC7239}, r.Forwarded)
	require.Contains(t, []HostHeader{HostPreserve, HostBackend}, r.HostHeader)
	for _, b := range r.Backends {
		require.False(t, r.HostHeader == HostBackend && strings.HasPrefix(b.Host, "unix:"))
	}
}
