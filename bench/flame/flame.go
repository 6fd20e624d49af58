// Package flame draws where a program spent its time: it reads the samples
// that perf script(1) prints and writes a flame graph, an SVG image in which a
// function is as wide as its share of the samples and stands on its caller.
package flame

import (
	"bufio"
	"cmp"
	"fmt"
	"html"
	"io"
	"maps"
	"slices"
	"strings"
)

// A Frame is a function, and what its samples were spent in.
type Frame struct {
	Name   string
	Kernel bool
	Count  int // samples in the function or in what it called
	calls  map[string]*Frame
}

func (f *Frame) call(name string, kernel bool) *Frame {
	c := f.calls[name]
	if c == nil {
		c = &Frame{Name: name, Kernel: kernel}
		if f.calls == nil {
			f.calls = map[string]*Frame{}
		}
		f.calls[name] = c
	}
	c.Count++
	return c
}

// Calls are the functions that f called, by name.
func (f *Frame) Calls() []*Frame {
	return slices.SortedFunc(maps.Values(f.calls), func(a, b *Frame) int { return cmp.Compare(a.Name, b.Name) })
}

// Shares are the shares of the samples that were taken in the kernel, and in
// Go's runtime and library.
func (f *Frame) Shares() (kernel, library float64) {
	counts := map[string]int{}
	f.own(counts)
	return float64(counts[classKernel]) / float64(f.Count), float64(counts[classLibrary]) / float64(f.Count)
}

// own counts the samples of each class that were taken in f itself, and so on.
func (f *Frame) own(counts map[string]int) {
	n := f.Count
	for _, c := range f.calls {
		n -= c.Count
		c.own(counts)
	}
	counts[f.class()] += n
}

// depth is the number of levels that have at least min samples.
func (f *Frame) depth(min int) int {
	n := 0
	for _, c := range f.calls {
		if c.Count >= min {
			n = max(n, c.depth(min))
		}
	}
	return n + 1
}

// Read reads the output of perf script with the fields comm, tid, ip and sym:
// for each sample a line with the thread, the frames of its stack behind a tab
// each, the innermost first, and an empty line. The root is the program.
func Read(r io.Reader) (*Frame, error) {
	root := &Frame{Name: "all"}
	var stack []string // as printed
	end := func() {
		at := root
		at.Count++
		for _, line := range slices.Backward(stack) {
			address, name, _ := strings.Cut(line, " ")
			at = at.call(name, len(address) == 16 && strings.HasPrefix(address, "ffff"))
		}
		stack = stack[:0]
	}
	in := bufio.NewScanner(r)
	inSample := false
	for in.Scan() {
		line := in.Text()
		frame, isFrame := strings.CutPrefix(line, "\t")
		switch {
		case line == "":
			if inSample {
				end()
			}
			inSample = false
		case !isFrame:
			inSample = true
		case !inSample:
			return nil, fmt.Errorf("a frame outside of a sample: %q", line)
		default:
			stack = append(stack, strings.TrimSpace(frame))
		}
	}
	if inSample {
		end()
	}
	if in.Err() == nil && root.Count == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return root, in.Err()
}

// The image, in pixels.
const (
	width      = 1200
	rowHeight  = 16
	titleSpace = 40
	// letter is about the width of one in the font below.
	letter = 6.6
	// narrowest functions are left out.
	narrowest = 0.6
)

// SVG writes the graph. Functions of the kernel, of Go's runtime and library,
// and all others are told apart by colour.
func SVG(w io.Writer, root *Frame, title string) error {
	out := bufio.NewWriter(w)
	min := int(narrowest*float64(root.Count)/width) + 1
	height := titleSpace + root.depth(min)*rowHeight
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="monospace" font-size="11">
<style>rect{stroke:#fff;stroke-width:.5}.k{fill:#f2b880}.g{fill:#a9cbe8}.u{fill:#9fd39b}text{pointer-events:none}rect:hover{stroke:#000}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="4" y="15" font-size="14">%s</text>
<text x="4" y="31">%d samples. Kernel: orange. Go's runtime and library: blue. Everything else: green.</text>
`, width, height, html.EscapeString(title), root.Count)
	draw(out, root, 0, height-rowHeight, float64(width)/float64(root.Count), min)
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}

// draw draws f with its left edge after x samples, and what it called above.
func draw(out io.Writer, f *Frame, x, y int, perSample float64, min int) {
	left, wide := float64(x)*perSample, float64(f.Count)*perSample
	fmt.Fprintf(out, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s: %.2f %%</title></rect>`,
		f.class(), left, y, wide, rowHeight, html.EscapeString(f.Name), 100*wide/width)
	if fits := int((wide - 4) / letter); fits >= 3 {
		name := f.short()
		if len(name) > fits {
			name = name[:fits-2] + ".."
		}
		fmt.Fprintf(out, `<text x="%.1f" y="%d">%s</text>`, left+2, y+rowHeight-4, html.EscapeString(name))
	}
	fmt.Fprintln(out)
	for _, c := range f.Calls() {
		if c.Count >= min {
			draw(out, c, x, y-rowHeight, perSample, min)
		}
		x += c.Count
	}
}

// short is the name without the folder of its package.
func (f *Frame) short() string {
	pkg, _, _ := strings.Cut(f.Name, "(")
	return f.Name[strings.LastIndexByte(pkg, '/')+1:]
}

// Classes of functions, as the image names them.
const (
	classKernel  = "k"
	classLibrary = "g"
	classOther   = "u"
)

func (f *Frame) class() string {
	if f.Kernel {
		return classKernel
	}
	for _, of := range []string{"runtime.", "internal/", "crypto/", "syscall.", "sync", "gcWriteBarrier", "memeqbody", "indexbytebody"} {
		if strings.HasPrefix(f.Name, of) {
			return classLibrary
		}
	}
	return classOther
}
