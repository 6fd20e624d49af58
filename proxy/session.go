package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/tlsconn"
)

// session is the TLS of a conn: it stands between the bytes that the engine
// moves and those that the conn's owner sees. Records wait in its own queues;
// the conn's queues hold plain bytes, as they do without TLS.
type session struct {
	c   *conn
	tls *tlsconn.Conn

	in     inQueue // records received, not taken yet
	out    outQueue
	pad    *loop.Buffer // the last records of out are in it, up to padEnd
	padEnd int
	taken  int // bytes of the peer's that a handshake under way has consumed

	// Of a client's session, once it is up.
	policy      *ListenerTLS
	certificate int    // the number of the first one for the name that was asked for
	subject     string // of the client's own certificate, empty without one
	shown       accesslog.TLS

	up     bool // the handshake is complete
	dry    bool // nothing can be read before more comes
	ended  bool // the peer's FIN came
	closed bool // nothing more can be written: close_notify is queued, or the session failed
	queued bool // in p.shaking
	short  bool // records were lost, or the handshake grew too long, for want of memory
}

// recordBytes is the most plain text that one record holds (RFC 8446 5.1).
const recordBytes = 16 << 10

// sealBytes is the most plain text that is turned into records in one buffer of
// ClassHead, with their framing: see sealed.
const sealBytes = loop.HeadBytes * 7 / 8

// sealBuffers is how many such buffers one send gathers. Measured with bodies
// of 1 MiB, two cost 3 to 6 % less CPU than one; three cost 17 % more than one,
// 23 to 24 % more than two. Why sends of more than 64 KiB are slower is not known.
const sealBuffers = 2

// sealed is the memory that the records of n bytes need at most. Those of a
// fresh connection are short, so that the peer can begin before 16 KiB have
// come, and carry up to 90 bytes each.
func sealed(n int) int { return n + n/10 + 256 }

// repliesHeld is the memory of records beyond which nothing more is read: a peer
// that asks for key updates and does not read the answers has no more than that.
const repliesHeld = 2 * loop.BodyBytes

// crypto/tls keeps what came of a handshake's messages, up to 64 KiB of a client's
// first one and 256 KiB of a chain of certificates, on the heap, where the memory
// limit does not reach. When the long handshakes under way, with clients and with
// backends, which have consumed more than handshakeBytes, have more than that part
// of the limit together, the one that has been long for longest fails: one that
// goes on takes a few round trips. Those up to handshakeBytes never fail for it:
// they are bounded by the number of connections alone. Clients' first messages
// have 300 bytes to 2 KiB, chains seldom more than 8 KiB.
const (
	handshakeShare = 8
	handshakeBytes = 8 << 10
)

// shakeTime is how much of a turn goes to handshakes when more of them wait,
// and what one step more takes: a full handshake does most of its work, about
// 0.2 ms, in one step. A request on an established connection waits for two
// turns at least. More of them per turn make no handshake cheaper.
const shakeTime = 100 * time.Microsecond

// A storm is when more than stormQueue handshakes wait for the next turn, some
// 25 ms of work. It is over when for stormPause no more
// than that waited.
const (
	stormQueue = 128
	stormPause = int64(500e6)
)

// secure gives c a session. The handshake begins when c is settled.
func (c *conn) secure(open func(tlsconn.Transport, *tls.Config) *tlsconn.Conn, config *tls.Config) *session {
	s := &session{c: c}
	s.tls = open(s, config)
	c.tls = s
	s.queue()
	return s
}

// wire is the queue that received bytes go to.
func (c *conn) wire() *inQueue {
	if c.tls != nil {
		return &c.tls.in
	}
	c.rise()
	return &c.in
}

// shaking reports whether c's handshake is not complete.
func (c *conn) shaking() bool { return c.tls != nil && !c.tls.up }

// queued reports whether something waits to be sent.
func (c *conn) queued() bool { return !c.out.empty() || c.tls != nil && !c.tls.out.empty() }

