package loop

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// pipelessGets is how often a pool does without pipes after it could not make
// one: descriptors, or the pages that a user's pipes may have (pipe(7)), are
// used up.
const pipelessGets = 1000

// getPipe lends an empty pipe, or nothing. Nobody waits for one.
func (p *Pool) getPipe() *Buffer {
	k := &p.classes[ClassPipe]
	if p.lent+PipeBytes > p.limit-p.Reserve {
		return nil
	}
	if p.pipeless > 0 {
		p.pipeless--
		return nil
	}
	if len(k.free) == 0 {
		if len(k.all) >= p.Pipes {
			return nil
		}
		b := &Buffer{pool: p, class: ClassPipe, id: uint16(len(k.all))}
		k.all = append(k.all, b)
		k.free = append(k.free, b)
	}
	b := k.free[len(k.free)-1]
	if b.ends[0] == 0 && !b.openPipe() {
		p.pipeless = pipelessGets
		return nil
	}
	k.free = k.free[:len(k.free)-1]
	b.refs = 1
	p.lent += PipeBytes
	return b
}

func (b *Buffer) openPipe() bool {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		return false
	}
	b.ends = [2]int32{int32(ends[0]), int32(ends[1])}
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, PipeBytes); err != nil {
		b.closePipe()
		return false
	}
	return true
}

// closePipe throws away what is in the pipe, too.
func (b *Buffer) closePipe() {
	for i, fd := range b.ends {
		if fd != 0 {
			// Only a signal could make this fail, and it is closed then, too.
			_ = syscall.Close(int(fd))
		}
		b.ends[i] = 0
	}
	b.piped = 0
}

// IsPipe reports whether the buffer is a pipe.
func (b *Buffer) IsPipe() bool { return b.class == ClassPipe }

// Ends are the descriptors of a pipe, to read from and to write to.
func (b *Buffer) Ends() (from, to int32) { return b.ends[0], b.ends[1] }

// Piped is the number of bytes in the pipe.
func (b *Buffer) Piped() int { return b.piped }

// Moved is told by the engine that it has moved n bytes into the pipe, or -n
// out of it.
func (b *Buffer) Moved(n int) { b.piped += n }
