package ring

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	abi "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
)

// What <linux/io_uring.h> has and the abi package lacks.
const (
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER, Linux 6.0
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN, Linux 6.1
	setupNoSQArray    = 1 << 16 // IORING_SETUP_NO_SQARRAY, Linux 6.6

	featExtArg  = 1 << 8  // IORING_FEAT_EXT_ARG, Linux 5.11
	featCQESkip = 1 << 11 // IORING_FEAT_CQE_SKIP, Linux 5.17

	enterGetEvents      = 1 << 0 // IORING_ENTER_GETEVENTS
	enterExtArg         = 1 << 3 // IORING_ENTER_EXT_ARG
	enterRegisteredRing = 1 << 4 // IORING_ENTER_REGISTERED_RING, Linux 5.18

	sqeBufferSelect = 1 << 5 // IOSQE_BUFFER_SELECT
	sqeSkipSuccess  = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS

	recvPollFirst = 1 << 0 // IORING_RECVSEND_POLL_FIRST, Linux 5.19
	recvMultishot = 1 << 1 // IORING_RECV_MULTISHOT, Linux 6.0

	acceptPollFirst = 1 << 2 // IORING_ACCEPT_POLL_FIRST, Linux 6.10

	cancelAll = 1 << 0 // IORING_ASYNC_CANCEL_ALL, Linux 5.19
	cancelAny = 1 << 2 // IORING_ASYNC_CANCEL_ANY, Linux 5.19

	cqeBuffer      = 1 << 0 // IORING_CQE_F_BUFFER
	cqeMore        = 1 << 1 // IORING_CQE_F_MORE
	cqeNonEmpty    = 1 << 2 // IORING_CQE_F_SOCK_NONEMPTY, Linux 5.19; of accepts 6.10
	cqeBufferShift = 16     // IORING_CQE_BUFFER_SHIFT

	sqCQOverflow = 1 << 1 // IORING_SQ_CQ_OVERFLOW

	registerRingFD   = 20 // IORING_REGISTER_RING_FDS, Linux 5.18
	unregisterRingFD = 21 // IORING_UNREGISTER_RING_FDS
	registerBufs     = 22 // IORING_REGISTER_PBUF_RING, Linux 5.19
	unregisterBufs   = 23 // IORING_UNREGISTER_PBUF_RING

	restrictReg   = 0 // IORING_RESTRICTION_REGISTER_OP
	restrictOp    = 1 // IORING_RESTRICTION_SQE_OP
	restrictFlags = 2 // IORING_RESTRICTION_SQE_FLAGS_ALLOWED
)

// featuresNeeded are older than the oldest tier.
const featuresNeeded = abi.IORING_FEAT_SINGLE_MMAP | abi.IORING_FEAT_NODROP |
	abi.IORING_FEAT_SUBMIT_STABLE | abi.IORING_FEAT_FAST_POLL | featExtArg | featCQESkip

const (
	sqeBytes = 64
	cqeBytes = 16

	allocIndex = 1<<32 - 1 // "any" in rsrcUpdate.offset

	waitUnlimited = time.Duration(-1)
)

// sqEntry mirrors struct io_uring_sqe, cqEntry struct io_uring_cqe.
type (
	sqEntry = abi.SubmissionQueueEntry64
	cqEntry = abi.CompletionQueueEvent16
)

var (
	_ = [1]struct{}{}[unsafe.Sizeof(sqEntry{})-sqeBytes]
	_ = [1]struct{}{}[unsafe.Sizeof(cqEntry{})-cqeBytes]
	_ = [1]struct{}{}[unsafe.Sizeof(abi.IOURingParams{})-120]
)

// timespec mirrors struct __kernel_timespec of <linux/time_types.h>.
type timespec struct{ sec, nsec int64 }

// getEventsArg mirrors struct io_uring_getevents_arg.
type getEventsArg struct {
	sigmask     uint64
	sigmaskSize uint32
	minWaitUsec uint32
	ts          uint64 // address of a timespec, or 0: no limit
}

var _ = [1]struct{}{}[unsafe.Sizeof(getEventsArg{})-24]

// rsrcUpdate mirrors struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset uint32
	resv   uint32
	data   uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(rsrcUpdate{})-16]

// bufReg mirrors struct io_uring_buf_reg.
type bufReg struct {
	ringAddr    uint64
	ringEntries uint32
	bgid        uint16
	flags       uint16
	resv        [3]uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(bufReg{})-40]

// bufEntry mirrors struct io_uring_buf. The upper half of entry 0's last word
// is the ring's tail (struct io_uring_buf_ring).
type bufEntry struct {
	addr    uint64
	length  uint32
	bidTail uint32 // __u16 bid, __u16 resv or tail
}

