package loop_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/stretchr/testify/require"
)

const tick = int64(loop.Tick)

// naive is the reference: what should still fire, by the timer's name.
type naive map[uint32]int64

func TestWheelAgainstReference(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		now := rng.Int64N(1 << 50)
		w := loop.NewWheel(now)
		timers := make([]loop.Timer, 200)
		want := naive{}
		asked := map[uint32]int64{} // when Schedule was called
		for i := range timers {
			timers[i].User = uint32(i)
		}
		lastDue := int64(0)
		fire := func(tm *loop.Timer) {
			id := tm.User
			at, ok := want[id]
			require.True(t, ok, "seed %d: timer %d fired unasked", seed, id)
			require.False(t, tm.Scheduled())
			require.GreaterOrEqual(t, now, at, "seed %d: timer %d is early", seed, id)
			due := max(at, asked[id])
			require.GreaterOrEqual(t, due+2*tick, lastDue, "seed %d: order", seed)
			lastDue = max(lastDue, due)
			delete(want, id)
			switch other := &timers[rng.IntN(len(timers))]; rng.IntN(6) {
			case 0:
				want[id], asked[id] = now+rng.Int64N(1<<34), now
				w.Schedule(tm, want[id])
			case 1:
				w.Stop(other)
				delete(want, other.User)
			case 2:
				want[other.User], asked[other.User] = now, now
				w.Schedule(other, now)
			}
		}
		for range 3000 {
			switch rng.IntN(4) {
			case 0, 1:
				tm := &timers[rng.IntN(len(timers))]
				at := now + rng.Int64N(1<<rng.IntN(48)) - 2*tick
				want[tm.User], asked[tm.User] = at, now
				w.Schedule(tm, at)
				require.True(t, tm.Scheduled())
			case 2:
				tm := &timers[rng.IntN(len(timers))]
				w.Stop(tm)
				require.False(t, tm.Scheduled())
				delete(want, tm.User)
			case 3:
				if rng.IntN(4) == 0 { // as a loop does
					if d := w.Next(now); d >= 0 {
						now += int64(d)
					}
				} else {
					now += rng.Int64N(1 << rng.IntN(40))
				}
				lastDue = 0
				w.Advance(now, fire)
			}
			require.Equal(t, len(want), w.Len(), "seed %d", seed)
			next := w.Next(now)
			for id, at := range want {
				due := max(at, asked[id])
				if next < 0 || now+int64(next) > due+2*tick {
					t.Fatalf("seed %d: Next sleeps through timer %d", seed, id)
				}
				if now-due >= 2*tick {
					t.Fatalf("seed %d: timer %d is late", seed, id)
				}
			}
		}
	}
}

func TestWheelEmpty(t *testing.T) {
	w := loop.NewWheel(5)
	require.Equal(t, time.Duration(-1), w.Next(5))
	w.Advance(math.MaxInt64, func(*loop.Timer) { t.Fatal("nothing to fire") })
	require.Equal(t, time.Duration(-1), w.Next(math.MaxInt64))
	var tm loop.Timer
	w.Stop(&tm)
	require.Zero(t, w.Len())
}

func TestWheelFarthest(t *testing.T) {
	w := loop.NewWheel(0)
	var tm loop.Timer
	at := int64(math.MaxInt64 - 10*tick)
	w.Schedule(&tm, at)
	fired := false
	w.Advance(at-tick, func(*loop.Timer) { fired = true })
	require.False(t, fired)
	w.Advance(at+tick, func(*loop.Timer) { fired = true })
	require.True(t, fired)
}

// A timer that schedules itself for the past must not keep Advance busy for
// every tick of a pause.
func TestWheelReschedulesAfterPause(t *testing.T) {
	w := loop.NewWheel(0)
	var tm loop.Timer
	fired := 0
	w.Schedule(&tm, 1)
	w.Advance(int64(time.Hour), func(tm *loop.Timer) {
		fired++
		w.Schedule(tm, 0)
	})
	require.Equal(t, 1, fired)
	w.Advance(int64(time.Hour)+tick, func(*loop.Timer) { fired++ })
	require.Equal(t, 2, fired)
}

// Waiting as Next says needs few wake-ups, however far the timer is.
func TestWheelWakeUps(t *testing.T) {
	w := loop.NewWheel(12345678)
	var tm loop.Timer
	now := int64(12345678)
	at := now + int64(37*time.Hour)
	w.Schedule(&tm, at)
	wakes, fired := 0, false
	for !fired {
		now += int64(w.Next(now))
		w.Advance(now, func(*loop.Timer) { fired = true })
		wakes++
	}
	require.LessOrEqual(t, wakes, 7)
	require.GreaterOrEqual(t, now, at)
	require.Less(t, now, at+tick)
}

func TestWheelManyTimers(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	w := loop.NewWheel(0)
	timers := make([]loop.Timer, 100_000)
	for i := range timers {
		timers[i].User = uint32(i)
		w.Schedule(&timers[i], rng.Int64N(int64(2*time.Minute)))
	}
	fired, now := 0, int64(0)
	for w.Len() > 0 {
		now += int64(w.Next(now))
		w.Advance(now, func(*loop.Timer) { fired++ })
	}
	require.Equal(t, len(timers), fired)

	for i := range timers {
		w.Schedule(&timers[i], now+rng.Int64N(int64(2*time.Minute)))
	}
	w.Advance(now+int64(10*time.Hour), func(*loop.Timer) { fired++ })
	require.Equal(t, 2*len(timers), fired)
}

func TestWheelAllocatesNothing(t *testing.T) {
	w := loop.NewWheel(0)
	timers := make([]loop.Timer, 100)
	now := int64(0)
	fire := func(*loop.Timer) {}
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		for i := range timers {
			w.Schedule(&timers[i], now+int64(i)*1e9)
		}
		w.Stop(&timers[50])
		now += int64(w.Next(now)) + 50*tick
		w.Advance(now, fire)
	}))
}

func BenchmarkWheel(b *testing.B) {
	w := loop.NewWheel(0)
	timers := make([]loop.Timer, 1024)
	fire := func(*loop.Timer) {}
	b.ReportAllocs()
	for i := range b.N {
		now := int64(i) * 1000
		w.Schedule(&timers[i%len(timers)], now+int64(time.Minute))
		if i%64 == 0 {
			w.Advance(now, fire)
		}
	}
}
