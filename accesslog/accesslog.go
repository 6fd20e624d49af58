// Package accesslog turns one exchange into one line: in the combined format
// that Apache and nginx write, in cup, which is combined with what Cloud Cup
// knows besides, or as one JSON object. It knows no file: a Buffer carries the
// lines from the loop that makes them to the goroutine that writes them.
//
// No byte that a peer sent can end a line or a field of it, or reach a
// terminal as a control character: what is not plain is escaped.
package accesslog

import (
	"strconv"
	"time"

	"github.com/cloud-cup/cloud-cup/message"
)

// Format is how a line is written.
type Format uint8

// The formats.
const (
	Combined Format = iota // as Apache and nginx name it
	Cup                    // combined, then name=value pairs
	JSON                   // one object
)

// LineBytesMax bounds a line with its line feed. It is what a pipe takes whole
// or not at all (PIPE_BUF, pipe(7)), so that the lines of several processes do
// not mix.
const LineBytesMax = 4096

// Bounds of what peers and the configuration put into a line, in bytes as they
// stand there. What is longer is cut, and ends in "...". Together with all
// else they fit LineBytesMax.
const (
	MethodMax    = 32
	TargetMax    = 1792
	ProtocolMax  = 16
	RefererMax   = 512
	UserAgentMax = 384
	RequestIDMax = 128
	SNIMax       = 128
	nameMax      = 224 // of a backend, and of a route
)

// Unknown as a duration of a Record says that there is none to tell.
const Unknown = time.Duration(-1)

// Record is what there is to say about one exchange. The byte slices are read
// while the line is made and not kept; empty ones were not there.
type Record struct {
	End    int64  // when the exchange ended: nanoseconds since 1970
	Client []byte // its address; empty for a client on a unix socket

	// Method and Protocol are empty where the first line of the head was no
	// request line. Target is then that line, as far as it came.
	Method, Target, Protocol []byte
	Referer, UserAgent       []byte
	RequestID                []byte

	Status   int   // 0: no response was sent
	Bytes    int64 // of the response's body, without its framing
	BytesIn  int64 // of the request's body, likewise
	Reason   message.Reason
	Attempts int    // backends that the request was tried on
	Backend  string // the last of them; empty: none
	Route    string // its pattern; empty where no request was understood
	TLS      *TLS   // of the client's connection; nil without

	Total   time.Duration // from the request's whole head to the end; Unknown without one
	Connect time.Duration // for the last backend's connection; Unknown for one that was there
	Head    time.Duration // from the request's head to the response's; Unknown without one
	Own     time.Duration // that the loop worked on it; Unknown but for a sample
}

// TLS is what a client's handshake came to.
type TLS struct {
	Version string // "1.2" or "1.3"
	Suite   string // as crypto/tls names it
	SNI     string // the name that was asked for; empty: none
	Resumed bool
}

// A Writer makes lines. It belongs to one goroutine.
type Writer struct {
	tail    string // of a cup line: the same for all of a worker
	tailObj string // of an object

	second int64  // that the texts below tell
	local  []byte // "22/Nov/2026:22:06:08 +0100"
	date   []byte // "2026-11-22T22:06:08"
	zone   []byte // "+01:00"
}

// NewWriter returns a Writer for the exchanges of the worker of a slot, with
// the named engine.
func NewWriter(slot int, engine string) *Writer {
	n := strconv.Itoa(slot)
	return &Writer{
		tail:    " slot=" + n + " engine=" + engine + "\n",
		tailObj: `,"slot":` + n + `,"engine":"` + engine + `"}` + "\n",
		second:  -1,
	}
}

// Append appends r's line to dst, at most LineBytesMax bytes. It allocates
// nothing if dst has room for them.
func (w *Writer) Append(dst []byte, f Format, r *Record) []byte {
	w.tell(r.End)
	switch f {
	case Combined:
		return append(w.combined(dst, r), '\n')
	case Cup:
		return w.cup(dst, r)
	}
	return w.json(dst, r)
}

// tell brings the texts up to date that change once a second.
func (w *Writer) tell(nanos int64) {
	second := nanos / 1e9
	if second == w.second {
		return
	}
	w.second = second
	t := time.Unix(second, 0)
	w.local = t.AppendFormat(w.local[:0], "02/Jan/2006:15:04:05 -0700")
	w.date = t.AppendFormat(w.date[:0], "2006-01-02T15:04:05")
	w.zone = t.AppendFormat(w.zone[:0], "-07:00")
}

// combined appends what Apache's documentation calls the combined log format:
//
//	%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-agent}i"
//
// as nginx writes it: the time is that of the line, and a body of no bytes is 0.
func (w *Writer) combined(b []byte, r *Record) []byte {
	b = appendClient(b, r.Client)
	b = append(b, " - - ["...)
	b = append(b, w.local...)
	b = append(b, `] "`...)
	if len(r.Method) > 0 {
		b = appendText(b, r.Method, MethodMax)
		b = append(b, ' ')
		b = appendText(b, r.Target, TargetMax)
		b = append(b, ' ')
		b = appendText(b, r.Protocol, ProtocolMax)
	} else {
		b = appendOrDash(b, r.Target, TargetMax)
	}
	b = append(b, `" `...)
	b = appendStatus(b, r.Status)
	b = append(b, ' ')
	b = strconv.AppendInt(b, r.Bytes, 10)
	b = append(b, ` "`...)
	b = appendOrDash(b, r.Referer, RefererMax)
	b = append(b, `" "`...)
	b = appendOrDash(b, r.UserAgent, UserAgentMax)
	return append(b, '"')
}

