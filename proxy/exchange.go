package proxy

import (
	"net/netip"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/balance"
	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// exchangeState is how far an exchange is.
type exchangeState uint8

const (
	exchangeFree    exchangeState = iota // in the free list
	exchangeHead                         // the request's head is coming
	exchangeAsk                          // a backend has the request, or will: no final head yet
	exchangeRespond                      // the response's head is queued for the client, its body moves
	exchangeTunnel                       // the protocol was switched: bytes move both ways
	exchangeDone                         // the response is queued whole, or cut
	exchangeStates
)

// exchangeMoves lists the legal moves.
var exchangeMoves = [exchangeStates][exchangeStates]bool{
	exchangeFree:    {exchangeHead: true},
	exchangeHead:    {exchangeAsk: true, exchangeDone: true, exchangeFree: true},
	exchangeAsk:     {exchangeRespond: true, exchangeTunnel: true, exchangeDone: true},
	exchangeRespond: {exchangeDone: true},
	exchangeTunnel:  {exchangeDone: true},
	exchangeDone:    {exchangeFree: true},
}

// attemptsMax bounds the backends that one request is tried on.
const attemptsMax = 4

// exchange is one request with its response. Both bodies move and end
// independently. It knows its client and its backend stream, and nothing of
// their descriptors. What it needs of the request's head after begin is
// copied or rewritten: the received bytes are gone.
type exchange struct {
	p      *Proxy
	state  exchangeState
	client *client
	addr   netip.Addr // client.peer()
	from   []byte     // addr as text; empty for unix sockets
	stream *stream    // nil before and between attempts
	route  *routeState

	reqParser  http1.RequestParser
	respParser http1.ResponseParser
	req        message.Head
	resp       message.Head
	reqBody    body
	respBody   body

	method   message.Method
	minor    uint8 // of the client's HTTP/1 version
	keep     bool  // the client's connection goes on after the response
	head     []byte
	headRest []byte       // what follows the backend's own Host; empty where head is all
	headBuf  *loop.Buffer // holds head, the request's head as backends get it
	bodySeen int64        // of the request's body, at its last deadline
	upgrade  []byte       // the protocol asked for, a part of head; nil: none
	location []byte       // where an answer of our own sends the client on to
	tried    [attemptsMax]int16
	attempts int
	member   int            // of the route's balancer, from its choice to leave
	lease    int64          // of the trial that the attempt is; 0: none
	failure  message.Reason // of the last attempt
	stale    bool           // an idle connection turned out dead: the next attempt takes a new one
	rec      record
	kept     kept
	next     *exchange
}

func (x *exchange) become(next exchangeState) {
	if !exchangeMoves[x.state][next] {
		x.p.quarantine("exchange", int(x.state), int(next))
	}
	x.state = next
}

// begin starts the exchange of a request whose head is the first n bytes of
// what the client's connection holds.
func (x *exchange) begin(n int) {
	c, p, req := x.client, x.p, &x.req
	p.counters.Requests++
	c.requests++
	limits := &p.snap.Limits
	x.method, x.minor = req.Method, req.Minor
	// What follows an upgrade request was sent for the tunnel: it must not be
	// taken for requests, however the upgrade ends.
	x.keep = req.Persistent && !p.draining && !asksUpgrade(req) &&
		(limits.RequestsPerConnection == 0 || int(c.requests) < limits.RequestsPerConnection)

	c.last = !req.Persistent && !asksUpgrade(req) && req.Framing == message.FramingNone

	x.route, _ = p.snap.table.Lookup(req.Text(req.Host), req.Text(req.Path))
	x.opened()
	x.keepHead()
	limit := x.route.spec.Limits.BodyBytes
	x.reqBody.start(req.Framing, req.Length, req.Framing == message.FramingChunked, limit)
	x.become(exchangeAsk)
	reason := x.turnedAway()
	if reason == message.ReasonNone {
		reason = x.writeRequestHead()
	}
	c.in.consume(n)
	x.req.Bytes = nil // dies with the buffer
	if limit >= 0 && req.Framing == message.FramingLength && req.Length > limit {
		reason = message.ReasonBodyTooLarge
	}
	if reason != message.ReasonNone {
		x.fail(reason)
		return
	}
	x.attempt()
}

// attempt chooses a backend and hands it the request.
func (x *exchange) attempt() {
	p := x.p
	i := balance.None
	if x.attempts < attemptsMax {
		i, x.lease = x.route.balancer.Pick(p.now, x.tried[:x.attempts])
	}
	if i < 0 {
		switch {
		case x.failure != message.ReasonNone:
			x.fail(x.failure)
		case x.route.balancer.Len() == 0:
			x.fail(message.ReasonBackendUnresolved)
		case i == balance.Full:
			x.fail(message.ReasonBackendFull)
		default:
			x.fail(message.ReasonNoBackend)
		}
		return
	}
	x.member = i
	x.asking(x.route.backends[i])
	x.askMember()
}

// askMember hands the request to a stream of the route's backend that was
// chosen.
func (x *exchange) askMember() {
	b := x.rec.backend
	if x.failure != message.ReasonNone {
		x.p.counters.Retries++
	}
	var st *stream
	if !x.stale {
		st = b.takeIdle(x.p.now, x.method.Idempotent())
	}
	if st == nil {
		st = b.dial()
	} else {
		x.p.counters.BackendReused++
		b.stats.Reused++
	}
	x.stream = st
	st.begin(x)
	x.headBuf.Retain()
	st.push(x.headBuf, x.head)
	if x.headRest != nil {
		st.push(nil, b.hostLine)
		x.headBuf.Retain()
		st.push(x.headBuf, x.headRest)
	}
	st.mark()
	if !x.reqBody.done {
		x.client.mark()
	}
	x.measure()
}

// headSegments is the number of segments that askMember queues.
func (x *exchange) headSegments() int {
	if x.headRest != nil {
		return 3
	}
	return 1
}

// wantsRequestBody reports whether more of the request's body may be
// received: the backend's side has room for it.
func (x *exchange) wantsRequestBody() bool {
	return x.stream != nil && x.stream.out.held < x.p.allowance()
}

// moveRequest moves what has come of the request's body.
func (x *exchange) moveRequest() {
	c, st := x.client, x.stream
	if x.reqBody.done {
		return
	}
	if st == nil || !c.in.empty() && st.sendFault == 0 && !x.wantsRequestBody() {
		return
	}
	if c.in.empty() && !c.eof {
		return
	}
	to := &st.conn
	if st.sendFault != 0 {
		if st.written == 0 {
			return // another attempt will need all of the body
		}
		to = nil // it takes no more, but may still answer
	}
	moved := x.reqBody.moved
	err := x.reqBody.move(&c.in, to)
	if x.reqBody.moved != moved || x.reqBody.done {
		st.mark()
	}
	switch {
	case err != nil:
		x.fail(requestReason(err))
	case x.reqBody.tooLarge():
		x.fail(message.ReasonBodyTooLarge)
	case !x.reqBody.done && c.in.empty() && c.eof:
		c.broken()
	case !x.reqBody.done && !c.in.empty():
		c.starve()
	}
}

// requestReason is the reason of an error in a request's body.
func requestReason(err error) message.Reason {
	if e, ok := err.(*http1.SyntaxError); ok {
		return e.Reason
	}
	return message.ReasonBadRequest
}

// respond forwards the final head of the response, which is the first n bytes
// of what the stream's connection holds.
func (x *exchange) respond(n int) {
	c, st, resp := x.client, x.stream, &x.resp
	x.succeeded(int(resp.Status))
	toChunked := false
	switch resp.Framing {
	case message.FramingChunked, message.FramingClose:
		toChunked = x.minor > 0
		if !toChunked {
			x.keep = false // the end of the connection is the end of the body
		}
	}
	x.respBody.start(resp.Framing, resp.Length, toChunked, -1)
	x.respBody.chunks.Response = true
	if x.p.draining || !x.reqBody.done {
		// RFC 9112 9.6: say so. A body that is still coming is not waited
		// for when the response is complete before it.
		x.keep = false
	}
	if !x.writeResponseHead(resp, toChunked) {
		x.fail(message.ReasonMemory)
		return
	}
	st.in.consume(n)
	x.become(exchangeRespond)
	st.keep = resp.Persistent && resp.Framing != message.FramingClose
	x.resp.Bytes = nil
	st.become(streamBody)
	c.mark()
	x.measure()
}

// moveResponse moves what has come of the response's body, and ends the
// exchange with it.
func (x *exchange) moveResponse() {
	c, st, b := x.client, x.stream, &x.respBody
	if !b.done {
		moved := b.moved
		err := b.move(&st.in, &c.conn)
		if b.moved != moved || b.done {
			c.mark()
		}
		switch {
		case err != nil:
			x.fail(message.ReasonBackendMalformed)
			return
		case b.done:
		case !st.in.empty():
			st.starve()
			return
		case st.fault == 0 && !st.eof:
			return
		case b.framing == message.FramingClose && st.fault == 0 && !st.brokenOff():
			b.finish(&c.conn)
		default:
			x.fail(message.ReasonBackendReset)
			return
		}
	}
	x.finish()
}

// finish ends an exchange whose response is queued whole.
func (x *exchange) finish() {
	st := x.stream
	x.stream = nil
	st.release(x.reqBody.done)
	x.leave()
	x.end()
}

// end lets the client's connection go on, or come to its end.
func (x *exchange) end() {
	c := x.client
	keep := x.keep && x.reqBody.done
	x.become(exchangeDone)
	c.endExchange()
	if keep {
		c.become(clientIdle)
	} else {
		c.become(clientFlush)
	}
	c.mark()
}

// attemptFailed is called when the stream ended before the final head of a
// response. The request is sent again where that cannot do it twice: nothing
// of it reached the backend, or it is idempotent and whole, and no byte of a
// response came.
func (x *exchange) attemptFailed(reason message.Reason, kind balance.Kind) {
	st := x.stream
	x.stream = nil
	x.failure = reason
	stale := st.reused && !st.answered && reason == message.ReasonBackendReset
	untouched := st.written == 0 && !st.sending()
	again := !st.answered && (untouched || x.method.Idempotent() && x.reqBody.none()) &&
		reason != message.ReasonMemory && x.p.mayRetry()
	switch {
	case reason == message.ReasonMemory, stale && !again: // tells nothing about the backend
		x.route.balancer.Abandoned(x.member, x.lease)
	case !stale:
		x.failed(kind)
	}
	b := x.rec.backend
	var queued outQueue
	if again && untouched {
		// Some of the body may be queued behind the head: it goes along.
		queued, st.out = st.out, queued
		queued.skip(x.headSegments())
	}
	st.x = nil
	st.become(streamClosing)
	if !again {
		queued.drop()
		x.leave()
		x.fail(reason)
		return
	}
	if stale {
		x.stale = true
		x.askMember()
	} else {
		x.leave()
		x.tried[x.attempts] = int16(x.member)
		x.attempts++
		x.attempt()
	}
	if x.stream == nil { // there was nobody else
		x.p.spareRetry()
	} else {
		b.stats.Retries++
		x.stream.out.join(&queued)
	}
	queued.drop()
}

// fail answers the client in the backend's place, or cuts a response that has
// begun.
func (x *exchange) fail(reason message.Reason) {
	c := x.client
	x.abandon()
	if x.state == exchangeRespond || x.state == exchangeTunnel {
		c.because(reason)
		x.keep = false
		// Where the end of the connection is the end of the body, a FIN
		// would pass the part off as the whole.
		c.abort = x.respBody.toClose()
		x.end()
		return
	}
	x.keep = c.answer(reason, x.method == message.MethodHead, !x.keep || !x.reqBody.done)
	x.measure()
	x.end()
}

// abandon ends the stream of an exchange that will not use it any more.
func (x *exchange) abandon() {
	if st := x.stream; st != nil {
		x.stream = nil
		if x.state == exchangeAsk {
			x.route.balancer.Abandoned(x.member, x.lease)
		}
		x.leave()
		st.x = nil
		st.become(streamClosing)
	}
}

// bodyRate is the number of bytes that a request's body must bring in a second
// of waiting for it: a byte now and then is not progress.
const bodyRate = 1 << 10 / 10

// slowBody is called when a deadline for the request's body has passed. It
// reports whether too little came since the last one.
func (x *exchange) slowBody() bool {
	came := x.reqBody.moved - x.bodySeen
	x.bodySeen = x.reqBody.moved
	seconds := int64(x.route.spec.Timeouts.ClientBody / time.Second)
	return came < max(1, seconds*bodyRate)
}

// backendTimeout is called when the backend let a deadline pass.
func (x *exchange) backendTimeout(w wait) {
	switch {
	case x.state == exchangeRespond:
		x.fail(message.ReasonBackendTimeout)
	case w == waitConnect:
		x.attemptFailed(message.ReasonConnectTimeout, balance.TimedOut)
	default:
		// It has the request and is slow: asking another would do the work
		// twice.
		st := x.stream
		st.answered = true
		x.attemptFailed(message.ReasonBackendTimeout, balance.TimedOut)
	}
}

// connectReason tells why a connection to a backend was not made.
func connectReason(errno syscall.Errno) message.Reason {
	switch errno {
	case syscall.ETIMEDOUT:
		return message.ReasonConnectTimeout
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL:
		return message.ReasonMemory
	}
	return message.ReasonBackendRefused
}

// succeeded notes the head of a final response, or the switch to a tunnel.
func (x *exchange) succeeded(status int) {
	x.responding(status)
	if x.route.balancer.Succeeded(x.member, x.lease) {
		x.p.log.Info("backend is back", "backend", x.rec.backend.name, "route", x.route.spec.Pattern)
	}
}

// failed notes an attempt that failed because of the backend.
func (x *exchange) failed(kind balance.Kind) {
	x.rec.backend.stats.Failures[x.failure]++
	if x.route.balancer.Failed(x.member, x.lease, kind, x.p.now) {
		x.p.log.Warn("backend is out", "backend", x.rec.backend.name, "route", x.route.spec.Pattern,
			"reason", x.failure.String())
	}
}
