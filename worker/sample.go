package worker

import (
	"runtime"
	"runtime/metrics"

	"github.com/cloud-cup/cloud-cup/message"
)

// sample brings the counters up to date that are not kept per event. It returns
// when the loop has written them.
func (w *worker) sample() error {
	objects := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}, {Name: "/gc/heap/tiny/allocs:objects"}}
	metrics.Read(objects)
	allocated := objects[0].Value.Uint64() + objects[1].Value.Uint64()
	goroutines := uint64(runtime.NumGoroutine())
	return w.onLoop(func() {
		stats := w.engine.Stats()
		w.counters.Waits = stats.Waits
		w.counters.Calls = stats.Calls
		w.counters.BuffersLent = uint64(w.pool.Lent())
		w.counters.BuffersMapped = uint64(w.pool.Mapped())
		w.counters.HeapObjects = allocated
		w.counters.Goroutines = goroutines
	})
}

// ReasonWords are the words of the reasons that shm.Totals.Reasons counts, by
// index.
func ReasonWords() []string {
	words := []string{message.ReasonNone.String()}
	for _, r := range message.Reasons() {
		words = append(words, r.String())
	}
	return words
}
