package worker

import (
	"math"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

// The collector is held back in a storm, and goes on at its usual pace after it.
func TestCollector(t *testing.T) {
	usual := debug.SetGCPercent(70)
	defer debug.SetGCPercent(usual)
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
