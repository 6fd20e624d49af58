package ring

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	abi "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// Tier caps what of the kernel is used, for tests.
type Tier uint8

const (
	TierBest Tier = iota // all that there is
	TierA                // what Linux 6.1 has
	TierB                // what Linux 5.19 has
)

// Config says how to open an engine.
type Config struct {
	Pool    *loop.Pool
	Entries int  // of the submission queue, a power of two; 0 is 1024
	Tier    Tier // the best tier to try
}

// entriesDefault takes about 136 KiB of RLIMIT_MEMLOCK, which counts per user:
// 60 rings at the usual 8 MiB. A turn with more submissions than entries costs
// a second system call.
const (
	entriesDefault = 1024
	entriesMax     = 32768
)

// With too little lockable memory Open tries again for memoryRetry, because a
// killed process's share comes back late, and then with fewer entries.
const (
	memoryRetry  = 500 * time.Millisecond
	memoryPause  = 10 * time.Millisecond
	entriesSmall = 128
)

// probeWait bounds the probe's operations, which complete at once.
const probeWait = time.Second

type tier struct {
	tier  Tier
	text  string
	flags uint32
}

var tiers = []tier{
	{TierBest, "A (single issuer, deferred task run, no SQ array)",
		setupSingleIssuer | setupDeferTaskrun | setupNoSQArray | abi.IORING_SETUP_SUBMIT_ALL},
	{TierA, "A (single issuer, deferred task run)",
		setupSingleIssuer | setupDeferTaskrun | abi.IORING_SETUP_SUBMIT_ALL},
	{TierB, "B (cooperative task run)",
		abi.IORING_SETUP_COOP_TASKRUN | abi.IORING_SETUP_TASKRUN_FLAG | abi.IORING_SETUP_SUBMIT_ALL},
}

// refusal is the error of a step that the kernel refused.
type refusal struct {
	step  string
	errno syscall.Errno
}

func (r *refusal) Error() string {
	return fmt.Sprintf("io_uring: %s: %v (%s): %s", r.step, r.errno, r.cause(), loop.ErrNotSupported)
}

// Unwrap lets errors.Is find the errno and loop.ErrNotSupported.
func (r *refusal) Unwrap() []error { return []error{r.errno, loop.ErrNotSupported} }

// cause is the likely reason of the errno, for who reads the log.
func (r *refusal) cause() string {
	switch r.errno {
	case syscall.EPERM:
		value, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
		if v := strings.TrimSpace(string(value)); err == nil && v != "0" {
			return "the sysctl kernel.io_uring_disabled is " + v
		}
		return "a seccomp filter forbids it, as those of Docker and containerd do"
	case syscall.ENOSYS:
		return "no io_uring in this kernel, or gVisor, or a seccomp filter like Podman's"
	case syscall.EACCES:
		return "SELinux or a seccomp filter forbids it"
	case syscall.ENOMEM:
		var l syscall.Rlimit
		if err := syscall.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil || l.Cur == unix.RLIM_INFINITY {
			return "no memory"
		}
		return fmt.Sprintf("RLIMIT_MEMLOCK, %d KiB for all processes of this user, is too small", l.Cur>>10)
	case syscall.EINVAL:
		return "kernel older than Linux 5.19, or gVisor"
	case syscall.EMFILE, syscall.ENFILE:
		return "no descriptors left"
	case syscall.ETIME:
		return "the kernel took the operation and did not complete it"
	}
	return "unexpected"
}

