package http1

import "github.com/cloud-cup/cloud-cup/message"

// ResponseParser reads the head of a response, interim ones included. Its zero
// value is ready. After a head or an error it is ready for the next message;
// Reset is for giving up one that is partly read.
type ResponseParser struct {
	lineParser
	stage uint8
}

// Reset gives up the head that is being read.
func (p *ResponseParser) Reset() { *p = ResponseParser{} }

// Parse reads the head that b begins with, of a response to a request with the
// given method. It resumes, consumes and fails like [RequestParser.Parse].
//
// The framing is FramingNone for interim responses, 204, 304 and whatever
// answers HEAD; Length and HasLength then still tell what Content-Length said.
// Without Content-Length and Transfer-Encoding it is FramingClose, which is
// never Persistent (RFC 9112 6.3). A 204 that announces a body is not
// Persistent either: its sender may be about to send it.
func (p *ResponseParser) Parse(h *message.Head, b []byte, lim *Limits, request message.Method) (n int, err error) {
	n, err = p.parse(h, b, lim)
	if err == ErrPartial {
		return 0, err
	}
	if err == nil {
		err = p.finish(h, request, n)
	}
	p.Reset()
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (p *ResponseParser) parse(h *message.Head, b []byte, lim *Limits) (end int, err error) {
	if p.stage != stageVersion && p.stage != stageFields {
		h.Reset()
		p.kind, p.stage = kindResponse, stageVersion
	}
	headMax := headLimit(lim)
	full := len(b) >= headMax
	if full {
		b = b[:headMax]
	}
	h.Bytes = b

	if p.stage == stageVersion {
		err = p.statusLine(h, b)
	}
	if err == nil {
		end, err = p.fields(h, b, fieldLimit(lim))
	}
	if err != nil {
		if err == ErrPartial && full {
			err = p.fail(headMax, "head too large")
		}
		return 0, err
	}
	h.Bytes = b[:end:end]
	return end, nil
}

// statusLine reads "HTTP/1.1 200 OK" and its line end; the reason and the space
// before it may be missing.
func (p *ResponseParser) statusLine(h *message.Head, b []byte) error {
	const reason = len("HTTP/1.1 200") // where it begins, with its space
	i := p.at
	if i == 0 {
		major, minor, err := p.protocol(b, 0)
		if err != nil {
			return err
		}
		if major != 1 {
			return p.fail(0, "version other than HTTP/1")
		}
		status := 0
		for k, c := range b[8:min(len(b), reason)] {
			if k == 0 && c != ' ' || k == 1 && c == '0' || k > 0 && (c < '0' || c > '9') {
				return p.fail(8+k, badByte(c, "no status of three digits where one belongs"))
			}
			if k > 0 {
				status = status*10 + int(c-'0')
			}
		}
		if len(b) <= reason {
			return ErrPartial
		}
		if b[reason] != ' ' && b[reason] != '\r' {
			return p.fail(reason, badByte(b[reason], "no space or line end behind the status"))
		}
		h.Minor, h.Status = minor, status
		i = reason
	}
	for i < len(b) && class[b[i]]&isText != 0 {
		i++
	}
	if i < len(b) {
		if b[i] != '\r' {
			return p.fail(i, badByte(b[i], "control byte in the status line"))
		}
		if i+1 < len(b) {
			if b[i+1] != '\n' {
				return p.fail(i, "bare CR")
			}
			h.FirstLineEnd = uint32(i + 2)
			p.at, p.line, p.stage = i+2, i+2, stageFields
			return nil
		}
	}
	p.at = i
	return ErrPartial
}

// finish judges the head as a whole (RFC 9112 6.3).
func (p *ResponseParser) finish(h *message.Head, request message.Method, end int) error {
	h.Persistent = p.persistent(h.Minor)
	h.UpgradeAsked = p.upgradeAsked(h.Minor)
	p.markNominated(h)
	body := p.said&saidChunked != 0 || h.Length > 0
	switch {
	case h.Status < 200:
		if body {
			return p.fail(end-2, "interim response with a body")
		}
	case h.Status == 204:
		if body {
			h.Persistent = false
		}
	case h.Status == 304 || request == message.MethodHead:
	case p.said&saidChunked != 0:
		h.Framing = message.FramingChunked
	case p.said&saidLength != 0:
		h.Framing = message.FramingLength
	default:
		h.Framing = message.FramingClose
		h.Persistent = false
	}
	return nil
}
