package http1

import (
	"bytes"

	"github.com/cloud-cup/cloud-cup/message"
)

// RequestParser reads the head of a request. Its zero value is ready. After a
// head or an error it is ready for the next message; Reset is for giving up
// one that is partly read.
type RequestParser struct {
	lineParser
	stage  uint8
	start  int    // of the request line in the bytes given
	target uint32 // where the target begins; the rest is relative to start
	query  uint32 // of the target's "?", 0 while there is none
}

// What the parser is reading.
const (
	stageEmptyLines = iota // what stands before the request line
	stageMethod
	stageTarget
	stageVersion // also the status line
	stageFields
)

// Reset gives up the head that is being read.
func (p *RequestParser) Reset() { *p = RequestParser{} }

// Parse reads the head that b begins with. When b holds only its beginning the
// error is ErrPartial: call again with the same h, lim and a longer b that
// begins with the same bytes, which may have moved in memory. Work done is not
// repeated. n counts the head and the empty lines skipped before it; h.Bytes is
// the head within b. Errors but ErrPartial are *SyntaxError.
func (p *RequestParser) Parse(h *message.Head, b []byte, lim *Limits) (n int, err error) {
	end, err := p.parse(h, b, lim)
	if err == ErrPartial {
		return 0, err
	}
	if err != nil {
		err.(*SyntaxError).At += p.start
		p.Reset()
		return 0, err
	}
	n = p.start + end
	p.Reset()
	return n, nil
}

func (p *RequestParser) parse(h *message.Head, b []byte, lim *Limits) (end int, err error) {
	if p.stage == stageEmptyLines {
		h.Reset()
		if err := p.emptyLines(b); err != nil {
			return 0, err
		}
	}
	b = b[p.start:]
	headMax := headLimit(lim)
	full := len(b) >= headMax
	if full {
		b = b[:headMax]
	}
	h.Bytes = b

	end, err = p.head(h, b, lim)
	if err != nil {
		if err == ErrPartial && full {
			if p.stage == stageTarget {
				return 0, p.failFor(message.ReasonTargetTooLong, headMax, "target too long")
			}
			return 0, p.failFor(message.ReasonHeadTooLarge, headMax, "head too large")
		}
		return 0, err
	}
	h.Bytes = b[:end:end]
	return end, p.finish(h, end)
}

// emptyLines skips what some clients send after a body (RFC 9112 2.2).
func (p *RequestParser) emptyLines(b []byte) error {
	i := 0
	for ; i < len(b) && b[i] == '\r'; i += 2 {
		if i == 2*emptyLinesMax {
			return p.fail(i, "too many empty lines before the request")
		}
		if i+1 == len(b) {
			return ErrPartial
		}
		if b[i+1] != '\n' {
			return p.fail(i, "bare CR")
		}
	}
	if i == len(b) {
		return ErrPartial
	}
	p.start, p.stage = i, stageMethod
	return nil
}

func (p *RequestParser) head(h *message.Head, b []byte, lim *Limits) (end int, err error) {
	switch p.stage {
	case stageMethod:
		if err := p.method(h, b); err != nil {
			return 0, err
		}
		fallthrough
	case stageTarget:
		if err := p.scanTarget(h, b, targetLimit(lim)); err != nil {
			return 0, err
		}
		fallthrough
	case stageVersion:
		if err := p.version(h, b); err != nil {
			return 0, err
		}
	}
	return p.fields(h, b, fieldLimit(lim))
}

func (p *RequestParser) method(h *message.Head, b []byte) error {
	i := p.at
	for i < len(b) && class[b[i]]&isToken != 0 {
		i++
	}
	if i > methodBytesMax {
		return p.fail(methodBytesMax, "method too long")
	}
	if i == len(b) {
		p.at = i
		return ErrPartial
	}
	if b[i] != ' ' || i == 0 {
		return p.fail(i, badByte(b[i], "no method and space at the beginning of the request"))
	}
	h.MethodName = message.Span{Len: uint32(i)}
	h.Method = methodOf(b[:i])
	p.at, p.target, p.stage = i+1, uint32(i+1), stageTarget
	return nil
}

func methodOf(name []byte) message.Method {
	switch string(name) {
	case "GET":
		return message.MethodGet
	case "POST":
		return message.MethodPost
	case "HEAD":
		return message.MethodHead
	case "PUT":
		return message.MethodPut
	case "DELETE":
		return message.MethodDelete
	case "OPTIONS":
		return message.MethodOptions
	case "PATCH":
		return message.MethodPatch
	case "CONNECT":
		return message.MethodConnect
	case "TRACE":
		return message.MethodTrace
	}
	return message.MethodOther
}

