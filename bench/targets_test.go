package main

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVerdict(t *testing.T) {
	require.Equal(t, "met", verdict(spread{0.7, 0.6, 0.75}, 0.75))
	require.Equal(t, "met, not for sure", verdict(spread{0.7, 0.6, 0.8}, 0.75))
	require.Equal(t, "missed by 0.05, not for sure", verdict(spread{0.8, 0.7, 0.9}, 0.75))
	require.Equal(t, "missed by 0.05", verdict(spread{0.8, 0.76, 0.9}, 0.75))
	require.Equal(t, "not measured", verdict(spreadOf(nil), 0.75))
}

// A floor above the target moves it, one below does not, and none does not.
func TestFloorsMoveTargets(t *testing.T) {
	r := &Results{}
	costs := map[string]int64{reference: 1000, floorRing: 800, floorEpoll: 600}
	for name, cost := range costs {
		r.Runs = append(r.Runs, Run{Round: 1, Load: loads[1].Name, Program: name, Wrk: Wrk{Requests: 1}, CPU: CPU{ProxyNS: cost}})
	}
	of := func(load, program string) (float64, bool) {
		list := targets()
		i := slices.IndexFunc(list, func(t target) bool { return t.what == load && t.program == program })
		return list[i].counts(r)
	}
	bound, byFloor := of(loads[1].Name, nameRing)
	require.True(t, byFloor)
	require.InDelta(t, 0.92, bound, 1e-9)
	bound, byFloor = of(loads[1].Name, nameEpoll)
	require.False(t, byFloor)
	require.Equal(t, 0.75, bound)
	bound, byFloor = of(loads[0].Name, nameRing)
	require.False(t, byFloor)
	require.Equal(t, 0.85, bound)
}

// A target names a load that there is.
func TestTargetsHaveLoads(t *testing.T) {
	for _, c := range closedTargets {
		require.True(t, slices.ContainsFunc(loads, func(l Load) bool { return l.Name == c.load }), c.load)
	}
}
