package main

import (
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/config"
)

// comparedResults has five rounds of two loads on one engine, where new costs
// 10 % more in the median, and one bad run.
func comparedResults() *Results {
	r := &Results{
		Rounds: 5, Seconds: 3, Loads: loads[1:3],
		Old:   &Build{Commit: "aaa", Go: "go1.26.8", SHA256: "0123456789abcdef"},
		Build: Build{Commit: "bbb", Dirty: true, Go: "go1.26.8", SHA256: "fedcba9876543210"},
	}
	ratio := []float64{1.08, 1.10, 1.30, 1.09, 1.12}
	for _, at := range order(5, 2, 2) {
		run := Run{Round: at.round + 1, Load: r.Loads[at.load].Name, Program: oldName("epoll")}
		us := 10 + float64(at.round) // what both meet alike
		if at.program == 1 {
			run.Program = newName("epoll")
			us *= ratio[at.round]
		}
		run.Wrk = Wrk{Requests: 1000, Rate: 1e6 / us}
		run.CPU = CPU{ProxyNS: int64(math.Round(us * 1e6)), WallNS: 1e9}
		if at == (turn{4, 1, 1}) {
			run.Failure = "processes [1 2] became [1 3]"
		}
		r.Runs = append(r.Runs, run)
	}
	return r
}

func TestComparison(t *testing.T) {
	text := comparison(comparedResults(), []string{"epoll"})
	var rows [][]string
	for line := range strings.Lines(text) {
		rows = append(rows, strings.Fields(line))
	}
	require.Equal(t, "old: aaa, go1.26.8, sha256 0123456789ab", strings.Join(rows[0], " "))
	require.Equal(t, "new: bbb with changes, go1.26.8, sha256 fedcba987654", strings.Join(rows[1], " "))
	row := func(i int) string { return strings.Join(rows[5+i], " ") }
	require.Equal(t, "epoll 100 B, 64 connections 12.0 14.2 1.100 1.080-1.300 83333 70572 5", row(0))
	// The bad run's round does not count, here and in the last line.
	require.Equal(t, "epoll 100 B, 256 connections 12.0 13.1 1.095 1.080-1.300 83333 76608 4", row(1))
	require.Equal(t, "all geometric mean of a round 1.095 1.080-1.300 4", row(2))
	require.Len(t, rows, 8)

	require.Contains(t, comparison(&Results{Old: &Build{}, Loads: loads[:1]}, []string{"uring"}), "-")
}

func TestBootstrap(t *testing.T) {
	low, high := bootstrap([]float64{1.25})
	require.Equal(t, []float64{1.25, 1.25}, []float64{low, high})
	low, high = bootstrap([]float64{1, 2, 3})
	require.Equal(t, []float64{1, 3}, []float64{low, high})

	// The same values, in any order, have the same interval, which is inside of
	// theirs and has the median.
	values := []float64{0.98, 1.01, 0.99, 1.02, 1.00, 1.03, 0.97, 1.04, 5}
	low, high = bootstrap(values)
	require.Less(t, 0.97, low)
	require.Less(t, low, 1.01)
	require.Less(t, 1.01, high)
	require.Less(t, high, 5.0)
	slices.Reverse(values)
	again, against := bootstrap(values)
	require.Equal(t, []float64{low, high}, []float64{again, against})

	// It holds the true median nearly as often as it says: of few values, the
	// percentile bootstrap makes a little less.
	const trials = 200
	rng, inside := rand.New(rand.NewPCG(2, 3)), 0
	for range trials {
		sample := make([]float64, 15)
		for i := range sample {
			sample[i] = 1 + rng.NormFloat64()/100
		}
		if low, high := bootstrap(sample); low <= 1 && 1 <= high {
			inside++
		}
	}
	require.InDelta(t, confidence*trials, inside, 15)
}

