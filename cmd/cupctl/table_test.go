package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// terminal opens a terminal of that width (pty(7)).
func terminal(t *testing.T, width uint16) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	require.NoError(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}))
	return slave
}

// Only a terminal has a width and colour.
func TestScreenOf(t *testing.T) {
	t.Setenv("COLUMNS", "")
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	tty := terminal(t, 60)
	require.Equal(t, &screen{out: tty, width: 60, color: true}, screenOf(tty))
	require.Equal(t, "\x1b[31mout 2s\x1b[0m", screenOf(tty).paint("out 2s"))
	wide := terminal(t, 0)
	require.Equal(t, &screen{out: wide, width: widthUnknown, color: true}, screenOf(wide))
	file, err := os.Create(t.TempDir() + "/file")
	require.NoError(t, err)
	defer file.Close()
	require.Equal(t, &screen{out: file}, screenOf(file))
	require.Equal(t, "out 2s", screenOf(file).paint("out 2s"))

	t.Setenv("NO_COLOR", "1")
	require.Equal(t, &screen{out: tty, width: 60}, screenOf(tty))
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	require.Equal(t, &screen{out: tty, width: 60}, screenOf(tty))
	t.Setenv("COLUMNS", "100")
	require.Equal(t, &screen{out: tty, width: 100}, screenOf(tty))
}
