package supervisor

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"golang.org/x/sys/unix"
)

// reloadTimeout bounds each of the two phases of a reload, and the wait for
// workers that are being replaced before it is tried again.
const reloadTimeout = 10 * time.Second

// largeConfig is the length of a text whose parsing leaves so much behind that
// the memory is given back at once.
const largeConfig = 1 << 20

// errNoFile refuses the reload of a configuration that is in no file.
var errNoFile = errors.New("there is no file to reload: cloud-cup runs its built-in configuration")

// errNoFileToSave refuses to save where there is no file.
var errNoFileToSave = errors.New("there is no file to save to: cloud-cup runs its built-in configuration")

// Reload reads the file again and puts it in force in every worker, or changes
// nothing.
func (m *Master) Reload() (applied *control.Applied, err error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	ended := m.notifyReload()
	defer func() { m.countReload(err); ended(err) }()
	switch {
	case m.retired.Load():
		return nil, errRetired
	case m.options.Path == "":
		return nil, errNoFile
	}
	next, err := load(m.options.Path, readRegular)
	if err != nil {
		return nil, err
	}
	return m.apply(next, applyNow)
}

// ways are what can be done with a configuration.
type ways uint8

const (
	applyNow  ways = iota // put it in force
	applyDry              // only check that it could be
	applySave             // put it in force and into the file
)

// ApplyText does with a configuration what how says. name stands for it in
// messages.
func (m *Master) ApplyText(name string, text []byte, how ways) (applied *control.Applied, err error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if how != applyDry {
		ended := m.notifyReload()
		defer func() { m.countReload(err); ended(err) }()
	}
	if m.retired.Load() {
		return nil, errRetired
	}
	source := sourceMemory
	if how == applySave {
		source = sourceFile
	}
	next, err := parse(name, text, m.generation().dir, source)
	if err != nil {
		return nil, err
	}
	return m.apply(next, how)
}

// refreshAddresses resolves all names again and tells the workers if anything
// changed. It reports whether all names resolve.
func (m *Master) refreshAddresses() bool {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.retired.Load() {
		return true
	}
	g := m.generation()
	next := *g
	next.resolve(m.lookup, g)
	if sameAddresses(g.addresses, next.addresses) {
		m.mu.Lock()
		m.failures = next.failures
		m.mu.Unlock()
	} else if _, err := m.commit(&next); err != nil {
		m.log.Error("new addresses of backends were not applied", "err", err)
	} else {
		m.log.Info("addresses of backends changed", "generation", next.number)
	}
	return len(next.failures) == 0
}

// save writes next into the file that the master was started with, if how says
// so, and returns the file's name. undo takes it back.
func (m *Master) save(next *generation, how ways) (undo func() error, path string, err error) {
	if how != applySave {
		return func() error { return nil }, "", nil
	}
	if path = m.options.Path; path == "" {
		return nil, "", errNoFileToSave
	}
	undo, err = replaceFile(path, next.text)
	return undo, path, err
}

// apply makes next the generation in force, or does what else how says. A file
// that is to be written is written first, because that is what may fail for
// reasons outside of this program.
func (m *Master) apply(next *generation, how ways) (*control.Applied, error) {
	now := m.generation()
	if err := now.unchangeable(next); err != nil {
		return nil, err
	}
	changes := changesBetween(now.cfg, next.cfg)
	if how == applyDry {
		if err := m.sockets.check(next.cfg.Root, m.workersFor(next)); err != nil {
			return nil, err
		}
		return &control.Applied{Generation: now.number, Before: now.number, DryRun: true, Changes: changes}, nil
	}
	next.resolve(m.lookup, now)
	undo, saved, err := m.save(next, how)
	if err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	scrapes, err := m.listenMetrics(next.cfg.Admin.Metrics, m.metrics)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nothing was changed: %w", err), undo())
	}
	applied, err := m.commit(next)
	m.useMetrics(scrapes, err == nil)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	m.refuse(nil) // it is in force with the files as they are
	if err := m.fill(true); err != nil {
		m.log.Error("a further worker does not start yet", "err", err)
	}
	applied.Workers = len(m.running())
	applied.Before, applied.Saved, applied.Changes = now.number, saved, changes
	for host, why := range next.failures {
		m.log.Warn("backend does not resolve", "backend", host, "err", why)
	}
	m.log.Info("configuration in force", "generation", next.number, "before", now.number, "source", next.source,
		"workers", applied.Workers, "changed", summary(changes))
	return applied, nil
}

// commit brings next to every worker in two phases. A worker that is lost while
// it prepares makes commit try once more with its replacement.
func (m *Master) commit(next *generation) (*control.Applied, error) {
	applied, err := m.tryCommit(next)
	if errors.Is(err, errGone) {
		m.awaitRunning()
		applied, err = m.tryCommit(next)
	}
	if err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	return applied, nil
}

