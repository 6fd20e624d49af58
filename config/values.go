package config

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tailscale/hujson"
)

// duration is a field that holds a duration in Go's form.
func duration[T any](path, def string, least, most time.Duration, routes bool, in func(*T) *time.Duration) field[T] {
	preset, err := time.ParseDuration(def)
	if err != nil {
		panic(err) // of the table, which is read at every start
	}
	return field[T]{
		path: path, def: def, routes: routes,
		preset: func(to *T) { *in(to) = preset },
		decode: func(d *decoder, v *hujson.Value, to *T) {
			if n, ok := d.duration(v, path, least, most); ok {
				*in(to) = n
			}
		},
	}
}

// duration reads a value like "1m30s".
func (d *decoder) duration(v *hujson.Value, path string, least, most time.Duration) (time.Duration, bool) {
	if v.Value.Kind() == '0' {
		lit := v.Value.(hujson.Literal)
		d.at(v.StartOffset, secondsHint(string(lit), least, most), "%s must be a duration with its unit, not a number", path)
		return 0, false
	}
	if v.Value.Kind() != '"' {
		d.at(v.StartOffset, "", `%s must be a duration like "5s", not %s`, path, kindOf(v))
		return 0, false
	}
	s, ok := d.stringOf(v, path)
	if !ok {
		return 0, false
	}
	n, err := time.ParseDuration(s)
	if err != nil {
		d.at(v.StartOffset, secondsHint(s, least, most), "%s: %q is not a duration", path, clip(s))
		return 0, false
	}
	if n < least || n > most {
		d.at(v.StartOffset, "", "%s is %s, and must be from %s to %s", path, short(n), short(least), short(most))
		return 0, false
	}
	return n, true
}

// secondsHint offers a number without a unit as seconds.
func secondsHint(s string, least, most time.Duration) string {
	if n, err := time.ParseDuration(s + "s"); err == nil && n >= least && n <= most {
		return fmt.Sprintf("did you mean %q?", s+"s")
	}
	return `write "5s", "1m30s" or "250ms"`
}

// short is n without units that are zero.
func short(n time.Duration) string {
	s := n.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// none is the word for no limit.
const none = "none"

// size is a field that holds a number of bytes. If its default is none, the
// word is accepted too, and stands for -1.
func size[T any](path, def string, least, most int64, routes bool, in func(*T) *int64) field[T] {
	preset := int64(-1)
	if def != none {
		n, _, ok := bytesOf(def)
		if !ok {
			panic("default of " + path)
		}
		preset = n
	}
	return field[T]{
		path: path, def: def, routes: routes,
		preset: func(to *T) { *in(to) = preset },
		decode: func(d *decoder, v *hujson.Value, to *T) {
			if n, ok := d.size(v, path, least, most, def == none); ok {
				*in(to) = n
			}
		},
	}
}

// size reads a value like "32KiB" or 32768.
func (d *decoder) size(v *hujson.Value, path string, least, most int64, noneToo bool) (int64, bool) {
	var n int64
	if v.Value.Kind() == '0' {
		var ok bool
		if n, ok = d.wholeNumber(v, path); !ok {
			return 0, false
		}
	} else {
		if v.Value.Kind() != '"' {
			d.at(v.StartOffset, "", `%s must be a size like "1MiB" or a number of bytes, not %s`, path, kindOf(v))
			return 0, false
		}
		s, ok := d.stringOf(v, path)
		if !ok {
			return 0, false
		}
		if noneToo && s == none {
			return -1, true
		}
		var hint string
		if n, hint, ok = bytesOf(s); !ok {
			d.at(v.StartOffset, hint, "%s: %q is not a size", path, clip(s))
			return 0, false
		}
	}
	if n < least || n > most {
		d.at(v.StartOffset, "", "%s is %s, and must be from %s to %s", path, sizeText(n), sizeText(least), sizeText(most))
		return 0, false
	}
	return n, true
}

var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// bytesOf reads a size with its unit. If it is none, the hint may help.
func bytesOf(s string) (n int64, hint string, ok bool) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	number, unit := s[:end], s[end:]
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, `write a whole number and its unit, like "32KiB" or "1MiB"`, false
	}
	names := make([]string, 0, len(units))
	for _, u := range units {
		if u.name == unit {
			if n > math.MaxInt64/u.bytes {
				return 0, "it is too large", false
			}
			return n * u.bytes, "", true
		}
		names = append(names, u.name)
	}
	trimmed := strings.TrimSpace(unit)
	switch {
	case trimmed == "":
		return 0, fmt.Sprintf("did you mean %q?", number+"B"), false
	case len(trimmed) == 1 && strings.Contains("KMGTkmgt", trimmed):
		return 0, fmt.Sprintf("did you mean %q?", number+strings.ToUpper(trimmed)+"iB"), false
	}
	for _, name := range names {
		if strings.EqualFold(name, trimmed) {
			return 0, fmt.Sprintf("did you mean %q?", number+name), false
		}
	}
	return 0, "units are B, KiB, MiB, GiB, TiB, KB, MB, GB and TB", false
}

