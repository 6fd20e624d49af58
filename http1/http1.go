// Package http1 turns bytes into HTTP/1.1 events and back (RFC 9110, 9112). It
// does no I/O, copies nothing and, unless a message is refused or a chunked
// body ends with trailers, allocates nothing.
//
// [RequestParser] and [ResponseParser] read heads, [Chunked] reads chunked
// bodies. All three take bytes as they arrive, in any pieces, and answer the
// same however a message was cut: so much was consumed, more is needed
// ([ErrPartial]), or the message is refused ([*SyntaxError]).
//
// # What is refused
//
// Whatever two parsers could understand differently is refused rather than
// repaired, from clients and from backends alike: Content-Length beside
// Transfer-Encoding, any transfer coding but a single chunked,
// Transfer-Encoding in HTTP/1.0, a Content-Length that is repeated, signed,
// empty, a list or beyond 2^63-1, folded lines, white space before a colon or
// before a field, bare CR, bare LF, NUL and other control bytes, names that are
// empty or no tokens, chunk sizes and chunk ends that are not exactly what the
// grammar says. Requests need exactly one valid, non-empty Host (HTTP/1.0: at
// most one), equal to the authority of an absolute-form target.
//
// # What is let through
//
//   - Targets may hold every visible ASCII byte but "#", and bytes above 0x7F:
//     clients send raw UTF-8 and unescaped "|" or "[", and a byte that is
//     forwarded as it came misleads nobody. Percent-encoding is not looked at.
//   - Field values may hold bytes above 0x7F (obs-text).
//   - Expectations other than 100-continue are not ours to judge: they are
//     forwarded like any field.
//   - A status line may lack its reason and the space before it. Status codes
//     are 100 to 999.
//   - Up to four empty lines before a request line are skipped.
//
// # Connection
//
// A field named by Connection is hop-by-hop, except those that every recipient
// needs: Host, Date, Expect, Forwarded, Server, Via, X-Forwarded-*,
// X-Request-Id, Content-*, Authorization, Cookie, Set-Cookie, Cache-Control,
// Location and Range stay, whatever a client puts into Connection to make them
// vanish (RFC 9110 7.6.1 forbids to nominate such fields). Content-Length and
// Transfer-Encoding keep their meaning and are hop-by-hop in any case.
package http1

import (
	"errors"

	"github.com/cloud-cup/cloud-cup/message"
)

// What a head may cost where Limits leave it open, and bounds that nobody
// needs to set.
const (
	headBytesDefault   = 32 << 10
	fieldsDefault      = 100
	targetBytesDefault = 8 << 10

	headBytesMax     = 1 << 30 // positions in a head are 32 bits wide
	methodBytesMax   = 64      // beyond: ReasonBadRequest
	emptyLinesMax    = 4       // before a request line; beyond: ReasonBadRequest
	optionsMax       = 100     // members of all Connection lines; beyond: ReasonBadRequest
	extBytesMax      = 4 << 10 // chunk extensions of a body; beyond: ReasonBadRequest
	trailerBytesMax  = 8 << 10 // beyond: ReasonHeadTooLarge
	trailerFieldsMax = 64      // beyond: ReasonHeadTooLarge
	chunkDigitsMax   = 16
)

// Limits bound a head. A zero (or a nil *Limits) means the default: 32 KiB,
// 100 fields, a target of 8 KiB.
type Limits struct {
	HeadBytes   int // of the whole head; beyond: ReasonHeadTooLarge
	Fields      int // beyond: ReasonHeadTooLarge
	TargetBytes int // beyond: ReasonTargetTooLong
}

// ErrPartial means that the bytes so far are a proper beginning and more are
// needed.
var ErrPartial = errors.New("more bytes needed")

// SyntaxError says why a message was refused.
type SyntaxError struct {
	Reason message.Reason // ReasonBackendMalformed for everything in a response
	Msg    string
	At     int // the offending byte's place in the bytes given
}

// Error is what was found, without its place.
func (e *SyntaxError) Error() string { return e.Msg }

func headLimit(lim *Limits) int {
	if lim == nil || lim.HeadBytes <= 0 {
		return headBytesDefault
	}
	return min(lim.HeadBytes, headBytesMax)
}

func fieldLimit(lim *Limits) int {
	if lim == nil || lim.Fields <= 0 {
		return fieldsDefault
	}
	return lim.Fields
}

func targetLimit(lim *Limits) int {
	if lim == nil || lim.TargetBytes <= 0 {
		return targetBytesDefault
	}
	return lim.TargetBytes
}
