package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// widthUnknown is that of a terminal that does not tell.
const widthUnknown = 80

// columnMin is how narrow a column may become before a table exceeds the
// terminal.
const columnMin = 8

// screen is where tables go to.
type screen struct {
	out   io.Writer
	width int  // in characters; 0: as wide as it takes
	color bool // states may be painted
}

// screenOf describes out: what is no terminal gets neither colour nor line
// breaks, so that other programs can read it. COLUMNS says otherwise.
func screenOf(out io.Writer) *screen {
	s := &screen{out: out}
	if file, ok := out.(*os.File); ok {
		fd := int(file.Fd())
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			s.width, s.color = widthUnknown, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
			if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil && size.Col > 0 {
				s.width = int(size.Col)
			}
		}
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	return s
}

// Colours of states, as SGR parameters (ECMA-48 8.3.117).
var colors = map[string]string{
	"running": "32", "up": "32", "green": "32", "yes": "32",
	"starting": "33", "draining": "33", "drain": "33", "trial": "33", "unknown": "33",
	"waiting": "31", "stuck": "31", "out": "31", "disabled": "31", "unresolved": "31", "red": "31", "no": "31",
}

// paint colours a state.
func (s *screen) paint(text string) string {
	word, _, _ := strings.Cut(text, " ")
	sgr := colors[strings.TrimSuffix(word, ",")]
	if !s.color || sgr == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

// table writes rows below each other with columns two blanks apart. What does
// not fit is continued in the next line: nothing is left out. The first row
// is the head, unless it is nil.
func (s *screen) table(head []string, rows [][]string) error {
	if head != nil {
		rows = append([][]string{head}, rows...)
	}
	widths := s.fit(rows)
	for _, row := range rows {
		if err := s.row(row, widths); err != nil {
			return err
		}
	}
	return nil
}

// fit is how wide each column may be.
func (s *screen) fit(rows [][]string) []int {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for s.width > 0 && total > s.width {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= columnMin {
			break
		}
		widths[widest]--
		total--
	}
	return widths
}

// row writes one row, in several lines if it must.
func (s *screen) row(row []string, widths []int) error {
	cells := make([][]string, len(row))
	lines := 1
	for i, text := range row {
		cells[i] = wrap(text, widths[i])
		lines = max(lines, len(cells[i]))
	}
	for n := range lines {
		var b strings.Builder
		gap := 0
		for i := range cells {
			text := ""
			if n < len(cells[i]) {
				text = cells[i][n]
			}
			if text != "" {
				b.WriteString(strings.Repeat(" ", gap))
				b.WriteString(s.paint(text))
				gap = 0
			}
			gap += widths[i] - utf8.RuneCountInString(text) + 2
		}
		if _, err := fmt.Fprintln(s.out, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// text writes a paragraph, each line behind indent, the first one behind mark.
func (s *screen) text(mark, indent, paragraph string) error {
	width := len(paragraph)
	if s.width > 0 {
		width = max(s.width-max(utf8.RuneCountInString(mark), len(indent)), columnMin)
	}
	for i, line := range wrap(paragraph, width) {
		if i > 0 {
			mark = indent
		}
		if _, err := fmt.Fprintln(s.out, mark+line); err != nil {
			return err
		}
	}
	return nil
}

// wrap breaks text into lines of at most width characters, between words where
// it can. There is at least one line.
func wrap(text string, width int) []string {
	var lines []string
	rest := []rune(text)
	for len(rest) > width && width > 0 {
		end, next := width, width
		for i := width; i > 0; i-- {
			if rest[i] == ' ' {
				end, next = i, i+1
				break
			}
		}
		lines = append(lines, string(rest[:end]))
		rest = rest[next:]
	}
	return append(lines, string(rest))
}
