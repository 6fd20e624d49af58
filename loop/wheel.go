package loop

import (
	"math/bits"
	"time"
)

// Tick is the grain of a Wheel: timers fire at its multiples.
const Tick = 8 * time.Millisecond

const (
	wheelBits  = 6
	wheelSlots = 1 << wheelBits
	// wheelLevels of 64 slots hold every tick of an int64 of nanoseconds
	// (2^63 / 8e6 < 64^7), so that no timer is too far away for the wheel.
	wheelLevels = 7

	slotNone   = -1
	slotFiring = wheelLevels * wheelSlots
)

// Timer is one deadline. It is embedded in the object that it serves; the zero
// Timer is ready to use. It must not be copied while it is scheduled.
type Timer struct {
	User uint32 // the owner's: the index of the object that this Timer serves
	Tag  uint8  // the owner's: which of the object's Timers this is

	slot       int16 // 1 + level*64 + index, or 0 when not scheduled
	due        int64 // tick
	next, prev *Timer
}

// Scheduled reports whether the Timer is to fire.
func (t *Timer) Scheduled() bool { return t.slot != 0 }

// At is when the Timer is to fire, if it is scheduled: what Schedule was told,
// rounded up to a Tick.
func (t *Timer) At() int64 { return t.due * int64(Tick) }

// Wheel is a hierarchical timer wheel: level l has 64 slots of 64^l ticks. A
// timer lies on the lowest level on which its tick and the wheel's differ, so
// the next slot to look at is the first of the lowest level that is not empty,
// and an empty wheel, however long it was not advanced, costs nothing. A slot
// of a higher level is dealt out to lower ones when the wheel reaches it.
//
// A Wheel belongs to one goroutine and allocates nothing after NewWheel. A
// timer never fires early; how late it fires is one Tick and what the caller
// of Advance is late.
type Wheel struct {
	now    int64 // every tick up to this one was dealt with
	target int64 // the tick that Advance goes to; == now outside Advance
	used   [wheelLevels]uint64
	slots  [wheelLevels*wheelSlots + 1]Timer // heads of rings; the last: firing
	count  int
}

// NewWheel returns an empty wheel that begins at now, in nanoseconds of the
// clock that its timers will use.
func NewWheel(now int64) *Wheel {
	w := &Wheel{now: now / int64(Tick)}
	w.target = w.now
	for i := range w.slots {
		s := &w.slots[i]
		s.next, s.prev = s, s
	}
	return w
}

// Len is the number of timers scheduled.
func (w *Wheel) Len() int { return w.count }

// Schedule lets t fire at the first Advance with now >= at, or at most one Tick
// later; it moves t if it is already scheduled. A timer that is scheduled for
// the past, or by a function that Advance calls, fires with a later Advance.
func (w *Wheel) Schedule(t *Timer, at int64) {
	due := at / int64(Tick)
	if due*int64(Tick) < at {
		due++
	}
	due = max(due, w.target+1)
	if t.slot != 0 {
		if t.due == due {
			return
		}
		w.unlink(t)
	} else {
		w.count++
	}
	t.due = due
	w.place(t)
}

// Stop takes t off the wheel. It does nothing if t is not scheduled.
func (w *Wheel) Stop(t *Timer) {
	if t.slot != 0 {
		w.unlink(t)
		w.count--
	}
}

// Next is the time from now until Advance has something to do, which may be
// less than until the next timer fires; -1 if there are no timers.
func (w *Wheel) Next(now int64) time.Duration {
	slot, tick := w.first()
	if slot == slotNone {
		return -1
	}
	return time.Duration(max(tick*int64(Tick)-now, 0))
}

// Advance moves the wheel to now and calls fire for every timer whose time has
// come, in the order of their ticks. The timer is no longer scheduled then;
// fire may schedule it again, and schedule and stop others.
func (w *Wheel) Advance(now int64, fire func(*Timer)) {
	target := now / int64(Tick)
	if target <= w.now {
		return
	}
	w.target = target
	for {
		slot, tick := w.first()
		if slot == slotNone || tick > target {
			break
		}
		w.now = tick
		w.deal(slot)
		for firing := &w.slots[slotFiring]; firing.next != firing; {
			t := firing.next
			w.Stop(t)
			fire(t)
		}
	}
	w.now = target
}

// first finds the first slot in time that is not empty, and its first tick.
func (w *Wheel) first() (slot int, tick int64) {
	for level, used := range w.used {
		if used == 0 {
			continue
		}
		i := bits.TrailingZeros64(used)
		shift := level * wheelBits
		block := w.now >> (shift + wheelBits) << (shift + wheelBits)
		return level<<wheelBits + i, block + int64(i)<<shift
	}
	return slotNone, 0
}

// deal empties a slot that the wheel has just reached: what is due goes to the
// firing ring, the rest to lower levels.
func (w *Wheel) deal(slot int) {
	for head := &w.slots[slot]; head.next != head; {
		t := head.next
		w.unlink(t)
		w.place(t)
	}
}

// place puts t, whose tick is not before the wheel's, where it belongs.
func (w *Wheel) place(t *Timer) {
	slot := slotFiring
	if differ := uint64(t.due ^ w.now); differ != 0 {
		level := (bits.Len64(differ) - 1) / wheelBits
		i := int(t.due>>(level*wheelBits)) & (wheelSlots - 1)
		w.used[level] |= 1 << i
		slot = level<<wheelBits + i
	}
	head := &w.slots[slot]
	t.slot = int16(slot + 1)
	t.prev, t.next = head.prev, head
	head.prev.next = t
	head.prev = t
}

// unlink takes t out of its ring.
func (w *Wheel) unlink(t *Timer) {
	t.prev.next, t.next.prev = t.next, t.prev
	slot := int(t.slot) - 1
	if head := &w.slots[slot]; head.next == head && slot != slotFiring {
		w.used[slot>>wheelBits] &^= 1 << (slot & (wheelSlots - 1))
	}
	t.next, t.prev, t.slot = nil, nil, 0
}
