package worker

import (
	"runtime"

	"github.com/cloud-cup/cloud-cup/message"
)

// sample brings the counters up to date that are not kept per event. It returns
// when the loop has written them. The heap's are exact, unlike those of
// runtime/metrics, which miss what was allocated from spans in use; that stops
// the loop for some tens of microseconds.
func (w *worker) sample() error {
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	goroutines := uint64(runtime.NumGoroutine())
	return w.onLoop(func() {
		w.proxy.Publish()
		w.counters.HeapObjects = heap.Mallocs
		w.proxy.FlushLogs()
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
