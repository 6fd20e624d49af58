package config

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is one mistake in a configuration.
type Error struct {
	File string
	Line int    // from 1
	Col  int    // from 1, counted in characters (code points)
	Msg  string // what is wrong
	Hint string // what may help, or empty; the rest of the sentence
	// Source is the line of the text, or the part of it around the mistake
	// if it is long; Caret is as many columns wide, up to and including the
	// mark under the mistake.
	Source, Caret string
}

// Error formats e as "file:line:col: message; hint", followed by the source
// line and a caret below the place.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: %s", e.File, e.Line, e.Col, e.Msg)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	b.WriteString("\n  " + e.Source + "\n  " + e.Caret)
	return b.String()
}

// Errors are all mistakes of a configuration in the order of their places.
type Errors []*Error

// errorsShown bounds the text of Errors; the slice holds all of them.
const errorsShown = 100

// Error is the text of the errors, one below the other.
func (list Errors) Error() string {
	var b strings.Builder
	for i, e := range list {
		if i == errorsShown {
			fmt.Fprintf(&b, "\nand %d more", len(list)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
	}
	return b.String()
}

// Unwrap gives errors.As and errors.Is the single errors.
func (list Errors) Unwrap() []error {
	all := make([]error, len(list))
	for i, e := range list {
		all[i] = e
	}
	return all
}

// mistake is an Error before its place is looked up.
type mistake struct {
	offset    int
	msg, hint string
}

// lines finds lines by offsets. It is built when it is first asked.
type lines struct {
	text   []byte
	starts []int
}

// find is the number, from 1, and the start of the line that holds offset.
func (l *lines) find(offset int) (line, start int) {
	line = sort.SearchInts(l.all(), offset+1)
	return line, l.starts[line-1]
}

// all is where each line starts.
func (l *lines) all() []int {
	if l.starts == nil {
		l.starts = append(l.starts, 0)
		for i, c := range l.text {
			if c == '\n' {
				l.starts = append(l.starts, i+1)
			}
		}
	}
	return l.starts
}

// errors are the mistakes found, sorted by their places; nil if there is none.
func (d *decoder) errors() error {
	if len(d.found) == 0 {
		return nil
	}
	slices.SortStableFunc(d.found, func(a, b mistake) int { return a.offset - b.offset })
	list := make(Errors, 0, len(d.found))
	last, col, counted := 0, 1, 0
	for _, m := range d.found {
		line, start := d.lines.find(m.offset)
		if line != last {
			last, col, counted = line, 1, start
		}
		col, counted = col+utf8.RuneCount(d.text[counted:m.offset]), m.offset
		source, caret := excerpt(d.text, start, m.offset)
		list = append(list, &Error{
			File: d.name, Line: line, Col: col, Msg: m.msg, Hint: m.hint,
			Source: source, Caret: caret,
		})
	}
	return list
}

// Characters shown of a long line, and those of them before a mistake.
const (
	excerptMax    = 140
	excerptBefore = 80
)

// excerpt is the line of text that begins at start as it may be shown on a
// terminal, and the line with the caret below offset.
func excerpt(text []byte, start, offset int) (source, caret string) {
	var s, c strings.Builder
	from := start
	// A line may have megabytes: nothing looks farther than it has to.
	if line := cutLine(text[start:], excerptMax+1); utf8.RuneCount(line) > excerptMax {
		from = offset
		for n := 0; n < excerptBefore && from > start; n++ {
			_, size := utf8.DecodeLastRune(text[start:from])
			from -= size
		}
	}
	if from > start {
		s.WriteString("... ")
		c.WriteString("    ")
	}
	line := cutLine(text[from:], excerptMax)
	for at := from; at < from+len(line); {
		r, n := utf8.DecodeRune(text[at:])
		if r != '\t' && !unicode.IsPrint(r) {
			r = utf8.RuneError // also what invalid bytes decode to
		}
		s.WriteRune(r)
		if at < offset {
			c.WriteString(blank(r))
		}
		at += n
	}
	if end := from + len(line); end < len(text) && text[end] != '\n' && text[end] != '\r' {
		s.WriteString(" ...")
	}
	c.WriteByte('^')
	return s.String(), c.String()
}

// cutLine is the first line of b, without its end, or the first characters of
// it.
func cutLine(b []byte, characters int) []byte {
	n := 0
	for range characters {
		if n == len(b) || b[n] == '\n' || b[n] == '\r' {
			break
		}
		_, size := utf8.DecodeRune(b[n:])
		n += size
	}
	return b[:n]
}

// blank takes as much room on a terminal as r.
func blank(r rune) string {
	switch {
	case r == '\t':
		return "\t"
	case unicode.In(r, unicode.Mn, unicode.Me):
		return ""
	case wide(r):
		return "  "
	}
	return " "
}

// wide reports whether r takes two columns (Unicode's East Asian Width W and
// F, in rough ranges).
func wide(r rune) bool {
	for _, w := range wideRanges {
		if r < w[0] {
			return false
		}
		if r <= w[1] {
			return true
		}
	}
	return false
}

var wideRanges = [][2]rune{
	{0x1100, 0x115F}, {0x231A, 0x231B}, {0x23E9, 0x23EC}, {0x2E80, 0x303E},
	{0x3041, 0xA4CF}, {0xA960, 0xA97C}, {0xAC00, 0xD7A3}, {0xF900, 0xFAFF},
	{0xFE30, 0xFE6F}, {0xFF00, 0xFF60}, {0xFFE0, 0xFFE6}, {0x16FE0, 0x18CFF},
	{0x1B000, 0x1B2FF}, {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF},
	{0x1FA70, 0x1FAFF}, {0x20000, 0x3FFFD},
}

// didYouMean is a hint with the candidate nearest to word, or empty if none is
// near.
func didYouMean(word string, candidates []string) string {
	best, least := "", len(word)/3+1
	for _, c := range candidates {
		if n := distance(word, c, least); n <= least {
			if n < least || best == "" {
				best, least = c, n
			}
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b, without regard to case, or more than limit.
func distance(a, b string, limit int) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if abs(len(a)-len(b)) > limit {
		return limit + 1
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}
