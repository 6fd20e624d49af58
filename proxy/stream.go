package proxy

import (
	"cmp"
	"crypto/tls"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/balance"
	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/tlsconn"
)

// streamState is what a backend stream waits for.
type streamState uint8

const (
	streamFree      streamState = iota // in the free list
	streamConnect                      // waiting for connect(2)
	streamHandshake                    // waiting for the end of the TLS handshake
	streamHead                         // waiting for a response's head
	streamBody                         // the response's body is coming
	streamTunnel                       // bytes move both ways
	streamSettle                       // the response is whole: waiting for the last send's result
	streamIdle                         // in the backend's pool
	streamClosing                      // waiting for the kernel to return our operations
	streamStates
)

// streamMoves lists the legal moves.
var streamMoves = [streamStates][streamStates]bool{
	streamFree:      {streamConnect: true},
	streamConnect:   {streamHandshake: true, streamHead: true, streamClosing: true},
	streamHandshake: {streamHead: true, streamClosing: true},
	streamHead:      {streamBody: true, streamTunnel: true, streamClosing: true},
	streamTunnel:    {streamClosing: true},
	streamBody:      {streamSettle: true, streamIdle: true, streamClosing: true},
	streamSettle:    {streamIdle: true, streamClosing: true},
	streamIdle:      {streamHead: true, streamClosing: true},
	streamClosing:   {streamFree: true},
}

// stream is one connection to a backend, serving one exchange after another.
type stream struct {
	conn
	state   streamState
	backend *backend
	x       *exchange // served now; nil when idle, settling or closing
	connect loop.Op

	reused    bool  // the exchange was not the connection's first
	answered  bool  // bytes of a response came for this exchange
	interim   bool  // a 1xx came since the deadline was looked at
	keep      bool  // the backend keeps the connection open after this response
	written   int64 // bytes of this exchange's request that the kernel took
	idleSince int64
	idleLimit time.Duration // timeouts.backend_idle of the route it served last

	prev, next *stream // in the backend's idle list, or (next) in the free list
}

// backend is an address that requests go to. It lives as long as a
// configuration names it, and until its last connection is closed.
type backend struct {
	p        *Proxy
	name     string
	addr     loop.Addr
	to       loop.Msg // of connects: names addr
	row      *shm.BackendRow
	stats    *shm.BackendStats // this worker's
	hostLine []byte            // its Host field, for routes that send it
	idle     *stream           // the most recently used first
	coldest  *stream
	tls      *tls.Config // nil: without
	told     told        // why TLS with it failed
	named    bool        // by the snapshot in force
}

func (p *Proxy) newBackend(m *memberSpec) *backend {
	b := &backend{
		p: p, name: m.name(), addr: m.addr, row: &p.rows.Rows[m.row], stats: &p.page.Backends[m.row],
		hostLine: []byte("Host: " + hostOf(m.host) + "\r\n"),
	}
	b.to.Peer = &b.addr
	return b
}

// disabled reports whether no connection to b may be kept.
func (b *backend) disabled() bool { return b.row.Admin.Load() == shm.AdminDisabled }

// closeIdle closes the connections that serve no exchange.
func (b *backend) closeIdle() {
	for b.idle != nil {
		b.idle.become(streamClosing)
	}
}

// freshFor is how long after its last use a connection still takes requests
// that must not be sent twice.
const freshFor = int64(1e9)

// takeIdle takes the most recently used idle connection, or returns nil. A
// request that is not idempotent gets only one used just now: the backend may
// be closing any other at this moment. One whose session has something to read,
// or part of it, ends: nobody asked for that.
func (b *backend) takeIdle(now int64, idempotent bool) *stream {
	for st := b.idle; st != nil && (idempotent || now-st.idleSince <= freshFor); st = b.idle {
		if st.tls != nil && !st.tls.silent() {
			st.become(streamClosing)
			continue
		}
		b.unlink(st)
		st.become(streamHead)
		st.reused = true
		return st
	}
	return nil
}

func (b *backend) link(st *stream) {
	st.prev, st.next = nil, b.idle
	if b.idle != nil {
		b.idle.prev = st
	} else {
		b.coldest = st
	}
	b.idle = st
	b.p.counters.BackendIdle++
	b.stats.Idle++
}

func (b *backend) unlink(st *stream) {
	if st.prev != nil {
		st.prev.next = st.next
	} else {
		b.idle = st.next
	}
	if st.next != nil {
		st.next.prev = st.prev
	} else {
		b.coldest = st.prev
	}
	st.prev, st.next = nil, nil
	b.p.counters.BackendIdle--
	b.stats.Idle--
}

// dial starts a new connection.
func (b *backend) dial() *stream {
	st := b.p.takeStream()
	st.backend = b
	st.reused = false
	st.become(streamConnect)
	st.connect = loop.Op{Code: loop.Connect, Tag: tagConnect, User: st.self(), Msg: &b.to, FD: -1}
	b.p.engine.Submit(&st.connect)
	st.fd = st.connect.FD
	b.p.counters.BackendConnects++
	b.stats.Connects++
	return st
}