// scanTarget finds the target's end and its query.
func (p *RequestParser) scanTarget(h *message.Head, b []byte, targetMax int) error {
	i, from := p.at, int(p.target)
	if p.query == 0 {
		for i < len(b) && class[b[i]]&isTarget != 0 {
			i++
		}
		if i < len(b) && b[i] == '?' {
			p.query = uint32(i)
		}
	}
	if p.query != 0 {
		for i < len(b) && class[b[i]]&isQuery != 0 {
			i++
		}
	}
	if i > from+targetMax {
		return p.failFor(message.ReasonTargetTooLong, from+targetMax, "target too long")
	}
	if i == len(b) {
		p.at = i
		return ErrPartial
	}
	if c := b[i]; c != ' ' {
		msg := "byte in the target that does not belong there"
		switch c {
		case '#':
			msg = "fragment in the target"
		case '\r':
			msg = "request line without a version"
		default:
			msg = badByte(c, msg)
		}
		return p.fail(i, msg)
	}
	if i == from {
		return p.fail(i, "empty target")
	}
	h.Target = message.Span{Off: p.target, Len: uint32(i - from)}
	p.at, p.stage = i+1, stageVersion
	return nil
}

// version reads the version and the end of the request line, and then judges
// the line as a whole.
func (p *RequestParser) version(h *message.Head, b []byte) error {
	i := p.at
	major, minor, err := p.protocol(b, i)
	if err != nil {
		return err
	}
	if i+8 == len(b) {
		return ErrPartial
	}
	if b[i+8] != '\r' {
		return p.fail(i+8, badByte(b[i+8], "no line end behind the version"))
	}
	if i+9 == len(b) {
		return ErrPartial
	}
	if b[i+9] != '\n' {
		return p.fail(i+8, "bare CR")
	}
	if major != 1 {
		return p.failFor(message.ReasonVersion, i, "version other than HTTP/1")
	}
	if h.Method == message.MethodConnect {
		return p.failFor(message.ReasonMethod, 0, "CONNECT")
	}
	h.Minor = minor
	if err := p.form(h); err != nil {
		return err
	}
	h.FirstLineEnd = uint32(i + 10)
	p.at, p.line, p.stage = i+10, i+10, stageFields
	return nil
}

// protocol reads "HTTP/1.1" and its like at b[i:]. Minor versions above 1
// count as 1.
func (p *lineParser) protocol(b []byte, i int) (major, minor uint8, err error) {
	const form = "HTTP/0.0"
	v := b[i:min(len(b), i+len(form))]
	if string(v) == "HTTP/1.1" {
		return 1, 1, nil
	}
	for k, c := range v {
		if c != form[k] && (form[k] != '0' || c < '0' || c > '9') {
			return 0, 0, p.fail(i+k, badByte(c, "no HTTP version where one belongs"))
		}
	}
	if len(v) < len(form) {
		return 0, 0, ErrPartial
	}
	return v[5] - '0', min(v[7]-'0', 1), nil
}

// form finds path, query and authority in the target (RFC 9112 3.2).
func (p *RequestParser) form(h *message.Head) error {
	from, to := h.Target.Off, h.Target.Off+h.Target.Len
	pathEnd := to
	if p.query != 0 {
		pathEnd = p.query
		h.Query = message.Span{Off: p.query, Len: to - p.query}
	}
	t := h.Text(h.Target)
	if t[0] == '/' {
		h.Path = message.Span{Off: from, Len: pathEnd - from}
		return nil
	}
	if t[0] == '*' && len(t) == 1 && h.Method == message.MethodOptions {
		h.Path = h.Target
		return nil
	}
	var authority uint32 // where it begins in t
	switch {
	case len(t) > 7 && fold(t[:4], "http") && string(t[4:7]) == "://":
		authority = 7
	case len(t) > 8 && fold(t[:5], "https") && string(t[5:8]) == "://":
		authority = 8
	default:
		return p.fail(int(from), "target that is neither a path nor an http URI")
	}
	rest := t[authority : pathEnd-from]
	n := bytes.IndexByte(rest, '/')
	if n < 0 { // no path: borrow a slash of the scheme
		n = len(rest)
		h.Path = message.Span{Off: from + authority - 1, Len: 1}
	} else {
		h.Path = message.Span{Off: from + authority + uint32(n), Len: uint32(len(rest) - n)}
	}
	if !validHost(rest[:n]) {
		return p.fail(int(from+authority), "invalid authority in the target")
	}
	h.Host = message.Span{Off: from + authority, Len: uint32(n)}
	return nil
}

// finish judges the head as a whole.
func (p *RequestParser) finish(h *message.Head, end int) error {
	if p.said&saidHost == 0 && h.Minor != 0 {
		return p.fail(end-2, "no Host")
	}
	if p.said&saidChunked != 0 {
		h.Framing = message.FramingChunked
	} else if p.said&saidLength != 0 {
		h.Framing = message.FramingLength
	}
	h.Persistent = p.persistent(h.Minor)
	h.UpgradeAsked = p.upgradeAsked(h.Minor)
	p.markNominated(h)
	return nil
}
