package loop

import (
	"fmt"
	"syscall"
)

// Class is a size of buffers.
type Class uint8

const (
	// ClassSmall holds heads that we write.
	ClassSmall Class = iota
	// ClassHead holds received heads, and bodies that came with them: head
	// and 16 KiB of body fit into one.
	ClassHead
	// ClassBody holds received bodies.
	ClassBody
	// ClassPipe is pipes: bytes in them are passed on without being looked at,
	// and without being copied. Pipes are few, and lent while there are any.
	ClassPipe
	classCount
)

// Sizes of the classes in bytes.
const (
	SmallBytes = 4 << 10
	HeadBytes  = 32 << 10
	BodyBytes  = 256 << 10
	PipeBytes  = 256 << 10
)

// PipesMax is how many pipes a pool makes unless it is told otherwise.
const PipesMax = 32

// slabBytes is mapped at a time, of one class.
const slabBytes = 1 << 20

var classBytes = [classCount]int{SmallBytes, HeadBytes, BodyBytes, PipeBytes}

// Bytes is the size of the class's buffers.
func (c Class) Bytes() int { return classBytes[c] }

// Buffer is a piece of mapped memory that its lenders on the loop's thread
// count. See the table in the package's documentation.
type Buffer struct {
	mem   []byte
	pool  *Pool
	refs  int32
	class Class
	id    uint16
	ends  [2]int32 // of a pipe, to read from and to write to; 0: not open
	piped int      // bytes in it
}

// Bytes is the whole memory of the buffer; a pipe has none.
func (b *Buffer) Bytes() []byte { return b.mem }

// Class is the buffer's size class.
func (b *Buffer) Class() Class { return b.class }

// ID numbers the buffers of one class of one pool from 0, densely.
func (b *Buffer) ID() uint16 { return b.id }

// Refs is the number of lenders.
func (b *Buffer) Refs() int32 { return b.refs }

// Retain adds a lender.
func (b *Buffer) Retain() { b.refs++ }

// Release ends one lender's use; the last one gives the buffer back.
func (b *Buffer) Release() {
	b.refs--
	if b.refs > 0 {
		return
	}
	if b.refs < 0 {
		panic("loop: buffer released more often than it was lent")
	}
	b.pool.put(b)
}

// Pool lends buffers of mapped memory, the most recently returned first. It
// belongs to one goroutine. Memory grows in slabs up to the limit.
type Pool struct {
	// Poison makes the pool overwrite returned buffers with 0xDB: for tests.
	Poison bool
	// Pipes bounds the pipes, of which each takes two descriptors.
	Pipes int
	// Reserve bytes of the limit are kept for ClassSmall: what is written into
	// small buffers lets larger ones go.
	Reserve int
	// Returned, if set, is called when memory came back, of whatever class,
	// and somebody had been refused a buffer of the class: an engine then
	// serves its starved receives.
	Returned func(Class)

	limit   int // bytes
	lent    int // bytes
	mapped  int // bytes
	classes [classCount]struct {
		free    []*Buffer // a stack: the last one is the hottest
		all     []*Buffer
		cold    int // free[:cold] have no pages; see Trim
		refused bool
	}
	slabs    [][]byte
	pipeless int // Gets of a pipe that are not even tried, after one failed
}

// NewPool returns a pool that lends at most limit bytes at a time.
func NewPool(limit int) *Pool { return &Pool{limit: limit, Pipes: PipesMax} }

// Limit is the number of bytes that the pool lends at most.
func (p *Pool) Limit() int { return p.limit }

// SetLimit changes the limit; what is lent already stays lent.
func (p *Pool) SetLimit(bytes int) {
	p.limit = bytes
	p.serveRefused()
}

// Lent is the number of bytes lent now, those the kernel is to fill included.
func (p *Pool) Lent() int { return p.lent }

// Mapped is the number of bytes mapped.
func (p *Pool) Mapped() int { return p.mapped }

// Get lends a buffer with one count, or returns nil at the limit or when the
// kernel gives no more memory.
func (p *Pool) Get(c Class) *Buffer {
	if c == ClassPipe {
		return p.getPipe()
	}
	k := &p.classes[c]
	size := classBytes[c]
	limit := p.limit
	if c != ClassSmall {
		limit -= p.Reserve
	}
	if p.lent+size > limit {
		k.refused = true
		return nil
	}
	if len(k.free) == 0 && !p.grow(c) {
		k.refused = true
		return nil
	}
	b := k.free[len(k.free)-1]
	k.free = k.free[:len(k.free)-1]
	if k.cold > len(k.free) {
		k.cold = len(k.free)
	}
	b.refs = 1
	p.lent += size
	return b
}

func (p *Pool) put(b *Buffer) {
	if p.Poison {
		for i := range b.mem {
			b.mem[i] = 0xDB
		}
	}
	if b.piped != 0 {
		b.closePipe() // emptying it would take as many calls
	}
	k := &p.classes[b.class]
	k.free = append(k.free, b)
	p.lent -= b.class.Bytes()
	p.serveRefused()
}

// serveRefused tells Returned of every class that was refused a buffer: the
// limit is common to all classes, so each may have room now.
func (p *Pool) serveRefused() {
	if p.Returned == nil {
		return
	}
	for c := range p.classes {
		if k := &p.classes[c]; k.refused {
			k.refused = false
			p.Returned(Class(c))
		}
	}
}

// grow maps one slab of buffers of class c.
func (p *Pool) grow(c Class) bool {
	k := &p.classes[c]
	size := classBytes[c]
	n := slabBytes / size
	if len(k.all)+n > 1<<16 {
		return false // buffer rings number their buffers with 16 bits
	}
	slab, err := syscall.Mmap(-1, 0, slabBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return false
	}
	p.slabs = append(p.slabs, slab)
	p.mapped += slabBytes
	buffers := make([]Buffer, n)
	for i := n - 1; i >= 0; i-- { // the first page of the slab on top
		b := &buffers[i]
		*b = Buffer{mem: slab[i*size : (i+1)*size : (i+1)*size], pool: p, class: c}
		k.free = append(k.free, b)
	}
	for i := range buffers {
		buffers[i].id = uint16(len(k.all))
		k.all = append(k.all, &buffers[i])
	}
	return true
}

// Buffer finds a buffer of class c by its ID.
func (p *Pool) Buffer(c Class, id uint16) *Buffer { return p.classes[c].all[id] }

// Trim gives the pages of free buffers back to the kernel, and closes free
// pipes, but for the hottest keep bytes of each class. Call it now and then:
// memory and descriptors then follow the load down.
func (p *Pool) Trim(keep int) {
	for c := range ClassPipe {
		k := &p.classes[c]
		keep := keep / classBytes[c]
		for i := k.cold; i < len(k.free)-keep; i++ {
			// MADV_DONTNEED on a private mapping cannot fail for a range
			// that we mapped ourselves; if it did, the pages just stay.
			_ = syscall.Madvise(k.free[i].mem, syscall.MADV_DONTNEED)
			k.cold = i + 1
		}
	}
	pipes := p.classes[ClassPipe].free
	for _, b := range pipes[:max(0, len(pipes)-keep/PipeBytes)] {
		b.closePipe()
	}
}

// Close unmaps everything. Lent buffers must not be touched afterwards.
func (p *Pool) Close() error {
	for _, b := range p.classes[ClassPipe].all {
		b.closePipe()
	}
	for _, s := range p.slabs {
		if err := syscall.Munmap(s); err != nil {
			return fmt.Errorf("unmap buffers: %w", err)
		}
	}
	*p = Pool{limit: p.limit}
	return nil
}
