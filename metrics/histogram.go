package metrics

// Histogram is how often a duration fell between two bounds.
type Histogram struct {
	// Counts has an element per bound and one for what lies beyond the last.
	// None counts those before it too.
	Counts []uint64
	Sum    float64 // of all durations, in seconds
}

// Count is the number of durations.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Quantile estimates the duration in seconds that the share q (0 to 1) of all
// does not exceed, as if they were spread evenly between the bounds. It is the
// last bound for what lies beyond that, and 0 if there are none.
func (h *Histogram) Quantile(bounds []float64, q float64) float64 {
	rank := q * float64(h.Count())
	if rank == 0 || len(bounds) == 0 {
		return 0
	}
	var below, lower float64
	for i, bound := range bounds {
		n := float64(h.Counts[i])
		if n > 0 && below+n >= rank {
			return lower + (bound-lower)*(rank-below)/n
		}
		below += n
		lower = bound
	}
	return lower
}
