package http1

import (
	"github.com/cloud-cup/cloud-cup/message"
)

// kind is what the fields that a parser reads belong to.
type kind uint8

const (
	kindRequest kind = iota
	kindResponse
	kindTrailer
)

// What the fields of a head said, gathered while they pass.
const (
	saidHost = 1 << iota
	saidLength
	saidChunked
	saidUpgradeField
	optionClose
	optionKeepAlive
	optionUpgrade
	optionOther // Connection names a field that is not hop-by-hop by itself
)

// A lineParser reads field lines and remembers where it stopped. All positions
// are relative to the head's first byte, so the head may move in memory
// between two calls.
type lineParser struct {
	kind    kind
	line    int // where the current line begins
	at      int // where to go on
	colon   int // the current line's colon; 0 until it was seen
	said    uint8
	options int // members of Connection lines so far
}

// fields reads b, a head from its first byte on, to the end of its empty line,
// whose position it returns.
func (p *lineParser) fields(h *message.Head, b []byte, fieldsMax int) (end int, err error) {
	list := h.Fields
	i, line, colon := p.at, p.line, p.colon
	for {
		if colon == 0 {
			if i == line {
				if i >= len(b) {
					break
				}
				if b[i] == '\r' {
					if i+1 == len(b) {
						break
					}
					if b[i+1] != '\n' {
						return 0, p.fail(i, "bare CR")
					}
					h.Fields = list
					return i + 2, nil
				}
				if len(list) == fieldsMax {
					return 0, p.failFor(message.ReasonHeadTooLarge, i, "too many fields")
				}
			}
			if i = skipToken(b, i); i == len(b) {
				break
			}
			if b[i] != ':' || i == line {
				return 0, p.badName(b[i], i, i == line)
			}
			colon = i
			i++
		}

		if i = skipText(b, i); i == len(b) {
			break
		}
		if b[i] != '\r' {
			return 0, p.fail(i, badByte(b[i], "control byte in a field's value"))
		}
		if i+1 == len(b) {
			break
		}
		if b[i+1] != '\n' {
			return 0, p.fail(i, "bare CR")
		}

		from, to := trim(b, colon+1, i)
		i += 2
		list = append(list, message.Field{
			Name:  message.Span{Off: uint32(line), Len: uint32(colon - line)},
			Value: message.Span{Off: uint32(from), Len: uint32(to - from)},
			End:   uint32(i),
			ID:    fieldID(b[line:colon]),
		})
		f := &list[len(list)-1]
		if f.ID != message.FieldOther {
			if err := p.known(h, f, b[from:to]); err != nil {
				return 0, err
			}
		}
		line, colon = i, 0
	}
	h.Fields = list
	p.at, p.line, p.colon = i, line, colon
	return 0, ErrPartial
}

// trim returns b[from:to] without the white space at its ends.
func trim(b []byte, from, to int) (int, int) {
	for from < to && (b[from] == ' ' || b[from] == '\t') {
		from++
	}
	for to > from && (b[to-1] == ' ' || b[to-1] == '\t') {
		to--
	}
	return from, to
}

func (p *lineParser) badName(c byte, at int, first bool) error {
	msg := "byte in a field's name that does not belong there"
	switch c {
	case ' ', '\t':
		msg = "white space before the colon"
		if first {
			msg = "folded line, or white space before a field"
		}
	case ':':
		msg = "empty field name"
	case '\r':
		msg = "line without a colon"
	default:
		msg = badByte(c, msg)
	}
	return p.fail(at, msg)
}

// badByte names the byte c where that helps, or is msg.
func badByte(c byte, msg string) string {
	switch c {
	case 0:
		return "NUL byte"
	case '\n':
		return "bare LF"
	}
	return msg
}

func (p *lineParser) fail(at int, msg string) error {
	return p.failFor(message.ReasonBadRequest, at, msg)
}

// failFor makes the error for a request; a response is malformed whatever the
// reason.
func (p *lineParser) failFor(r message.Reason, at int, msg string) error {
	if p.kind == kindResponse {
		r = message.ReasonBackendMalformed
	}
	return &SyntaxError{Reason: r, Msg: msg, At: at}
}

