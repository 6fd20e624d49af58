package supervisor

import (
	"crypto/rand"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
)

// ticketsEvery is how long a key encrypts new session tickets. It decrypts
// those that there are for twice as long afterwards: they live for a day at most.
const ticketsEvery = 8 * time.Hour

// ticketKeysMax is the number of keys at a time: the one in use, the next one,
// and two that were in use before.
const ticketKeysMax = 4

// tickets are the keys of session tickets (RFC 8446 4.6.1, RFC 5077), which all
// workers have, so that a client resumes its session at any of them. They are in
// memory alone.
type tickets struct {
	// Keys are the one that encrypts, then the one that will, which all
	// workers know before the first of them uses it, then those that did.
	Keys  [][32]byte `json:"keys"`
	Since time.Time  `json:"since"` // the first one encrypts
}

// firstTickets are those of the master before, or new ones.
func (m *Master) firstTickets() tickets {
	if m.before != nil && m.before.left.Tickets != nil {
		return *m.before.left.Tickets
	}
	return tickets{Keys: [][32]byte{newTicketKey(), newTicketKey()}, Since: time.Now()}
}

// rotated puts the next key in use.
func (t *tickets) rotated(now time.Time) tickets {
	keys := append([][32]byte{t.Keys[1], newTicketKey(), t.Keys[0]}, t.Keys[2:]...)
	return tickets{Keys: keys[:min(len(keys), ticketKeysMax)], Since: now}
}

func newTicketKey() (key [32]byte) {
	rand.Read(key[:]) // it never fails
	return key
}

// keepRotating rotates the keys until done is closed, or until another master
// does that.
func (m *Master) keepRotating(done <-chan struct{}) {
	for {
		m.turn.RLock()
		wait := time.Until(m.tickets.Since.Add(ticketsEvery))
		m.turn.RUnlock()
		select {
		case <-done:
			return
		case <-time.After(wait):
		}
		if !m.rotateTickets() {
			return
		}
	}
}

// rotateTickets puts the next key in use in all workers. None starts, and no
// reload is under way, in between. It reports false where another master has
// taken over.
func (m *Master) rotateTickets() bool {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.retired.Load() {
		return false
	}
	m.turn.Lock()
	defer m.turn.Unlock()
	m.tickets = m.tickets.rotated(time.Now())
	for slot, err := range askAll(m.running(), control.Message{Type: control.TypeTickets, TicketKeys: m.tickets.Keys}, -1) {
		if err != nil { // it knows the key, and will be told of the one after that
			m.log.Warn("worker has no new key of session tickets yet", "slot", slot, "err", err)
		}
	}
	m.log.Info("session tickets have a new key")
	return true
}
