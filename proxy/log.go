package proxy

import (
	"bytes"
	"slices"
	"time"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// LogSpec says where requests are logged.
type LogSpec struct {
	File   string // as Logs names it; empty: nowhere
	Format accesslog.Format
}

// Logs opens and closes the files that lines go to. Its methods are called on
// the loop.
type Logs interface {
	// Open returns the buffer of a file that is not open: who writes it takes
	// what is handed over.
	Open(file string) *accesslog.Buffer
	// Close is called when no line for the file will be added. The last ones
	// follow soon, and then the buffer is closed; those that cannot be written
	// soon after are to be given up.
	Close(file string)
}

// accessLog is an open log.
type accessLog struct {
	*accesslog.Buffer
	snapshots int // held ones that name it
}

// logRef is LogSpec as exchanges use it.
type logRef struct {
	log    *accessLog // nil: nowhere
	format accesslog.Format
}

// kept is what the log wants of a request's head. It lies in buf, as the head
// for the backends lies in theirs: in memory that is counted.
type kept struct {
	buf  *loop.Buffer      // nil: nothing is kept
	text []byte            // the parts, one behind the other
	ends [keptParts]uint16 // where they end
	id   []byte            // X-Request-Id: the last part, or our own in the head for the backends
}

// The parts of kept.
const (
	keptMethod = iota
	keptTarget
	keptProtocol
	keptReferer
	keptAgent
	keptID // the client's own
	keptParts
)

// part is one of the parts; empty if it was not there.
func (k *kept) part(i int) []byte {
	if i == 0 {
		return k.text[:k.ends[0]]
	}
	return k.text[k.ends[i-1]:k.ends[i]]
}

// openLogs opens the logs that s names, as far as they are not open.
func (p *Proxy) openLogs(s *Snapshot) {
	s.log = p.openLog(s, s.Log)
	for _, r := range s.all {
		r.log = p.openLog(s, r.spec.Log)
	}
}

func (p *Proxy) openLog(s *Snapshot, spec LogSpec) logRef {
	if spec.File == "" {
		return logRef{}
	}
	l := p.logs[spec.File]
	if l == nil {
		l = &accessLog{Buffer: p.logFiles.Open(spec.File)}
		p.logs[spec.File] = l
	}
	if !slices.Contains(s.logs, l) {
		s.logs = append(s.logs, l)
		l.snapshots++
	}
	return logRef{l, spec.Format}
}

// releaseLogs lets go of the logs of a snapshot that is no longer held. Those
// that no other one names are closed with the next tick.
func (p *Proxy) releaseLogs(s *Snapshot) {
	if s == nil {
		return
	}
	for _, l := range s.logs {
		l.snapshots--
	}
	s.logs = nil
	p.keepTicking()
}

// FlushLogs hands all lines over and closes the logs that no snapshot names any
// more. It reports whether lines are left that are not written: their writer is
// busy. On the loop's thread.
func (p *Proxy) FlushLogs() (left bool) {
	for file, l := range p.logs {
		done := l.HandOver()
		p.counters.LogDropped += l.Lost()
		left = left || !done
		if l.snapshots == 0 {
			delete(p.logs, file)
			p.logFiles.Close(file)
			p.closedLogs = append(p.closedLogs, l)
		}
	}
	p.closedLogs = slices.DeleteFunc(p.closedLogs, func(l *accessLog) bool {
		if l.HandOver() {
			l.Buffer.Close(0)
		}
		idle := l.Idle()
		p.counters.LogDropped += l.Lost()
		return idle
	})
	return left || len(p.closedLogs) > 0
}

// keepHead copies what the log of the exchange's route wants of the head.
// Without memory for it the line will lack it.
func (x *exchange) keepHead() {
	if x.route.log.log == nil {
		return
	}
	req, c, k := &x.req, x.client, &x.kept
	protocol := req.Bytes[req.FirstLineEnd-uint32(len("HTTP/1.x\r\n")) : req.FirstLineEnd-uint32(len("\r\n"))]
	parts := [keptParts][]byte{
		keptMethod:   clipped(req.Text(req.MethodName), accesslog.MethodMax),
		keptTarget:   clipped(req.Text(req.Target), accesslog.TargetMax),
		keptProtocol: protocol,
	}
	for i := range req.Fields {
		f := &req.Fields[i]
		switch name := req.Text(f.Name); {
		case f.ID == message.FieldXRequestID:
			parts[keptID] = clipped(req.Text(f.Value), accesslog.RequestIDMax)
		case f.ID != message.FieldOther:
		case named(name, refererName):
			parts[keptReferer] = clipped(req.Text(f.Value), accesslog.RefererMax)
		case named(name, userAgentName):
			parts[keptAgent] = clipped(req.Text(f.Value), accesslog.UserAgentMax)
		}
	}
	n := 0
	for i := range parts {
		n += len(parts[i])
	}
	if !c.room(n) {
		return
	}
	k.buf = c.pad
	c.pad.Retain()
	k.text = c.scratch()
	for i := range parts {
		k.text = append(k.text, parts[i]...)
		k.ends[i] = uint16(len(k.text))
	}
	k.id = k.part(keptID)
	c.padEnd += n
}

// dropKept gives back what was kept.
func (x *exchange) dropKept() {
	if x.kept.buf != nil {
		x.kept.buf.Release()
		x.kept = kept{}
	}
	x.kept.id = nil
}

var (
	refererName   = []string{"referer"}
	userAgentName = []string{"user-agent"}
)

// clipped is b, or so much of it that a bound of max still shows that there was
// more.
func clipped(b []byte, max int) []byte { return b[:min(len(b), max+1)] }

// writeLog writes the exchange's line, if its route has a log. Heads that were
// refused belong to no route, and to the log of the top level; those that were
// never whole have no line.
func (x *exchange) writeLog() {
	p, r := x.p, &x.rec
	log := p.snap.log
	if x.route != nil {
		log = x.route.log
	} else if r.reason == message.ReasonNone {
		return
	}
	if log.log == nil {
		return
	}
	line := accesslog.Record{
		End: p.wall(), Client: x.from,
		Status: int(r.status), Bytes: x.respBody.moved + r.body, BytesIn: x.reqBody.moved,
		Reason: r.reason, Attempts: int(r.attempts),
		Total:   accesslog.Unknown,
		Connect: elapsed(r.asked, r.connected),
		Head:    elapsed(r.began, r.answered),
		Own:     accesslog.Unknown,
	}
	if x.route == nil {
		x.tellRefused(&line)
	} else {
		x.kept.tell(&line)
		line.Route = x.route.spec.Pattern
		line.Total = elapsed(r.began, p.now)
	}
	if s := x.client.tls; s != nil {
		line.TLS = &s.shown
	}
	if r.backend != nil {
		line.Backend = r.backend.name
	}
	if r.sampled {
		line.Own = time.Duration(r.overhead)
	}
	if !log.log.Append(p.lines, log.format, &line) {
		p.counters.LogDropped++
	}
	p.keepTicking()
}

// elapsed is the time between two events, if the second one came.
func elapsed(from, to int64) time.Duration {
	if to == 0 {
		return accesslog.Unknown
	}
	return time.Duration(to - from)
}

// tell puts what is kept into a line.
func (k *kept) tell(line *accesslog.Record) {
	line.Method, line.Target, line.Protocol = k.part(keptMethod), k.part(keptTarget), k.part(keptProtocol)
	line.Referer, line.UserAgent, line.RequestID = k.part(keptReferer), k.part(keptAgent), k.id
}

// tellRefused looks for a request line in what is no request. It need not be
// copied: the line is written at once.
func (x *exchange) tellRefused(line *accesslog.Record) {
	in := &x.client.in
	if in.empty() {
		return
	}
	first := in.front()
	for len(first) > 0 && (first[0] == '\r' || first[0] == '\n') { // RFC 9112 2.2
		first = first[1:]
	}
	if i := bytes.IndexAny(first, "\r\n"); i >= 0 {
		first = first[:i]
	}
	space, last := bytes.IndexByte(first, ' '), bytes.LastIndexByte(first, ' ')
	if space > 0 && space < last && bytes.HasPrefix(first[last+1:], []byte("HTTP/")) {
		line.Method, line.Target, line.Protocol = first[:space], first[space+1:last], first[last+1:]
		return
	}
	line.Target = first
}

// wall is the time of this turn: nanoseconds since 1970, as the clock was no
// more than a second ago.
func (p *Proxy) wall() int64 {
	if second := p.now / 1e9; second != p.wallAt {
		p.wallAt = second
		p.wallAhead = time.Now().UnixNano() - p.now
	}
	return p.now + p.wallAhead
}