// known acts on a field that Cloud Cup knows.
func (p *lineParser) known(h *message.Head, f *message.Field, v []byte) error {
	at := int(f.Value.Off)
	if p.kind == kindTrailer {
		switch f.ID {
		case message.FieldDate, message.FieldServer:
			return nil
		}
		return p.fail(int(f.Name.Off), "field that must not be a trailer")
	}
	switch f.ID {
	case message.FieldHost:
		if p.kind == kindRequest {
			return p.host(h, f, v)
		}

	case message.FieldContentLength:
		f.Hop = true
		return p.contentLength(h, v, at)

	case message.FieldTransferEncoding:
		f.Hop = true
		return p.transferEncoding(h, v, at)

	case message.FieldConnection:
		f.Hop = true
		return p.connection(v, at)

	case message.FieldUpgrade:
		f.Hop = true
		p.said |= saidUpgradeField

	case message.FieldExpect:
		if p.kind == kindRequest && fold(v, "100-continue") {
			h.Expect100 = h.Minor != 0
			f.Hop = h.Minor == 0 // RFC 9110 10.1.1: ignored, so not passed on
		}

	case message.FieldKeepAlive, message.FieldProxyConnection, message.FieldTE, message.FieldHTTP2Settings:
		f.Hop = true
	}
	return nil
}

func (p *lineParser) host(h *message.Head, f *message.Field, v []byte) error {
	at := int(f.Value.Off)
	if p.said&saidHost != 0 {
		return p.fail(at, "more than one Host")
	}
	if !validHost(v) {
		return p.fail(at, "invalid Host")
	}
	p.said |= saidHost
	if h.Host.Len == 0 {
		h.Host = f.Value
	} else if !foldEqual(h.Text(h.Host), v) { // of an absolute-form target
		return p.fail(at, "Host differs from the target's")
	}
	return nil
}

func (p *lineParser) contentLength(h *message.Head, v []byte, at int) error {
	if p.said&saidLength != 0 {
		return p.fail(at, "more than one Content-Length")
	}
	if p.said&saidChunked != 0 {
		return p.fail(at, "Content-Length beside Transfer-Encoding")
	}
	n, ok := decimal(v)
	if !ok {
		return p.fail(at, "invalid Content-Length")
	}
	p.said |= saidLength
	h.Length, h.HasLength = n, true
	return nil
}

func (p *lineParser) transferEncoding(h *message.Head, v []byte, at int) error {
	if p.said&saidChunked != 0 {
		return p.fail(at, "more than one Transfer-Encoding")
	}
	if p.said&saidLength != 0 {
		return p.fail(at, "Transfer-Encoding beside Content-Length")
	}
	if h.Minor == 0 {
		return p.fail(at, "Transfer-Encoding in HTTP/1.0")
	}
	if !fold(v, "chunked") {
		return p.fail(at, "transfer coding other than chunked")
	}
	p.said |= saidChunked
	return nil
}

// connection reads the members of one Connection line.
func (p *lineParser) connection(v []byte, at int) error {
	for len(v) > 0 {
		var m []byte
		m, v = nextMember(v)
		switch {
		case len(m) == 0:
		case fold(m, "close"):
			p.said |= optionClose
		case fold(m, "keep-alive"):
			p.said |= optionKeepAlive
		case fold(m, "upgrade"):
			p.said |= optionUpgrade
		case fold(m, "te"):
		default:
			p.said |= optionOther
		}
		if p.options++; p.options > optionsMax {
			return p.fail(at, "too many members in Connection")
		}
	}
	return nil
}

// nextMember cuts the first member, without white space around it, off a
// comma-separated list.
func nextMember(v []byte) (member, rest []byte) {
	n := 0
	for n < len(v) && v[n] != ',' {
		n++
	}
	from, to := trim(v, 0, n)
	return v[from:to], v[min(n+1, len(v)):]
}