// pending reports whether the kernel has not taken everything yet.
func (c *conn) pending() bool { return c.queued() || c.sending() }

// endSession queues a close_notify, once, when all else was sent. It reports
// whether that is sent, too, so that a FIN may follow.
func (c *conn) endSession() bool {
	if s := c.tls; s != nil && s.up && !s.closed && !c.pending() {
		if s.tls.CloseWrite() != nil {
			c.sendFault = fault(syscall.EPIPE)
		}
		s.closed = true
		c.mark()
	}
	return !c.pending()
}

// Received, Consume, Ended, Send and Offload are the session as the transport
// of its records.
func (s *session) Received() []byte {
	if s.in.empty() {
		return nil
	}
	return s.in.front()
}

func (s *session) Consume(n int) {
	s.in.consume(n)
	if s.up {
		return
	}
	before := s.taken
	s.taken += n
	if s.taken <= handshakeBytes {
		return
	}
	p := s.c.p
	if before <= handshakeBytes {
		p.long = append(p.long, s)
		n = s.taken
	}
	for p.longBytes += n; p.longBytes > p.pool.Limit()/handshakeShare; {
		oldest := p.long[0]
		oldest.short = true
		oldest.forgetTaken()
		oldest.queue()
	}
}

// forgetTaken is told that what the handshake has consumed is garbage, or soon
// will be.
func (s *session) forgetTaken() {
	if p := s.c.p; s.taken > handshakeBytes {
		p.longBytes -= s.taken
		at := slices.Index(p.long, s)
		p.long = slices.Delete(p.long, at, at+1)
	}
	s.taken = 0
}

func (s *session) Ended() bool { return s.ended }

func (s *session) Send(b []byte) {
	if s.closed {
		return // nothing follows a close_notify, not even the answer to a key update
	}
	for len(b) > 0 {
		if s.pad == nil || s.padEnd == len(s.pad.Bytes()) {
			if !s.room(len(b)) {
				s.short = true
				return
			}
		}
		n := copy(s.pad.Bytes()[s.padEnd:], b)
		s.queueRecords(n)
		b = b[n:]
	}
}

// queueRecords queues the n bytes behind padEnd.
func (s *session) queueRecords(n int) {
	at := s.padEnd
	s.padEnd += n
	if k := len(s.out.segs); k > s.out.head && s.out.padEnd == at && s.out.segs[k-1].buf == s.pad {
		last := &s.out.segs[k-1]
		last.b = last.b[:len(last.b)+n]
	} else {
		s.pad.Retain()
		s.out.add(s.pad, s.pad.Bytes()[at:s.padEnd])
	}
	s.out.padEnd = s.padEnd
}

// room gets a buffer for n bytes of records, or the largest there is: while
// memory is short, what waits leaves in small pieces.
func (s *session) room(n int) bool {
	s.dropPad()
	class := loop.ClassSmall
	for class.Bytes() < n && class < loop.ClassBody {
		class++
	}
	s.pad = s.c.p.pool.Get(class)
	for s.pad == nil && class > loop.ClassSmall {
		class--
		s.pad = s.c.p.pool.Get(class)
	}
	return s.pad != nil
}

func (s *session) dropPad() {
	if s.pad != nil {
		s.pad.Release()
		s.pad, s.padEnd = nil, 0
	}
}

func (s *session) Offload(job func()) {
	p := s.c.p
	go func() {
		p.helpers <- struct{}{}
		job()
		<-p.helpers
		p.Post(s.queue)
	}()
}

// thirsty reports whether the session needs more of the peer to go on.
func (s *session) thirsty() bool { return s.dry && !s.ended }

// silent reports whether all that came of the peer was read, and is not the begin
// of a record whose rest is to come.
func (s *session) silent() bool { return s.dry && !s.tls.Partial() }

// arrived is told that records came, or the end of them.
func (s *session) arrived() {
	s.dry = false
	if !s.up {
		s.queue()
	}
}

