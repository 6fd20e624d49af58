package supervisor

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// Without a worker the master is neither ready nor, for the watchdog, alive.
func TestNobodyServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer conn.Close()
	t.Setenv(notifyEnvironment, path)
	told := func() string {
		t.Helper()
		buf := make([]byte, 1000)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := conn.Read(buf)
		require.NoError(t, err)
		return string(buf[:n])
	}
	ready := func(r *rig) int {
		w := httptest.NewRecorder()
		r.answerReady(w, nil)
		return w.Code
	}
	r := startRig(t, func(o *Options, _ *Master) { o.Workers = 1 })
	require.Equal(t, http.StatusOK, ready(r))
	r.notifyAlive()
	require.Equal(t, "WATCHDOG=1", told())

	os.Setenv(startEnvironment, "refuse")
	defer os.Unsetenv(startEnvironment)
	require.NoError(t, syscall.Kill(r.pids()[0], syscall.SIGKILL))
	eventually(t, "the slot to wait", func() bool { return r.Status().Workers[0].State == control.WorkerWaiting })
	require.Equal(t, http.StatusServiceUnavailable, ready(r))
	r.notifyAlive()
	r.notify.send("END=1")
	require.Equal(t, "END=1", told(), "no sign of life")

	os.Unsetenv(startEnvironment)
	eventually(t, "the slot to be back", func() bool { return ready(r) == http.StatusOK })
}

// The watchdog of a service manager asks one process.
func TestWatchdogEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		socket, usec, pid string
		none              bool
		watchdog          time.Duration
	}{
		"no manager":      {"", "1000000", "", true, 0},
		"not watched":     {"/x", "", "", false, 0},
		"watched":         {"@x", "1000000", "", false, time.Second},
		"another process": {"/x", "1000000", "1", false, 0},
		"no number":       {"/x", "1s", "", false, 0},
		"negative":        {"/x", "-5", "", false, 0},
		"no socket":       {"relative", "", "", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(notifyEnvironment, c.socket)
			t.Setenv(watchdogEnvironment, c.usec)
			t.Setenv(watchdogPIDEnvironment, c.pid)
			n := newNotifier(testOptions("x", testLog{t}).Log)
			if c.none {
				require.Nil(t, n)
				return
			}
			require.Equal(t, c.watchdog, n.watchdog)
			ticks, stop := n.beats()
			require.Equal(t, c.watchdog == 0, ticks == nil)
			stop()
		})
	}
}
