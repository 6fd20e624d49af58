// Package route finds the value for a request's host and path: a backend group
// in the proxy. A Table is built once and never changed, so that any number of
// goroutines may look up in it.
//
// # Patterns
//
//   - every request that nothing else matches
//     /about.html             this path
//     /game/*                 /game/ and what is below it, not /game nor /gamex
//     example.com/game/*      the same for one host, on any port
//     example.com:8080/*      the same for one host on this port alone
//
// # Order
//
// Patterns with host and port come before those with that host alone, these
// before patterns without a host. Within each of the three the exact path comes
// before the longest matching prefix. A host whose patterns do not match the
// path leaves it to the next. "*" is last.
//
// Paths are compared byte for byte; %2F is not a slash, and nothing is
// normalised: that is left to the one who hands the path in. Hosts are compared
// without case, and a dot at the end of a request's host is ignored.
package route

import (
	"bytes"
	"fmt"
	"strings"
)

// Pattern is the parts of a pattern. The zero Pattern is "*".
type Pattern struct {
	// Host is in lower case, with its port if there is one; empty for any.
	Host string
	// Path begins with a slash; empty for the pattern "*". A prefix ends
	// with the slash before the star.
	Path string
	// Prefix says that paths below Path match too.
	Prefix bool
}

// ParsePattern takes a pattern apart. It checks what the table depends on, and
// leaves hosts that cannot exist to the reader of the configuration.
func ParsePattern(s string) (Pattern, error) {
	if s == "*" {
		return Pattern{}, nil
	}
	i := strings.IndexByte(s, '/')
	if i < 0 {
		return Pattern{}, fmt.Errorf("route %q: no path", s)
	}
	p := Pattern{Host: strings.ToLower(s[:i]), Path: s[i:]}
	if strings.HasSuffix(p.Path, "/*") {
		p.Path, p.Prefix = strings.TrimSuffix(p.Path, "*"), true
	}
	switch {
	case len(p.Host) > hostBytesMax:
		return Pattern{}, fmt.Errorf("route %q: the host has more than %d bytes", s, hostBytesMax)
	case strings.Contains(p.Host, "*"), strings.Contains(p.Path, "*"):
		return Pattern{}, fmt.Errorf("route %q: a star stands alone or behind the last slash", s)
	case !p.Prefix && p.Path != "/" && strings.HasSuffix(p.Path, "/"):
		return Pattern{}, fmt.Errorf("route %q: it ends in a slash", s)
	}
	return p, nil
}

// Entry is one route of a Table.
type Entry[V any] struct {
	Pattern string
	Value   V
}

// hostBytesMax is the longest host of a pattern: a name of 253 bytes, a colon
// and a port. Longer hosts of requests match no pattern with a host.
const hostBytesMax = 253 + 1 + 5

// absent stands for no value.
const absent = -1

// Table finds values by host and path. It is a tree of path segments for each
// host, all of whose edges lie in one map: a lookup hashes every segment of the
// path at most once and stops at the first one that no pattern has, whatever
// the number of routes and slashes.
type Table[V any] struct {
	values []V
	hosts  map[string]uint32 // to the root of the host's tree
	edges  map[edge]uint32
	nodes  []node
	star   int32 // value of "*"
}

// edge is a path segment below a node.
type edge struct {
	node    uint32
	segment string
}

// node is what a path has come to. The numbers are indices of values, or
// absent.
type node struct {
	exact  int32 // the path ends here
	prefix int32 // a slash follows
	inner  bool  // there are edges
}

// anyHost is the root of the patterns without a host.
const anyHost = 0

// Build makes a table of entries. The error names a pattern that is malformed
// or stands twice.
func Build[V any](entries []Entry[V]) (*Table[V], error) {
	t := &Table[V]{
		values: make([]V, 0, len(entries)),
		hosts:  make(map[string]uint32),
		edges:  make(map[edge]uint32, len(entries)),
		star:   absent,
	}
	t.newNode()
	for _, e := range entries {
		p, err := ParsePattern(e.Pattern)
		if err != nil {
			return nil, err
		}
		at := t.place(p)
		if *at != absent {
			return nil, fmt.Errorf("route %q: stands twice", e.Pattern)
		}
		*at = int32(len(t.values))
		t.values = append(t.values, e.Value)
	}
	return t, nil
}