// markNominated sets Hop on the fields that Connection names, once all lines
// are known.
func (p *lineParser) markNominated(h *message.Head) {
	if p.said&optionOther == 0 {
		return
	}
	for i := range h.Fields {
		if h.Fields[i].ID != message.FieldConnection {
			continue
		}
		for v := h.Text(h.Fields[i].Value); len(v) > 0; {
			var m []byte
			m, v = nextMember(v)
			for k := range h.Fields {
				f := &h.Fields[k]
				if !f.Hop && foldEqual(h.Text(f.Name), m) {
					f.Hop = !endToEnd(f.ID, h.Text(f.Name))
				}
			}
		}
	}
}

// endToEnd reports whether every recipient needs the field, so that Connection
// cannot take it away.
func endToEnd(id message.FieldID, name []byte) bool {
	if id != message.FieldOther {
		return id != message.FieldTrailer
	}
	if len(name) > 8 && fold(name[:8], "content-") {
		return true
	}
	return fold(name, "authorization") || fold(name, "cookie") || fold(name, "set-cookie") ||
		fold(name, "cache-control") || fold(name, "location") || fold(name, "range")
}

// persistent tells whether the sender keeps the connection (RFC 9112 9.3).
func (p *lineParser) persistent(minor uint8) bool {
	if p.said&optionClose != 0 {
		return false
	}
	return minor != 0 || p.said&optionKeepAlive != 0
}

// upgradeAsked: HTTP/1.0 knows no Upgrade (RFC 9110 7.8).
func (p *lineParser) upgradeAsked(minor uint8) bool {
	const both = optionUpgrade | saidUpgradeField
	return minor != 0 && p.said&both == both
}

// decimal reads digits alone, up to 2^63-1.
func decimal(v []byte) (n int64, ok bool) {
	const most = 1<<63 - 1
	for _, c := range v {
		d := int64(c) - '0'
		if d < 0 || d > 9 || n > (most-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(v) > 0
}

type knownField struct {
	name string
	id   message.FieldID
}

// knownFields holds every known name at its nameHash. A switch by length costs
// the same and a list by length 5 % more of a head.
var knownFields = func() (table [64]knownField) {
	for _, k := range []knownField{
		{"connection", message.FieldConnection},
		{"content-length", message.FieldContentLength},
		{"date", message.FieldDate},
		{"expect", message.FieldExpect},
		{"forwarded", message.FieldForwarded},
		{"host", message.FieldHost},
		{"http2-settings", message.FieldHTTP2Settings},
		{"keep-alive", message.FieldKeepAlive},
		{"proxy-connection", message.FieldProxyConnection},
		{"server", message.FieldServer},
		{"te", message.FieldTE},
		{"trailer", message.FieldTrailer},
		{"transfer-encoding", message.FieldTransferEncoding},
		{"upgrade", message.FieldUpgrade},
		{"via", message.FieldVia},
		{"x-client-cert-subject", message.FieldXClientCertSubject},
		{"x-forwarded-for", message.FieldXForwardedFor},
		{"x-forwarded-host", message.FieldXForwardedHost},
		{"x-forwarded-port", message.FieldXForwardedPort},
		{"x-forwarded-proto", message.FieldXForwardedProto},
		{"x-request-id", message.FieldXRequestID},
	} {
		table[nameHash([]byte(k.name))] = k
	}
	return table
}()

// nameHash gives each known name a place of its own, whatever its case. A name
// has at least one byte.
func nameHash(name []byte) int {
	penult := name[max(len(name)-2, 0)] | 0x20
	return (4*len(name) + 5*int(penult)) & 63
}

// fieldID finds a name, a token in any case.
func fieldID(name []byte) message.FieldID {
	k := &knownFields[nameHash(name)]
	switch {
	case fold(name, k.name):
		return k.id
	case lookalike(name, k.name):
		return message.FieldLookalike
	}
	return message.FieldOther
}

// lookalike reports whether name is lower, the name of an X- field, but for case
// and for "_" in place of "-".
func lookalike(name []byte, lower string) bool {
	if len(name) != len(lower) || lower[0] != 'x' {
		return false
	}
	for i, c := range name {
		if c|0x20 != lower[i] && (c != '_' || lower[i] != '-') {
			return false
		}
	}
	return true
}