// tryCommit lets all running workers prepare next and, if all can, commit to
// it. No worker can start in between; those that start later start with next.
func (m *Master) tryCommit(next *generation) (*control.Applied, error) {
	m.turn.Lock()
	defer m.turn.Unlock()
	if m.isStopping() {
		return nil, errors.New("cloud-cup is being stopped")
	}
	workers := m.running()
	if len(workers) == 0 {
		return nil, errors.New("no worker is running")
	}
	count := m.workersFor(next)
	change, err := m.sockets.prepare(next.cfg.Root, count)
	if err != nil {
		return nil, err
	}
	defer change.abort()
	m.lastNumber++ // also after an abort: a number names one configuration
	next.number = m.lastNumber
	if err := m.shared.assign(next); err != nil {
		return nil, err
	}
	logs, fresh, err := m.logs.opened(next.cfg)
	var removed []*group
	if err == nil {
		removed, err = m.prepare(workers, next, change, fresh)
	}
	if err != nil {
		m.shared.revoke(next)
		return nil, errors.Join(err, fresh.close())
	}

	// From here on next is in force: a worker that cannot follow is replaced
	// by one that starts with it.
	m.mu.Lock()
	if max(len(next.text), len(m.current.text)) >= largeConfig {
		defer func() { go debug.FreeOSMemory() }()
	}
	m.current, m.count = next, count
	m.shared.committed(next)
	m.failures = next.failures
	m.mu.Unlock()
	unused := m.logs.without(logs)
	m.logs = logs
	errs := askAll(workers, control.Message{Type: control.TypeCommit, Generation: next.number}, -1)
	for slot, err := range errs {
		if err != nil {
			m.log.Error("worker did not follow the reload and is replaced", "slot", slot, "err", err)
			workers[slot].killFor("replaced: did not follow a reload")
			<-workers[slot].ended
		}
	}
	m.leaveBy(next, fresh, workers)
	m.listenAsConfigured(removed)
	if err := unused.close(); err != nil {
		m.log.Error("access logs", "err", err)
	}
	m.mu.Lock()
	m.served = next.number
	m.mu.Unlock()
	return &control.Applied{Generation: next.number, Workers: len(workers)}, nil
}

// prepare has all workers build what serving next needs and take the log files
// that they do not have, and the sockets of change listen, or none of it. It
// returns the addresses that are to be given up.
func (m *Master) prepare(workers map[int]*incarnation, next *generation, change *socketChange, logs logFiles) (removed []*group, err error) {
	fd, err := next.seal(m.tickets.Keys)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	errs := askAll(workers, control.Message{Type: control.TypePrepare, Generation: next.number}, fd)
	err = firstRefusal(errs)
	if err == nil {
		err = giveAll(workers, logs)
	}
	if err == nil {
		m.mu.Lock()
		removed, err = change.commit()
		m.mu.Unlock()
	}
	if err != nil {
		askAll(workers, control.Message{Type: control.TypeAbort, Generation: next.number}, -1)
	}
	return removed, err
}

// listenAsConfigured lets the workers take the sockets that are new, lets them
// and the master go of removed addresses, and gives up the slots that are too
// many. m.applying is held, and m.turn for writing.
func (m *Master) listenAsConfigured(removed []*group) {
	for _, g := range removed {
		if err := g.removeFile(); err != nil { // nobody is to come any more
			m.log.Error("listener", "address", g.address, "err", err)
		}
	}
	m.handOver()
	for _, g := range removed {
		if err := g.close(); err != nil {
			m.log.Error("listener", "address", g.address, "err", err)
		}
	}
	m.giveUp()
}

// askAll calls all workers at once and returns each one's error by its slot.
func askAll(workers map[int]*incarnation, msg control.Message, fd int) map[int]error {
	return eachWorker(workers, func(in *incarnation) error {
		_, err := in.call(msg, fd, reloadTimeout)
		return err
	})
}

// eachWorker calls f for all workers at once and returns each one's error by
// the worker's key.
func eachWorker(workers map[int]*incarnation, f func(*incarnation) error) map[int]error {
	errs := make(map[int]error, len(workers))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for slot, in := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := f(in)
			mu.Lock()
			errs[slot] = err
			mu.Unlock()
		}()
	}
	wg.Wait()
	return errs
}

// firstRefusal returns the error that says most: a refusal before the loss of a
// worker.
func firstRefusal(errs map[int]error) error {
	var lost error
	for slot, err := range errs {
		switch {
		case errors.Is(err, errGone):
			lost = fmt.Errorf("worker %d: %w", slot, err)
		case err != nil:
			return fmt.Errorf("worker %d: %w", slot, err)
		}
	}
	return lost
}

// awaitRunning waits until every slot has a running worker, or too long.
func (m *Master) awaitRunning() {
	deadline := time.Now().Add(reloadTimeout)
	for len(m.running()) < m.count && time.Now().Before(deadline) && !m.isStopping() {
		time.Sleep(5 * time.Millisecond)
	}
}
