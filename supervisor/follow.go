package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"golang.org/x/sys/unix"
)

// Workers that leave may still get requests: the last ones of connections that
// were idle when their slot was given up, or their master upgraded. These go by
// the generation in force, too. Nothing depends on it: a worker that leaves
// refuses no reload, and is not ended for what it cannot follow.

// followTimeout bounds how long a reload waits for an old master.
const followTimeout = 5 * time.Second

// lateMax bounds the answers that came after that and are not looked at yet.
const lateMax = 16

// leaveBy brings next, with the log files that no worker has yet, to the workers
// that leave, which are all but those that have it, by slot, and to those of
// masters before this one. m.turn is held for writing, and next is in force.
func (m *Master) leaveBy(next *generation, fresh logFiles, have map[int]*incarnation) {
	m.mu.Lock()
	leaving := map[int]*incarnation{}
	for _, s := range m.slots {
		for _, in := range s.workers() {
			if have[s.number] != in {
				leaving[in.pid] = in
			}
		}
	}
	m.mu.Unlock()
	if err := m.followAll(leaving, next, fresh); err != nil {
		m.log.Warn("workers that leave end by the configuration before", "generation", next.number, "err", err)
	}
	if err := m.before.follow(next); err != nil {
		m.log.Warn("workers of the old master end by the configuration before", "generation", next.number, "err", err)
	}
}

// followAll brings next to workers of which none need take it. Those that end
// meanwhile are no error.
func (m *Master) followAll(workers map[int]*incarnation, next *generation, fresh logFiles) error {
	if len(workers) == 0 {
		return nil
	}
	fd, err := next.seal(m.tickets.Keys)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	errs := eachWorker(workers, func(in *incarnation) error {
		_, err := in.call(control.Message{Type: control.TypePrepare, Generation: next.number}, fd, followTimeout)
		if err == nil {
			err = fresh.giveTo(in)
		}
		if err == nil {
			_, err = in.call(control.Message{Type: control.TypeCommit, Generation: next.number}, -1, followTimeout)
		}
		return err
	})
	var failed []error
	for pid, err := range errs {
		if err != nil && !workers[pid].isGone() && !errors.Is(err, errGone) {
			failed = append(failed, fmt.Errorf("worker with pid %d: %w", pid, err))
		}
	}
	return errors.Join(failed...)
}

// follow has the old master bring next to its workers, and waits until it has.
func (p *predecessor) follow(next *generation) error {
	if p == nil || isClosed(p.ended) {
		return nil
	}
	config := next.handed()
	if err := p.sayWith(heirMessage{Type: heirConfig}, &config); err != nil {
		return err
	}
	timer := time.NewTimer(followTimeout)
	defer timer.Stop()
	for {
		select {
		case msg := <-p.followed:
			switch {
			case msg.Generation != next.number: // the late answer to one before
			case msg.Error != "":
				return errors.New(msg.Error)
			default:
				return nil
			}
		case <-p.ended:
			return nil
		case <-timer.C:
			return errors.New("the old master does not answer")
		}
	}
}

// followHeir does in the old master what follow asks for.
func (m *Master) followHeir(h *heir, msg *heirMessage) {
	answer := heirMessage{Type: heirFollowed}
	config := new(handedConfig)
	err := msg.decode(config)
	if err == nil {
		answer.Generation = config.Number
		err = m.followConfig(config)
	}
	if err != nil {
		text := err.Error()
		answer.Error = text[:min(len(text), heirMessageMax/4)]
	}
	// A new master that is gone asks nothing.
	_ = h.say(answer)
}

// followConfig makes c the generation in force in the workers that leave, which
// are all that there are.
func (m *Master) followConfig(c *handedConfig) error {
	next, err := c.generation()
	if err != nil {
		return err
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	m.turn.Lock()
	defer m.turn.Unlock()
	if next.number <= m.lastNumber {
		return errors.New("it came too late")
	}
	if err := m.shared.assign(next); err != nil {
		return err
	}
	logs, fresh, err := m.logs.opened(next.cfg)
	if err != nil {
		m.shared.revoke(next)
		return err
	}
	m.mu.Lock()
	m.current, m.lastNumber = next, next.number
	m.shared.committed(next)
	m.mu.Unlock()
	m.leaveBy(next, fresh, nil)
	unused := m.logs.without(logs)
	m.logs = logs
	return unused.close()
}

// handed is g as another master gets it.
func (g *generation) handed() handedConfig {
	return handedConfig{
		Number: g.number, Last: g.number, Name: g.name, Dir: g.dir, Text: g.text, Source: g.source, Files: g.cfg.Files,
		Loaded: g.loaded, Addresses: g.addresses, Failures: maps.Clone(g.failures),
	}
}
