package main

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	p, err := parseStat("4242 (a) (b) S) R 17 4242 4242 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1 0 99 0 0")
	require.NoError(t, err)
	require.Equal(t, process{pid: 4242, parent: 17, state: "R", user: 1500e6, system: 250e6}, p)
	for _, text := range []string{"", "1 (x", "1 (x) R 2", "1 (x) R y 1 1 0 -1 0 1 2 3 4 5 6 7"} {
		_, err := parseStat(text)
		require.Error(t, err, "%q", text)
	}
}

// A process that waits for another one has slept, and the kernel counts it.
func TestThreadSwitches(t *testing.T) {
	before, err := threadSwitches(os.Getpid())
	require.NoError(t, err)
	require.NoError(t, exec.Command("sleep", "0.1").Run())
	after, err := threadSwitches(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, after.Voluntary, before.Voluntary)
}

const statBefore = `cpu  1 2 3 4 5 6 7 8 0 0
cpu0 100 0 200 1000 10 5 15 20 0 0
cpu1 0 0 0 0 0 0 0 0 0 0
intr 1
`

func TestParseCPUTime(t *testing.T) {
	before, err := parseCPUTime(statBefore, 0)
	require.NoError(t, err)
	require.Equal(t, cpuTime{busy: 320, steal: 20, all: 1350}, before)
	busy, steal := cpuTime{busy: 370, steal: 40, all: 1450}.since(before)
	require.InDelta(t, 0.5, busy, 1e-9)
	require.InDelta(t, 0.2, steal, 1e-9)
	_, err = parseCPUTime(statBefore, 2)
	require.ErrorContains(t, err, "no CPU 2")
}

// A child that computes is counted with its parent, and no more when it ended.
func TestSampleCountsDescendants(t *testing.T) {
	before, err := takeSample(os.Getpid(), 0, 0)
	require.NoError(t, err)
	// It says when it has computed, and lives until its input ends.
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; read x")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 10))
	require.NoError(t, err)

	after, err := takeSample(os.Getpid(), 0, 0)
	require.NoError(t, err)
	child, err := takeSample(cmd.Process.Pid, 0, 0)
	require.NoError(t, err)
	require.NoError(t, in.Close())
	_ = cmd.Wait() // read found no line

	require.NotContains(t, before.pids, cmd.Process.Pid)
	require.Contains(t, after.pids, cmd.Process.Pid)
	require.Equal(t, []int{cmd.Process.Pid}, child.pids)
	require.True(t, slices.IsSorted(after.pids))
	used := after.since(&before)
	require.GreaterOrEqual(t, used.ProxyNS, child.ns)
	require.Greater(t, child.ns, time.Millisecond.Nanoseconds())
	require.Positive(t, used.WallNS)

	_, err = takeSample(cmd.Process.Pid, 0, 0)
	require.ErrorContains(t, err, "has ended")
}
