// Package message holds what protocol codecs and exchanges share: the head of
// a request or response, its fields, its framing, and the reasons why Cloud
// Cup answers by itself or cuts something. It knows no protocol's syntax and
// does no I/O.
//
// A Head's parts are positions in the received bytes, not copies: they die
// with the buffer that holds the head (package loop, "whose buffer is it").
// Heads contain no pointer but to that buffer and to the reused field slice,
// so filling one costs no allocation and no write barrier per field.
package message

// Span is a run of a Head's Bytes.
type Span struct{ Off, Len uint32 }

// Field is one header field, by positions in its Head's Bytes. The line runs
// from Name.Off to End, its CR LF included.
type Field struct {
	Name  Span
	Value Span // without the white space around it (RFC 9110 5.5)
	End   uint32
	ID    FieldID
	// Hop is set on fields that end at this hop: those that Connection
	// nominates, and the hop-by-hop and framing fields themselves, which are
	// dropped or rebuilt and never forwarded (RFC 9110 7.6.1).
	Hop bool
}

// FieldID names the fields that Cloud Cup knows.
type FieldID uint8

// The known fields; all others are FieldOther.
const (
	FieldOther FieldID = iota
	FieldConnection
	FieldContentLength
	FieldDate
	FieldExpect
	FieldForwarded
	FieldHost
	FieldHTTP2Settings
	FieldKeepAlive
	FieldProxyConnection
	FieldServer
	FieldTE
	FieldTrailer
	FieldTransferEncoding
	FieldUpgrade
	FieldVia
	FieldXClientCertSubject
	FieldXForwardedFor
	FieldXForwardedHost
	FieldXForwardedPort
	FieldXForwardedProto
	FieldXRequestID
	// FieldLookalike is one of the X- fields above with "_" for "-": who hands
	// fields on as variables, as CGI does (RFC 3875 4.1.18), takes one for the
	// other.
	FieldLookalike
)

// Method is a request method that Cloud Cup treats on its own.
type Method uint8

// The known methods; all others are MethodOther.
const (
	MethodOther Method = iota
	MethodConnect
	MethodDelete
	MethodGet
	MethodHead
	MethodOptions
	MethodPatch
	MethodPost
	MethodPut
	MethodTrace
)

// Idempotent reports whether a request of this method may be sent again when
// the connection ended before any byte of the response (RFC 9110 9.2.2).
func (m Method) Idempotent() bool {
	switch m {
	case MethodGet, MethodHead, MethodOptions, MethodTrace, MethodPut, MethodDelete:
		return true
	}
	return false
}

// Framing says how the end of a body is found.
type Framing uint8

const (
	// FramingNone: there is no body.
	FramingNone Framing = iota
	// FramingLength: Head.Length bytes, which may be 0.
	FramingLength
	// FramingChunked: chunks, then trailers (RFC 9112 7.1).
	FramingChunked
	// FramingClose: until the connection ends; responses only.
	FramingClose
)

// Head is the head of a request or of a response.
type Head struct {
	// Bytes is the head as received, from the first byte of its first line to
	// the last of its empty line.
	Bytes  []byte
	Fields []Field

	// Of a request.

	Method     Method
	MethodName Span
	Target     Span // as sent
	// Path is the part of the target that routes match: origin-form without
	// the query, also of an absolute-form target; "*" for asterisk-form.
	// An absolute-form target without a path has the path "/" (one of its
	// scheme's slashes, so Path need not lie behind Host).
	Path Span
	// Query is what follows the path in the target, "?" included; empty
	// without a query. Text(Path) and Text(Query) are the origin-form.
	Query Span
	// Host is the authority that the request is for: the Host field's value,
	// or the authority of an absolute-form target. Empty for HTTP/1.0
	// requests without Host.
	Host      Span
	Expect100 bool // Expect: 100-continue of an HTTP/1.1 request

	// Of a response.

	Status int

	// Of both.

	Minor uint8 // of the HTTP/1 version; minor versions above 1 count as 1
	// Persistent reports that the sender keeps the connection open after
	// this message, as far as the head tells (RFC 9112 9.3).
	Persistent bool
	Framing    Framing
	Length     int64 // of a FramingLength body
	// HasLength is set when there is a Content-Length field; Length is its
	// value, also where the framing is FramingNone: responses to HEAD and
	// 304 state the length of a body that they do not have.
	HasLength bool
	// UpgradeAsked is set when Connection nominates upgrade and there is an
	// Upgrade field.
	UpgradeAsked bool
	FirstLineEnd uint32 // where the fields begin in Bytes
}

// Reset empties h for the next head and keeps its field slice.
func (h *Head) Reset() {
	*h = Head{Fields: h.Fields[:0]}
}

// Text is the bytes of s.
func (h *Head) Text(s Span) []byte { return h.Bytes[s.Off : s.Off+s.Len : s.Off+s.Len] }

// AppendTarget appends a request's target as a backend gets it: origin-form,
// or "*" (RFC 9112 3.2.1, 3.2.4).
func (h *Head) AppendTarget(dst []byte) []byte {
	noPath := h.Path.Off > h.Target.Off && h.Path.Off < h.Host.Off
	if noPath && h.Method == MethodOptions && h.Query.Len == 0 {
		return append(dst, '*')
	}
	dst = append(dst, h.Text(h.Path)...)
	return append(dst, h.Text(h.Query)...)
}

// Find returns the first field with the given ID, or nil.
func (h *Head) Find(id FieldID) *Field {
	for i := range h.Fields {
		if h.Fields[i].ID == id {
			return &h.Fields[i]
		}
	}
	return nil
}
