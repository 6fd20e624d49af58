// Package looptest holds every engine to the contract of package loop: Run is
// the suite that both pass, and Faulty an engine around another that behaves
// as badly as the contract permits, for tests of what stands above.
//
// Short forms of the long tests run by default; CUP_LONG=1 in the environment
// asks for the full ones.
package looptest

import (
	"os"
	"testing"

	"github.com/cloud-cup/cloud-cup/loop"
)

// long reports whether the full forms of the long tests were asked for.
func long() bool { return os.Getenv("CUP_LONG") == "1" }

// part is one test of the suite, and the memory of its pool.
type part struct {
	name   string
	memory int
	run    func(*rig)
}

// Run runs the suite on the engine that open returns. It is called once for
// every kind of engine; open is called once for each test.
func Run(t *testing.T, open func(*loop.Pool) (loop.Engine, error)) {
	for _, test := range []part{
		{"accept", 8 << 20, testAccept},
		{"accept in order", 8 << 20, testAcceptOrder},
		{"accept without descriptors", 8 << 20, testAcceptEMFILE},
		{"accept cancelled", 8 << 20, testAcceptCancel},
		{"connect", 8 << 20, testConnect},
		{"connect fails", 8 << 20, testConnectFails},
		{"connect cancelled", 8 << 20, testConnectCancel},
		{"connect reset", 8 << 20, testConnectReset},
		{"unix sockets", 8 << 20, testUnix},
		{"receive", 8 << 20, testRecv},
		{"receive cancelled", 8 << 20, testRecvCancel},
		{"receive reset", 8 << 20, testRecvReset},
		{"receive urgent data", 8 << 20, testRecvUrgent},
		{"receive series", 8 << 20, testMulti},
		{"receive series ends", 8 << 20, testMultiEnds},
		{"receive series hides nothing", 8 << 20, testMultiWhole},
		{"data and the end at once", 8 << 20, testDataThenEnd},
		{"data and a reset at once", 8 << 20, testDataThenReset},
		{"half-close", 8 << 20, testHalfClose},
		{"shutdown ends operations, last words arrive", 8 << 20, testShutdown},
		{"abort", 8 << 20, testAbort},
		{"send", 8 << 20, testSend},
		{"send to a slow reader", 8 << 20, testSendSlow},
		{"send cancelled", 8 << 20, testSendCancel},
		{"send reset", 8 << 20, testSendReset},
		{"both directions", 8 << 20, testBothDirections},
		{"pipes", 8 << 20, testPipe},
		{"pipes run out", 8 << 20, testPipesRunOut},
		{"pipes cancelled", 8 << 20, testPipeCancel},
		{"pipes and resets", 8 << 20, testPipeReset},
		{"pipes and urgent data", 8 << 20, testPipeUrgent},
		{"pipes and signals", 8 << 20, testPipeSignals},
		{"unsent", 8 << 20, testUnsent},
		{"quiet", 8 << 20, testQuiet},
		{"buffers run out", 2 * loop.HeadBytes, testBuffersRunOut},
		{"buffers run out for series", 2 * loop.HeadBytes, testBuffersRunOutMulti},
		{"starved receive cancelled", 2 * loop.HeadBytes, testStarvedCancel},
		{"greedy peer", 64 << 20, testGreedy},
		{"descriptor used again", 8 << 20, testReuse},
		{"descriptor used again inside deliver", 8 << 20, testReuseInDeliver},
		{"descriptor shared", 8 << 20, testShared},
		{"attach", 8 << 20, testAttach},
		{"wake", 8 << 20, testWake},
		{"waiting", 8 << 20, testWaiting},
		{"broken contract", 8 << 20, testBroken},
		{"close with operations in flight", 8 << 20, testCloseBusy},
		{"allocations", 8 << 20, testAllocations},
		{"random", 4 << 20, testRandom},
		{"connections that come and go", 8 << 20, testChurn},
		{"many connections", 64 << 20, testMany},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(newRig(t, open, test.memory)) })
	}

	// The faulty engine keeps the contract too.
	for _, test := range []part{
		{"accept in order", 8 << 20, testAcceptOrder},
		{"receive series ends", 8 << 20, testMultiEnds},
		{"data and the end at once", 8 << 20, testDataThenEnd},
		{"send to a slow reader", 8 << 20, testSendSlow},
		{"both directions", 8 << 20, testBothDirections},
		{"pipes", 8 << 20, testPipe},
		{"random", 4 << 20, testRandom},
	} {
		t.Run("harmless faults/"+test.name, func(t *testing.T) { test.run(newRig(t, faulty(t, open, Harmless), test.memory)) })
	}
	t.Run("harmful faults/random", func(t *testing.T) { testRandom(newRig(t, faulty(t, open, Harmful), 4<<20)) })
}

// faulty opens the engine under test in a faulty one.
func faulty(t *testing.T, open opener, rates Rates) opener {
	return func(pool *loop.Pool) (loop.Engine, error) {
		e, err := open(pool)
		if err != nil {
			return nil, err
		}
		f := Faulty(e, newSeed(t))
		f.Rates = rates
		return f, nil
	}
}
