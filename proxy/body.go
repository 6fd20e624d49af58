package proxy

import (
	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// body moves one message's body from the connection it comes on to the one it
// goes to. Payload is lent on from the buffers it was received in; only the
// framing is made anew (RFC 9112 6 and 7).
type body struct {
	framing   message.Framing // as it comes
	toChunked bool            // goes as chunks, whatever it came as
	done      bool            // complete, and queued to be sent
	left      int64           // FramingLength: bytes to come
	moved     int64           // payload bytes taken in
	limit     int64           // of payload bytes; negative: none
	chunks    http1.Chunked
}

// start begins a body of the given framing.
func (b *body) start(framing message.Framing, length int64, toChunked bool, limit int64) {
	b.framing, b.toChunked, b.limit = framing, toChunked, limit
	b.left, b.moved, b.done = 0, 0, false
	switch framing {
	case message.FramingNone:
		b.done = true
	case message.FramingLength:
		b.left = length
		b.done = length == 0
	case message.FramingChunked:
		b.chunks = http1.Chunked{}
	}
}

// none reports whether nothing follows the message's head: an empty body of
// chunks is more than that.
func (b *body) none() bool { return b.done && b.moved == 0 && b.framing != message.FramingChunked }

// toClose reports whether the body goes without any framing, until the
// connection ends.
func (b *body) toClose() bool {
	return !b.toChunked && (b.framing == message.FramingChunked || b.framing == message.FramingClose)
}

// tooLarge reports whether more payload came than the limit allows.
func (b *body) tooLarge() bool { return b.limit >= 0 && b.moved > b.limit }

// move forwards what from holds as far as the body goes. With to nil it
// discards. An error is one of the chunked syntax. It stops early, not done,
// when there is no memory for framing.
func (b *body) move(from *inQueue, to *conn) error {
	for !b.done && !from.empty() {
		var err error
		switch b.framing {
		case message.FramingLength:
			n := from.size()
			if int64(n) > b.left {
				n = int(b.left)
			}
			b.left -= int64(n)
			b.done = b.left == 0
			b.forward(from, to, n)
		case message.FramingClose:
			if b.toChunked && to != nil && !to.room(chunkRoom) {
				return nil
			}
			b.forward(from, to, from.size())
		case message.FramingChunked:
			if to != nil && !to.room(chunkRoom) {
				return nil
			}
			err = b.moveChunks(from, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forward lends n bytes of payload on.
func (b *body) forward(from *inQueue, to *conn, n int) {
	b.moved += int64(n)
	if to == nil {
		from.consume(n)
		return
	}
	if b.toChunked {
		to.write(http1.AppendChunkHead(to.scratch(), n))
	}
	if from.pieces[0].buf.IsPipe() {
		to.rise()
		from.pass(&to.out)
	} else if n <= smallPiece && to.room(n) {
		to.write(append(to.scratch(), from.front()[:n]...))
		from.consume(n)
	} else {
		buf, p := from.lend(n)
		to.push(buf, p)
	}
	if b.toChunked {
		to.push(nil, crlf)
	}
}

// moveChunks decodes the front of from. Small chunks are pushed together and
// leave as one; their framing makes the room.
func (b *body) moveChunks(from *inQueue, to *conn) error {
	p := from.front()
	start, end := 0, 0 // the run of payload in p that is not forwarded yet
	pos := 0
	for pos < len(p) && !b.chunks.Done() {
		data, n, err := b.chunks.Next(p[pos:])
		if err != nil {
			return err
		}
		if len(data) > 0 {
			at := pos + n - len(data) // Next stops behind a run
			switch {
			case end == start:
				start, end = at, at+len(data)
			case at == end:
				end += len(data)
			case len(data) <= pushBytes:
				end += copy(p[end:], data)
			default:
				b.forwardRun(from, to, p[start:end])
				start, end = at, at+len(data)
			}
		}
		pos += n
	}
	if end > start {
		b.forwardRun(from, to, p[start:end])
	}
	if b.chunks.Done() {
		b.done = true
		b.finish(to)
	}
	from.consume(pos)
	return nil
}

// forwardRun lends on a run of payload inside the front of from, which stays
// there until moveChunks has taken all of it. There is chunkRoom.
func (b *body) forwardRun(from *inQueue, to *conn, run []byte) {
	b.moved += int64(len(run))
	if to == nil {
		return
	}
	if b.toChunked {
		to.write(http1.AppendChunkHead(to.scratch(), len(run)))
	}
	if len(run) <= smallPiece {
		to.write(append(to.scratch(), run...))
	} else {
		buf := from.pieces[0].buf
		buf.Retain()
		to.push(buf, run)
	}
	if b.toChunked {
		to.push(nil, crlf)
	}
}

// finish ends a body that goes as chunks; trailers are passed on.
func (b *body) finish(to *conn) {
	b.done = true
	if to == nil || !b.toChunked {
		return
	}
	t := b.chunks.Trailers()
	if len(t) == 0 {
		to.push(nil, lastChunk)
		return
	}
	// Trailers are rare enough to be copied to the heap.
	to.push(nil, append(append([]byte("0\r\n"), t...), '\r', '\n'))
}

// smallPiece is the size up to which payload is copied to be sent with what
// lies before it, so that a few bytes hold no large buffer.
const smallPiece = 1 << 10

// pushBytes is the size up to which a chunk's payload is moved to join the
// one before it instead of being sent as a piece of its own.
const pushBytes = 4 << 10

// chunkRoom is the scratch memory that one received buffer of chunks needs
// at most: a chunk head per run of more than pushBytes, one more for the first
// run, which may be a small piece, and that piece.
const chunkRoom = (loop.BodyBytes/pushBytes+1)*len("40000\r\n") + smallPiece

var (
	crlf      = []byte("\r\n")
	lastChunk = []byte("0\r\n\r\n")
)
