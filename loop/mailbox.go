package loop

import (
	"sync"
	"sync/atomic"
)

// Mailbox brings functions from other goroutines to the loop's.
type Mailbox struct {
	wake func()
	full atomic.Bool // something was posted since the last Run

	mu     sync.Mutex
	posted []func()

	running []func() // the loop's; its memory is used again for posted
}

// NewMailbox returns an empty mailbox that calls wake, an Engine's Wake, when
// the loop has something new to run.
func NewMailbox(wake func()) *Mailbox { return &Mailbox{wake: wake} }

// Post lets the loop call f soon. Any goroutine may call it; functions that
// one goroutine posts run in their order.
func (m *Mailbox) Post(f func()) {
	m.mu.Lock()
	m.posted = append(m.posted, f)
	first := len(m.posted) == 1
	m.full.Store(true)
	m.mu.Unlock()
	if first {
		m.wake()
	}
}

// Run calls what was posted, on the loop's goroutine and once per turn. What
// these functions post runs with the next turn.
func (m *Mailbox) Run() {
	if !m.full.Load() {
		return
	}
	m.mu.Lock()
	m.posted, m.running = m.running[:0], m.posted
	m.full.Store(false)
	m.mu.Unlock()
	for i, f := range m.running {
		m.running[i] = nil
		f()
	}
}