// Open opens an engine on the calling thread, which must be locked to its
// goroutine (runtime.LockOSThread) and make every later call but Wake. Where
// the kernel lacks or refuses what is needed, the error is
// loop.ErrNotSupported and names step, errno and likely cause.
func Open(c Config) (loop.Engine, error) {
	if c.Pool == nil {
		return nil, errors.New("ring: Config.Pool is missing")
	}
	if c.Entries == 0 {
		c.Entries = entriesDefault
	}
	if c.Entries < 0 || c.Entries > entriesMax || c.Entries&(c.Entries-1) != 0 {
		return nil, fmt.Errorf("ring: %d entries: must be a power of two up to %d", c.Entries, entriesMax)
	}
	e, refused := openBest(c)
	for end := sys.Monotonic() + int64(memoryRetry); refused != nil && refused.errno == syscall.ENOMEM; e, refused = openBest(c) {
		if sys.Monotonic() < end {
			time.Sleep(memoryPause)
		} else if c.Entries > entriesSmall {
			c.Entries = entriesSmall
		} else {
			break
		}
	}
	if refused != nil {
		return nil, refused
	}
	return e, nil
}

// openBest opens the best tier that there is; EINVAL means to try the next.
func openBest(c Config) (e *engine, refused *refusal) {
	for _, t := range tiers[c.Tier:] {
		if e, refused = openTier(c, t); refused == nil || refused.errno != syscall.EINVAL {
			break
		}
	}
	return e, refused
}

// openTier sets up one tier. Descriptor and buffers are registered before the
// restrictions, which are in force once the ring is enabled.
func openTier(c Config, t tier) (*engine, *refusal) {
	u, step, errno := newRing(uint32(c.Entries), t.flags)
	if errno != 0 {
		return nil, &refusal{step, errno}
	}
	e := &engine{u: u, pool: c.Pool, tier: t, wakeFD: -1}
	for _, s := range e.steps() {
		if errno := s.do(); errno != 0 {
			if err := e.free(); err != nil {
				// Memory stays mapped; the refusal says more.
				return nil, &refusal{s.text + ", then " + err.Error(), errno}
			}
			return nil, &refusal{s.text, errno}
		}
	}
	e.armWake()
	e.now = sys.Monotonic()
	return e, nil
}

// step is a part of opening an engine on a new ring.
type step struct {
	text  string
	since string // the first Linux that can do it
	do    func() syscall.Errno
}

// steps are all of them, in their order.
func (e *engine) steps() []step {
	return []step{
		{"io_uring_register of the ring's descriptor", "5.18", e.u.registerFD},
		{"io_uring_register of head buffers", "5.19", func() syscall.Errno {
			return e.openGroup(loop.ClassHead, 0, headsMax, headsHot, headsPerRecv, headsEnough)
		}},
		{"io_uring_register of body buffers", "5.19", func() syscall.Errno {
			return e.openGroup(loop.ClassBody, 1, bodiesMax, bodiesHot, 1, bodiesEnough)
		}},
		{"io_uring_register of restrictions", "5.10", func() syscall.Errno { return e.u.restrict(allowed) }},
		{"io_uring_register to enable the ring", "5.10", e.u.enable},
		{"io_uring_enter", "5.11", e.probeEnter},
		{"io_uring receive", "5.19", e.probeReceive},
		{"io_uring accept", "5.19", e.probeAccept},
		{"eventfd", "2.6.27", func() (errno syscall.Errno) {
			e.wakeFD, errno = sys.EventFD(false)
			return errno
		}},
	}
}

// allowed is all that the ring can do once it is enabled.
var allowed = []restriction{
	{opcode: restrictOp, value: abi.IORING_OP_NOP},
	{opcode: restrictOp, value: abi.IORING_OP_READ}, // of the wake-up counter
	{opcode: restrictOp, value: abi.IORING_OP_ACCEPT},
	{opcode: restrictOp, value: abi.IORING_OP_CONNECT},
	{opcode: restrictOp, value: abi.IORING_OP_RECV},
	{opcode: restrictOp, value: abi.IORING_OP_SEND},
	{opcode: restrictOp, value: abi.IORING_OP_SENDMSG},
	{opcode: restrictOp, value: abi.IORING_OP_POLL_ADD},
	{opcode: restrictOp, value: abi.IORING_OP_CLOSE},
	{opcode: restrictOp, value: abi.IORING_OP_ASYNC_CANCEL},
	{opcode: restrictFlags, value: sqeBufferSelect | sqeSkipSuccess},
	{opcode: restrictReg, value: unregisterRingFD},
	{opcode: restrictReg, value: unregisterBufs},
}

