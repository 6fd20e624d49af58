package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tailscale/hujson"
)

// checkPattern returns the canonical form of a route's pattern, in which the
// host is in lower case, or what is wrong with it.
func checkPattern(s string) (canonical, msg, hint string) {
	if s == "*" {
		return s, "", ""
	}
	i := strings.IndexByte(s, '/')
	switch {
	case s == "":
		return "", "a pattern is not empty", `did you mean "*"?`
	case strings.Contains(s, "://"):
		_, rest, _ := strings.Cut(s, "://")
		return "", "a pattern has no scheme", fmt.Sprintf("did you mean %q?", clip(rest))
	case i < 0:
		return "", "a pattern has a path", hostHint(s)
	}
	host, path := s[:i], s[i:]
	if host != "" {
		if host, msg, hint = checkPatternHost(host, path); msg != "" {
			return "", msg, hint
		}
	}
	if msg, hint = checkPatternPath(host, path); msg != "" {
		return "", msg, hint
	}
	return host + path, "", ""
}

// hostHint is the hint for a pattern without a slash.
func hostHint(s string) string {
	s = strings.TrimSuffix(s, "*")
	switch {
	case isHost(s) && strings.ContainsAny(s, ":["):
		return fmt.Sprintf("did you mean %q?", s+"/*")
	case isHost(s) && !strings.Contains(s, "*"):
		return fmt.Sprintf("did you mean the host %q or the path %q?", s+"/*", "/"+s)
	}
	if s == "" || strings.Contains(s, "*") {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", "/"+clip(s))
}

// isHost reports whether s is meant as a host: it has a dot or a port, or is
// "localhost" or an address in brackets.
func isHost(s string) bool {
	return strings.ContainsAny(s, ".:[") || strings.EqualFold(s, "localhost")
}

// checkPatternHost checks what stands before the path. Requests are compared
// with it as text, so it must be written as requests write it.
func checkPatternHost(host, path string) (canonical, msg, hint string) {
	if strings.Contains(host, "*") {
		return "", "a host with * is not supported in this version", ""
	}
	if !isHost(host) {
		return "", fmt.Sprintf("%q is not a host: that has a dot or a port, or is localhost", clip(host)), fmt.Sprintf("did you mean %q?", "/"+clip(host+path))
	}
	host = strings.ToLower(host)
	name, port, hasPort := host, "", false
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name, port, hasPort = host[:i], host[i+1:], true
	}
	if hasPort {
		if n, ok := portOf(port); !ok || n == 0 {
			return "", fmt.Sprintf("%q is not a port", clip(port)), ""
		}
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		ip, err := netip.ParseAddr(inner)
		switch {
		case !closed || err != nil || !ip.Is6() || ip.Zone() != "":
			return "", fmt.Sprintf("%q is not an IPv6 address in brackets", clip(name)), ""
		case ip.String() != inner:
			return "", "clients write this address in another form", fmt.Sprintf("did you mean %q?", "["+ip.String()+"]"+host[len(name):]+clip(path))
		}
		return host, "", ""
	}
	switch {
	case strings.Contains(name, ":"):
		return "", "an IPv6 address must stand in brackets", ""
	case strings.HasSuffix(name, "."):
		return "", "a host has no dot at its end", fmt.Sprintf("did you mean %q?", strings.TrimRight(name, ".")+host[len(name):]+clip(path))
	case looksNumeric(name):
		if ip, err := netip.ParseAddr(name); err != nil || !ip.Is4() {
			return "", fmt.Sprintf("%q is not an IP address", clip(name)), ""
		}
		return host, "", ""
	}
	return host, checkName(name), ""
}

// checkPatternPath checks a path that begins with a slash.
func checkPatternPath(host, path string) (msg, hint string) {
	plain, prefix := strings.CutSuffix(path, "/*")
	switch {
	case prefix && plain == "":
		return "", ""
	case !prefix && path == "/":
		return "", ""
	case !prefix:
		plain = path
	}
	for i := range len(plain) {
		switch c := plain[i]; {
		case c == '?':
			return "the query plays no part in routing", fmt.Sprintf("did you mean %q?", clip(host+plain[:i]))
		case c == '#':
			return "requests have no fragment", fmt.Sprintf("did you mean %q?", clip(host+plain[:i]))
		case c == '*':
			return `"*" may stand only at the end, behind a slash`, starHint(host, path, i)
		case c <= ' ' || c >= 0x7F:
			return fmt.Sprintf("a path has no byte 0x%02X", c), fmt.Sprintf("requests write it %%%02X", c)
		}
	}
	for segment := range strings.SplitSeq(plain, "/") {
		if segment == "." || segment == ".." {
			return fmt.Sprintf("no client sends a path with %q in it", segment), ""
		}
	}
	if !prefix && strings.HasSuffix(path, "/") {
		return "a route may not end in a slash", fmt.Sprintf("did you mean %q?", clip(host+strings.TrimRight(path, "/")+"/*"))
	}
	return "", ""
}

// starHint helps with "/game*".
func starHint(host, path string, i int) string {
	if i != len(path)-1 {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", clip(host+path[:i]+"/*"))
}

// unreachable reports the routes of which another one takes all requests. The
// only case is "*" beside "/*": every other pattern is more specific than what
// it stands behind.
func (d *decoder) unreachable(places map[string]int) {
	star, ok := places["*"]
	if _, all := places["/*"]; ok && all {
		d.at(star, `remove "/*"`, `route "*" is never reached: "/*" takes every path`)
	}
}

// stripPrefix decodes what is taken off the path of a route, whose pattern is
// known.
func (d *decoder) stripPrefix(v *hujson.Value, r *Route) {
	if lit, ok := v.Value.(hujson.Literal); ok && (lit.Kind() == 't' || lit.Kind() == 'f') {
		d.at(v.StartOffset, `write the prefix, as in "/game"`, "strip_prefix must be a string, not a boolean")
		return
	}
	s, ok := d.stringOf(v, "strip_prefix")
	if !ok || r.Pattern == "" {
		return
	}
	if msg, hint := checkStrip(s, r.Pattern); msg != "" {
		d.at(v.StartOffset, hint, "strip_prefix %q: %s", clip(s), msg)
		return
	}
	r.StripPrefix = s
}

// checkStrip tells why s cannot be taken off the paths that a canonical pattern
// matches.
func checkStrip(s, pattern string) (msg, hint string) {
	host, path, _ := strings.Cut(pattern, "/") // "*" has neither
	path = strings.TrimSuffix("/"+path, "/*")
	switch short := strings.TrimRight(strings.TrimSuffix(s, "/*"), "/"); {
	case short == "":
		return "this takes nothing off", "leave strip_prefix out"
	case s[0] != '/':
		return "a prefix begins with a slash", fmt.Sprintf("did you mean %q?", clip("/"+short))
	case short != s:
		return "a prefix ends before the slash, which stays", fmt.Sprintf("did you mean %q?", clip(short))
	case s == path, strings.HasPrefix(path, s+"/"):
		return "", ""
	}
	if pattern == "*" {
		host = ""
	}
	if own, bad, _ := checkPattern(host + s + "/*"); bad == "" {
		hint = fmt.Sprintf("it fits the route %q", clip(own))
	}
	return fmt.Sprintf("route %q takes paths without it", clip(pattern)), hint
}
