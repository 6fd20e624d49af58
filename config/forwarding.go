package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tailscale/hujson"
)

// trustedMax bounds the ranges of one trusted_proxies.
const trustedMax = 1_000

// trustedProxies decodes a list of addresses and ranges, which replaces the one
// that is inherited.
func (d *decoder) trustedProxies(v *hujson.Value, f *Forwarding) {
	list, ok := v.Value.(*hujson.Array)
	switch {
	case !ok:
		d.at(v.StartOffset, `write ["10.0.0.0/8", "192.0.2.1"]`, "trusted_proxies must be a list, not %s", kindOf(v))
		return
	case len(list.Elements) > trustedMax:
		d.at(v.StartOffset, "", "trusted_proxies has %d ranges, at most %d are possible", len(list.Elements), trustedMax)
		return
	}
	f.TrustedProxies, f.TrustedUnix = nil, false
	places := make(map[netip.Prefix]int, len(list.Elements))
	for i := range list.Elements {
		e := &list.Elements[i]
		s, ok := d.stringOf(e, "a range in trusted_proxies")
		if !ok {
			continue
		}
		if s == "unix:" && !f.TrustedUnix {
			f.TrustedUnix = true
			continue
		}
		p, msg, hint := checkTrusted(s)
		if msg != "" {
			d.at(e.StartOffset, hint, "trusted_proxies %q: %s", clip(s), msg)
			continue
		}
		if first, twice := places[p]; twice {
			d.at(e.StartOffset, "", "trusted_proxies %q stands twice, first in line %d", clip(s), d.line(first))
			continue
		}
		places[p] = e.StartOffset
		f.TrustedProxies = append(f.TrustedProxies, p)
	}
}

// checkTrusted reads an address or a range of addresses, or tells what is
// wrong with it.
func checkTrusted(s string) (p netip.Prefix, msg, hint string) {
	text, length, ranged := strings.Cut(s, "/")
	ip, err := netip.ParseAddr(text)
	switch {
	case s == "unix:":
		return p, "it stands twice", ""
	case s == "unix", strings.HasPrefix(s, "unix:"):
		return p, "unix sockets are trusted all together", `write "unix:"`
	case err != nil:
		return p, "this is neither an address nor a range", trustedHint(s)
	case ip.Zone() != "":
		return p, "zones are not supported in this version", ""
	case ip.Is4In6() && !ranged:
		return p, "this is an IPv4 address in IPv6 form", fmt.Sprintf("write %q", ip.Unmap())
	case ip.Is4In6():
		return p, "this is an IPv4 address in IPv6 form", "write the range in IPv4 form"
	case !ranged:
		return netip.PrefixFrom(ip, ip.BitLen()), "", ""
	}
	p, err = netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Sprintf("%q is not the length of a prefix", clip(length)), fmt.Sprintf("write a number from 0 to %d", ip.BitLen())
	case p != p.Masked():
		return p, "the address is not the first of its range", fmt.Sprintf("did you mean %q or %q?", p.Masked(), ip)
	}
	return p, "", ""
}

// trustedHint helps with what is neither an address nor a range.
func trustedHint(s string) string {
	if addr, err := netip.ParseAddrPort(s); err == nil {
		return fmt.Sprintf("did you mean %q?", addr.Addr())
	}
	switch inner := strings.Trim(s, "[]"); {
	case s == "*" || s == "all" || s == "any":
		return `everybody is "0.0.0.0/0" and "::/0"`
	case s == "localhost":
		return `write "127.0.0.1" and "::1"`
	case strings.HasPrefix(s, "[") && strings.Contains(inner, ":"):
		return "an IPv6 address stands without brackets here"
	}
	return `write "192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"`
}

// hostHeader checks that there is a Host to send to each of r's backends, which
// v holds.
func (d *decoder) hostHeader(v *hujson.Value, r *Route) {
	if r.HostHeader != HostBackend {
		return
	}
	for i := range r.Backends {
		if strings.HasPrefix(r.Backends[i].Host, "unix:") {
			d.at(v.Value.(*hujson.Array).Elements[i].StartOffset, `set host_header to "preserve" in this route`,
				`host_header is "backend" in this route, and a unix socket has no name`)
		}
	}
}