// freeDescriptors closes some of the connections that were idle the longest, so
// that the next dial finds a descriptor.
func (p *Proxy) freeDescriptors() {
	for _, b := range p.backends {
		for n := 0; n < 4 && b.coldest != nil; n++ {
			b.coldest.become(streamClosing)
		}
	}
}

// begin gives the stream an exchange to serve.
func (st *stream) begin(x *exchange) {
	st.x = x
	st.idleLimit = x.route.spec.Timeouts.BackendIdle
	st.answered, st.keep, st.written = false, false, 0
}

func (st *stream) become(next streamState) {
	if !streamMoves[st.state][next] {
		st.p.quarantine("stream", int(st.state), int(next))
		next = streamClosing
	}
	if st.state == streamIdle {
		if next == streamClosing {
			st.backend.unlink(st)
		}
	}
	if next == streamClosing && st.tls != nil && (st.state == streamIdle || st.fault == fault(syscall.EPROTO)) {
		st.tls.partWith(st.state == streamIdle && st.fault == 0)
	}
	st.state = next
	if next == streamClosing {
		if st.connect.InFlight() {
			st.p.engine.Cancel(&st.connect)
		}
		st.conn.close()
	}
}

// connected takes the result of the connect.
func (st *stream) connected(op *loop.Op) {
	st.mark()
	if st.closing {
		return
	}
	if op.Err != 0 {
		kind := balance.Refused
		if op.Err == syscall.ETIMEDOUT {
			kind = balance.TimedOut
		}
		if op.Err == syscall.EMFILE || op.Err == syscall.ENFILE {
			st.p.freeDescriptors()
		}
		st.x.attemptFailed(connectReason(op.Err), kind)
		return
	}
	st.progress = true
	st.x.rec.connected = st.p.now
	if st.backend.tls == nil {
		st.become(streamHead)
		return
	}
	st.become(streamHandshake)
	st.secure(tlsconn.Client, st.backend.tls)
}

// broke ends the receive side because of err, by which TLS with the backend
// failed: the handshake, or what came after it. In TLS 1.3 a backend that does
// not like our certificate says so behind the handshake.
func (st *stream) broke(err error) {
	st.fault = fault(syscall.EPROTO)
	st.backend.tell(err)
}

// lostReason is why a stream has ended before the head of a response came.
func (st *stream) lostReason() message.Reason {
	switch {
	case st.fault == fault(syscall.ENOMEM):
		return message.ReasonMemory
	case st.state == streamHandshake, st.fault == fault(syscall.EPROTO) && !st.reused:
		return message.ReasonBackendTLS
	}
	return message.ReasonBackendReset
}

func (st *stream) advance() {
	switch st.state {
	case streamHead:
		for st.state == streamHead && st.readHead() {
		}
		if st.state == streamBody {
			st.x.moveResponse()
		}
	case streamHandshake:
		switch {
		case st.fault != 0 || st.sendFault != 0:
			st.backend.tell(syscall.Errno(cmp.Or(st.fault, st.sendFault))) // unless broke has just done so
			st.x.attemptFailed(st.lostReason(), balance.Refused)
		case st.tls.up:
			st.x.rec.connected = st.p.now
			st.become(streamHead)
		}
	case streamBody:
		st.x.moveResponse()
	case streamTunnel:
		st.x.moveTunnel()
	case streamSettle:
		if !st.sending() || st.spoiled() {
			st.settled()
		}
	case streamIdle:
		if st.spoiled() {
			st.become(streamClosing)
		}
	}
}

// readHead parses what has come of a response's head. It reports whether
// there may be another one behind it.
func (st *stream) readHead() bool {
	x := st.x
	if st.in.empty() {
		if st.eof || st.fault != 0 {
			x.attemptFailed(st.lostReason(), balance.Refused)
		}
		return false
	}
	st.answered = true
	for {
		n, err := x.respParser.Parse(&x.resp, st.in.front(), &st.p.snap.heads, x.method)
		switch {
		case err == http1.ErrPartial && (len(st.in.pieces) > 1 || st.in.full()):
			switch st.in.join(st.p.pool) {
			case message.ReasonNone:
				continue
			case message.ReasonMemory:
				x.attemptFailed(message.ReasonMemory, balance.Refused)
			default:
				x.attemptFailed(message.ReasonBackendMalformed, balance.Refused)
			}
			return false
		case err == http1.ErrPartial:
			if st.eof || st.fault != 0 {
				x.attemptFailed(st.lostReason(), balance.Refused)
			}
			return false
		case err != nil:
			x.attemptFailed(message.ReasonBackendMalformed, balance.Refused)
			return false
		case x.resp.Status == 101 && !x.switched(): // nobody asked for it
			x.attemptFailed(message.ReasonBackendMalformed, balance.Refused)
			return false
		case x.resp.Status == 101:
			x.openTunnel(n)
			return false
		case x.resp.Status < 200:
			x.interim()
			st.interim = true
			st.in.consume(n)
			x.respParser.Reset()
			return true
		}
		x.respond(n)
		return false
	}
}

