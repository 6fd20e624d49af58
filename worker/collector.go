package worker

import (
	"math"
	"runtime/debug"
	"sync/atomic"
)

// collector holds the collection of garbage back while handshakes queue. One
// allocates about 29 KB, so thousands make some five collections necessary, and
// each takes turns of milliseconds with the loop where both share a CPU: that is
// what requests on established connections would wait for. The garbage of a
// storm is collected and given back when it is over. What bounds it meanwhile is
// the runtime's memory limit (see apply), at which it collects all the same.
type collector struct {
	asked  atomic.Bool   // of the loop: to hold it back
	change chan struct{} // there is something new in asked
	held   bool
	usual  int // percent that is to be restored
}

// newCollector returns a collector, which works as long as the process.
func newCollector() *collector {
	c := &collector{change: make(chan struct{}, 1)}
	go func() {
		for range c.change {
			c.obey()
		}
	}()
	return c
}

// storm is told by the loop that a storm began or is over. It does not wait.
func (c *collector) storm(on bool) {
	c.asked.Store(on)
	select {
	case c.change <- struct{}{}:
	default: // not looked at yet
	}
}

// obey does what is asked for, unless that is so already.
func (c *collector) obey() {
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
