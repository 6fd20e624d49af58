package supervisor

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTicketKeysRotate(t *testing.T) {
	now := time.Now()
	one := (&Master{}).firstTickets()
	require.Len(t, one.Keys, 2)
	require.NotEqual(t, one.Keys[0], one.Keys[1])
	require.NotZero(t, one.Keys[0])
	two := one.rotated(now)
	require.Equal(t, now, two.Since)
	require.Len(t, two.Keys, 3)
	require.Equal(t, one.Keys[1], two.Keys[0], "all workers know the key before one uses it")
	require.Equal(t, one.Keys[0], two.Keys[2], "tickets that there are stay good")
	three := two.rotated(now)
	require.Len(t, three.Keys, ticketKeysMax)
	require.Equal(t, [][32]byte{two.Keys[0], one.Keys[0]}, three.Keys[2:])
	four := three.rotated(now)
	require.Len(t, four.Keys, ticketKeysMax)
	require.NotContains(t, four.Keys, one.Keys[0], "no ticket lives for ever")
	require.Equal(t, [][32]byte{two.Keys[0]}, four.Keys[3:])
	require.Len(t, one.Keys, 2, "what was sent does not change")
}

func TestTicketKeysStayAmongMasterAndWorkers(t *testing.T) {
	log := new(logText)
	r := startRig(t, func(_ *Options, m *Master) { m.log = logTo(log) })
	before := r.tickets.Keys
	_, err := r.Reload()
	require.NoError(t, err)
	require.Equal(t, before, r.tickets.Keys, "a reload keeps them")
	require.True(t, r.rotateTickets())
	require.Equal(t, before[1], r.tickets.Keys[0])
	require.EqualValues(t, 2, r.Status().Generation, "no new generation")
	shown, err := json.Marshal(r.Status())
	require.NoError(t, err)
	for _, key := range r.tickets.Keys {
		for _, form := range []string{"%x", "%v", "%d", "%s"} {
			require.NotContains(t, string(shown), fmt.Sprintf(form, key))
			require.Zero(t, log.count(fmt.Sprintf(form, key)))
		}
	}

	heir := &Master{before: &predecessor{left: heritage{Tickets: &r.tickets}}}
	require.Equal(t, r.tickets, heir.firstTickets(), "an upgrade keeps them")
	r.retired.Store(true)
	require.False(t, r.rotateTickets(), "that is the new master's")
}
