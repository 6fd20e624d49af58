package ring

import (
	"math"
	"syscall"

	"github.com/cloud-cup/cloud-cup/loop"
)

// A group starts with its hot number of buffers lent to the kernel and doubles
// it when the kernel runs dry, up to its ring's entries and a share of the
// pool. The kernel takes buffers in ring order, so that a large ring walks
// through cold memory: few and hot is faster, and dry costs a turn. For bodies,
// which are received one by one, that is little: those that bring much in a turn
// get no more of them (1.5 % at 1 MiB over TLS).
const (
	headsHot     = 32          // 1 MiB
	headsMax     = 512         // 16 MiB
	headsPerRecv = 4           // one burst of MultiBytes
	headsEnough  = math.MaxInt // bytes: there is no such number
	bodiesHot    = 4           // 1 MiB
	bodiesMax    = 64          // 16 MiB
	bodiesEnough = 1 << 19     // bytes: half of bodiesHot
	poolShare    = 4           // a group lends the kernel at most 1/4 of the pool
	decayTurns   = 4096        // turns without running dry after which the half must do
)

// group is one class's buffers that the kernel fills: a provided-buffer ring.
// A buffer's number in it is its ID.
type group struct {
	class    loop.Class
	id       uint16
	pool     *loop.Pool
	entries  []bufEntry
	firstBID uint16 // of entry 0
	tail     uint16
	out      int  // buffers the kernel holds
	armed    int  // receives in the kernel
	hot      int  // target never falls below
	target   int  // buffers to lend to the kernel if receives need them
	perRecv  int  // buffers that one receive may fill in a turn
	full     bool // all of target was lent at the last refill
	dry      bool // the kernel found no buffer since
	turns    int  // since the target was last looked at
	brought  int  // bytes that were received since the last refill
	enough   int  // bytes in a turn with which target does not grow
	starved  []descRef
}

// descRef names a descriptor at an age.
type descRef struct {
	fd  int32
	age uint32
}

func (e *engine) openGroup(class loop.Class, id uint16, entries, hot, perRecv, enough int) syscall.Errno {
	ring, errno := mapArray[bufEntry](e.u, entries)
	if errno != 0 {
		return errno
	}
	e.groups[id] = group{class: class, id: id, pool: e.pool, entries: ring, hot: hot, target: hot, perRecv: perRecv, enough: enough}
	return e.u.registerBuffers(ring, id)
}

// add fills the next entry of the ring.
func (g *group) add(mem []byte, bid uint16) {
	if i := int(g.tail) & (len(g.entries) - 1); i == 0 {
		g.entries[0].setFirst(mem)
		g.firstBID = bid
	} else {
		g.entries[i].setBuffer(mem, bid)
	}
	g.tail++
	g.out++
}

// limit is how many buffers the kernel may hold at most.
func (g *group) limit() int {
	return max(1, min(len(g.entries), g.pool.Limit()/poolShare/g.class.Bytes()))
}

// refill lends the kernel what its receives may need now.
func (g *group) refill() {
	if g.armed == 0 && len(g.starved) == 0 {
		return
	}
	if g.dry && g.full && g.brought < g.enough {
		g.target = min(2*g.target, len(g.entries))
		g.turns = 0
	}
	g.dry, g.brought = false, 0
	if g.turns++; g.turns == decayTurns {
		g.target = max(g.hot, g.target/2)
		g.turns = 0
	}
	want := min(g.target, g.perRecv*(g.armed+len(g.starved)))
	if g.out >= want {
		g.full = want == g.target
		return
	}
	before, most := g.tail, min(want, g.limit())
	for g.out < most {
		b := g.pool.Get(g.class)
		if b == nil {
			break
		}
		g.add(b.Bytes(), b.ID())
	}
	g.full = g.out >= g.target
	if g.tail != before {
		publish(g.entries, g.firstBID, g.tail)
	}
}

// taken is the buffer that the kernel filled.
func (g *group) taken(flags uint32) *loop.Buffer {
	g.out--
	return g.pool.Buffer(g.class, uint16(flags>>cqeBufferShift))
}

// feed arms the receives that waited for buffers, the longest waiting first,
// as many as there are buffers.
func (e *engine) feed(g *group) {
	n, room := 0, g.out
	for n < len(g.starved) && room > 0 {
		ref := g.starved[n]
		n++
		if d := e.descs.At(int(ref.fd)); d.age == ref.age && d.starved {
			d.starved = false
			e.armRecv(ref.fd, d)
			room--
		}
	}
	g.starved = g.starved[:copy(g.starved, g.starved[n:])]
}

// release takes back what the kernel did not fill, after it let go of the ring.
func (g *group) release() {
	for g.out > 0 {
		i := int(g.tail-uint16(g.out)) & (len(g.entries) - 1)
		bid := uint16(g.entries[i].bidTail)
		if i == 0 {
			bid = g.firstBID
		}
		g.pool.Buffer(g.class, bid).Release()
		g.out--
	}
}
