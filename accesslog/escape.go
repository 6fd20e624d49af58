package accesslog

import "unicode/utf8"

// cutMark ends what was cut.
const cutMark = "..."

const (
	hexUpper = "0123456789ABCDEF"
	hexLower = "0123456789abcdef"
)

// plain tells the bytes that stand for themselves in both escapings: printable
// ASCII but for the double quote and the backslash.
var plain = func() (table [256]bool) {
	for c := ' '; c < 0x7F; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

// allPlain reports whether all of s stands for itself. It looks at eight bytes
// at a time: most of what is logged is plain, and some of it long.
func allPlain[T []byte | string](s T) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		quote, backslash := w^ones*'"', w^ones*'\\'
		below := (w-ones*' ')&^w | (quote-ones)&^quote | (backslash-ones)&^backslash
		if (below|w|(w+ones))&highs != 0 {
			return false
		}
	}
	for ; i < len(s); i++ {
		if !plain[s[i]] {
			return false
		}
	}
	return true
}

// appendOrDash is appendText, with a dash for what is empty.
func appendOrDash[T []byte | string](b []byte, s T, max int) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return appendText(b, s, max)
}

// appendText appends s as nginx escapes variables in its log: the double quote,
// the backslash and all that is not printable ASCII become \xXX. It appends at
// most max bytes, cutMark included.
func appendText[T []byte | string](b []byte, s T, max int) []byte {
	if len(s) <= max && allPlain(s) {
		return append(b, s...)
	}
	end := len(b) + max
	fits := len(b) // where the mark can still stand
	done := 0
	for i := 0; i < len(s); i++ {
		if plain[s[i]] {
			continue
		}
		var ok bool
		if b, fits, ok = appendRun(b, s[done:i], fits, end); !ok {
			return b
		}
		if len(b)+4 > end {
			return append(b[:fits], cutMark...)
		}
		b = append(b, '\\', 'x', hexUpper[s[i]>>4], hexUpper[s[i]&15])
		if len(b)+len(cutMark) <= end {
			fits = len(b)
		}
		done = i + 1
	}
	b, _, _ = appendRun(b, s[done:], fits, end)
	return b
}

// appendString appends s as the inside of a JSON string (RFC 8259 7). Bytes
// that are not UTF-8 become U+FFFD; control characters, those of the second
// block too, are escaped. It appends at most max bytes, cutMark included, and
// cuts no character or escape in two.
func appendString[T []byte | string](b []byte, s T, max int) []byte {
	if len(s) <= max && allPlain(s) {
		return append(b, s...)
	}
	end := len(b) + max
	fits := len(b)
	done := 0
	for i := 0; i < len(s); {
		if plain[s[i]] {
			i++
			continue
		}
		var ok bool
		if b, fits, ok = appendRun(b, s[done:i], fits, end); !ok {
			return b
		}
		var room [utf8.UTFMax + len(`\u0000`)]byte
		escaped, size := escapeRune(room[:0], s[i:])
		if len(b)+len(escaped) > end {
			return append(b[:fits], cutMark...)
		}
		b = append(b, escaped...)
		if len(b)+len(cutMark) <= end {
			fits = len(b)
		}
		i += size
		done = i
	}
	b, _, _ = appendRun(b, s[done:], fits, end)
	return b
}

// appendRun appends plain bytes, or as many as leave room for the mark, which
// then follows; ok is false in that case. fits is where the mark can stand if
// what comes next does not fit.
func appendRun[T []byte | string](b []byte, run T, fits, end int) ([]byte, int, bool) {
	if len(b)+len(run) > end {
		if room := end - len(cutMark) - len(b); room > 0 {
			return append(append(b, run[:room]...), cutMark...), fits, false
		}
		return append(b[:fits], cutMark...), fits, false
	}
	start := len(b)
	b = append(b, run...)
	if last := min(len(b), end-len(cutMark)); last > fits && last >= start {
		fits = last
	}
	return b, fits, true
}

// escapeRune appends the first character of s, which is not plain, and returns
// how many bytes of s it took.
func escapeRune[T []byte | string](b []byte, s T) ([]byte, int) {
	c := s[0]
	switch {
	case c == '"' || c == '\\':
		return append(b, '\\', c), 1
	case c < utf8.RuneSelf:
		return append(b, '\\', 'u', '0', '0', hexLower[c>>4], hexLower[c&15]), 1
	}
	var first [utf8.UTFMax]byte
	n := copy(first[:], s)
	r, size := utf8.DecodeRune(first[:n])
	switch {
	case r == utf8.RuneError && size == 1:
		return append(b, `\ufffd`...), 1
	case r < 0xA0: // C1: some terminals obey them
		return append(b, '\\', 'u', '0', '0', hexLower[r>>4], hexLower[r&15]), size
	}
	return append(b, first[:size]...), size
}