// sizeText writes n with the largest unit that divides it.
func sizeText(n int64) string {
	for _, u := range units[:4] {
		if n > 0 && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}

// integer is a field that holds a whole number. A default that is a word
// stands for 0, which the file cannot say.
func integer[T any](path, def string, least, most int, routes bool, in func(*T) *int) field[T] {
	preset, _ := strconv.Atoi(def)
	return field[T]{
		path: path, def: def, routes: routes,
		preset: func(to *T) { *in(to) = preset },
		decode: func(d *decoder, v *hujson.Value, to *T) {
			n, ok := d.wholeNumber(v, path)
			switch {
			case !ok:
			case n < int64(least) || n > int64(most):
				d.at(v.StartOffset, "", "%s is %d, and must be from %d to %d", path, n, least, most)
			default:
				*in(to) = int(n)
			}
		},
	}
}

// wholeNumber reads an integer.
func (d *decoder) wholeNumber(v *hujson.Value, path string) (int64, bool) {
	lit, ok := v.Value.(hujson.Literal)
	if !ok || lit.Kind() != '0' {
		hint := ""
		if ok && lit.Kind() == '"' && digits(lit.String()) {
			hint = fmt.Sprintf("did you mean %s?", clip(lit.String()))
		}
		d.at(v.StartOffset, hint, "%s must be a whole number, not %s", path, kindOf(v))
		return 0, false
	}
	n, err := strconv.ParseInt(string(lit), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		d.at(v.StartOffset, "", "%s is out of range", path)
		return 0, false
	case err != nil:
		d.at(v.StartOffset, "", "%s must be a whole number, not %s", path, clip(string(lit)))
		return 0, false
	}
	return n, true
}

// word is a field that holds one of a few words, the default first.
func word[T any, W ~string](path string, routes bool, in func(*T) *W, words ...W) field[T] {
	names := make([]string, 0, len(words))
	for _, w := range words {
		names = append(names, string(w))
	}
	return field[T]{
		path: path, def: names[0], routes: routes,
		preset: func(to *T) { *in(to) = words[0] },
		decode: func(d *decoder, v *hujson.Value, to *T) {
			s, ok := d.stringOf(v, path)
			if !ok {
				return
			}
			*in(to) = W(s) // an unknown one is not taken for the default, of which other mistakes may follow
			if !slices.Contains(names, s) {
				hint := didYouMean(s, names)
				if hint == "" {
					last := len(names) - 1
					hint = fmt.Sprintf(`write "%s" or %q`, strings.Join(names[:last], `", "`), names[last])
				}
				d.at(v.StartOffset, hint, "%s: unknown word %q", path, clip(s))
			}
		},
	}
}

// boolean is a field that holds true or false.
func boolean[T any](path string, def, routes bool, in func(*T) *bool) field[T] {
	return field[T]{
		path: path, def: strconv.FormatBool(def), routes: routes,
		preset: func(to *T) { *in(to) = def },
		decode: func(d *decoder, v *hujson.Value, to *T) {
			switch lit, _ := v.Value.(hujson.Literal); lit.Kind() {
			case 't', 'f':
				*in(to) = lit.Kind() == 't'
			case '"':
				d.at(v.StartOffset, booleanHints[strings.ToLower(lit.String())], "%s must be true or false, not a string", path)
			default:
				d.at(v.StartOffset, "", "%s must be true or false, not %s", path, kindOf(v))
			}
		},
	}
}

// booleanHints help with what other programs call true and false.
var booleanHints = map[string]string{
	"true": "write true without quotes", "on": "did you mean true?", "yes": "did you mean true?",
	"false": "write false without quotes", "off": "did you mean false?", "no": "did you mean false?",
}

// digits reports whether s consists of at least one decimal digit and nothing
// else.
func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// path reads a path and joins it to the folder if it is relative. It returns
// the empty string after a mistake.
func (d *decoder) path(v *hujson.Value, what string) string {
	s, ok := d.stringOf(v, what)
	if !ok {
		return ""
	}
	p, why := d.join(s)
	if why != "" {
		d.at(v.StartOffset, "", "%s: %s", what, why)
	}
	return p
}

// join makes a path absolute, or relative to what d.dir is relative to.
func (d *decoder) join(path string) (joined, why string) {
	switch {
	case path == "":
		return "", "the path is empty"
	case strings.ContainsFunc(path, unicode.IsControl):
		return "", "the path holds a control character"
	case filepath.IsAbs(path):
		return filepath.Clean(path), ""
	}
	return filepath.Join(d.dir, path), ""
}

// socketPathBytesMax is what sun_path of struct sockaddr_un holds, its final
// NUL not counted; unix(7).
const socketPathBytesMax = 107

// socketPath joins the path of a unix socket.
func (d *decoder) socketPath(path string) (joined, why string) {
	if joined, why = d.join(path); len(joined) > socketPathBytesMax {
		return "", fmt.Sprintf("the path has %d bytes, that of a unix socket at most %d", len(joined), socketPathBytesMax)
	}
	return joined, why
}

// socket decodes admin.socket.
func (d *decoder) socket(v *hujson.Value, a *Admin) {
	s, ok := d.stringOf(v, "admin.socket")
	if !ok {
		return
	}
	s = strings.TrimPrefix(s, "unix:")
	var why string
	switch {
	case s == "off":
		why = "it cannot be switched off here"
	case strings.HasPrefix(s, "@"):
		why = "it needs a path: an abstract socket has no permissions"
	default:
		a.Socket, why = d.socketPath(s)
	}
	if why != "" {
		d.at(v.StartOffset, "", "admin.socket: %s", why)
	}
}

// metrics decodes admin.metrics.
func (d *decoder) metrics(v *hujson.Value, a *Admin) {
	s, ok := d.stringOf(v, "admin.metrics")
	if !ok {
		return
	}
	if strings.HasPrefix(s, "unix:") {
		d.at(v.StartOffset, "admin.socket serves /metrics too", "admin.metrics %q: it must be a TCP address", clip(s))
		return
	}
	address, msg, hint := checkListen(s)
	if msg != "" {
		d.at(v.StartOffset, hint, "admin.metrics %q: %s", clip(s), msg)
		return
	}
	a.Metrics = address
}

// adminGroup decodes admin.group. Whether there is such a group is for the
// system to say where the program runs.
func (d *decoder) adminGroup(v *hujson.Value, a *Admin) {
	if lit, ok := v.Value.(hujson.Literal); ok && lit.Kind() == '0' {
		d.at(v.StartOffset, fmt.Sprintf("did you mean %q?", lit.String()), "admin.group must be a string, not a number")
		return
	}
	s, ok := d.stringOf(v, "admin.group")
	if !ok {
		return
	}
	gid, err := strconv.ParseUint(s, 10, 32)
	switch {
	case s == "":
		d.at(v.StartOffset, "leave it out to let nobody but its user in", "admin.group is empty")
	case strings.Trim(s, "0123456789") == "" && (err != nil || gid == math.MaxUint32): // that number means none (chown(2))
		d.at(v.StartOffset, "", "admin.group: %s is not the number of a group", clip(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r == ':' || r == '/' || unicode.IsSpace(r) || unicode.IsControl(r) }):
		d.at(v.StartOffset, "", "admin.group: %q is neither the name nor the number of a group", clip(s))
	default:
		a.Group = s
	}
}
