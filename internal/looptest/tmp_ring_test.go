package looptest_test

import (
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/ring"
)

func TestRing(t *testing.T) {
	looptest.Run(t, func(p *loop.Pool) (loop.Engine, error) { return ring.Open(ring.Config{Pool: p}) })
}
