package balance

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/stretchr/testify/require"
)

const cooldown = int64(1000)

func members(weights ...int) []Member {
	list := make([]Member, len(weights))
	for i, w := range weights {
		list[i] = Member{Row: new(shm.BackendRow), Weight: w, MaxFailure: 3, Cooldown: cooldown}
	}
	return list
}

// pick is the member that Pick chooses.
func pick(r *RoundRobin, now int64, tried ...int16) int {
	i, _ := r.Pick(now, tried)
	return i
}

func picks(r *RoundRobin, now int64, n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = pick(r, now)
	}
	return list
}

func TestEqualWeightsTakeTurns(t *testing.T) {
	for start := range 7 {
		r := NewRoundRobin(members(1, 1, 1))
		r.Start(start)
		want := []int{start % 3, (start + 1) % 3, (start + 2) % 3}
		require.Equal(t, append(want, want...), picks(r, 0, 6), "start %d", start)
	}
}

func TestWeightsAreSpreadEvenly(t *testing.T) {
	r := NewRoundRobin(members(5, 1, 1))
	count := [3]int{}
	longest, run := 0, 0
	for _, i := range picks(r, 0, 700) {
		count[i]++
		if i == 0 {
			run++
			longest = max(longest, run)
		} else {
			run = 0
		}
	}
	require.Equal(t, [3]int{500, 100, 100}, count)
	require.LessOrEqual(t, longest, 4) // two before and two behind the border of two rounds
}

func TestConsecutiveFailuresTakeOut(t *testing.T) {
	r := NewRoundRobin(members(1, 1))
	require.False(t, r.Failed(0, 0, Refused, 0))
	require.False(t, r.Failed(0, 0, Refused, 0))
	r.Succeeded(0, 0) // not consecutive any more
	require.False(t, r.Failed(0, 0, Refused, 0))
	require.False(t, r.Failed(0, 0, Refused, 0))
	require.True(t, r.Failed(0, 0, Refused, 10))
	require.Equal(t, []int{1, 1, 1, 1}, picks(r, 10+cooldown-1, 4))
}

// workers are balancers of several workers over the same rows.
func workers(n int, list []Member) []*RoundRobin {
	all := make([]*RoundRobin, n)
	for i := range all {
		all[i] = NewRoundRobin(append([]Member(nil), list...))
	}
	return all
}

