package supervisor

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// configWith is a configuration that listens on several addresses.
func configWith(workers int, roots ...string) string {
	list := strings.ReplaceAll(fmt.Sprintf("%q", roots), `" "`, `", "`)
	text := strings.Replace(configText("ROOT"), `"ROOT"`, list, 1)
	return strings.Replace(text, "{", fmt.Sprintf(`{"workers": %d, `, workers), 1)
}

// reload puts text in force.
func (r *rig) reload(text string) {
	r.t.Helper()
	r.setConfig(text)
	_, err := r.Reload()
	require.NoError(r.t, err)
}

// served asks each socket of each address, through enough connections that the
// kernel's choice meets all of them, and returns the processes that answered.
func (r *rig) served(address string) map[int]bool {
	r.t.Helper()
	pids := map[int]bool{}
	for range 64 {
		_, pid := ask(r.t, address)
		pids[pid] = true
	}
	return pids
}

func TestReloadChangesAddresses(t *testing.T) {
	r := startRig(t, nil)
	stays := r.addresses()[0]
	other, third := freeAddress(t), freeAddress(t)
	r.reload(configWith(2, "127.0.0.1:0", other))
	require.Equal(t, []string{stays, other}, r.addresses())
	pids := r.pids()
	for _, address := range r.addresses() {
		require.Len(t, r.served(address), 2)
	}

	// What cannot be bound changes nothing.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	r.setConfig(configWith(2, "127.0.0.1:0", third, taken.Addr().String()))
	_, err = r.Reload()
	require.ErrorContains(t, err, taken.Addr().String()+": ")
	require.ErrorContains(t, err, "another program is listening there")
	_, err = r.ApplyText("dry.json", []byte(configWith(2, taken.Addr().String())), applyDry)
	require.ErrorContains(t, err, "another program is listening there", "a check finds it too")
	_, err = r.ApplyText("dry.json", []byte(configWith(2, third)), applyDry)
	require.NoError(t, err)
	require.Equal(t, []string{stays, other}, r.addresses())
	ask(t, other)
	_, err = net.Dial("tcp", third)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	r.reload(configWith(2, third, "127.0.0.1:0"))
	require.Equal(t, []string{third, stays}, r.addresses(), "port 0 stays the port it was")
	_, err = net.Dial("tcp", other)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "the command has returned")
	ask(t, third)
	ask(t, stays)
	lock, err := listenOn(other, 1)
	require.NoError(t, err, "the address is free")
	require.NoError(t, lock.close())
	require.Equal(t, pids, r.pids())

	// An address may be replaced by one that it overlaps with.
	_, port, err := net.SplitHostPort(third)
	require.NoError(t, err)
	r.reload(configWith(2, "0.0.0.0:"+port, "127.0.0.1:0"))
	ask(t, third)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	g, err := listenOn("127.0.0.1:0", 1)
	require.NoError(t, err)
	require.NoError(t, g.close())
	return g.address
}

func TestReloadChangesWorkers(t *testing.T) {
	r := startRig(t, func(o *Options, m *Master) { o.Workers, m.cpus = 0, 1 })
	address := r.addresses()[0]
	first := r.pids()
	require.Len(t, first, 1)
	r.reload(configWith(4, "127.0.0.1:0"))
	require.Len(t, r.pids(), 4)
	require.Equal(t, first[0], r.pids()[0])
	require.Len(t, r.served(address), 4)

	four := r.pids()
	r.reload(configWith(2, "127.0.0.1:0"))
	require.Equal(t, four[:2], r.pids())
	require.Len(t, r.served(address), 2, "each socket of the two that went is served by one of the others")
	eventually(t, "the others to end", func() bool {
		return syscall.Kill(four[2], 0) != nil && syscall.Kill(four[3], 0) != nil
	})
	eventually(t, "the others to be forgotten", func() bool { return len(r.Status().Workers) == 2 })

	r.reload(configWith(4, "127.0.0.1:0"))
	require.Equal(t, four[:2], r.pids()[:2])
	require.Len(t, r.pids(), 4)
	require.Len(t, r.served(address), 4)
	status := r.Status()
	require.Len(t, status.Workers, 4)
	require.EqualValues(t, 3*64, status.Totals.Requests, "totals survive slots that go and come")
	for _, w := range status.Workers {
		require.Zero(t, w.Restarts)
	}
}

// The flag beats the file, at a reload too.
func TestWorkersFlagBeatsReload(t *testing.T) {
	r := startRig(t, nil) // with the flag
	pids := r.pids()
	require.Len(t, pids, 2)
	r.reload(configWith(4, "127.0.0.1:0"))
	require.Equal(t, pids, r.pids())
}

// While a slot's workers die again and again, its sockets are another
// worker's; the slot gets them back when it lives.
func TestCrashLoopLeavesNoSocketAlone(t *testing.T) {
	r := startRig(t, nil)
	address := r.addresses()[0]
	os.Setenv(startEnvironment, "refuse")
	defer os.Unsetenv(startEnvironment)
	survivor, victim := r.pids()[0], r.pids()[1]
	require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
	eventually(t, "the slot to wait", func() bool { return r.Status().Workers[1].State == control.WorkerWaiting })
	require.Equal(t, map[int]bool{survivor: true}, r.served(address))

	// The one that has them dies as well: they are served when it is back.
	os.Unsetenv(startEnvironment)
	require.NoError(t, syscall.Kill(survivor, syscall.SIGKILL))
	r.served(address)
	eventually(t, "the slot to be back", func() bool { return len(r.running()) == 2 })
	require.Len(t, r.served(address), 2)
}
