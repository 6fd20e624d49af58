package balance

import (
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

func picks(r *RoundRobin, now int64, n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = r.Pick(now, nil)
	}
	return list
}

func TestEqualWeightsTakeTurns(t *testing.T) {
	for start := range 7 {
		r := NewRoundRobin(members(2520, 2520, 2520))
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
	require.False(t, r.Failed(0, Refused, 0))
	require.False(t, r.Failed(0, Refused, 0))
	r.Succeeded(0) // not consecutive any more
	require.False(t, r.Failed(0, Refused, 0))
	require.False(t, r.Failed(0, Refused, 0))
	require.True(t, r.Failed(0, Refused, 10))
	require.Equal(t, []int{1, 1, 1, 1}, picks(r, 10+cooldown-1, 4))
}

func TestOneTrialAtATime(t *testing.T) {
	r := NewRoundRobin(members(1, 1))
	for range 3 {
		r.Failed(0, Refused, 0)
	}
	count := 0
	for _, i := range picks(r, cooldown, 100) {
		if i == 0 {
			count++
		}
	}
	require.Equal(t, 1, count, "trials before the first one ended")

	r.Failed(0, Refused, cooldown+10) // it starts a new cooldown
	require.NotContains(t, picks(r, 2*cooldown, 50), 0)
	require.Contains(t, picks(r, 2*cooldown+10, 50), 0)

	r.Abandoned(0) // tells nothing: the next one may try
	require.Contains(t, picks(r, 2*cooldown+10, 50), 0)
	require.True(t, r.Succeeded(0))
	require.False(t, r.Succeeded(0), "it is back only once")
	require.Contains(t, picks(r, 2*cooldown+20, 2), 0)
}

func TestLostTrialExpires(t *testing.T) {
	r := NewRoundRobin(members(1))
	for range 3 {
		r.Failed(0, Refused, 0)
	}
	require.Equal(t, 0, r.Pick(cooldown, nil))
	require.Equal(t, -1, r.Pick(cooldown+trialLease-1, nil))
	require.Equal(t, 0, r.Pick(cooldown+trialLease, nil))
}

func TestLastMemberStaysInForTimeouts(t *testing.T) {
	r := NewRoundRobin(members(1, 1))
	for range 10 {
		r.Failed(0, Refused, 0)
		r.Failed(1, TimedOut, 0)
	}
	require.True(t, r.Member(0).Out())
	require.False(t, r.Member(1).Out())
	require.True(t, r.Failed(1, Refused, 0), "a dead one is taken out all the same")
	require.Equal(t, -1, r.Pick(1, nil))
}

func TestZeroNeverTakesOut(t *testing.T) {
	list := members(1)
	list[0].MaxFailure = 0
	r := NewRoundRobin(list)
	for range 100 {
		require.False(t, r.Failed(0, Refused, 0))
	}
	require.Equal(t, 0, r.Pick(0, nil))
}

func TestTriedAreNotPicked(t *testing.T) {
	r := NewRoundRobin(members(1, 1, 1))
	require.Equal(t, 1, r.Pick(0, []int16{0, 2}))
	require.Equal(t, -1, r.Pick(0, []int16{0, 1, 2}))
	require.Equal(t, -1, NewRoundRobin(nil).Pick(0, nil))
}

func TestSharesAreEvenAfterAReturn(t *testing.T) {
	r := NewRoundRobin(members(2520, 2520, 2520))
	for range 3 {
		r.Failed(1, Refused, 0)
	}
	picks(r, 1, 1000)
	require.Eventually(t, func() bool { return r.Pick(cooldown, nil) == 1 }, 1e9, 1)
	r.Succeeded(1)
	count := [3]int{}
	for _, i := range picks(r, cooldown+1, 300) {
		count[i]++
	}
	for i, n := range count {
		require.InDelta(t, 100, n, 2, "member %d", i)
	}
}

func BenchmarkPick(b *testing.B) {
	r := NewRoundRobin(members(2520, 2520, 2520))
	b.ReportAllocs()
	for b.Loop() {
		if r.Succeeded(r.Pick(1, nil)) {
			b.Fatal("it was not out")
		}
	}
}