func TestOneTrialAtATime(t *testing.T) {
	list := members(1, 1)
	all := workers(4, list)
	for range 3 {
		all[0].Failed(0, 0, Refused, 0)
	}
	var lease int64
	var tries *RoundRobin
	trials := func(now int64) (n int) {
		for range 50 {
			for _, r := range all {
				i, l := r.Pick(now, nil)
				if require.Equal(t, i == 0, l != 0); i == 0 {
					lease, tries = l, r
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 1, trials(cooldown), "trials before the first one ended")

	// Requests that began before the backend was out tell nothing about the
	// trial that runs.
	all[3].Abandoned(0, 0)
	require.False(t, all[3].Failed(0, 0, Refused, cooldown+5))
	require.Zero(t, trials(2*cooldown+6))

	tries.Failed(0, lease, Refused, cooldown+10) // it starts a new cooldown
	require.Zero(t, trials(2*cooldown))
	require.Equal(t, 1, trials(2*cooldown+10))

	tries.Abandoned(0, lease) // tells nothing: the next one may try
	require.Equal(t, 1, trials(2*cooldown+10))
	require.True(t, tries.Succeeded(0, lease))
	require.False(t, tries.Succeeded(0, 0), "it is back only once")
	require.False(t, list[0].Out())
	require.Zero(t, list[0].Row.Trial.Load())
	require.Contains(t, picks(all[1], 2*cooldown+20, 2), 0)
}

// An answer to a request from before brings a backend back while a trial runs,
// whose lease must not stay for the next time.
func TestTrialOfABackendThatIsBack(t *testing.T) {
	r := NewRoundRobin(members(1))
	for range 3 {
		r.Failed(0, 0, Refused, 0)
	}
	i, lease := r.Pick(cooldown, nil)
	require.Zero(t, i)
	require.NotZero(t, lease)
	require.True(t, r.Succeeded(0, 0))
	require.False(t, r.Failed(0, lease, Refused, cooldown+1))
	require.False(t, r.Member(0).Out())
	require.Zero(t, r.Member(0).Row.Trial.Load())
}

func TestWorkersCountFailuresTogether(t *testing.T) {
	list := members(1, 1)
	list[0].MaxFailure = 5
	all := workers(4, list)
	out := 0
	for i := range 5 {
		if all[i%4].Failed(0, 0, Refused, 0) {
			out++
			require.Equal(t, 4, i)
		}
	}
	require.Equal(t, 1, out)
	for _, r := range all {
		require.Equal(t, []int{1, 1}, picks(r, 1, 2))
	}
}

func TestSharesAreExactInEveryRun(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		weights := make([]int, 1+rnd.IntN(6))
		sum := 0
		for i := range weights {
			weights[i] = 1 + rnd.IntN(9)
			sum += weights[i]
		}
		r := NewRoundRobin(members(weights...))
		r.Start(rnd.IntN(20))
		run := picks(r, 0, 3*sum)
		for i := range 2 * sum {
			count := make([]int, len(weights))
			for _, m := range run[i : i+sum] {
				count[m]++
			}
			require.Equal(t, weights, count, "picks %d to %d of %v", i, i+sum, run)
		}
	}
}

func TestAddressesShareTheWeight(t *testing.T) {
	list := members(2, 2, 1)
	list[0].Addresses, list[1].Addresses = 2, 2
	count := [3]int{}
	for _, i := range picks(NewRoundRobin(list), 0, 300) {
		count[i]++
	}
	require.Equal(t, [3]int{100, 100, 100}, count)
}

func TestWhatWasSetAtRunTime(t *testing.T) {
	r := NewRoundRobin(members(1, 1, 1))
	count := func() (count [3]int) {
		for _, i := range picks(r, 0, 600) {
			count[i]++
		}
		return count
	}
	r.Member(0).Row.WeightSet.Store(4 + 1)
	require.Equal(t, [3]int{400, 100, 100}, count())
	r.Member(0).Row.WeightSet.Store(0 + 1)
	require.Equal(t, [3]int{0, 300, 300}, count())
	r.Member(0).Row.WeightSet.Store(0)
	r.Member(1).Row.Admin.Store(shm.AdminDrain)
	require.Equal(t, [3]int{300, 0, 300}, count())
	r.Member(0).Row.Admin.Store(shm.AdminDisabled)
	require.Equal(t, [3]int{0, 0, 600}, count())
	r.Member(2).Row.Admin.Store(shm.AdminDrain)
	require.Equal(t, None, pick(r, 0))
	r.Member(0).Row.Admin.Store(shm.AdminEnabled)
	for range 9 {
		require.False(t, r.Failed(0, 0, TimedOut, 0), "it is the last one that takes requests")
	}
}

func TestFullMembersAreSkipped(t *testing.T) {
	list := members(1, 1)
	gauges := make([]shm.BackendGauges, 3)
	for i := range list {
		list[i].MaxInFlight = 2
	}
	var all []*RoundRobin
	for w := range gauges {
		for i := range list {
			list[i].Mine = &gauges[w]
		}
		all = append(all, workers(1, list)[0])
	}
	for n := range 4 {
		require.GreaterOrEqual(t, pick(all[n%3], 0), 0)
	}
	for _, r := range all {
		require.Equal(t, Full, pick(r, 0))
	}
	require.EqualValues(t, []uint64{2, 1, 1}, []uint64{gauges[0].Counted, gauges[1].Counted, gauges[2].Counted})
	require.EqualValues(t, 2, list[1].Row.InFlight.Load())
	list[0].Row.Admin.Store(shm.AdminDrain)
	require.Equal(t, Full, pick(all[0], 0))
	list[1].Row.Admin.Store(shm.AdminDrain)
	require.Equal(t, None, pick(all[0], 0), "drained is not full")
	list[1].Row.Admin.Store(shm.AdminEnabled)
	all[0].Leave(1)
	require.EqualValues(t, 1, gauges[0].Counted)
	require.Equal(t, 1, pick(all[2], 0))
	require.Equal(t, Full, pick(all[2], 0))

	// A trial of a backend that is full does not begin.
	for range 3 {
		all[0].Failed(1, 0, Refused, 0)
	}
	require.Equal(t, Full, pick(all[0], cooldown))
	require.Zero(t, list[1].Row.Trial.Load())
}

// However many workers choose at the same moment, no more exchanges are counted
// than a member may have, and one of them tries it.
func TestWorkersChooseAtTheSameTime(t *testing.T) {
	list := members(1)
	list[0].MaxInFlight = 3
	var wg sync.WaitGroup
	var most, trials atomic.Int32
	gauges := make([]shm.BackendGauges, 4)
	for w := range gauges {
		list[0].Mine = &gauges[w]
		r := NewRoundRobin(append([]Member(nil), list...))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20_000 {
				i, lease := r.Pick(cooldown, nil)
				if i < 0 {
					continue
				}
				if n := r.Member(0).Row.InFlight.Load(); n > most.Load() {
					most.Store(n)
				}
				if lease != 0 {
					if trials.Add(1) > 1 {
						t.Error("two trials at a time")
					}
					trials.Add(-1)
					r.Failed(0, lease, Refused, 0)
				} else {
					r.Failed(0, 0, Refused, 0)
				}
				r.Leave(0)
			}
		}()
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int32(3))
	require.Positive(t, most.Load())
	require.Zero(t, list[0].Row.InFlight.Load())
	for i := range gauges {
		require.Zero(t, gauges[i].Counted)
	}
}

func TestLostTrialExpires(t *testing.T) {
	r := NewRoundRobin(members(1))
	for range 3 {
		r.Failed(0, 0, Refused, 0)
	}
	require.Equal(t, 0, pick(r, cooldown))
	require.Equal(t, -1, pick(r, cooldown+trialLease-1))
	require.Equal(t, 0, pick(r, cooldown+trialLease))
}

func TestLastMemberStaysInForTimeouts(t *testing.T) {
	r := NewRoundRobin(members(1, 1))
	for range 10 {
		r.Failed(0, 0, Refused, 0)
		r.Failed(1, 0, TimedOut, 0)
	}
	require.True(t, r.Member(0).Out())
	require.False(t, r.Member(1).Out())
	require.True(t, r.Failed(1, 0, Refused, 0), "a dead one is taken out all the same")
	require.Equal(t, -1, pick(r, 1))
}

func TestZeroNeverTakesOut(t *testing.T) {
	list := members(1)
	list[0].MaxFailure = 0
	r := NewRoundRobin(list)
	for range 100 {
		require.False(t, r.Failed(0, 0, Refused, 0))
	}
	require.Equal(t, 0, pick(r, 0))
}

func TestTriedAreNotPicked(t *testing.T) {
	r := NewRoundRobin(members(1, 1, 1))
	require.Equal(t, 1, pick(r, 0, 0, 2))
	require.Equal(t, -1, pick(r, 0, 0, 1, 2))
	require.Equal(t, -1, pick(NewRoundRobin(nil), 0))
}

func TestSharesAreEvenAfterAReturn(t *testing.T) {
	r := NewRoundRobin(members(1, 1, 1))
	for range 3 {
		r.Failed(1, 0, Refused, 0)
	}
	picks(r, 1, 1000)
	require.Eventually(t, func() bool { return pick(r, cooldown) == 1 }, 1e9, 1)
	r.Succeeded(1, 0)
	count := [3]int{}
	for _, i := range picks(r, cooldown+1, 300) {
		count[i]++
	}
	for i, n := range count {
		require.InDelta(t, 100, n, 2, "member %d", i)
	}
}

func BenchmarkPick(b *testing.B) {
	r := NewRoundRobin(members(1, 1, 1))
	b.ReportAllocs()
	for b.Loop() {
		if r.Succeeded(pick(r, 1), 0) {
			b.Fatal("it was not out")
		}
	}
}
