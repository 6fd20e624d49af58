package http1

import (
	"encoding/binary"
	"math/bits"
)

// Classes of bytes, by table.
const (
	isToken  = 1 << iota // tchar (RFC 9110 5.6.2)
	isTarget             // what a request target may hold; "?" is told apart by isQuery
	isQuery              // what a target may hold behind its first "?"
	isHost               // of a reg-name (RFC 3986 3.2.2), without "," and "%"
	isHex
	isText // of a field value or a reason: all but controls, HTAB being text
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		b := byte(c)
		alnum := '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
		if alnum || has("!#$%&'*+-.^_`|~", b) {
			t[c] |= isToken
		}
		if alnum || has("-._~!$&'()*+;=", b) {
			t[c] |= isHost
		}
		if b > ' ' && b != 0x7F && b != '#' {
			t[c] |= isQuery
			if b != '?' {
				t[c] |= isTarget
			}
		}
		if '0' <= b && b <= '9' || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F' {
			t[c] |= isHex
		}
		if b >= ' ' && b != 0x7F || b == '\t' {
			t[c] |= isText
		}
	}
	return t
}()

func has(set string, b byte) bool {
	for i := range len(set) {
		if set[i] == b {
			return true
		}
	}
	return false
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// controls marks, in the top bit of its byte, the first control byte of the
// eight in w (in memory order, w loaded little-endian): below 0x20 or 0x7F.
// Marks above the first one may be false.
func controls(w uint64) uint64 {
	del := w ^ 0x7F*ones
	return ((w-0x20*ones)&^w | (del-ones)&^del) & highs
}

// skipText returns where the first control byte but HTAB stands in b[i:], or
// len(b).
func skipText(b []byte, i int) int {
	for i+8 <= len(b) {
		m := controls(binary.LittleEndian.Uint64(b[i:]))
		if m == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(m) >> 3
		if b[i] != '\t' {
			return i
		}
		i++
	}
	for i < len(b) && class[b[i]]&isText != 0 {
		i++
	}
	return i
}

// skipToken returns where the first byte that is no tchar stands in b[i:], or
// len(b).
func skipToken(b []byte, i int) int {
	for i < len(b) && class[b[i]]&isToken != 0 {
		i++
	}
	return i
}

// fold reports whether b is lower in any case. lower holds lower-case letters,
// digits and hyphens only, b no control bytes.
func fold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		if b[i]|0x20 != lower[i] {
			return false
		}
	}
	return true
}

// foldEqual reports whether a and b are equal but for the case of letters.
func foldEqual(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// validHost reports whether v is a non-empty uri-host with an optional port
// (RFC 9110 4.2.1, 7.2). A comma, which the grammar allows in names, is refused:
// it would be a list of hosts to some.
func validHost(v []byte) bool {
	i := 0
	if len(v) > 0 && v[0] == '[' {
		for i = 1; i < len(v) && (class[v[i]]&isHex != 0 || v[i] == ':' || v[i] == '.'); i++ {
		}
		if i < 3 || i == len(v) || v[i] != ']' {
			return false
		}
		i++
	} else {
		for i < len(v) {
			if class[v[i]]&isHost != 0 {
				i++
				continue
			}
			if v[i] != '%' {
				break
			}
			if len(v)-i < 3 || class[v[i+1]]&class[v[i+2]]&isHex == 0 {
				return false
			}
			i += 3
		}
		if i == 0 {
			return false
		}
	}
	if i == len(v) {
		return true
	}
	if v[i] != ':' || len(v)-i > 6 {
		return false
	}
	port := 0
	for _, c := range v[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
		port = port*10 + int(c-'0')
	}
	return port < 1<<16
}