func TestCompareOptions(t *testing.T) {
	good := options{rounds: 9, seconds: 3, clientCPU: 1}
	require.NoError(t, good.checkCompare([]string{"HEAD~1", "bin/cloud-cup"}))
	require.Equal(t, "bin/bench compare --rounds=9 --seconds=3 HEAD~1 bin/cloud-cup", good.compareLine())
	require.Len(t, good.compareLoads(), len(compareLoads))
	require.Error(t, good.checkCompare([]string{"HEAD"}))

	some := good
	some.engines, some.load = []string{"epoll", "uring"}, "1000 connections"
	require.NoError(t, some.checkCompare([]string{"a", "b"}))
	require.Equal(t, `bin/bench compare --rounds=9 --seconds=3 --engine=epoll,uring --load="1000 connections" a b`, some.compareLine())
	require.Len(t, some.compareLoads(), 1)
	for _, engines := range [][]string{{"kqueue"}, {"epoll", "epoll"}} {
		some.engines = engines
		require.Error(t, some.checkCompare([]string{"a", "b"}))
	}
	some.engines, some.load = nil, "1 GiB"
	require.Error(t, some.checkCompare([]string{"a", "b"}))
	require.Error(t, (&options{rounds: 9, seconds: 3}).checkCompare([]string{"a", "b"}))
	require.Error(t, (&options{seconds: 3, clientCPU: 1}).checkCompare([]string{"a", "b"}))
}

func TestCommonEngines(t *testing.T) {
	both := &Build{CheckIO: "uring  yes: tier A\nepoll  yes: edge-triggered"}
	one := &Build{CheckIO: "uring  no: enter: EPERM\nepoll  yes: edge-triggered"}
	engines, err := commonEngines(nil, both, both)
	require.NoError(t, err)
	require.Equal(t, []string{"uring", "epoll"}, engines)
	engines, err = commonEngines(nil, both, one)
	require.NoError(t, err)
	require.Equal(t, []string{"epoll"}, engines)
	_, err = commonEngines([]string{"uring"}, both, one)
	require.ErrorContains(t, err, "uring does not work here in both builds")
	_, err = commonEngines(nil, both, &Build{})
	require.ErrorContains(t, err, "no engine")
}

func TestPairs(t *testing.T) {
	list, err := pairs(&options{proxyCPU: 3, old: "/a/cup"}, [2]string{"/a/cup", "/b/cup"}, []string{"epoll", "uring"}, "/tmp/x", "127.0.0.1:9")
	require.NoError(t, err)
	var got []string
	addresses := map[string]bool{}
	for i := range list {
		c := &list[i]
		got = append(got, c.Name+": "+strings.Join(c.Command, " "))
		addresses[c.address] = true
		require.Contains(t, c.Config, c.address)
		_, err := config.Parse(c.file, []byte(c.Config), "/tmp/x")
		require.NoError(t, err)
	}
	require.Equal(t, []string{
		"old epoll: taskset --cpu-list 3 /a/cup --io=epoll --admin=off /tmp/x/old-epoll.json",
		"new epoll: taskset --cpu-list 3 /b/cup --io=epoll --admin=off /tmp/x/new-epoll.json",
		"old uring: taskset --cpu-list 3 /a/cup --io=uring --admin=off /tmp/x/old-uring.json",
		"new uring: taskset --cpu-list 3 /b/cup --io=uring --admin=off /tmp/x/new-uring.json",
	}, got)
	require.Len(t, addresses, 4)
}

// A revision is built as it was committed, whatever the working tree has, and
// nothing is left in the repository.
func TestProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cup")
	require.NoError(t, os.WriteFile(file, nil, 0o755))
	got, err := program(t.Context(), file, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, file, got)

	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git here")
	}
	repository := t.TempDir()
	t.Chdir(repository)
	git := func(args ...string) string {
		t.Helper()
		args = append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com"}, args...)
		out, err := exec.Command("git", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	git("init", "--quiet")
	main := "cmd/cloud-cup/main.go"
	require.NoError(t, os.MkdirAll(filepath.Dir(main), 0o755))
	require.NoError(t, os.WriteFile("go.mod", []byte("module example.com/cup\n\ngo 1.26\n"), 0o644))
	require.NoError(t, os.WriteFile(main, []byte("package main\n\nvar version = \"?\"\n\nfunc main() { print(version, \" one\") }\n"), 0o644))
	git("add", ".")
	git("commit", "--quiet", "--message=one")
	require.NoError(t, os.WriteFile(main, []byte("not Go"), 0o644))

	built, err := program(t.Context(), "HEAD", t.TempDir())
	require.NoError(t, err)
	out, err := exec.Command(built).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, git("rev-parse", "HEAD")+" one", string(out))
	require.Equal(t, "M cmd/cloud-cup/main.go", git("status", "--porcelain"))
	require.Len(t, strings.Split(git("worktree", "list"), "\n"), 1)

	_, err = program(t.Context(), "no-such-revision", t.TempDir())
	require.ErrorContains(t, err, "no-such-revision is neither a file nor a revision")
	_, err = program(t.Context(), "--all", t.TempDir())
	require.ErrorContains(t, err, "neither a file nor a revision")
}
