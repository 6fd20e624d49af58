package ring

import (
	"fmt"
	"syscall"

	abi "github.com/iceber/iouring-go/syscall"

	"github.com/cloud-cup/cloud-cup/loop"
)

// A Finding tells whether the kernel, as this process sees it, has one thing
// that the engine uses.
type Finding struct {
	Name  string
	Since string // the first Linux that has it
	// Tried is false if it could not be tried, because something that comes
	// before it was refused.
	Tried bool
	Errno syscall.Errno // 0 if it works
	Cause string        // the likely one of Errno
}

// Has reports whether it is there.
func (f Finding) Has() bool { return f.Tried && f.Errno == 0 }

// surveyEntries take little of RLIMIT_MEMLOCK.
const surveyEntries = 8

// Survey tries, one by one, what Open tries until something is refused. It
// opens no engine; the thread that calls it must end afterwards, like one that
// calls Open.
func Survey(pool *loop.Pool) []Finding {
	list := surveyFlags()
	if !list[0].Has() {
		for i := range list[1:] {
			list[i+1].Tried, list[i+1].Errno, list[i+1].Cause = false, 0, ""
		}
	}
	return append(append(list, surveySteps(pool)...), surveyTiers(pool)...)
}

func found(name, since string, errno syscall.Errno) Finding {
	f := Finding{Name: name, Since: since, Tried: true, Errno: errno}
	switch {
	case errno == syscall.EINVAL && since != "":
		f.Cause = "a kernel older than Linux " + since
	case errno != 0:
		f.Cause = (&refusal{errno: errno}).cause()
	}
	return f
}

// surveyFlags makes a ring with each flag. The first one has none.
func surveyFlags() []Finding {
	var list []Finding
	for _, f := range []struct {
		name, since string
		flags       uint32
	}{
		{"io_uring_setup", "5.17", 0},
		{"SUBMIT_ALL", "5.18", abi.IORING_SETUP_SUBMIT_ALL},
		{"COOP_TASKRUN, TASKRUN_FLAG", "5.19", abi.IORING_SETUP_COOP_TASKRUN | abi.IORING_SETUP_TASKRUN_FLAG},
		{"SINGLE_ISSUER", "6.0", setupSingleIssuer},
		{"DEFER_TASKRUN", "6.1", setupSingleIssuer | setupDeferTaskrun},
		{"NO_SQARRAY", "6.6", setupNoSQArray},
	} {
		u, _, errno := newRing(surveyEntries, f.flags)
		if errno == 0 {
			u.close()
		}
		list = append(list, found(f.name, f.since, errno))
	}
	return list
}

// surveySteps goes on with a ring of the best tier that can be made, step by
// step until one is refused.
func surveySteps(pool *loop.Pool) []Finding {
	e := &engine{pool: pool, wakeFD: -1}
	errno := syscall.EINVAL
	for _, t := range tiers {
		if e.u, _, errno = newRing(surveyEntries, t.flags); errno == 0 {
			e.tier = t
			break
		}
	}
	made := errno == 0
	var list []Finding
	for _, s := range e.steps() {
		if errno != 0 {
			list = append(list, Finding{Name: s.text, Since: s.since})
			continue
		}
		errno = s.do()
		list = append(list, found(s.text, s.since, errno))
	}
	more := e.optional()
	if errno != 0 {
		for i, f := range more {
			more[i] = Finding{Name: f.Name, Since: f.Since}
		}
	}
	if made {
		if err := e.free(); err != nil {
			more[0].Cause = err.Error() // memory stays mapped
		}
	}
	return append(list, more...)
}

// optional is what the steps found that the engine uses where it is.
func (e *engine) optional() []Finding {
	answer := func(has bool) syscall.Errno {
		if has {
			return 0
		}
		return syscall.EINVAL
	}
	return []Finding{
		found("multishot receive with a byte total", "6.18", answer(e.multi)),
		found("accept that waits before it looks", "6.10", answer(e.pollAccept)),
	}
}

// surveyTiers opens an engine as each tier would be, with as much locked memory
// as workers need.
func surveyTiers(pool *loop.Pool) []Finding {
	since := map[Tier]string{TierBest: "6.6", TierA: "6.1", TierB: "5.19"}
	var list []Finding
	for _, t := range tiers {
		f := Finding{Name: "tier " + t.text, Since: since[t.tier]}
		e, refused := openTier(Config{Pool: pool, Entries: entriesDefault}, t)
		if refused != nil {
			f = found(f.Name, f.Since, refused.errno)
			f.Cause = fmt.Sprintf("%s: %s", refused.step, f.Cause)
		} else {
			f.Tried = true
			if err := e.Close(); err != nil {
				f.Cause = err.Error()
			}
		}
		list = append(list, f)
	}
	return list
}

// MemlockBytes is about what a worker's ring takes of RLIMIT_MEMLOCK: both
// queues and their heads.
const MemlockBytes = entriesDefault*(sqeBytes+4*cqeBytes) + 8<<10
