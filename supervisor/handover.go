package supervisor

import (
	"errors"
	"sync"

	"github.com/cloud-cup/cloud-cup/control"
)

// handOver brings every listening socket to the worker that is to accept from
// it: the one of its home slot or, while that slot has none, another. No
// worker lets go of a socket before the next one has it. A worker that does not
// take what it should is killed, and so replaced. m.turn is held.
func (m *Master) handOver() {
	m.handing.Lock()
	defer m.handing.Unlock()
	for {
		missing, extra := m.moves()
		for move, err := range callMoves(missing, control.TypeListen) {
			if err == nil {
				move.worker.holds[move.socket] = true
			} else {
				m.dismiss(move.worker, err)
			}
		}
		if len(missing) > 0 {
			continue // who could not take its sockets leaves them to others
		}
		for move, err := range callMoves(extra, control.TypeUnlisten) {
			delete(move.worker.holds, move.socket)
			if err != nil {
				m.dismiss(move.worker, err)
			}
		}
		if len(extra) > 0 {
			m.renew()
		}
		m.mu.Lock()
		m.shared.accepting(len(m.plan()))
		m.mu.Unlock()
		return
	}
}

// move is a socket on its way to a worker, or away from it.
type move struct {
	socket *socket
	worker *incarnation
}

// moves lists the sockets that workers should have and have not, and those
// that they have and should not.
func (m *Master) moves() (missing, extra []move) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := m.plan()
	for _, s := range m.slots {
		if !s.able() {
			continue
		}
		for socket := range wanted[s.in] {
			if !s.in.holds[socket] {
				missing = append(missing, move{socket, s.in})
			}
		}
		for socket := range s.in.holds {
			if !wanted[s.in][socket] {
				extra = append(extra, move{socket, s.in})
			}
		}
	}
	return missing, extra
}

// plan tells which sockets each worker should accept from. m.mu is held.
func (m *Master) plan() map[*incarnation]map[*socket]bool {
	wanted := map[*incarnation]map[*socket]bool{}
	var able []*incarnation
	for _, s := range m.slots[:min(m.count, len(m.slots))] {
		if s.able() {
			able = append(able, s.in)
			wanted[s.in] = map[*socket]bool{}
		}
	}
	if len(able) == 0 {
		return wanted
	}
	for _, g := range m.sockets.groups {
		for _, s := range g.sockets {
			for _, in := range m.servers(s, able) {
				wanted[in][s] = true
			}
		}
	}
	return wanted
}

// servers are those of the able workers that should accept from s. m.mu is
// held.
func (m *Master) servers(s *socket, able []*incarnation) []*incarnation {
	if s.group.shared {
		return able
	}
	instead := able[s.home%len(able):][:1]
	if s.home >= min(m.count, len(m.slots)) {
		return instead
	}
	switch home := m.slots[s.home]; {
	case home.able():
		return []*incarnation{home.in}
	case home.away:
		return instead
	}
	// The next worker of its slot comes at once: nothing moves until then.
	var now []*incarnation
	for _, in := range able {
		if in.holds[s] {
			now = append(now, in)
		}
	}
	return now
}

// callMoves asks the workers to take sockets, or to let go of them, and
// returns what came of each.
func callMoves(moves []move, what control.Type) map[move]error {
	outcome := make(map[move]error, len(moves))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, mv := range moves {
		wg.Add(1)
		go func() {
			defer wg.Done()
			msg := control.Message{Type: what, Listener: &control.Listener{ID: mv.socket.id}}
			fd := -1
			if what == control.TypeListen {
				g := mv.socket.group
				msg.Listener.Address, msg.Listener.Root, msg.Listener.Shared = g.address, g.root, g.shared
				fd = mv.socket.fd
			} else {
				msg.Listener.Empty = mv.socket.group.removed
			}
			_, err := mv.worker.call(msg, fd, startTimeout)
			mu.Lock()
			outcome[mv] = err
			mu.Unlock()
		}()
	}
	wg.Wait()
	return outcome
}

// dismiss ends a worker that does not do with its listeners what it should.
func (m *Master) dismiss(in *incarnation, err error) {
	m.mu.Lock()
	first := in.unfit == nil
	in.unfit = err
	m.mu.Unlock()
	if first && !errors.Is(err, errGone) {
		m.log.Error("worker fails at its listeners and is replaced", "pid", in.pid, "err", err)
		in.killFor("replaced: fails at its listeners")
	}
}

// renew has all workers look for connections whose arrival woke a worker that
// let go of the listener, or died. Nobody waits for their answers, which say
// nothing.
func (m *Master) renew() {
	for _, in := range m.running() {
		_, _ = in.ask(control.Message{Type: control.TypeRenew}, -1)
	}
}

// reassign is handOver for those who do not hold m.turn. lost says that a
// worker died whose slot has no other one soon.
func (m *Master) reassign(lost bool) {
	m.turn.RLock()
	defer m.turn.RUnlock()
	if m.isStopping() {
		return
	}
	m.handOver()
	if lost {
		m.renew()
	}
}