// release takes the stream back from an exchange whose response is whole.
// requestDone tells whether the whole request was handed to the stream.
func (st *stream) release(requestDone bool) {
	st.x = nil
	if !st.keep || !requestDone || st.sendFault != 0 || st.spoiled() || !st.backend.named || st.surplus() {
		st.become(streamClosing)
		return
	}
	st.become(streamSettle)
	if !st.sending() {
		st.settled()
	}
}

// brokenOff reports whether the end of the backend's bytes may be none: if not
// all of the request was sent, a send may have been told of a reset, and no
// receive is told again.
func (st *stream) brokenOff() bool {
	return (st.sendFault != 0 || st.pending()) && st.p.engine.Dead(st.fd)
}

// settled puts the stream into its backend's pool, if nothing of the request
// is left unsent.
func (st *stream) settled() {
	if st.queued() || st.sendFault != 0 || st.spoiled() || !st.backend.named || st.backend.disabled() {
		st.become(streamClosing)
		return
	}
	st.idleSince = st.p.now
	st.become(streamIdle)
	st.backend.link(st)
}

// spoiled reports whether something came behind a response, where a backend has
// nothing to say, or the connection's end.
func (st *stream) spoiled() bool { return !st.in.empty() || st.eof || st.fault != 0 }

// surplus reports whether more may have come behind a response than the last
// receive took: it would be taken for the next response. The kernel is asked only
// if that receive took as much as it could.
func (st *stream) surplus() bool {
	if !brimful(&st.recv) {
		return false
	}
	// The next result of a series may be known already, and not delivered.
	return st.recv.InFlight() || !st.p.engine.Quiet(st.fd)
}

// brimful reports whether more may have been there than the receive that was
// delivered last has taken.
func brimful(op *loop.Op) bool {
	switch {
	case op.Code == loop.RecvMulti:
		return op.N == loop.HeadBytes
	case op.Size == loop.ClassPipe:
		return op.N >= int(op.Max)
	}
	return op.N == op.Size.Bytes()
}

func (st *stream) wantSend() bool { return st.state != streamConnect }

func (st *stream) wrote(n int) bool {
	st.written += int64(n)
	if st.x != nil && !st.x.reqBody.done && st.x.client.stopped() {
		st.x.client.mark() // there may be room for more of its body
	}
	return st.state == streamSettle
}

func (st *stream) wantRecv() (loop.Code, loop.Class) {
	switch st.state {
	case streamHandshake:
		return loop.RecvMulti, loop.ClassHead
	case streamHead:
		// While a head is joined from pieces, what comes is bounded by the
		// parser's limit; interim heads by what the client takes.
		if st.x.client.out.held < st.p.allowance() {
			return loop.RecvMulti, loop.ClassHead
		}
	case streamSettle, streamIdle: // the end, or what a backend has no business to say
		return loop.RecvMulti, loop.ClassHead
	case streamTunnel:
		if st.x.wantsTunnel(&st.conn, &st.x.client.conn) {
			return loop.RecvMulti, loop.ClassHead
		}
	case streamBody:
		if st.in.empty() && st.x.client.out.held < st.p.allowance() {
			return loop.Recv, st.recvClass(&st.x.respBody, st.tls == nil && st.x.client.tls == nil)
		}
	}
	return 0, 0
}

func (st *stream) waitsFor() (wait, int64) {
	switch st.state {
	case streamConnect, streamHandshake: // both within one deadline
		st.progress = false
		return waitConnect, int64(st.x.route.spec.Timeouts.Connect)
	case streamHead:
		if st.queued() {
			return waitSend, int64(st.x.route.spec.Timeouts.Response)
		}
		if st.x.reqBody.done {
			// The whole head within one deadline, but for interim ones.
			st.progress, st.interim = st.interim, false
			return waitHead, int64(st.x.route.spec.Timeouts.Response)
		}
	case streamBody:
		if st.recv.InFlight() || !st.in.empty() && st.x.client.out.empty() {
			return waitBody, int64(st.x.route.spec.Timeouts.Response)
		}
	case streamSettle:
		return waitSend, int64(st.idleLimit)
	case streamIdle:
		return waitIdle, int64(st.idleLimit)
	}
	return waitNothing, 0
}

func (st *stream) timeout() {
	switch st.state {
	case streamConnect, streamHandshake:
		st.x.backendTimeout(waitConnect)
	case streamHead, streamBody:
		st.x.backendTimeout(waitHead)
	case streamSettle, streamIdle:
		st.become(streamClosing)
	}
}

func (st *stream) free() {
	st.become(streamFree)
	st.backend = nil
	st.p.putStream(st)
}