var _ = [1]struct{}{}[unsafe.Sizeof(bufEntry{})-16]

// restriction mirrors struct io_uring_restriction.
type restriction struct {
	opcode uint16
	value  uint8 // register_op, sqe_op or sqe_flags
	_      uint8
	_      [3]uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(restriction{})-16]

// msgHeader mirrors struct user_msghdr of <linux/socket.h>, 64 bit.
type msgHeader struct {
	name       uint64
	nameLen    uint32
	_          uint32
	iov        uint64
	iovLen     uint64
	control    uint64
	controlLen uint64
	flags      uint32
	_          uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(msgHeader{})-56]

// ioVec mirrors struct iovec of <linux/uio.h>, 64 bit.
type ioVec struct{ base, length uint64 }

// sqeArea is memory that belongs to a slot of the submission queue: what its
// entry points to. The kernel has taken it over once it consumed the entry
// (IORING_FEAT_SUBMIT_STABLE).
type sqeArea struct {
	msg  msgHeader
	vecs [loop.VecsMax]ioVec
	addr sys.Sockaddr
}

// acceptArea is where the kernel writes the peer's address of one accept.
type acceptArea struct {
	addr   sys.Sockaddr
	length uint32
	_      uint32
}

// scratch is memory for the arguments of calls, lent to the kernel.
type scratch struct {
	arg   getEventsArg
	ts    timespec
	event uint64 // what the read of the wake-up counter returns
	probe [64]byte
}

// uring is one ring with its mapped queues: the kernel's words and nothing of
// the engine.
type uring struct {
	fd         int
	registered bool    // the ring's descriptor is registered
	enterFD    uintptr // the descriptor, or its registered index
	enterFlags uintptr

	sqHead, sqTail, sqFlags *uint32
	sqMask, sqEntries       uint32
	sqes                    []sqEntry
	areas                   []sqeArea
	tail                    uint32 // ours, ahead of *sqTail by what was not handed over

	cqHead, cqTail, cqLost *uint32
	cqMask                 uint32
	cqes                   []cqEntry
	head                   uint32 // ours, ahead of *cqHead by what was not given back

	scratch *scratch
	maps    [][]byte
}

// newRing makes a disabled ring. The step that was refused is named.
func newRing(entries, flags uint32) (*uring, string, syscall.Errno) {
	p := abi.IOURingParams{Flags: flags | abi.IORING_SETUP_CQSIZE | abi.IORING_SETUP_R_DISABLED, CQEntries: 4 * entries}
	fd, err := abi.IOURingSetup(uint(entries), &p)
	if err != nil {
		return nil, "io_uring_setup", errnoOf(err)
	}
	unix.CloseOnExec(fd)
	u := &uring{fd: fd, enterFD: uintptr(fd)}
	if p.Features&featuresNeeded != featuresNeeded {
		u.close()
		return nil, "io_uring_setup", syscall.EINVAL // an older kernel
	}
	if errno := u.mapQueues(&p); errno != 0 {
		u.close()
		return nil, "mmap of the rings", errno
	}
	return u, "", 0
}

// mapQueues maps both queues and what belongs to their slots.
func (u *uring) mapQueues(p *abi.IOURingParams) syscall.Errno {
	bytes := max(int(p.CQOffset.Cqes+p.CQEntries*cqeBytes), int(p.SQOffset.Array+p.SQEntries*4))
	rings, errno := u.mapMemory(u.fd, int64(abi.IORING_OFF_SQ_RING), bytes)
	if errno != 0 {
		return errno
	}
	sqes, errno := u.mapMemory(u.fd, int64(abi.IORING_OFF_SQES), int(p.SQEntries)*sqeBytes)
	if errno != 0 {
		return errno
	}
	word := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[offset])) }
	u.sqHead, u.sqTail, u.sqFlags = word(p.SQOffset.Head), word(p.SQOffset.Tail), word(p.SQOffset.Flags)
	u.sqEntries, u.sqMask = p.SQEntries, p.SQEntries-1
	u.sqes = unsafe.Slice((*sqEntry)(unsafe.Pointer(&sqes[0])), p.SQEntries)
	u.cqHead, u.cqTail, u.cqLost = word(p.CQOffset.Head), word(p.CQOffset.Tail), word(p.CQOffset.Overflow)
	u.cqMask = p.CQEntries - 1
	u.cqes = unsafe.Slice((*cqEntry)(unsafe.Pointer(word(p.CQOffset.Cqes))), p.CQEntries)
	if p.Flags&setupNoSQArray == 0 { // entry i is always slot i
		array := unsafe.Slice(word(p.SQOffset.Array), p.SQEntries)
		for i := range array {
			array[i] = uint32(i)
		}
	}
	if u.areas, errno = mapArray[sqeArea](u, int(p.SQEntries)+1); errno != 0 {
		return errno
	}
	one, errno := mapArray[scratch](u, 1)
	if errno != 0 {
		return errno
	}
	u.scratch = &one[0]
	return 0
}

