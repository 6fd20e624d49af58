package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// Bounds of a configuration's text. Beyond them it is refused.
const (
	textBytesMax = 16 << 20
	depthMax     = 32
	routesMax    = 200_000
	backendsMax  = 1_000 // of one route
	rootsMax     = 64
)

// decoder reads one text. Its methods report mistakes and go on.
type decoder struct {
	name  string
	text  []byte
	dir   string
	found []mistake
	lines lines

	now   time.Time // certificates must be valid now, but for those in use
	files Files
	given bool // files is all there is

	renewal *renewal // nil: the text is read for the first time, or with given

	global *Config // what routes inherit from, once it is read
}

// at reports a mistake at an offset of the text.
func (d *decoder) at(offset int, hint, format string, args ...any) {
	d.found = append(d.found, mistake{offset, fmt.Sprintf(format, args...), hint})
}

// parse reads the whole text. The result is of use only if nothing was found.
func (d *decoder) parse() *Config {
	c := &Config{Files: d.files}
	v, ok := d.syntax()
	if ok {
		d.global = c
		d.config(v, c)
	}
	return c
}

var byteOrderMark = []byte("\xEF\xBB\xBF")

// syntax parses the text as JSON with comments and trailing commas. It reports
// the first mistake only: what follows one is guesswork.
func (d *decoder) syntax() (*hujson.Value, bool) {
	if len(d.text) > textBytesMax {
		d.text = d.text[:0]
		d.at(0, "", "the configuration is larger than %d MiB", textBytesMax>>20)
		return nil, false
	}
	if bytes.HasPrefix(d.text, byteOrderMark) {
		d.at(0, "save it as UTF-8 without one", "the file begins with a byte order mark")
		return nil, false
	}
	if i := invalidUTF8(d.text); i >= 0 {
		d.at(i, "", "byte 0x%02X is not valid UTF-8", d.text[i])
		return nil, false
	}
	deep, open := scan(d.text)
	if deep >= 0 {
		d.at(deep, "", "values are nested more than %d deep", depthMax)
		return nil, false
	}
	// The added line feed ends a comment on the last line.
	v, err := hujson.Parse(append(d.text[:len(d.text):len(d.text)], '\n'))
	if err != nil {
		d.syntaxError(err, open)
		return nil, false
	}
	return &v, true
}

