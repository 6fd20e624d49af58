package supervisor

import (
	"os"
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/stretchr/testify/require"
)

// linked are the two ends of a connection between masters.
func linked(t *testing.T, log testLog) (*heir, *predecessor) {
	t.Helper()
	conn, file, err := sys.PacketPair()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(); file.Close() })
	fd, err := duplicate(file)
	require.NoError(t, err)
	other, err := sys.NewPacketConn(fd)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	t.Cleanup(func() { other.Close() })
	return &heir{link: newLink(conn)}, &predecessor{
		link: newLink(other), log: testOptions("x", log).Log, admin: -1, metrics: -1, pending: true, ended: make(chan struct{}),
	}
}

// All that a master leaves arrives: configuration, sockets, and the descriptors
// of its servers.
func TestHeritage(t *testing.T) {
	r := startRig(t, nil)
	ask(t, r.addresses()[0])
	h, p := linked(t, testLog{t})
	r.applying.Lock()
	err := r.leave(h)
	r.applying.Unlock()
	require.NoError(t, err)
	require.NoError(t, p.receiveAll())
	defer func() {
		p.sockets.disown()
		require.NoError(t, p.sockets.close())
		require.NoError(t, r.relock())
	}()
	require.Equal(t, r.addresses(), p.sockets.addresses())
	require.Len(t, p.sockets.groups[0].sockets, 2)
	require.GreaterOrEqual(t, p.admin, 0)
	require.Equal(t, -1, p.metrics)
	require.Equal(t, r.admin.path, p.left.Admin.Path)
	require.EqualValues(t, 1, p.left.Tally.Slots[0].Totals.Requests+p.left.Tally.Slots[1].Totals.Requests)
	g, err := p.left.Config.generation()
	require.NoError(t, err)
	require.Equal(t, r.generation().text, g.text)
	require.Equal(t, r.generation().number, g.number)
	listener, err := p.adoptAdmin(r.admin.path, r.admin.group)
	require.NoError(t, err)
	require.NotNil(t, listener)
	require.NoError(t, listener.Close())
	_, err = os.Stat(r.admin.path)
	require.NoError(t, err, "a socket that is not ours yet stays")
	again, err := p.adoptAdmin(r.admin.path, r.admin.group)
	require.NoError(t, err)
	require.Nil(t, again)
}

// An old master that dies once it has left everything leaves it to the new one;
// what makes no sense is no hand-over.
func TestOldMasterBeforeItsLastWord(t *testing.T) {
	r := startRig(t, nil)
	h, p := linked(t, testLog{t})
	r.before = p
	defer func() { r.before = nil }()
	counted := r.tally()
	counted.Slots = []slotTally{{Totals: shm.Totals{Requests: 4}}}
	require.NoError(t, h.sayWith(heirMessage{Type: heirCounted}, counted))
	require.NoError(t, h.say(heirMessage{Type: heirYours}))
	require.NoError(t, r.awaitYours())
	require.EqualValues(t, 4, r.Status().Totals.Requests)

	require.NoError(t, h.say(heirMessage{Type: heirEnd}))
	require.ErrorContains(t, r.awaitYours(), `the old master says "end" instead of "yours"`)

	require.NoError(t, h.conn.Close())
	require.NoError(t, r.awaitYours())
}
