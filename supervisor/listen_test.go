package supervisor

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A listener that only this host can reach gives its connections a congestion
// control that does not pace; any other keeps the host's choice.
func TestCongestionControlOfListeners(t *testing.T) {
	control := func(fd int) string {
		name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		require.NoError(t, err)
		return strings.TrimRight(name, "\x00")
	}
	plain, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(plain)

	for address, want := range map[string]string{"127.0.0.1:0": "reno", "127.9.9.9:0": "reno", "0.0.0.0:0": control(plain)} {
		fd, err := bind(netip.MustParseAddrPort(address), false, true)
		require.NoError(t, err)
		require.Equal(t, want, control(fd), address)
		require.NoError(t, unix.Close(fd))
	}
}
