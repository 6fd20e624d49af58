package epollfallback_test

import (
	"testing"

	"github.com/cloud-cup/cloud-cup/epollfallback"
	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/loop"
)

func open(pool *loop.Pool) (loop.Engine, error) {
	return epollfallback.Open(epollfallback.Config{Pool: pool})
}

func TestEngine(t *testing.T) { looptest.Run(t, open) }