// mapMemory maps memory that lives as long as the ring: anonymous for fd -1.
func (u *uring) mapMemory(fd int, offset int64, bytes int) ([]byte, syscall.Errno) {
	flags := unix.MAP_SHARED | unix.MAP_POPULATE
	if fd < 0 {
		flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	}
	m, err := unix.Mmap(fd, offset, bytes, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, errnoOf(err)
	}
	u.maps = append(u.maps, m)
	return m, 0
}

// mapArray maps n zeroed elements outside the Go heap, to be lent to the
// kernel. T has no pointers.
func mapArray[T any](u *uring, n int) ([]T, syscall.Errno) {
	var t T
	m, errno := u.mapMemory(-1, 0, n*int(unsafe.Sizeof(t)))
	if errno != 0 {
		return nil, errno
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&m[0])), n), 0
}

// close gives back the ring and its memory. The kernel must hold no operation
// that points to the memory.
func (u *uring) close() {
	if u.registered {
		update := rsrcUpdate{offset: uint32(u.enterFD)}
		// A registered descriptor keeps the ring alive until the thread ends.
		_, _ = u.register(unregisterRingFD, unsafe.Pointer(&update), 1)
	}
	sys.Close(int32(u.fd))
	for _, m := range u.maps {
		_ = unix.Munmap(m) // cannot fail for a mapping of ours
	}
	u.maps = nil
}

// register is io_uring_register(2).
func (u *uring) register(op uint8, arg unsafe.Pointer, n uint32) (int, syscall.Errno) {
	r, _, errno := syscall.Syscall6(abi.SYS_IO_URING_REGISTER, uintptr(u.fd), uintptr(op), uintptr(arg), uintptr(n), 0, 0)
	return int(r), errno
}

// registerFD registers the ring's own descriptor, which spares each enter the
// look-up.
func (u *uring) registerFD() syscall.Errno {
	update := rsrcUpdate{offset: allocIndex, data: uint64(u.fd)}
	if _, errno := u.register(registerRingFD, unsafe.Pointer(&update), 1); errno != 0 {
		return errno
	}
	u.registered, u.enterFD, u.enterFlags = true, uintptr(update.offset), enterRegisteredRing
	return 0
}

// registerBuffers makes entries a buffer ring with the number bgid.
func (u *uring) registerBuffers(entries []bufEntry, bgid uint16) syscall.Errno {
	reg := bufReg{ringAddr: uint64(uintptr(unsafe.Pointer(&entries[0]))), ringEntries: uint32(len(entries)), bgid: bgid}
	_, errno := u.register(registerBufs, unsafe.Pointer(&reg), 1)
	return errno
}

// unregisterBuffers ends the kernel's use of a buffer ring at once.
func (u *uring) unregisterBuffers(bgid uint16) syscall.Errno {
	reg := bufReg{bgid: bgid}
	_, errno := u.register(unregisterBufs, unsafe.Pointer(&reg), 1)
	return errno
}

// restrict allows only the listed operations and flags once the ring is
// enabled.
func (u *uring) restrict(list []restriction) syscall.Errno {
	_, errno := u.register(abi.IORING_REGISTER_RESTRICTIONS, unsafe.Pointer(&list[0]), uint32(len(list)))
	return errno
}

// enable starts the ring; the calling thread becomes its single issuer.
func (u *uring) enable() syscall.Errno {
	_, errno := u.register(abi.IORING_REGISTER_ENABLE_RINGS, nil, 0)
	return errno
}

// next returns a cleared entry of the submission queue and its slot, or nil if
// the queue is full.
func (u *uring) next() (*sqEntry, uint32) {
	if u.tail-atomic.LoadUint32(u.sqHead) == u.sqEntries {
		return nil, 0
	}
	slot := u.tail & u.sqMask
	u.tail++
	s := &u.sqes[slot]
	s.Reset()
	return s, slot
}

