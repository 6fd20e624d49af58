package worker

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// collector decides when garbage is collected.
//
// It holds the collection back while handshakes queue. One allocates about
// 29 KB, so thousands make some five collections necessary, and each takes turns
// of milliseconds with the loop's where both share a CPU: that is what requests
// on established connections would wait for. The garbage of a storm is collected
// and given back when it is over. What bounds it meanwhile is the runtime's
// memory limit, at which it collects all the same.
//
// That limit is limits.memory, but never so low that the heap may not double
// between two collections. The runtime keeps to a limit that what is in use comes
// near to, or goes beyond, by collecting without end, which frees nothing: 3,000
// handshakes that do not go on made each other one cost four times the CPU.
type collector struct {
	asked  atomic.Bool   // of the loop: to hold it back
	limit  atomic.Int64  // limits.memory
	change chan struct{} // there is something new to look at
	held   bool
	usual  int // percent that is to be restored
}

// newCollector returns a collector, which works as long as the process.
func newCollector() *collector {
	c := &collector{change: make(chan struct{}, 1)}
	c.limit.Store(math.MaxInt64)
	go func() {
		for range c.change {
			c.obey()
		}
	}()
	c.watch()
	return c
}

// storm is told by the loop that a storm began or is over. It does not wait.
func (c *collector) storm(on bool) {
	c.asked.Store(on)
	c.look()
}

// allow is told what limits.memory is. It does not wait.
func (c *collector) allow(bytes int) {
	c.limit.Store(int64(bytes))
	c.look()
}

// look has the state looked at soon.
func (c *collector) look() {
	select {
	case c.change <- struct{}{}:
	default: // not looked at yet
	}
}

// watch has the state looked at after each collection.
func (c *collector) watch() {
	runtime.AddCleanup(new([16]byte), func(c *collector) {
		c.look()
		c.watch()
	}, c)
}

// obey does what is asked for, unless that is so already.
func (c *collector) obey() {
	debug.SetMemoryLimit(max(c.limit.Load(), doubled()))
	on := c.asked.Load()
	if on == c.held {
		return
	}
	c.held = on
	if on {
		// Not -1, which waits for a collection under way.
		c.usual = debug.SetGCPercent(math.MaxInt32)
		return
	}
	debug.SetGCPercent(c.usual)
	debug.FreeOSMemory()
}

// doubled is what the runtime takes when the heap that the last collection has
// left doubles.
func doubled() int64 {
	const live = "/gc/heap/live:bytes"
	list := []metrics.Sample{
		{Name: live}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
	}
	metrics.Read(list)
	heap, others := int64(list[0].Value.Uint64()), int64(list[1].Value.Uint64())
	for _, s := range list[2:] {
		others -= int64(s.Value.Uint64())
	}
	return others + 2*heap
}