// queue has the handshake go on after this turn.
func (s *session) queue() {
	if !s.queued {
		s.queued = true
		s.c.p.shaking = append(s.c.p.shaking, s)
	}
}

// shake goes on with the handshakes that have something to go on with, as far as
// a turn's share of the time allows. The others wait for the next turn, in
// order, and the established connections come in between.
func (p *Proxy) shake() {
	if len(p.shaking) == 0 {
		return
	}
	began := time.Now()
	done := 0
	for done < len(p.shaking) && (done == 0 || time.Since(began) < shakeTime) {
		s := p.shaking[done]
		done++
		s.queued = false
		s.shake()
		p.settle()
	}
	p.shaking = slices.Delete(p.shaking, 0, done)
	if len(p.shaking) > stormQueue && p.storm != nil {
		p.stormy = true
		if !p.stormTimer.Scheduled() {
			p.storm(true)
			p.wheel.Schedule(&p.stormTimer, p.now+stormPause)
		}
	}
}

// calm looks after stormPause whether the storm goes on.
func (p *Proxy) calm() {
	if p.stormy {
		p.stormy = false
		p.wheel.Schedule(&p.stormTimer, p.now+stormPause)
		return
	}
	p.storm(false)
}

// shake goes on with the handshake.
func (s *session) shake() {
	c := s.c
	if s.closed {
		return
	}
	c.mark() // one that is closing may have waited for the helper
	if c.closing || s.up {
		return
	}
	err := s.tls.Handshake()
	switch {
	case err == nil && !s.short:
		s.up = true
		s.forgetTaken()
		c.progress = true
		c.p.counters.Handshakes++
		if c.isClient() {
			s.identify()
		}
	case err == tlsconn.ErrAgain && (!s.short || s.tls.Busy()):
		// What comes while a signature is made waits in the kernel.
		s.dry = s.in.empty()
	default:
		s.refuse(err)
	}
}

// partWith tells a backend why its connection is closed, as far as that takes no
// waiting: the alert of a session that failed, which is queued, or a close_notify
// in an idle one.
func (s *session) partWith(idle bool) {
	c := s.c
	if c.sending() || c.sendFault != 0 || c.eof {
		return
	}
	if idle && s.tls.CloseWrite() != nil {
		return
	}
	s.closed = true
	for _, seg := range s.out.segs[s.out.head:] {
		if c.p.engine.SendNow(c.fd, seg.b) < len(seg.b) {
			return
		}
	}
}

// refuse ends a session whose handshake failed. The alert for the peer is
// queued already.
func (s *session) refuse(err error) {
	c := s.c
	s.closed = true
	gone := errors.Is(err, tlsconn.ErrTruncated)
	if gone && s.taken == 0 && !s.short && c.isClient() {
		// It has said nothing, which is no failure without TLS either.
		s.leave()
		c.owner().(*client).goodbye()
		return
	}
	c.p.counters.HandshakesFailed++
	if !c.isClient() {
		if s.short {
			c.fault = fault(syscall.ENOMEM)
			return
		}
		c.owner().(*stream).broke(err)
		return
	}
	cl := c.owner().(*client)
	s.leave()
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &header) && plainHTTP(header.RecordHeader[:]):
		cl.x = c.p.takeExchange(cl) // it has an answer, and so a line in the log
		cl.become(clientHead)
		cl.refuse(message.ReasonPlainHTTP)
	case s.short:
		cl.because(message.ReasonMemory)
		cl.goodbye()
	default:
		cl.because(message.ReasonTLSHandshake)
		if !gone {
			cl.tell(s.tls.State().ServerName, err)
		}
		cl.goodbye()
	}
}

// leave ends the session, and not its connection: the records that it has
// queued, of which the last is an alert, are still sent, and what else comes of
// the peer is no concern of TLS. Its handshake must not be busy.
func (s *session) leave() {
	c := s.c
	c.eof = c.eof || s.ended
	c.rise()
	c.out.drop()
	c.out.join(&s.out)
	s.drop()
	c.tls = nil
}

