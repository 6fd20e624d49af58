package http1

import (
	"strconv"

	"github.com/cloud-cup/cloud-cup/message"
)

// Chunked decodes a chunked body that arrives in any pieces (RFC 9112 7.1). Its
// zero value is ready for a request's body.
type Chunked struct {
	// Response makes every error ReasonBackendMalformed.
	Response bool

	state    chunkState
	digits   uint8
	ext      uint16 // bytes of extensions so far
	size     int64  // of the chunk, of which this much is to come
	trailers *trailers
}

// trailers exist only for bodies that have some.
type trailers struct {
	lineParser
	head message.Head
	buf  []byte // what arrived; in the end the lines without the empty one
}

// chunkState is what the decoder waits for.
type chunkState uint8

const (
	chunkSize     chunkState = iota
	chunkExtStart            // white space before an extension, or its ";"
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkEnd     // the first byte behind the last chunk's line
	chunkEndLF   // of an empty trailer section
	chunkTrailer // a trailer section with lines
	chunkDone
)

// Done reports that the last chunk and the trailer section were consumed.
func (c *Chunked) Done() bool { return c.state == chunkDone }

// Trailers returns the trailer section's lines as received, CR LF included, or
// nil without any. It is a copy of its own and valid once Done.
func (c *Chunked) Trailers() []byte {
	if c.trailers == nil || c.state != chunkDone {
		return nil
	}
	return c.trailers.buf
}

// Next consumes n bytes of b and returns at most one run of payload, the last
// len(data) of them. It does not look at consumed bytes again: the caller may
// overwrite them. Call it until n is len(b) or Done; if then not Done, more bytes are needed.
// What follows the body is not consumed. Errors are *SyntaxError and final.
func (c *Chunked) Next(b []byte) (data []byte, n int, err error) {
	i := 0
	for i < len(b) {
		ch := b[i]
		switch c.state {
		case chunkSize:
			if err := c.sizeByte(ch, i); err != nil {
				return nil, i, err
			}

		case chunkExtStart, chunkExt:
			if err := c.extension(ch, i); err != nil {
				return nil, i, err
			}

		case chunkSizeLF:
			if err := c.sizeLF(ch, i); err != nil {
				return nil, i, err
			}

		case chunkData:
			run := b[i:]
			if int64(len(run)) >= c.size {
				run = run[:c.size]
				c.state = chunkDataCR
			}
			c.size -= int64(len(run))
			return run, i + len(run), nil

		case chunkDataCR:
			if ch != '\r' {
				return nil, i, c.fail(i, "chunk not followed by a line end")
			}
			c.state = chunkDataLF

		case chunkDataLF:
			if ch != '\n' {
				return nil, i, c.fail(i, "chunk not followed by a line end")
			}
			c.state = chunkSize

		case chunkEnd:
			if ch == '\r' {
				c.state = chunkEndLF
				break
			}
			c.trailers = &trailers{lineParser: lineParser{kind: kindTrailer}}
			c.state = chunkTrailer
			continue

		case chunkEndLF:
			if ch != '\n' {
				return nil, i, c.fail(i, "bare CR")
			}
			c.state = chunkDone
			return nil, i + 1, nil

		case chunkTrailer:
			n, err := c.trailer(b[i:], i)
			return nil, i + n, err

		case chunkDone:
			return nil, i, nil
		}
		i++
	}
	return nil, i, nil
}

// sizeByte reads a digit of a chunk size, or what stands behind the last one.
func (c *Chunked) sizeByte(ch byte, at int) error {
	if d := hexDigit(ch); d >= 0 {
		if c.digits == chunkDigitsMax || c.size > (1<<63-1)>>4 {
			return c.fail(at, "chunk size too large")
		}
		c.digits++
		c.size = c.size<<4 | int64(d)
		return nil
	}
	if c.digits == 0 {
		return c.fail(at, badByte(ch, "no chunk size where one belongs"))
	}
	switch ch {
	case '\r':
		c.state = chunkSizeLF
	case ';':
		c.state = chunkExt
	case ' ', '\t':
		c.state = chunkExtStart
	default:
		return c.fail(at, badByte(ch, "byte in a chunk size that does not belong there"))
	}
	return nil
}

// sizeLF ends the line of a chunk size.
func (c *Chunked) sizeLF(ch byte, at int) error {
	if ch != '\n' {
		return c.fail(at, "bare CR")
	}
	c.digits = 0
	c.state = chunkData
	if c.size == 0 {
		c.state = chunkEnd
	}
	return nil
}

// extension passes over extensions: nothing here knows any (RFC 9112 7.1.1).
func (c *Chunked) extension(ch byte, at int) error {
	if c.ext++; c.ext > extBytesMax {
		return c.fail(at, "chunk extensions too long")
	}
	switch {
	case c.state == chunkExt && ch == '\r':
		c.state = chunkSizeLF
	case c.state == chunkExt && class[ch]&isText == 0:
		return c.fail(at, badByte(ch, "control byte in a chunk extension"))
	case c.state == chunkExtStart && ch == ';':
		c.state = chunkExt
	case c.state == chunkExtStart && ch != ' ' && ch != '\t':
		return c.fail(at, "white space behind a chunk size")
	}
	return nil
}

// trailer reads b, which stands at b[base:] of what Next was given, as part of
// the trailer section.
func (c *Chunked) trailer(b []byte, base int) (n int, err error) {
	t := c.trailers
	old := len(t.buf)
	if room := trailerBytesMax - old; len(b) > room {
		b = b[:room]
	}
	t.buf = append(t.buf, b...)
	t.head.Bytes = t.buf
	end, err := t.fields(&t.head, t.buf, trailerFieldsMax)
	switch {
	case err == nil:
		t.buf = t.buf[:end-2]
		c.state = chunkDone
		return end - old, nil
	case err != ErrPartial:
		e := err.(*SyntaxError)
		// A line's fault may lie in an earlier piece.
		return 0, c.failFor(e.Reason, base+max(e.At-old, 0), e.Msg)
	case len(t.buf) == trailerBytesMax:
		return 0, c.failFor(message.ReasonHeadTooLarge, base+len(b), "trailer section too large")
	}
	return len(b), nil
}

func (c *Chunked) fail(at int, msg string) error {
	return c.failFor(message.ReasonBadRequest, at, msg)
}

func (c *Chunked) failFor(r message.Reason, at int, msg string) error {
	if c.Response {
		r = message.ReasonBackendMalformed
	}
	return &SyntaxError{Reason: r, Msg: msg, At: at}
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// AppendChunkHead appends the line that begins a chunk of size bytes. The chunk
// ends with CR LF; a size of 0 begins the trailer section, which ends the body
// with its empty line.
func AppendChunkHead(dst []byte, size int) []byte {
	dst = strconv.AppendUint(dst, uint64(size), 16)
	return append(dst, "\r\n"...)
}
