package metrics

import (
	"math"
	"strconv"
	"strings"
)

// Type is the kind of a family.
type Type string

// The types of families.
const (
	Counter       Type = "counter" // never shrinks; its name ends in _total
	Gauge         Type = "gauge"
	HistogramType Type = "histogram"
)

// Family is a named set of numbers that differ by their labels. A histogram
// has the label le beside its own.
type Family struct {
	Name   string
	Type   Type
	Help   string
	Labels []string
}

// encoder appends families to b.
type encoder struct {
	b []byte
	f *Family
	// latency and overhead are the values of the label le.
	latency, overhead []string
}

// bucketLabels are the values of the label le for buckets with the bounds.
func bucketLabels(bounds []float64) []string {
	le := make([]string, 0, len(bounds)+1)
	for _, bound := range bounds {
		le = append(le, strconv.FormatFloat(bound, 'g', -1, 64))
	}
	return append(le, "+Inf")
}

// begin writes what stands before the samples of a family.
func (e *encoder) begin(f *Family) {
	e.f = f
	e.b = append(e.b, "# HELP "...)
	e.b = append(e.b, f.Name...)
	e.b = append(e.b, ' ')
	e.b = appendEscaped(e.b, f.Help, false)
	e.b = append(e.b, "\n# TYPE "...)
	e.b = append(e.b, f.Name...)
	e.b = append(e.b, ' ')
	e.b = append(e.b, f.Type...)
	e.b = append(e.b, '\n')
}

// sample writes one number of the family. values are those of its labels.
func (e *encoder) sample(v float64, values ...string) {
	e.line("", "", v, values)
}

// count is sample for whole numbers.
func (e *encoder) count(v uint64, values ...string) {
	e.line("", "", float64(v), values)
}

// occurred writes the counts that are not zero. word[i] is the value of the
// last label for counts[i]; the first word is that of nothing to count.
func (e *encoder) occurred(counts []uint64, words []string, first string) {
	for i := 1; i < min(len(counts), len(words)); i++ {
		if counts[i] != 0 {
			e.count(counts[i], first, words[i])
		}
	}
}

// histogram writes h, whose buckets have the labels le. The count is the sum
// of what was read of the buckets, so that both always agree.
func (e *encoder) histogram(h *Histogram, le []string, values ...string) {
	var sum uint64
	for i, le := range le {
		if i < len(h.Counts) {
			sum += h.Counts[i]
		}
		e.line("_bucket", le, float64(sum), values)
	}
	e.line("_sum", "", h.Sum, values)
	e.line("_count", "", float64(sum), values)
}

func (e *encoder) line(suffix, le string, v float64, values []string) {
	b := append(e.b, e.f.Name...)
	b = append(b, suffix...)
	open := byte('{')
	for i, value := range values {
		b = append(b, open)
		open = ','
		b = append(b, e.f.Labels[i]...)
		b = append(b, '=', '"')
		b = appendEscaped(b, value, true)
		b = append(b, '"')
	}
	if le != "" {
		b = append(b, open)
		open = ','
		b = append(b, `le="`...)
		b = append(b, le...)
		b = append(b, '"')
	}
	if open == ',' {
		b = append(b, '}')
	}
	b = append(b, ' ')
	b = appendValue(b, v)
	e.b = append(b, '\n')
}

// exactMax bounds the whole numbers that a float64 tells apart.
const exactMax = 1 << 53

// appendValue writes whole numbers as such, which is shorter and faster.
func appendValue(b []byte, v float64) []byte {
	if v == math.Trunc(v) && math.Abs(v) < exactMax {
		return strconv.AppendInt(b, int64(v), 10)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

// appendEscaped writes a text as the format wants it in a help line, or
// between quotation marks. Bytes that are no UTF-8 are replaced.
func appendEscaped(b []byte, s string, quoted bool) []byte {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, '\\', '\\')
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '"' && quoted:
			b = append(b, '\\', '"')
		default:
			b = append(b, c)
		}
	}
	return b
}