// plainHTTP reports whether the first bytes of a connection look like a request
// without TLS: a method, or the begin of a long one.
func plainHTTP(b []byte) bool {
	method, _, _ := bytes.Cut(b, []byte(" "))
	for _, ch := range method {
		if ch < 'A' || ch > 'Z' {
			return false
		}
	}
	return len(method) > 2
}

// fill takes what the owner wants out of the records that have come. It reports
// whether the owner has something to look at.
func (s *session) fill() bool {
	c := s.c
	if !s.up || s.dry || c.eof || c.fault != 0 || s.out.held > repliesHeld {
		return false
	}
	code, class := c.owner().wantRecv()
	if code == 0 {
		return false
	}
	buf := c.p.pool.Get(class)
	if buf == nil {
		c.starve()
		return false
	}
	n, err := 0, error(nil)
	for err == nil && n < len(buf.Bytes()) {
		var k int
		k, err = s.tls.Read(buf.Bytes()[n:])
		n += k
	}
	if n > 0 {
		c.progress = true
		c.rise()
		c.in.add(buf, n)
	} else {
		buf.Release()
	}
	switch {
	case err == nil:
	case err == tlsconn.ErrAgain:
		s.dry = true
	case err == io.EOF, err == tlsconn.ErrTruncated && c.isClient(): // requests tell their own end
		c.eof = true
	case c.isClient():
		s.leave()
		c.owner().(*client).violated()
		return true
	case err == tlsconn.ErrTruncated:
		c.fault = fault(syscall.ECONNRESET)
	default:
		c.owner().(*stream).broke(err)
	}
	return n > 0 || c.eof || c.fault != 0
}

// seal turns what is queued into records, if none wait to be sent. It reports
// whether there are any.
func (s *session) seal() bool {
	if s.out.empty() && s.up && !s.closed {
		for n := 0; n < sealBuffers && s.sealBuffer(); n++ {
		}
		if s.c.out.empty() {
			s.c.dropPad()
		}
	}
	return !s.out.empty()
}

// sealBuffer turns what is queued into records until one buffer is full. It
// reports whether it made any.
func (s *session) sealBuffer() bool {
	c := s.c
	if c.out.empty() || c.sendFault != 0 {
		return false
	}
	most := c.out.bytes(sealBytes)
	if !s.room(sealed(most)) {
		if s.out.empty() {
			c.starve()
		}
		return false
	}
	for room := len(s.pad.Bytes()); most > 0 && sealed(most) > room; {
		most -= most / 8 // a smaller buffer than was asked for
	}
	if err := s.write(most); err != nil || s.short {
		c.sendFault = fault(syscall.EPIPE)
	}
	return true
}

// write writes the first n bytes of what is queued. Short segments are put
// together, so that a head and the begin of its body share a record.
func (s *session) write(n int) error {
	c := s.c
	plain := c.p.plain[:0]
	for left := n; left > 0; {
		b := c.out.segs[c.out.head].b
		k := min(len(b), left)
		if len(plain) == 0 && (k == left || k >= recordBytes) {
			if k < left {
				k -= k % recordBytes // the rest shares a record with what follows
			}
			if err := s.tls.Write(b[:k]); err != nil {
				return err
			}
			c.out.sent(k)
			left -= k
			continue
		}
		k = min(k, cap(plain)-len(plain))
		plain = append(plain, b[:k]...)
		c.out.sent(k)
		left -= k
		if len(plain) == cap(plain) || left == 0 {
			if err := s.tls.Write(plain); err != nil {
				return err
			}
			plain = plain[:0]
		}
	}
	c.owner().wrote(n)
	return nil
}

// drop gives back what the session holds. Its handshake must not be busy. It may
// still be in p.shaking, or get there when a helper is done: its conn may serve
// another connection by then.
func (s *session) drop() {
	s.closed = true
	s.tls.Abort() // may send an alert
	s.forgetTaken()
	s.in.drop()
	s.out.drop()
	s.dropPad()
}
