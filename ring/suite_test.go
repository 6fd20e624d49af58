package ring

import (
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/loop"
)

func TestEngine(t *testing.T) {
	everyTier(t, func(t *testing.T, c Config) {
		looptest.Run(t, func(p *loop.Pool) (loop.Engine, error) {
			c.Pool = p
			return Open(c)
		})
	})
}