// syntaxError reports what hujson says. Open is where the string begins that
// the end of the text cuts, or -1.
func (d *decoder) syntaxError(err error, open int) {
	var line, col int
	if _, scan := fmt.Sscanf(err.Error(), "hujson: line %d, column %d:", &line, &col); scan != nil {
		d.at(0, "", "%v", err)
		return
	}
	offset := len(d.text) // the line may be the one that syntax added
	if starts := d.lines.all(); line <= len(starts) {
		offset = min(starts[line-1]+col-1, len(d.text))
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	rest := d.text[offset:]
	end := len(bytes.TrimRight(d.text, " \t\r\n"))
	switch msg := err.Error(); {
	case end == 0:
		d.at(0, "", "the configuration is empty")
	case offset >= end && open >= 0:
		d.at(open, "", "a string has no closing quote")
	case offset >= end:
		d.at(end, "a bracket is not closed", "the text ends too early")
	case strings.HasPrefix(msg, "parsing comment"):
		d.at(offset, "", "a comment has no end")
	case strings.HasPrefix(msg, "invalid literal") && rest[0] == '"':
		d.stringError(offset)
	case strings.HasPrefix(msg, "invalid literal"):
		word := rest[:len(rest)-len(bytes.TrimLeft(rest, "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))]
		d.at(offset, "strings stand in double quotes", "%s is not a JSON value", clip(string(word)))
	default:
		d.at(offset, commaHint(rest[0], msg), "%s", msg)
	}
}

// commaHint explains the most frequent mistake.
func commaHint(next byte, msg string) string {
	if next == '"' && strings.Contains(msg, "expecting ','") {
		return "is a comma missing before it?"
	}
	return ""
}

// stringError reports why the string that begins at offset is none.
func (d *decoder) stringError(offset int) {
	for i := offset + 1; i < len(d.text); i++ {
		switch c := d.text[i]; {
		case c == '\n' || c == '\r':
			d.at(offset, "", "a string has no closing quote on its line")
			return
		case c < ' ':
			d.at(i, `write \t for a tab`, "a string may not hold the control character 0x%02X", c)
			return
		case c == '\\':
			if !json.Valid(append(append([]byte{'"'}, escape(d.text[i:])...), '"')) {
				d.at(i, "", `a string may not hold the escape %q`, escape(d.text[i:]))
				return
			}
			i++
		}
	}
	d.at(offset, "", "a string is not valid JSON")
}

// escape is the escape sequence that b begins with.
func escape(b []byte) []byte {
	n := 2
	if len(b) > 1 && b[1] == 'u' {
		n = 6
	}
	return b[:min(n, len(b))]
}

// invalidUTF8 is the place of the first byte that is not UTF-8, or -1.
func invalidUTF8(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
}

// scan looks for two places, each -1 if there is none: the bracket that exceeds
// depthMax (the parser recurses), and the string that has no end.
func scan(text []byte) (deep, open int) {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			if depth++; depth > depthMax {
				return i, -1
			}
		case '}', ']':
			depth--
		case '"':
			start := i
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			if i >= len(text) {
				return -1, start
			}
		case '/':
			i += commentBytes(text[i:])
		}
	}
	return -1, -1
}

// commentBytes is how far the comment's end lies behind the '/' that b begins
// with, 0 if it is no comment.
func commentBytes(b []byte) int {
	end := ""
	switch {
	case bytes.HasPrefix(b, []byte("//")):
		end = "\n"
	case bytes.HasPrefix(b, []byte("/*")):
		end = "*/"
	default:
		return 0
	}
	n := bytes.Index(b[2:], []byte(end))
	if n < 0 {
		return len(b)
	}
	return 2 + n + len(end) - 1
}

// stringOf is the string that v holds. What names v if it is none.
func (d *decoder) stringOf(v *hujson.Value, what string) (string, bool) {
	lit, ok := v.Value.(hujson.Literal)
	if !ok || lit.Kind() != '"' {
		d.at(v.StartOffset, "", "%s must be a string, not %s", what, kindOf(v))
		return "", false
	}
	raw := lit[1 : len(lit)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw), true
	}
	if i, why := badEscape(raw); i >= 0 {
		d.at(v.StartOffset+1+i, "", "%s", why)
		return "", false
	}
	return lit.String(), true
}

// badEscape is the place in a valid JSON string of an escape that stands for
// no character, or for NUL; -1 if there is none.
func badEscape(raw []byte) (int, string) {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		r := hex4(raw[i+1:])
		switch {
		case r == 0:
			return i - 1, "a string may not hold NUL"
		case r >= 0xDC00 && r <= 0xDFFF:
			return i - 1, fmt.Sprintf("%s is half of a surrogate pair", raw[i-1:i+5])
		case r >= 0xD800 && r <= 0xDBFF:
			next := raw[i+5:]
			if len(next) < 6 || next[0] != '\\' || next[1] != 'u' || hex4(next[2:])&0xFC00 != 0xDC00 {
				return i - 1, fmt.Sprintf("%s is half of a surrogate pair", raw[i-1:i+5])
			}
			i += 6
		}
		i += 4
	}
	return -1, ""
}

// hex4 is the number that the first four bytes of b write in base 16.
func hex4(b []byte) (n int) {
	for _, c := range b[:4] {
		switch {
		case c >= 'a':
			n = n<<4 | int(c-'a'+10)
		case c >= 'A':
			n = n<<4 | int(c-'A'+10)
		default:
			n = n<<4 | int(c-'0')
		}
	}
	return n
}

// place is the line and the column of offset.
func (d *decoder) place(offset int) (line, col int) {
	line, start := d.lines.find(offset)
	return line, 1 + utf8.RuneCount(d.text[start:offset])
}

// line is the number of the line that holds offset.
func (d *decoder) line(offset int) int {
	line, _ := d.lines.find(offset)
	return line
}

// kindOf names v's type with an article.
func kindOf(v *hujson.Value) string {
	switch v.Value.Kind() {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case 'n':
		return "null"
	}
	return "a boolean"
}

// clip shortens a word from the file for a message.
func clip(word string) string {
	const max = 60
	if utf8.RuneCountInString(word) <= max {
		return word
	}
	return string([]rune(word)[:max]) + "..."
}
