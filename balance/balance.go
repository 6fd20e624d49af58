// Package balance chooses a backend for a request, counts the failures of
// backends, and brings them back. It knows a backend only as a member with a
// weight and a row of words that all workers share; connections are its
// caller's.
package balance

import "github.com/cloud-cup/cloud-cup/internal/shm"

// trialLease is how long one trial may keep others from trying, in case the
// worker that runs it dies.
const trialLease = int64(60e9)

// weightScale is what a weight of 1 counts for a backend with one address. It
// is divisible by 1 to 16, and so large that the shares of more addresses are
// exact to a thousandth.
const weightScale = 720720

// Kind is what a failure was.
type Kind uint8

const (
	// Refused is every failure that tells a dead or broken backend: connect
	// refused, reset, malformed head.
	Refused Kind = iota
	// TimedOut is a connect or a response that did not come in time.
	TimedOut
)

// Member is a backend's address as one balancer sees it. Times are
// CLOCK_MONOTONIC nanoseconds.
type Member struct {
	Row        *shm.BackendRow
	Weight     int    // of the backend; another one may be set in Row
	Addresses  int    // of the backend, which share its weight; 0 is 1
	MaxFailure uint32 // consecutive failures that take it out; 0: never
	Cooldown   int64  // nanoseconds until the first trial, and between trials
	// MaxInFlight bounds Row.InFlight; 0: no bound.
	MaxInFlight int32
	// Mine tells this worker's share of Row.InFlight. It is nil if the row
	// does not count, and is never so if MaxInFlight is set.
	Mine *shm.BackendGauges
}

// Out reports whether the member is taken out at the moment.
func (m *Member) Out() bool { return m.Row.OutUntil.Load() != 0 }

// weight is what the member counts: 0 if it gets nothing.
func (m *Member) weight() int64 {
	weight := int64(m.Weight)
	if set := m.Row.WeightSet.Load(); set != 0 {
		weight = int64(set) - 1
	}
	if m.Row.Admin.Load() != shm.AdminEnabled {
		return 0
	}
	if m.Addresses > 1 {
		return weight * weightScale / int64(m.Addresses)
	}
	return weight * weightScale
}

// full reports whether the member has as many exchanges as it may.
func (m *Member) full() bool {
	return m.MaxInFlight > 0 && m.Row.InFlight.Load() >= m.MaxInFlight
}

