// Package balance chooses a backend for a request, counts the failures of
// backends, and brings them back. It knows a backend only as a member with a
// weight and a row of words that all workers share; connections are its caller's.
package balance

import "github.com/cloud-cup/cloud-cup/internal/shm"

// trialLease is how long one trial may keep others from trying, in case the
// one who runs it dies.
const trialLease = int64(60e9)

// Kind is what a failure was.
type Kind uint8

const (
	// Refused is every failure that tells a dead or broken backend: connect
	// refused, reset, malformed head.
	Refused Kind = iota
	// TimedOut is a connect or a response that did not come in time.
	TimedOut
)

// Member is a backend as one balancer sees it.
type Member struct {
	Row        *shm.BackendRow // times are CLOCK_MONOTONIC nanoseconds
	Weight     int             // at least 1
	MaxFailure uint32          // consecutive failures that take it out; 0: never
	Cooldown   int64           // nanoseconds until the first trial, and between trials
}

// Out reports whether the member is taken out at the moment.
func (m *Member) Out() bool { return m.Row.OutUntil.Load() != 0 }

// RoundRobin is smooth weighted round-robin over members: within any run of
// picks that is as long as the sum of the weights, each gets its share, spread
// evenly. It belongs to one goroutine.
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
		r.credit[i] = int64(n-1-2*rank) * int64(r.members[i].Weight) / int64(2*n)
	}
}

// Len is the number of members.
func (r *RoundRobin) Len() int { return len(r.members) }

// Member returns the member numbered i.
func (r *RoundRobin) Member(i int) *Member { return &r.members[i] }

// Pick chooses a member at the time now, none of tried. A member that is out
// is chosen when its cooldown is over and nobody else tries it: that request
// is its trial, and Succeeded or Failed must follow, or Abandoned. It returns
// -1 if there is none to choose.
func (r *RoundRobin) Pick(now int64, tried []int16) int {
	best, total := -1, int64(0)
	for i := range r.members {
		m := &r.members[i]
		if contains(tried, i) || !m.eligible(now) {
			continue
		}
		r.credit[i] += int64(m.Weight)
		total += int64(m.Weight)
		if best < 0 || r.credit[i] > r.credit[best] {
			best = i
		}
	}
	if best < 0 {
		return -1
	}
	r.credit[best] -= total
	if m := &r.members[best]; m.Out() && !m.lease(now) {
		// Another worker began its trial in this moment.
		return r.pickIn(now, tried, best)
	}
	return best
}

// pickIn chooses among the members that are in, after a trial was lost.
func (r *RoundRobin) pickIn(now int64, tried []int16, lost int) int {
	best := -1
	for i := range r.members {
		if i == lost || contains(tried, i) || r.members[i].Out() {
			continue
		}
		if best < 0 || r.credit[i] > r.credit[best] {
			best = i
		}
	}
	return best
}

// eligible reports whether m is in, or due for a trial that nobody runs.
func (m *Member) eligible(now int64) bool {
	until := m.Row.OutUntil.Load()
	return until == 0 || now >= until && now >= m.Row.Trial.Load()
}

// lease takes the trial of a member that is out.
func (m *Member) lease(now int64) bool {
	old := m.Row.Trial.Load()
	return now >= old && m.Row.Trial.CompareAndSwap(old, now+trialLease)
}

// Succeeded notes an answer of member i. It reports whether that brought the
// member back.
func (r *RoundRobin) Succeeded(i int) (back bool) {
	row := r.members[i].Row
	if row.Failures.Load() != 0 {
		row.Failures.Store(0)
	}
	if row.OutUntil.Load() != 0 {
		row.OutUntil.Store(0)
		row.Trial.Store(0)
		return true
	}
	return false
}

// Failed notes a failure of member i. It reports whether that took the member
// out. The last member that is in is not taken out for time-outs: slow answers
// are better than none.
func (r *RoundRobin) Failed(i int, kind Kind, now int64) (out bool) {
	m := &r.members[i]
	if m.MaxFailure == 0 {
		return false
	}
	n := m.Row.Failures.Add(1)
	if m.Row.OutUntil.Load() != 0 {
		m.Row.OutUntil.Store(now + m.Cooldown)
		m.Row.Trial.Store(0)
		return false
	}
	if n < m.MaxFailure || kind == TimedOut && r.last(i) {
		return false
	}
	return m.Row.OutUntil.CompareAndSwap(0, now+m.Cooldown)
}

// Abandoned notes that a request to member i ended without telling anything
// about it, for example because the client went away. If it was a trial, the
// next request may try again.
func (r *RoundRobin) Abandoned(i int) {
	if row := r.members[i].Row; row.OutUntil.Load() != 0 {
		row.Trial.Store(0)
	}
}

// last reports whether every member but i is out.
func (r *RoundRobin) last(i int) bool {
	for j := range r.members {
		if j != i && !r.members[j].Out() {
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
