package worker

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The collector is held back in a storm, and goes on at its usual pace after it.
func TestCollector(t *testing.T) {
	usual := debug.SetGCPercent(70)
	defer debug.SetGCPercent(usual)
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	c := &collector{change: make(chan struct{}, 1)}
	for range 2 {
		c.storm(true)
		c.storm(true) // waits for nobody
		<-c.change
		c.obey()
		c.obey()
		require.Equal(t, math.MaxInt32, debug.SetGCPercent(math.MaxInt32))
		c.storm(false)
		<-c.change
		c.obey()
		require.Equal(t, 70, debug.SetGCPercent(70))
	}
}

// The memory limit is the one that was asked for, while the heap that is in use
// may double within it.
func TestCollectorLeavesRoom(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	is := func(what string, ok func(limit int64) bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			runtime.GC()
			return ok(debug.SetMemoryLimit(-1))
		}, time.Minute, time.Millisecond, what)
	}
	const asked, inUse = 48 << 20, 64 << 20
	c := newCollector()
	c.allow(asked)
	is("as asked", func(limit int64) bool { return limit == asked })
	heap := make([]byte, inUse)
	is("twice what is in use", func(limit int64) bool { return limit > 2*inUse })
	runtime.KeepAlive(heap)
	is("as asked again", func(limit int64) bool { return limit == asked })
	c.allow(math.MaxInt64)
	is("none, for the tests that follow", func(limit int64) bool { return limit == math.MaxInt64 })
}
