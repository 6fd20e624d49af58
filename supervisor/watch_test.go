package supervisor

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watched is a watch whose time the test makes.
type watched struct {
	*watch
	r   *rig
	now time.Time
}

func startWatched(t *testing.T) *watched {
	w := &watched{watch: newWatch(beatEvery, beatDeadline, func(string, ...any) {}), r: startRig(t, nil)}
	w.now = w.last
	return w
}

// after takes a turn that comes d after the one before.
func (w *watched) after(d time.Duration) {
	w.now = w.now.Add(d)
	w.turn(w.now, w.r.running())
}

// untilDeadline takes turns until everybody who does not answer is overdue.
func (w *watched) untilDeadline() {
	for range beatDeadline / beatEvery {
		w.after(beatEvery)
	}
}

// answers waits until the workers have answered what they were asked last.
func (w *watched) answers(slots ...int) {
	for _, slot := range slots {
		in := w.r.running()[slot]
		eventually(w.r.t, "an answer", func() bool { return len(w.pulses[in].answer) == 1 })
	}
}

func (w *watched) deaths() []string {
	var list []string
	for _, s := range w.r.Status().Workers {
		list = append(list, s.LastDeath)
	}
	return list
}

func TestStoppedWorkerIsReplaced(t *testing.T) {
	w := startWatched(t)
	pids := w.r.pids()
	stopProcess(t, pids[0])
	w.after(beatEvery)
	for range 5 {
		require.Equal(t, pids, w.r.pids())
		w.answers(1)
		w.after(beatEvery)
	}
	eventually(t, "another worker", func() bool { return w.deaths()[0] != "" && len(w.r.running()) == 2 })
	require.Equal(t, []string{"replaced: stopped", ""}, w.deaths())
	require.Equal(t, pids[1], w.r.pids()[1])
}

// Of two that are silent, the second lives until the first is replaced.
func TestSilentWorkersAreReplacedOneByOne(t *testing.T) {
	w := startWatched(t)
	pids := w.r.pids()
	w.r.setConfig(configText("127.0.0.1:0", "silent.test:80"))
	_, err := w.r.Reload()
	require.NoError(t, err)
	w.after(beatEvery)
	w.untilDeadline()
	first := w.replacing.slot
	require.NotNil(t, w.replacing.killed)
	eventually(t, "another worker", func() bool { return len(w.r.running()) == 2 && w.r.pids()[first] != pids[first] })
	require.Equal(t, "replaced: loop does not answer for 5s", w.deaths()[first])
	require.Equal(t, pids[1-first], w.r.pids()[1-first])

	w.after(beatEvery)
	require.Equal(t, 1-first, w.replacing.slot)
	eventually(t, "both to be replaced", func() bool {
		return len(w.r.running()) == 2 && w.r.pids()[1-first] != pids[1-first]
	})
}

// A replacement that does not come protects the others only for a time.
func TestReplacementIsNotAwaitedForever(t *testing.T) {
	w := startWatched(t)
	pids := w.r.pids()
	for _, pid := range pids {
		stopProcess(t, pid)
	}
	running := w.r.running()
	w.after(beatEvery)
	w.untilDeadline()
	killed := w.replacing.killed
	require.NotNil(t, killed)
	<-killed.ended
	first, replaced := w.replacing.slot, w.now
	delete(running, first) // as if it did not come back
	for !w.now.Equal(replaced.Add(startTimeout)) {
		w.now = w.now.Add(beatEvery)
		w.turn(w.now, running)
		require.Equal(t, first, w.replacing.slot)
	}
	w.turn(w.now.Add(beatEvery), running)
	require.Equal(t, 1-first, w.replacing.slot)
	eventually(t, "both to be replaced", func() bool { return len(w.r.running()) == 2 && w.r.pids()[1-first] != pids[1-first] })
}

// After a pause of everybody, each has all its time again.
func TestPauseKillsNobody(t *testing.T) {
	w := startWatched(t)
	pids := w.r.pids()
	for _, pid := range pids {
		stopProcess(t, pid) // until they go on, they look like this
	}
	w.after(beatEvery)
	w.after(10 * time.Second)
	for range beatDeadline/beatEvery - 1 {
		w.after(beatEvery)
	}
	require.Nil(t, w.replacing.killed)
	require.Equal(t, pids, w.r.pids())
	w.after(beatEvery)
	require.NotNil(t, w.replacing.killed, "its time is over in the end")
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT) // but one has ended
	}
	eventually(t, "another worker", func() bool { return w.deaths()[w.replacing.slot] != "" && len(w.r.running()) == 2 })
}

func TestOOMCounter(t *testing.T) {
	const memberships = "4:memory:/docker/abc\n1:cpu:/\n0::/system.slice/cup.service\n"
	write := func(root, path, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o600))
	}
	root := t.TempDir()
	require.Empty(t, findOOMCounter(root, memberships))
	require.Zero(t, oomCounter("").kills())

	write(root, "memory.events", "low 0\noom 9\noom_kill 7\n")
	counter := findOOMCounter(root, memberships)
	require.EqualValues(t, 7, counter.kills(), "a parent, where the own cgroup is not visible")
	write(root, "system.slice/cup.service/memory.events", "oom 3\noom_kill 2\noom_group_kill 0\n")
	require.EqualValues(t, 2, findOOMCounter(root, memberships).kills())

	write(root, "memory/docker/abc/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
	require.EqualValues(t, 1, findOOMCounter(root, memberships).kills(), "the first that is named")

	in := &incarnation{oom: counter, oomBefore: 7}
	require.Equal(t, "killed by SIGKILL", in.killedBecause())
	in.oomBefore = 6
	require.Contains(t, in.killedBecause(), "out of memory")
	in.fate = "replaced: stopped"
	require.Equal(t, "replaced: stopped", in.killedBecause())
}