// probeEnter does nothing once: set-up may be allowed where entering is not.
func (e *engine) probeEnter() syscall.Errno {
	s, _ := e.u.next()
	s.PrepOperation(abi.IORING_OP_NOP, -1, 0, 0, 0)
	s.SetUserData(userData(kindProbe, 0, 0))
	res, _, errno := e.probed()
	if errno != 0 {
		return errno
	}
	_, errno = split(res)
	return errno
}

// probed waits for the one completion of a probe.
func (e *engine) probed() (res int32, flags uint32, errno syscall.Errno) {
	e.held++
	for end := sys.Monotonic() + int64(probeWait); e.u.completed() == 0; {
		errno = e.u.enter(1, probeWait, true)
		switch {
		case e.u.completed() > 0:
		case errno != 0 && errno != syscall.EINTR:
			if errno != syscall.ETIME {
				e.held-- // refused: the kernel holds nothing
			}
			return 0, 0, errno
		case sys.Monotonic() > end:
			return 0, 0, syscall.ETIME
		}
	}
	e.held--
	_, res, flags = e.u.completion()
	e.u.giveBack()
	return res, flags, 0
}

// probeReceive receives three bytes through a buffer ring: as a multishot with
// a byte total of three, or if the kernel knows none, once.
func (e *engine) probeReceive() syscall.Errno {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer sys.Close(int32(pair[0]))
	defer sys.Close(int32(pair[1]))
	const text = "cup"
	if _, errno := sys.Send(int32(pair[1]), []byte(text)); errno != 0 {
		return errno
	}
	g := &e.groups[0]
	g.add(e.u.scratch.probe[:], 0)
	g.out-- // it is not of the pool, and the probe takes it
	publish(g.entries, g.firstBID, g.tail)
	receive := func(how uint16, total int32) (int32, uint32, syscall.Errno) {
		s, _ := e.u.next()
		s.PrepOperation(abi.IORING_OP_RECV, int32(pair[0]), 0, 0, 0)
		s.SetFlags(sqeBufferSelect)
		s.SetBufGroup(g.id)
		s.SetIoprio(how)
		s.SetSpliceFdIn(total)
		s.SetUserData(userData(kindProbe, 0, 0))
		return e.probed()
	}
	var res int32
	var flags uint32
	var errno syscall.Errno
	if e.tier.tier != TierB {
		res, flags, errno = receive(recvMultishot, int32(len(text)))
		e.multi = errno == 0 && res == int32(len(text)) && flags&cqeMore == 0
	}
	if !e.multi && errno == 0 {
		res, flags, errno = receive(0, 0)
	}
	switch {
	case errno != 0:
		return errno
	case res < 0:
		return syscall.Errno(-res)
	case flags&cqeBuffer == 0 || string(e.u.scratch.probe[:res]) != text:
		return syscall.EINVAL
	}
	return 0
}

// probeAccept finds out whether an accept can be told to wait before it looks,
// with an accept that names no descriptor: a kernel which does not know the flag
// says so first.
func (e *engine) probeAccept() syscall.Errno {
	s, _ := e.u.next()
	s.PrepOperation(abi.IORING_OP_ACCEPT, -1, 0, 0, 0)
	if e.tier.tier == TierBest {
		s.SetIoprio(acceptPollFirst)
	}
	s.SetUserData(userData(kindProbe, 0, 0))
	res, _, errno := e.probed()
	if errno != 0 {
		return errno
	}
	switch _, errno = split(res); errno {
	case syscall.EBADF:
		e.pollAccept = e.tier.tier == TierBest
	case syscall.EINVAL: // Linux before 6.10
	default:
		return errno
	}
	return 0
}
