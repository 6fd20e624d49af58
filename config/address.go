package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
)

// root decodes the addresses to listen on.
func (d *decoder) root(v *hujson.Value, c *Config) {
	list, ok := v.Value.(*hujson.Array)
	if !ok {
		d.listen(v, c)
		return
	}
	switch n := len(list.Elements); {
	case n == 0:
		d.at(v.StartOffset, "", "root is empty: there must be an address to listen on")
		return
	case n > rootsMax:
		d.at(v.StartOffset, "", "root has %d addresses, at most %d are possible", n, rootsMax)
		return
	}
	for i := range list.Elements {
		d.listen(&list.Elements[i], c)
	}
}

// listen decodes one address to listen on, or an object with one.
func (d *decoder) listen(v *hujson.Value, c *Config) {
	l := listener{Config: c}
	if _, ok := v.Value.(*hujson.Object); !ok {
		d.address(v, &l)
	} else if seen := listenerKeys.decode(d, v, &l); seen != nil {
		listenerKeys.require(d, v, seen)
		if at := seen["ssl"]; at != nil && l.policy.Redirect {
			d.at(at.StartOffset, "", "ssl is of no use where all requests are redirected")
		}
	}
	if l.address != "" {
		c.Root, c.Policies = append(c.Root, l.address), append(c.Policies, l.policy)
	}
}

// listener is an element of root that is being decoded.
type listener struct {
	*Config
	address string
	policy  Policy
}

// address decodes an address to listen on.
func (d *decoder) address(v *hujson.Value, l *listener) {
	if lit, ok := v.Value.(hujson.Literal); ok && lit.Kind() == '0' && digits(string(lit)) {
		d.at(v.StartOffset, fmt.Sprintf("did you mean %q?", ":"+clip(string(lit))), "root must be a string, not a number")
		return
	}
	s, ok := d.stringOf(v, "root")
	if !ok {
		return
	}
	address, msg, hint := d.checkRoot(s)
	if msg != "" {
		d.at(v.StartOffset, hint, "root %q: %s", clip(s), msg)
		return
	}
	if i := slices.IndexFunc(l.Root, func(other string) bool { return overlap(address, other) }); i >= 0 {
		if l.Root[i] == address {
			d.at(v.StartOffset, "", "root %q stands twice", address)
		} else {
			d.at(v.StartOffset, "", "root %q and %q are the same addresses", l.Root[i], address)
		}
		return
	}
	l.address = address
}

// overlap reports whether two addresses cannot both be listened on, because
// they are the same or because one stands for all addresses of both families.
func overlap(a, b string) bool {
	all := func(s string) bool {
		return strings.HasPrefix(s, ":") || strings.HasPrefix(s, "0.0.0.0:") || strings.HasPrefix(s, "[::]:")
	}
	port := func(s string) string { return s[strings.LastIndexByte(s, ':'):] }
	if a == b {
		return true
	}
	if strings.HasPrefix(a, "unix:") || strings.HasPrefix(b, "unix:") {
		return false
	}
	return port(a) == port(b) && all(a) && all(b) && (a[0] == ':' || b[0] == ':')
}

// collide reports whether two addresses cannot be listened on without sharing
// a port: they are the same, or one is among those that the other stands for.
func collide(a, b string) bool {
	if strings.HasPrefix(a, "unix:") || strings.HasPrefix(b, "unix:") {
		return false
	}
	i, j := strings.LastIndexByte(a, ':'), strings.LastIndexByte(b, ':')
	if a[i:] != b[j:] || a[i:] == ":0" {
		return false
	}
	within := func(host, all string) bool {
		v6 := strings.HasPrefix(host, "[")
		return all == "" || host == "" || host == all || all == "0.0.0.0" && !v6 || all == "[::]" && v6
	}
	return within(a[:i], b[:j]) || within(b[:j], a[:i])
}

// checkRoot returns the canonical form of an address of root, or what is wrong
// with it.
func (d *decoder) checkRoot(s string) (address, msg, hint string) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return d.unixSocket(path)
	}
	if looksLikeSocket(s) {
		return "", "it is no IP address", fmt.Sprintf("did you mean %q?", "unix:"+clip(s))
	}
	return checkListen(s)
}