// cup appends a line whose first part is a combined one.
func (w *Writer) cup(b []byte, r *Record) []byte {
	b = w.combined(b, r)
	b = append(b, " total="...)
	b = appendSeconds(b, r.Total, "-")
	b = append(b, " connect="...)
	b = appendSeconds(b, r.Connect, "-")
	b = append(b, " head="...)
	b = appendSeconds(b, r.Head, "-")
	b = append(b, " own="...)
	b = appendSeconds(b, r.Own, "-")
	b = append(b, " in="...)
	b = strconv.AppendInt(b, r.BytesIn, 10)
	b = append(b, ` route="`...)
	b = appendOrDash(b, r.Route, nameMax)
	b = append(b, `" backend="`...)
	b = appendOrDash(b, r.Backend, nameMax)
	b = append(b, `" attempts=`...)
	b = strconv.AppendInt(b, int64(r.Attempts), 10)
	b = append(b, " reason="...)
	if r.Reason == message.ReasonNone {
		b = append(b, '-')
	} else {
		b = append(b, r.Reason.String()...)
	}
	b = append(b, ` id="`...)
	b = appendOrDash(b, r.RequestID, RequestIDMax)
	b = append(b, '"')
	b = r.TLS.cup(b)
	return append(b, w.tail...)
}

// cup appends what a cup line tells of TLS.
func (t *TLS) cup(b []byte) []byte {
	if t == nil {
		return append(b, ` tls=- suite=- sni="-" resumed=-`...)
	}
	b = append(b, " tls="...)
	b = append(b, t.Version...)
	b = append(b, " suite="...)
	b = append(b, t.Suite...)
	b = append(b, ` sni="`...)
	b = appendOrDash(b, t.SNI, SNIMax)
	if t.Resumed {
		return append(b, `" resumed=yes`...)
	}
	return append(b, `" resumed=no`...)
}

// json appends what an object tells of TLS.
func (t *TLS) json(b []byte) []byte {
	if t == nil {
		return append(b, `,"tls":"","suite":"","sni":"","resumed":null`...)
	}
	b = append(b, `,"tls":"`...)
	b = append(b, t.Version...)
	b = append(b, `","suite":"`...)
	b = append(b, t.Suite...)
	b = append(b, `","sni":"`...)
	b = appendString(b, t.SNI, SNIMax)
	b = append(b, `","resumed":`...)
	return strconv.AppendBool(b, t.Resumed)
}

// json appends an object. Every line has every key; what is not known is null
// or empty.
func (w *Writer) json(b []byte, r *Record) []byte {
	b = append(b, `{"time":"`...)
	b = append(b, w.date...)
	b = append(b, '.')
	milli := r.End / 1e6 % 1e3
	b = append(b, byte('0'+milli/100), byte('0'+milli/10%10), byte('0'+milli%10))
	b = append(b, w.zone...)
	b = append(b, `","client":"`...)
	b = appendClient(b, r.Client)
	b = append(b, `","method":"`...)
	b = appendString(b, r.Method, MethodMax)
	b = append(b, `","target":"`...)
	b = appendString(b, r.Target, TargetMax)
	b = append(b, `","protocol":"`...)
	b = appendString(b, r.Protocol, ProtocolMax)
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, `,"bytes":`...)
	b = strconv.AppendInt(b, r.Bytes, 10)
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendInt(b, r.BytesIn, 10)
	b = append(b, `,"referer":"`...)
	b = appendString(b, r.Referer, RefererMax)
	b = append(b, `","user_agent":"`...)
	b = appendString(b, r.UserAgent, UserAgentMax)
	b = append(b, `","request_id":"`...)
	b = appendString(b, r.RequestID, RequestIDMax)
	b = append(b, `","route":"`...)
	b = appendString(b, r.Route, nameMax)
	b = append(b, `","backend":"`...)
	b = appendString(b, r.Backend, nameMax)
	b = append(b, `","attempts":`...)
	b = strconv.AppendInt(b, int64(r.Attempts), 10)
	b = append(b, `,"reason":"`...)
	if r.Reason != message.ReasonNone {
		b = append(b, r.Reason.String()...)
	}
	b = append(b, `","total_seconds":`...)
	b = appendSeconds(b, r.Total, "null")
	b = append(b, `,"connect_seconds":`...)
	b = appendSeconds(b, r.Connect, "null")
	b = append(b, `,"head_seconds":`...)
	b = appendSeconds(b, r.Head, "null")
	b = append(b, `,"own_seconds":`...)
	b = appendSeconds(b, r.Own, "null")
	b = r.TLS.json(b)
	return append(b, w.tailObj...)
}

// appendClient appends an address; a client on a unix socket has the word that
// nginx writes.
func appendClient(b, address []byte) []byte {
	if len(address) == 0 {
		return append(b, "unix:"...)
	}
	return append(b, address...)
}

// appendStatus appends a status in three digits, as nginx does.
func appendStatus(b []byte, status int) []byte {
	return append(b, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10))
}

// appendSeconds appends d in seconds with microseconds, or the word for one
// that is not known.
func appendSeconds(b []byte, d time.Duration, unknown string) []byte {
	if d < 0 {
		return append(b, unknown...)
	}
	micros := uint64(d / time.Microsecond)
	b = strconv.AppendUint(b, micros/1e6, 10)
	text := [...]byte{'.', 0, 0, 0, 0, 0, 0}
	for i, rest := len(text)-1, uint32(micros%1e6); i > 0; i-- {
		text[i] = byte('0' + rest%10)
		rest /= 10
	}
	return append(b, text[:]...)
}