// enter counts an exchange, unless the member is full. The worker's own count
// is never less than what it has added to the shared one, so that nothing stays
// counted when it dies in between; see shm.BackendRow.Return.
func (m *Member) enter() bool {
	if m.Mine == nil {
		return true
	}
	m.Mine.Counted++
	for {
		n := m.Row.InFlight.Load()
		if m.MaxInFlight > 0 && n >= m.MaxInFlight {
			m.Mine.Counted--
			return false
		}
		if m.Row.InFlight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// What Pick returns in place of a member.
const (
	None = -1 // there is none to choose
	Full = -2 // those that there are have as many exchanges as they may
)

// RoundRobin is smooth weighted round-robin over members: within any run of
// picks that is as long as the sum of the weights, each gets its share, spread
// evenly. It belongs to one goroutine; its members' rows are shared.
type RoundRobin struct {
	members []Member
	credit  []int64 // what each member is owed
}

// NewRoundRobin returns a balancer over members. Each needs its Row before the
// first Pick.
func NewRoundRobin(members []Member) *RoundRobin {
	return &RoundRobin{members: members, credit: make([]int64, len(members))}
}

// Start makes the member numbered start (modulo their count) the next pick, if
// the weights are equal.
func (r *RoundRobin) Start(start int) {
	n := len(r.members)
	// Credits that sum to zero and favour start, then its followers.
	for i := range r.members {
		rank := (i - start%n + n) % n
		r.credit[i] = int64(n-1-2*rank) * r.members[i].weight() / int64(2*n)
	}
}

// Len is the number of members.
func (r *RoundRobin) Len() int { return len(r.members) }

// Member returns the member numbered i.
func (r *RoundRobin) Member(i int) *Member { return &r.members[i] }

// Pick chooses a member at the time now, none of tried, and counts an exchange
// of it, which Leave ends. A member that is out is chosen when its cooldown is
// over and nobody tries it, in any worker: that request is its trial, and lease
// is not 0. Succeeded, Failed or Abandoned must follow. It returns None or Full
// if there is no member to choose.
func (r *RoundRobin) Pick(now int64, tried []int16) (i int, lease int64) {
	for {
		best, total := r.best(now, tried)
		if best < 0 {
			return best, 0
		}
		m := &r.members[best]
		ok := true
		if m.Out() {
			lease, ok = m.lease(now)
		}
		if ok && m.enter() {
			r.credit[best] -= total
			return best, lease
		}
		// Another worker was faster in this moment. The member is not to be
		// chosen any more, or has become so again.
		m.endTrial(lease)
	}
}

// best returns the member that is owed most, and what a pick costs it.
func (r *RoundRobin) best(now int64, tried []int16) (best int, total int64) {
	best = None
	for i := range r.members {
		m := &r.members[i]
		weight := m.weight()
		if weight == 0 || contains(tried, i) || !m.eligible(now) {
			continue
		}
		if m.full() {
			if best < 0 {
				best = Full
			}
			continue
		}
		r.credit[i] += weight
		total += weight
		if best < 0 || r.credit[i] > r.credit[best] {
			best = i
		}
	}
	return best, total
}

// Leave ends an exchange that Pick counted.
func (r *RoundRobin) Leave(i int) {
	if m := &r.members[i]; m.Mine != nil {
		m.Row.InFlight.Add(-1)
		m.Mine.Counted--
	}
}

// eligible reports whether m is in, or due for a trial that nobody runs.
func (m *Member) eligible(now int64) bool {
	until := m.Row.OutUntil.Load()
	return until == 0 || now >= until && now >= m.Row.Trial.Load()
}

// lease takes the trial of a member that is out.
func (m *Member) lease(now int64) (lease int64, ok bool) {
	old := m.Row.Trial.Load()
	lease = now + trialLease
	if now < old || !m.Row.Trial.CompareAndSwap(old, lease) {
		return 0, false
	}
	return lease, true
}

// endTrial ends the trial whose lease that is, if it is one and still runs.
func (m *Member) endTrial(lease int64) {
	if lease != 0 {
		m.Row.Trial.CompareAndSwap(lease, 0)
	}
}

// Succeeded notes an answer of member i, and the end of its trial if that was
// one. It reports whether the answer brought the member back.
func (r *RoundRobin) Succeeded(i int, lease int64) (back bool) {
	m := &r.members[i]
	if m.Row.Failures.Load() != 0 {
		m.Row.Failures.Store(0)
	}
	if until := m.Row.OutUntil.Load(); until != 0 {
		back = m.Row.OutUntil.CompareAndSwap(until, 0)
	}
	m.endTrial(lease)
	return back
}

// Failed notes a failure of member i, and the end of its trial if that was one,
// after which another cooldown begins. It reports whether the failure took the
// member out. The last member that is in is not taken out for time-outs: slow
// answers are better than none.
func (r *RoundRobin) Failed(i int, lease int64, kind Kind, now int64) (out bool) {
	m := &r.members[i]
	if m.MaxFailure == 0 {
		return false
	}
	n := m.Row.Failures.Add(1)
	switch {
	case lease != 0:
		if until := m.Row.OutUntil.Load(); until != 0 {
			m.Row.OutUntil.CompareAndSwap(until, now+m.Cooldown)
		}
		m.endTrial(lease)
	case n < m.MaxFailure, kind == TimedOut && r.last(i):
	default:
		return m.Row.OutUntil.CompareAndSwap(0, now+m.Cooldown)
	}
	return false
}

// Abandoned notes that a request to member i ended without telling anything
// about it, for example because the client went away. If it was a trial, the
// next request may try again.
func (r *RoundRobin) Abandoned(i int, lease int64) { r.members[i].endTrial(lease) }

// last reports whether no member but i takes requests.
func (r *RoundRobin) last(i int) bool {
	for j := range r.members {
		if m := &r.members[j]; j != i && !m.Out() && m.weight() > 0 {
			return false
		}
	}
	return true
}

func contains(list []int16, i int) bool {
	for _, t := range list {
		if int(t) == i {
			return true
		}
	}
	return false
}
