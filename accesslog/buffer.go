package accesslog

import (
	"bytes"
	"sync/atomic"
	"time"
)

// What the lines of a log may take. There are two pieces at first, one that the
// loop fills and one that is being written, and more while the writer does not
// keep up: at full load a piece is full in some tens of milliseconds, and a busy
// machine may let the writer wait for longer. Waking the writer costs more than
// a piece a quarter of that size takes to write. What of a piece was never
// filled takes no memory.
const (
	pieceBytes = 256 << 10
	piecesMax  = 8
	// BufferBytes bounds the lines that one Buffer holds.
	BufferBytes = piecesMax * pieceBytes
)

// Buffer carries the lines of one log from the loop, which may never wait, to
// the goroutine that writes them. When all pieces are full, lines are dropped.
type Buffer struct {
	filling []byte // the loop's
	pieces  int    // made so far; the loop's
	closed  bool   // the loop's
	// A sender of either never waits: both have room for all pieces.
	full chan []byte
	free chan []byte
	lost atomic.Uint64
}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer {
	b := &Buffer{full: make(chan []byte, piecesMax), free: make(chan []byte, piecesMax)}
	b.filling = b.piece()
	b.free <- b.piece()
	return b
}

func (b *Buffer) piece() []byte {
	b.pieces++
	return make([]byte, 0, pieceBytes)
}

// Append adds r's line, or reports that there is no room for it. On the loop.
func (b *Buffer) Append(w *Writer, f Format, r *Record) bool {
	if cap(b.filling)-len(b.filling) < LineBytesMax && !b.HandOver() {
		return false
	}
	b.filling = w.Append(b.filling, f, r)
	return true
}

// HandOver gives the lines that there are to the writing goroutine. It reports
// whether none is left here: that goroutine may have all pieces. On the loop.
func (b *Buffer) HandOver() bool {
	if len(b.filling) == 0 {
		return true
	}
	var next []byte
	select {
	case next = <-b.free:
	default:
		if b.pieces == piecesMax {
			return false
		}
		next = b.piece()
	}
	b.full <- b.filling
	b.filling = next
	return true
}

// Close hands the last lines over, for which it waits no longer than patience,
// and ends the writing goroutine once it has written them. Nothing may be
// appended any more; a second call does nothing. On the loop, after a HandOver
// that left nothing, or after the loop's end.
func (b *Buffer) Close(patience time.Duration) {
	if b.closed {
		return
	}
	b.closed = true
	if !b.HandOver() {
		select {
		case <-b.free:
			b.full <- b.filling
		case <-time.After(patience):
			b.lost.Add(countLines(b.filling))
		}
	}
	b.filling = nil
	close(b.full)
}

// Full is where the writing goroutine gets lines from. It is closed by Close.
func (b *Buffer) Full() <-chan []byte { return b.full }

// Done gives a piece from Full back; of its bytes, the first n were written.
// On the writing goroutine.
func (b *Buffer) Done(lines []byte, n int) {
	if n < len(lines) {
		b.lost.Add(countLines(lines[n:]))
	}
	b.free <- lines[:0]
}

// Idle reports whether the writing goroutine has no lines: no more can be lost
// of what was handed over. On the loop.
func (b *Buffer) Idle() bool { return len(b.filling) == 0 && len(b.free) == b.pieces-1 }

// Lost returns how many lines could not be written since it was last called.
func (b *Buffer) Lost() uint64 {
	if b.lost.Load() == 0 { // so that asking costs no exclusive access
		return 0
	}
	return b.lost.Swap(0)
}

// countLines counts line feeds.
func countLines(b []byte) uint64 { return uint64(bytes.Count(b, []byte{'\n'})) }
