package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/stretchr/testify/require"
)

func TestCandidates(t *testing.T) {
	build := &Build{CheckIO: "uring  yes: tier A\nepoll  yes: edge-triggered"}
	dir := t.TempDir()
	require.NoError(t, writeCertificate(dir))
	list, err := candidates(&options{proxyCPU: 3, cup: "bin/cloud-cup"}, build, dir, "127.0.0.1:9")
	require.NoError(t, err)
	require.Len(t, list, closedPrograms)
	for i := range list {
		c := &list[i]
		require.Equal(t, []string{"taskset", "--cpu-list", "3"}, c.Command[:3])
		require.Contains(t, c.Config, c.address)
		require.Contains(t, c.Config, c.secure)
		require.Contains(t, c.Config, "127.0.0.1:9")
		p := c.published(dir)
		require.NotContains(t, p.Config+strings.Join(p.Command, " "), dir)
		if c.Ours {
			parsed, err := config.Parse(c.file, []byte(c.Config), dir)
			require.NoError(t, err)
			require.Equal(t, 1, parsed.Workers)
		}
	}
}

func TestFloorCandidates(t *testing.T) {
	both := &Build{CheckIO: "uring  yes: tier A\nepoll  yes: edge-triggered"}
	list, err := floors(&options{}, both, "bin/bench", "127.0.0.1:9")
	require.NoError(t, err)
	require.Len(t, list, closedFloors)
	for i := range list {
		c := &list[i]
		require.Equal(t, []string{"bin/bench", "floor", strings.TrimPrefix(c.Name, "floor "), c.address, "127.0.0.1:9"}, c.Command[3:])
		require.True(t, c.serves(&loads[0]))
		require.False(t, c.serves(&Load{TLS: true}))
	}
	list, err = floors(&options{}, &Build{CheckIO: "uring  no: no\nepoll  yes: edge-triggered"}, "bin/bench", "127.0.0.1:9")
	require.NoError(t, err)
	require.Len(t, list, 1)
	list, err = floors(&options{}, both, "bin/bench", unixPrefix+"/s")
	require.NoError(t, err)
	require.Empty(t, list)
}

// Of unix sockets each has its own spelling, and floors know none.
func TestCandidatesOverUnix(t *testing.T) {
	build := &Build{CheckIO: "uring  yes: tier A\nepoll  yes: edge-triggered"}
	list, err := candidates(&options{cup: "bin/cloud-cup"}, build, "/d", unixPrefix+"/d/s")
	require.NoError(t, err)
	var spelled []string
	for i := range list {
		spelled = append(spelled, list[i].Name+" "+regexp.MustCompile(`unix.*/d/s`).FindString(list[i].Config))
	}
	require.Equal(t, []string{nameRing + " unix:/d/s", nameEpoll + " unix:/d/s", reference + " unix:/d/s", nameHAProxy + " unix@/d/s"}, spelled)
}

// The committed tables are those of the newest committed results: without
// results there are none.
func TestBenchmarksAreGenerated(t *testing.T) {
	short, long := "", ""
	if path, err := newestResults("results"); err == nil {
		r, err := loadResults(path)
		require.NoError(t, err)
		require.GreaterOrEqual(t, r.Rounds, roundsFull)
		short, long = "\n"+summary(r)+"\n", "\n"+tables(r, path)+"\n"
	}
	text, err := os.ReadFile(filepath.Join("..", "BENCHMARKS.md"))
	require.NoError(t, err)
	require.Contains(t, string(text), summaryBegin+"\n"+short+generatedEnd, "bin/bench table writes it")
	require.Contains(t, string(text), tablesBegin+"\n"+long+generatedEnd, "bin/bench table writes them")
}

// CPUs that cannot be used are told before anything is installed or started.
func TestCheckCPUs(t *testing.T) {
	err := checkCPUs(&options{proxyCPU: 1000, clientCPU: 1001})
	require.ErrorContains(t, err, "CPU 1000 cannot be used here")
	require.ErrorContains(t, measure(t.Context(), &options{proxyCPU: 1000, clientCPU: 1001, rounds: 1, seconds: 1}), "CPU 1000")
}

func TestMachineInWords(t *testing.T) {
	m := Machine{Vulnerabilities: map[string]string{"b": "Not affected", "c": "Vulnerable", "a": "Mitigation: Thunks", "d": "Not affected"}}
	require.Equal(t, "a: Thunks; c: Vulnerable; not affected by 2 others", m.mitigations())
	const said = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22 25 Aug 2026 (running with OpenSSL 3.0.19 27 Jan 2026)\n"
	require.Equal(t, "1.22.1", wordAfter(said, "nginx/"))
	require.Equal(t, "3.0.19", wordAfter(said, "OpenSSL "))
	require.Empty(t, wordAfter("nginx version: nginx/1.22.1", "OpenSSL "))
	require.True(t, shareCore(0, 0))
	require.False(t, shareCore(1<<20, 1<<20+1), "CPUs that nobody has")
}

func TestOptions(t *testing.T) {
	good := options{rounds: 1, seconds: 1, clientCPU: 1}
	require.NoError(t, good.check(nil))
	require.NoError(t, good.check([]string{"table", "x.json"}))
	require.Error(t, good.check([]string{"tables"}))
	require.Error(t, good.check([]string{"table", "x", "y"}))
	require.False(t, good.full())
	require.Error(t, (&options{seconds: 1, clientCPU: 1}).check(nil))
	require.Error(t, (&options{rounds: 1, seconds: 1, clientCPU: 1, load: "1 GiB"}).check(nil))
	require.Error(t, (&options{rounds: 1, seconds: 1}).check(nil))
	require.True(t, (&options{rounds: roundsFull, seconds: secondsFull}).full())
	require.False(t, (&options{rounds: roundsFull, seconds: secondsFull, load: "100 B"}).full())
	require.False(t, (&options{rounds: roundsFull, seconds: secondsFull, parts: []string{partClosed}}).full())
	require.Error(t, (&options{rounds: 1, seconds: 1, clientCPU: 1, parts: []string{"none"}}).check(nil))
	require.Equal(t, rehearsalLength, (&options{rounds: 1, seconds: 1}).length())
	require.Equal(t, time.Second, (&options{rounds: 1, seconds: 1, load: "100 B"}).length())
	require.Equal(t, 1500*time.Millisecond, (&options{rounds: 2, seconds: 1.5}).length())
	require.Len(t, (&options{}).chosenParts(), len(parts))
	require.Equal(t, partClosed, (&options{load: "100 B"}).chosenParts()[0].name)
	require.Len(t, selected("100 B, 256"), 1)
	require.Equal(t, loads, selected(""))

	b := Build{CheckIO: "uring  no: enter: EPERM\nepoll  yes: edge-triggered"}
	require.False(t, b.works("uring"))
	require.True(t, b.works("epoll"))
	require.False(t, b.works("kqueue"))

	t.Setenv("ROUNDS", "")
	n, err := fromEnvironment("ROUNDS", 7, strconv.Atoi)
	require.NoError(t, err)
	require.Equal(t, 7, n)
	t.Setenv("ROUNDS", "2")
	n, err = fromEnvironment("ROUNDS", 7, strconv.Atoi)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	t.Setenv("ROUNDS", "two")
	_, err = fromEnvironment("ROUNDS", 7, strconv.Atoi)
	require.ErrorContains(t, err, "ROUNDS=two")
}
