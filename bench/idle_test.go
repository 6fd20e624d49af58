package main

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseMemory(t *testing.T) {
	const text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:                1234 kB\nPss:                1000 kB\nPss_Dirty:           900 kB\n"
	m, err := parseMemory(text)
	require.NoError(t, err)
	require.Equal(t, Memory{RSS: 1234, PSS: 1000}, m)
	for _, bad := range []string{"", "Rss: 12 kB\n", "Rss: x kB\nPss: 1 kB\n"} {
		_, err := parseMemory(bad)
		require.Error(t, err, "%q", bad)
	}
	m, err = memoryOf(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, m.RSS, int64(100))
	require.Greater(t, m.RSS, m.PSS-1)
}

func TestIdleCountsFitTheDescriptors(t *testing.T) {
	full := &options{rounds: roundsFull, seconds: secondsFull}
	plain, secure := full.idleCounts(1 << 30)
	require.Equal(t, []int{idlePlain, idleSecure}, []int{plain, secure})
	plain, secure = full.idleCounts(20_000)
	require.Equal(t, []int{9900, idleSecure}, []int{plain, secure})
	plain, _ = full.idleCounts(100)
	require.Equal(t, 1, plain)
	plain, secure = (&options{rounds: 1, seconds: 1}).idleCounts(20_000)
	require.Equal(t, []int{idleRehearsal, idleRehearsal}, []int{plain, secure})
}

// The client opens connections and asks on each, without TLS at the backend and
// with it at the program that holds crypto/tls's connections.
func TestHold(t *testing.T) {
	self := os.Args[0]
	dir := t.TempDir()
	require.NoError(t, writeCertificate(dir))
	ctx := context.Background()
	for _, secure := range []bool{false, true} {
		address := closedAddress(t)
		command := []string{self, backendCommand, address}
		if secure {
			command = []string{self, bareCommand, address, dir}
		}
		s, err := startServer(dir, command[1], address, command)
		require.NoError(t, err)
		s.secure = address
		load := plain("", 1, idleBytes)
		load.TLS = secure
		require.NoError(t, s.ready(ctx, []Load{load}))
		h, err := startHold(ctx, []string{self, holdCommand, "--connections=150", load.url(address, address)})
		require.NoError(t, err)
		require.NoError(t, h.next())
		require.NoError(t, h.next())
		require.ErrorContains(t, h.next(), "no more steps")
		require.NoError(t, h.stop())
		require.NoError(t, s.stop())
		// Nobody is there any more.
		h, err = startHold(ctx, []string{self, holdCommand, load.url(address, address)})
		require.NoError(t, err)
		require.ErrorContains(t, h.next(), "refused")
	}
}