// checkListen returns the canonical form of a TCP address to listen on, or what
// is wrong with it.
func checkListen(s string) (address, msg, hint string) {
	switch {
	case strings.HasPrefix(s, "https://"), strings.HasPrefix(s, "http://"):
		_, rest, _ := strings.Cut(s, "://")
		return "", "an address has no scheme", fmt.Sprintf("did you mean %q?", strings.TrimRight(rest, "/"))
	case digits(s):
		return "", "the port must stand behind a colon", fmt.Sprintf("did you mean %q?", ":"+s)
	}
	host, port, msg, hint := splitAddress(s)
	if msg != "" {
		return "", msg, hint
	}
	number, ok := portOf(port)
	if !ok {
		return "", fmt.Sprintf("%q is not a port", port), "ports are 1 to 65535, 0 lets the kernel choose"
	}
	switch host {
	case "":
		return ":" + port, "", ""
	case "localhost":
		host = "127.0.0.1"
	case "*":
		return "", `"*" is not an address`, fmt.Sprintf("did you mean %q?", ":"+port)
	}
	ip, msg, hint := addressOf(host)
	if msg == "" && !ip.IsValid() {
		msg, hint = "the host must be an IP address", fmt.Sprintf("%q listens on all", ":"+port)
	}
	if msg != "" {
		return "", msg, hint
	}
	return netip.AddrPortFrom(ip, number).String(), "", ""
}

// host decodes a backend's address.
func (d *decoder) host(v *hujson.Value, b *Backend) {
	s, ok := d.stringOf(v, "host")
	if !ok {
		return
	}
	host, msg, hint := d.checkHost(s)
	if msg != "" {
		d.at(v.StartOffset, hint, "host %q: %s", clip(s), msg)
		return
	}
	b.Host = host
}

// checkHost returns the canonical form of a backend's address, or what is
// wrong with it.
func (d *decoder) checkHost(s string) (host, msg, hint string) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return d.unixSocket(path)
	}
	switch {
	case strings.HasPrefix(s, schemeTLS):
		return d.tlsHost(s)
	case strings.HasPrefix(s, "http://"):
		rest, _, _ := strings.Cut(strings.TrimPrefix(s, "http://"), "/")
		if _, _, bad, _ := splitAddress(rest); bad != "" {
			rest += ":80"
		}
		return "", "a backend is an address without a scheme", fmt.Sprintf("did you mean %q?", rest)
	case strings.Contains(s, "://"):
		if n := len(schemeTLS); len(s) > n && strings.EqualFold(s[:n], schemeTLS) {
			hint = fmt.Sprintf("did you mean %q?", schemeTLS+s[n:])
		}
		return "", "a backend is an address without a scheme, or with https://", hint
	case looksLikeSocket(s):
		return "", "a backend is an address and a port", fmt.Sprintf("did you mean %q?", "unix:"+clip(s))
	case strings.Contains(s, "/"):
		rest, _, _ := strings.Cut(s, "/")
		return "", "a backend has no path", fmt.Sprintf("did you mean %q?", rest)
	}
	name, port, msg, hint := splitAddress(s)
	if msg != "" {
		return "", msg, hint
	}
	number, ok := portOf(port)
	switch {
	case !ok || number == 0:
		return "", fmt.Sprintf("%q is not a port", port), "ports are 1 to 65535"
	case name == "":
		return "", "the host is missing", fmt.Sprintf("did you mean %q?", "127.0.0.1:"+port)
	}
	ip, msg, hint := addressOf(name)
	if msg != "" {
		return "", msg, hint
	}
	if ip.IsValid() {
		return netip.AddrPortFrom(ip, number).String(), "", ""
	}
	if why := checkName(name); why != "" {
		return "", why, ""
	}
	return strings.ToLower(name) + ":" + port, "", ""
}

// tlsHost checks the address of a backend with TLS, whose port may be left out.
func (d *decoder) tlsHost(s string) (host, msg, hint string) {
	rest := strings.TrimPrefix(s, schemeTLS)
	if name, ok := strings.CutSuffix(rest, "/"); ok {
		return "", "a backend has no path", fmt.Sprintf("did you mean %q?", schemeTLS+name)
	}
	if strings.HasPrefix(rest, "unix:") || looksLikeSocket(rest) || strings.Contains(rest, "://") {
		return "", "TLS goes over TCP, to a host and a port", ""
	}
	if _, _, bad, _ := splitAddress(rest); bad == "the port is missing" {
		rest += ":443"
	}
	if _, err := netip.ParseAddr(rest); err == nil && strings.Contains(rest, ":") {
		return "", "an IPv6 address must stand in brackets", fmt.Sprintf("did you mean %q?", schemeTLS+"["+rest+"]")
	}
	host, msg, hint = d.checkHost(rest)
	// What is meant instead is meant with TLS.
	return schemeTLS + host, msg, strings.Replace(hint, didYouMeanQuote, didYouMeanQuote+schemeTLS, 1)
}

