package supervisor

import (
	"fmt"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// Watching.
const (
	// beatEvery is how often a worker's loop is asked for a sign of life.
	beatEvery = time.Second
	// beatDeadline is how long its answer may take.
	beatDeadline = 5 * time.Second
)

// watch finds workers whose loops do not answer, and has them replaced. It
// measures with CLOCK_MONOTONIC, which stands still while the machine sleeps
// but not while a virtual machine or a process group is stopped: that shows in
// a turn of the watch that comes late, and then everybody's time begins anew.
//
// One worker is replaced at a time. If many are silent, the cause may be none
// of theirs, and the others go on with what they have in their hands.
type watch struct {
	every, deadline time.Duration
	log             func(msg string, args ...any)

	last      time.Time // of the turn before
	pulses    map[*incarnation]*pulse
	replacing replacement
}

// pulse is a heartbeat of one worker.
type pulse struct {
	asked  time.Time              // or when its time began anew
	answer <-chan control.Message // nil if the question could not be sent
}

// replacement is a worker that was killed and is awaited.
type replacement struct {
	slot   int
	killed *incarnation // nil if none is
	until  time.Time    // it is not waited for any longer
}

func newWatch(every, deadline time.Duration, log func(string, ...any)) *watch {
	return &watch{every: every, deadline: deadline, log: log, last: time.Now()}
}

// keepWatching watches the workers until done is closed.
func (m *Master) keepWatching(done <-chan struct{}) {
	w := newWatch(m.beatEvery, m.beatDeadline, m.log.Error)
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			// Not the ticker's time, which may be of before a pause.
			w.turn(time.Now(), m.running())
		}
	}
}

// turn asks those of the running workers, by slot, that have answered, and
// replaces the one that has not for longest.
func (w *watch) turn(now time.Time, running map[int]*incarnation) {
	late := now.Sub(w.last) > 2*w.every
	w.last = now
	if in := running[w.replacing.slot]; in != nil && in != w.replacing.killed || now.After(w.replacing.until) {
		w.replacing = replacement{}
	}
	pulses := make(map[*incarnation]*pulse, len(running))
	silent, since := -1, now
	for slot, in := range running {
		p := w.pulses[in]
		if p == nil || p.answered() {
			p = &pulse{asked: now}
		}
		pulses[in] = p
		if late {
			p.asked = now
		}
		if p.answer == nil {
			// That it does not even read is found by the same deadline; that
			// it has ended, by others.
			p.answer, _ = in.ask(control.Message{Type: control.TypeBeat}, -1)
		}
		if now.Sub(p.asked) >= w.deadline && p.asked.Before(since) {
			silent, since = slot, p.asked
		}
	}
	w.pulses = pulses
	if silent >= 0 && w.replacing.killed == nil {
		w.replace(silent, running[silent], now)
	}
}

// replace kills a worker, whose slot then gets another one.
func (w *watch) replace(slot int, in *incarnation, now time.Time) {
	why := fmt.Sprintf("replaced: loop does not answer for %v", w.deadline)
	if sys.Stopped(in.pid) {
		why = "replaced: stopped"
	}
	w.log("worker does not answer and is killed", "slot", slot, "pid", in.pid, "reason", why)
	w.replacing = replacement{slot: slot, killed: in, until: now.Add(startTimeout)}
	in.killFor(why)
}

// answered reports whether the answer is there, or will never come because the
// worker has ended.
func (p *pulse) answered() bool {
	select {
	case <-p.answer:
		return true
	default: // also if it is nil
		return false
	}
}