func (t *Table[V]) newNode() uint32 {
	t.nodes = append(t.nodes, node{exact: absent, prefix: absent})
	return uint32(len(t.nodes) - 1)
}

// place is where the value of p is entered. It grows the tree as needed.
func (t *Table[V]) place(p Pattern) *int32 {
	if p.Path == "" {
		return &t.star
	}
	at := uint32(anyHost)
	if p.Host != "" {
		root, ok := t.hosts[p.Host]
		if !ok {
			root = t.newNode()
			t.hosts[p.Host] = root
		}
		at = root
	}
	path := p.Path[1:]
	for {
		segment, rest, more := strings.Cut(path, "/")
		if p.Prefix && path == "" {
			return &t.nodes[at].prefix
		}
		next, ok := t.edges[edge{at, segment}]
		if !ok {
			next = t.newNode()
			t.edges[edge{at, segment}] = next
			t.nodes[at].inner = true
		}
		at, path = next, rest
		if !more {
			return &t.nodes[at].exact
		}
	}
}

// Lookup returns the value for a request. Host is as in the Host field, in any
// case and maybe with a port; path as in the request's target, without the
// query. An empty path counts as "/". It does not allocate, and keeps neither
// slice. The result is false only if there is no pattern "*".
func (t *Table[V]) Lookup(host, path []byte) (value V, ok bool) {
	i := t.find(host, path)
	if i == absent {
		return value, false
	}
	return t.values[i], true
}

var slash = []byte("/")

// find is the index of the value, or absent.
func (t *Table[V]) find(host, path []byte) int32 {
	if len(path) == 0 {
		path = slash
	}
	if path[0] != '/' {
		return t.star // the target of OPTIONS * (RFC 9112 3.2.4)
	}
	if len(t.hosts) > 0 {
		if i := t.findHost(host, path); i != absent {
			return i
		}
	}
	if i := t.walk(anyHost, path); i != absent {
		return i
	}
	return t.star
}

// findHost looks up among the patterns with a host.
func (t *Table[V]) findHost(host, path []byte) int32 {
	// A dot before the port is not kept, so it may be one longer.
	if len(host) > hostBytesMax+1 {
		return absent
	}
	var lower [hostBytesMax + 1]byte
	name, port := split(host)
	n := copy(lower[:], name)
	for i, c := range lower[:n] {
		if c >= 'A' && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	if len(port) > 1 {
		m := n + copy(lower[n:], port)
		if root, ok := t.hosts[string(lower[:m])]; ok {
			if i := t.walk(root, path); i != absent {
				return i
			}
		}
	}
	if root, ok := t.hosts[string(lower[:n])]; ok {
		return t.walk(root, path)
	}
	return absent
}

// split cuts host into the name, without a dot at its end, and the colon with
// the port.
func split(host []byte) (name, port []byte) {
	name = host
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && i > bytes.LastIndexByte(host, ']') {
		name, port = host[:i], host[i:]
	}
	if n := len(name); n > 0 && name[n-1] == '.' {
		name = name[:n-1]
	}
	return name, port
}

// walk follows path, which begins with a slash, from the root of a host's tree.
func (t *Table[V]) walk(at uint32, path []byte) int32 {
	best := int32(absent)
	for rest := path[1:]; ; {
		n := t.nodes[at]
		if n.prefix != absent {
			best = n.prefix
		}
		if !n.inner {
			return best
		}
		i := bytes.IndexByte(rest, '/')
		if i < 0 {
			if next, ok := t.edges[edge{at, string(rest)}]; ok && t.nodes[next].exact != absent {
				return t.nodes[next].exact
			}
			return best
		}
		next, ok := t.edges[edge{at, string(rest[:i])}]
		if !ok {
			return best
		}
		at, rest = next, rest[i+1:]
	}
}