// didYouMeanQuote begins the hint at another address.
const didYouMeanQuote = `did you mean "`

// serverName decodes the name that a backend's certificate must be for.
func (d *decoder) serverName(v *hujson.Value, t *BackendTLS) {
	s, ok := d.stringOf(v, "server_name")
	if !ok {
		return
	}
	if _, err := netip.ParseAddr(s); err != nil {
		if why := checkName(s); why != "" {
			d.at(v.StartOffset, "", "server_name %q: %s", clip(s), why)
			return
		}
	}
	t.ServerName = strings.ToLower(s)
}

// looksLikeSocket reports whether s may be meant as a unix socket.
func looksLikeSocket(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") || strings.HasPrefix(s, "@")
}

// unixSocket returns the canonical form of the address of a unix socket, or
// what is wrong with it.
func (d *decoder) unixSocket(path string) (address, msg, hint string) {
	if strings.HasPrefix(path, "@") {
		if len(path) == 1 || len(path) > socketPathBytesMax {
			return "", fmt.Sprintf("the name of an abstract socket has 1 to %d bytes", socketPathBytesMax-1), ""
		}
		return "unix:" + path, "", ""
	}
	joined, why := d.socketPath(path)
	if why != "" {
		return "", why, ""
	}
	return "unix:" + joined, "", ""
}

// splitAddress splits "host:port" and "[v6]:port"; the host may be empty.
func splitAddress(s string) (host, port, msg, hint string) {
	i := strings.LastIndexByte(s, ':')
	switch {
	case s == "":
		return "", "", "it is empty", ""
	case s[0] == '[':
		host, port, ok := strings.Cut(s[1:], "]")
		if !ok || strings.Contains(port, "]") {
			return "", "", "a bracket is not closed", ""
		}
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return "", "", fmt.Sprintf("%q is not an IPv6 address", clip(host)), ""
		}
		if port == "" {
			return "", "", "the port is missing", fmt.Sprintf("did you mean %q?", s+":80")
		}
		if port[0] != ':' {
			return "", "", "a colon must stand behind the bracket", ""
		}
		return host, port[1:], "", ""
	case i < 0:
		return "", "", "the port is missing", fmt.Sprintf("did you mean %q?", clip(s)+":80")
	case strings.IndexByte(s, ':') != i:
		if _, err := netip.ParseAddr(s[:i]); err == nil {
			hint = fmt.Sprintf("did you mean %q?", "["+s[:i]+"]"+s[i:])
		} else if _, err := netip.ParseAddr(s); err == nil {
			hint = fmt.Sprintf("did you mean %q?", "["+s+"]:80")
		}
		return "", "", "an IPv6 address must stand in brackets", hint
	}
	return s[:i], s[i+1:], "", ""
}

// portOf reads a port without sign or leading zeros.
func portOf(s string) (uint16, bool) {
	if !digits(s) || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

// addressOf reads an IP address. The result is invalid, without a message, if
// s may be a name.
func addressOf(s string) (ip netip.Addr, msg, hint string) {
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil && looksNumeric(s):
		return ip, fmt.Sprintf("%q is not an IP address", clip(s)), ""
	case err != nil:
		return netip.Addr{}, "", ""
	case ip.Zone() != "":
		return ip, "zones are not supported in this version", ""
	case ip.Is4In6():
		return ip, "this is an IPv4 address in IPv6 form", fmt.Sprintf("write %s", ip.Unmap())
	}
	return ip, "", ""
}

// looksNumeric reports whether the last label of s is a number, which no name
// has (RFC 1123 2.1).
func looksNumeric(s string) bool {
	return digits(s[strings.LastIndexByte(s, '.')+1:])
}

// checkName tells what is wrong with a host name.
func checkName(s string) string {
	name := strings.TrimSuffix(s, ".")
	if len(name) > 253 {
		return "the name has more than 253 bytes"
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "a name consists of labels of 1 to 63 bytes with dots between them"
		}
		for _, c := range label {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			case c > 0x7F:
				return fmt.Sprintf("a name has no %q; write it in its xn-- form", c)
			default:
				return fmt.Sprintf("a name has no %q", c)
			}
		}
	}
	return ""
}
