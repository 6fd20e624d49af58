package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// resamples and resampleSeed make the interval of a median: the same runs always
// have the same one.
const (
	resamples    = 2000
	resampleSeed = 1
	confidence   = 0.95
)

// spread is the median of a run's figures with the interval that bootstrap gives
// it.
type spread struct{ median, low, high float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	low, high := bootstrap(values)
	return spread{medianOf(slices.Clone(values)), low, high}
}

// medianOf sorts the values.
func medianOf(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

func geometricMean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}

// bootstrap is the interval in which the median of values lies with the
// probability confidence: that of the medians of samples drawn from them, as
// many values each, with replacement (the percentile bootstrap). The order of
// values plays no part.
func bootstrap(values []float64) (low, high float64) {
	values = slices.Sorted(slices.Values(values))
	rng := rand.New(rand.NewPCG(resampleSeed, 0))
	medians, sample := make([]float64, resamples), make([]float64, len(values))
	for i := range medians {
		for k := range sample {
			sample[k] = values[rng.IntN(len(values))]
		}
		medians[i] = medianOf(sample)
	}
	slices.Sort(medians)
	cut := int(resamples * (1 - confidence) / 2)
	return medians[cut], medians[resamples-1-cut]
}