// enter hands over what was filled in. With least > 0 it waits until so many
// completions are there, at most wait, or without limit if that is negative.
// It tells the scheduler that it may sleep only if asked to.
func (u *uring) enter(least uint32, wait time.Duration, tellScheduler bool) syscall.Errno {
	atomic.StoreUint32(u.sqTail, u.tail)
	submit := u.tail - atomic.LoadUint32(u.sqHead)
	arg := &u.scratch.arg
	arg.ts = 0
	if wait >= 0 {
		u.scratch.ts = timespec{int64(wait / time.Second), int64(wait % time.Second)}
		arg.ts = uint64(uintptr(unsafe.Pointer(&u.scratch.ts)))
	}
	flags := u.enterFlags | enterGetEvents | enterExtArg
	var errno syscall.Errno
	if tellScheduler {
		_, _, errno = syscall.Syscall6(abi.SYS_IO_URING_ENTER, u.enterFD, uintptr(submit), uintptr(least), flags,
			uintptr(unsafe.Pointer(arg)), unsafe.Sizeof(*arg))
	} else {
		_, _, errno = syscall.RawSyscall6(abi.SYS_IO_URING_ENTER, u.enterFD, uintptr(submit), uintptr(least), flags,
			uintptr(unsafe.Pointer(arg)), unsafe.Sizeof(*arg))
	}
	return errno
}

// submit hands over what was filled in, and collects nothing.
func (u *uring) submit() syscall.Errno {
	atomic.StoreUint32(u.sqTail, u.tail)
	n := u.tail - atomic.LoadUint32(u.sqHead)
	_, _, errno := syscall.RawSyscall6(abi.SYS_IO_URING_ENTER, u.enterFD, uintptr(n), 0, u.enterFlags, 0, 0)
	return errno
}

// completed is the number of completions to be read.
func (u *uring) completed() uint32 { return atomic.LoadUint32(u.cqTail) - u.head }

// completion reads the oldest completion, of which there is one.
func (u *uring) completion() (userData uint64, result int32, flags uint32) {
	c := &u.cqes[u.head&u.cqMask]
	userData, result, flags = c.UserData(), c.Result(), c.Flags()
	u.head++
	return userData, result, flags
}

// giveBack returns the room of completions that were read.
func (u *uring) giveBack() { atomic.StoreUint32(u.cqHead, u.head) }

// overflown tells that completions wait in the kernel for room.
func (u *uring) overflown() bool { return atomic.LoadUint32(u.sqFlags)&sqCQOverflow != 0 }

// lost is the number of completions the kernel dropped for want of memory.
func (u *uring) lost() uint32 { return atomic.LoadUint32(u.cqLost) }

// setVecs fills the slot's message header for SENDMSG.
func (a *sqeArea) setVecs(vecs [][]byte) {
	for i, v := range vecs {
		a.vecs[i] = ioVec{addressOf(v), uint64(len(v))}
	}
	a.msg = msgHeader{iov: uint64(uintptr(unsafe.Pointer(&a.vecs))), iovLen: uint64(len(vecs))}
}

func (a *sqeArea) msgAddress() uint64  { return uint64(uintptr(unsafe.Pointer(&a.msg))) }
func (a *sqeArea) addrAddress() uint64 { return uint64(uintptr(unsafe.Pointer(&a.addr))) }

func (a *acceptArea) addrAddress() uint64   { return uint64(uintptr(unsafe.Pointer(&a.addr))) }
func (a *acceptArea) lengthAddress() uint64 { return uint64(uintptr(unsafe.Pointer(&a.length))) }

func (s *scratch) eventAddress() uint64 { return uint64(uintptr(unsafe.Pointer(&s.event))) }

// addressOf is where b lies. It must be mapped memory or be kept alive by its
// Op while the kernel uses it; the Go heap does not move.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// setBuffer fills an entry other than the first of a buffer ring.
func (b *bufEntry) setBuffer(mem []byte, bid uint16) {
	b.addr, b.length, b.bidTail = addressOf(mem), uint32(len(mem)), uint32(bid)
}

// setFirst fills the first entry, whose buffer number is published with the
// tail.
func (b *bufEntry) setFirst(mem []byte) { b.addr, b.length = addressOf(mem), uint32(len(mem)) }

// publish makes all entries before tail the kernel's. The tail lies beside
// entry 0's buffer number, so one store writes both.
func publish(entries []bufEntry, firstBID, tail uint16) {
	atomic.StoreUint32(&entries[0].bidTail, uint32(firstBID)|uint32(tail)<<16)
}

// errnoOf takes the number out of an error of the abi or unix packages.
func errnoOf(err error) syscall.Errno {
	for {
		switch e := err.(type) {
		case syscall.Errno:
			return e
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			panic(fmt.Sprintf("ring: not a system call's error: %v", err))
		}
	}
}
