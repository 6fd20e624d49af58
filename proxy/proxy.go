package proxy

import (
	crand "crypto/rand"
	"iter"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cloud-cup/cloud-cup/accesslog"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
)

// Config is what a Proxy needs.
type Config struct {
	Engine   loop.Engine
	Pool     *loop.Pool // the one that Engine receives into
	Slot     int        // this worker's number
	Log      *slog.Logger
	Page     *shm.Page     // this incarnation's
	Backends *shm.Backends // that all workers share
	Clock    func() int64  // CLOCK_MONOTONIC in nanoseconds, now and not at the turn's begin
	Logs     Logs          // may be nil where no snapshot names a log
	Storm    func(bool)    // told on the loop that a storm of handshakes began or is over; may be nil
}

// Proxy serves all connections of one worker. One goroutine, locked to the
// thread that opened the engine, calls everything but Post.
type Proxy struct {
	engine   loop.Engine
	pool     *loop.Pool
	wheel    *loop.Wheel
	mailbox  *loop.Mailbox
	log      *slog.Logger
	counters *shm.Counters // of page
	page     *shm.Page
	rows     *shm.Backends
	clock    func() int64
	slot     int

	now       int64 // of this turn
	deliverOp func(*loop.Op)
	fireTimer func(*loop.Timer)

	snap     *Snapshot        // in force
	snaps    []*Snapshot      // that are held, the oldest first, snap the last
	backends map[int]*backend // by row, those that snap names

	clientTable loop.Table[client] // by index
	streamTable loop.Table[stream] // by index without streamIndex
	clientsMade int                // in clientTable
	streamsMade int                // in streamTable
	dirty       []*conn
	starved     []*conn       // waiting for memory: looked at with the next tick
	shaking     []*session    // handshakes that can go on
	long        []*session    // handshakes under way that have consumed more than handshakeBytes, in that order
	longBytes   int           // that these have consumed
	storm       func(bool)    // Config.Storm
	stormTimer  loop.Timer    // armed in a storm
	stormy      bool          // many handshakes waited since stormTimer was armed
	helpers     chan struct{} // holds one for each job on another thread
	plain       []byte        // what is put together for one record
	clients     int           // client connections open
	streams     int           // backend connections open

	freeClients   []*client
	freeStreams   *stream
	freeExchanges *exchange
	freeWorks     []*work
	nothing       work // of conns that rest: always empty

	listeners    []*listener // by index; nil places are free
	acceptsArmed int
	acceptPaused bool
	acceptWarned int64
	acceptTimer  loop.Timer
	sharedPaused bool // accepting from shared listeners rests
	sharedTimer  loop.Timer
	renewTimer   loop.Timer
	renewed      int  // times that accepts were submitted anew since RenewAccepts
	throttled    bool // an accept rests for want of room
	lacking      bool // one rests for want of memory

	draining    bool
	cutAt       int64 // the drain's deadline
	drainGrace  int64
	tick        loop.Timer
	ticking     bool
	ticked      uint64 // engine results at the last tick
	retryBudget int
	retrySeen   uint64
	stackLogged bool

	random *rand.ChaCha8 // of request ids

	logFiles   Logs
	logs       map[string]*accessLog // by file
	closedLogs []*accessLog          // whose last lines are being written
	lines      *accesslog.Writer

	wallAt    int64 // second at which the wall clock was
	wallAhead int64 // so much ahead of now
	dateAt    int64 // second that dateText tells
	dateText  []byte
}

// Tags of timers.
const (
	timerConn uint8 = iota
	timerAccept
	timerRenew
	timerShared
	timerTick
	timerCut
	timerStorm
)

// New returns a Proxy that serves nothing yet: it needs Apply and Listen.
func New(cfg Config) *Proxy {
	p := &Proxy{
		engine:      cfg.Engine,
		pool:        cfg.Pool,
		log:         cfg.Log,
		counters:    &cfg.Page.Counters,
		page:        cfg.Page,
		rows:        cfg.Backends,
		clock:       cfg.Clock,
		slot:        cfg.Slot,
		now:         cfg.Engine.Now(),
		backends:    make(map[int]*backend),
		logFiles:    cfg.Logs,
		logs:        make(map[string]*accessLog),
		lines:       accesslog.NewWriter(cfg.Slot, cfg.Engine.Name()),
		wallAt:      -1,
		retryBudget: retryBurst,
		helpers:     make(chan struct{}, helpersMax),
		plain:       make([]byte, 0, recordBytes),
		acceptTimer: loop.Timer{Tag: timerAccept},
		renewTimer:  loop.Timer{Tag: timerRenew},
		sharedTimer: loop.Timer{Tag: timerShared},
		tick:        loop.Timer{Tag: timerTick},
		storm:       cfg.Storm,
		stormTimer:  loop.Timer{Tag: timerStorm},
	}
	var seed [32]byte
	crand.Read(seed[:]) // never fails: the process would have ended
	p.random = rand.NewChaCha8(seed)
	p.wheel = loop.NewWheel(p.now)
	p.mailbox = loop.NewMailbox(cfg.Engine.Wake)
	p.deliverOp, p.fireTimer = p.deliver, p.fire
	return p
}

// Post has f called on the loop, between two turns. Any goroutine may call it.
func (p *Proxy) Post(f func()) { p.mailbox.Post(f) }

// Apply puts s in force for the requests that begin from now on; exchanges
// under way end as they began. Backends that s names as before keep their
// connections and their health; idle connections to others are closed. s must
// have been prepared. On the loop's thread.
func (p *Proxy) Apply(s *Snapshot) {
	for _, b := range p.backends {
		b.named = false
	}
	for _, r := range s.all {
		for i := range r.members {
			m := &r.members[i]
			b := p.backends[m.row]
			if b == nil {
				b = p.newBackend(m)
				p.backends[m.row] = b
			}
			b.named, b.tls = true, m.tls
			r.backends[i] = b
			member := r.balancer.Member(i)
			member.Row = b.row
			if m.counted {
				member.Mine = &b.stats.BackendGauges
			}
		}
		r.snap, r.stats = s, &p.page.Routes[r.spec.Index]
		r.balancer.Start(p.slot + int(s.Generation))
	}
	p.openLogs(s)
	before := p.snap
	p.snap, p.snaps = s, append(p.snaps, s)
	p.release(before)
	p.publishSnapshots()
	p.pool.Reserve = s.Limits.Memory / reserveShare
	p.pool.SetLimit(s.Limits.Memory)
	p.counters.Generation = s.Generation
	for row, b := range p.backends {
		if !b.named {
			b.closeIdle()
			delete(p.backends, row)
		}
	}
	p.armAccepts()
	p.keepTicking() // there may be less memory now
	p.settle()
}

// release lets go of s if it is no longer in force and no exchange goes by it
// any more.
func (p *Proxy) release(s *Snapshot) {
	if s == p.snap || s == nil || s.exchanges > 0 {
		return
	}
	p.releaseLogs(s)
	p.snaps = slices.DeleteFunc(p.snaps, func(held *Snapshot) bool { return held == s })
	p.publishSnapshots()
}

func (p *Proxy) publishSnapshots() {
	p.counters.Snapshots = uint64(len(p.snaps))
	p.counters.OldestGeneration = p.snaps[0].Generation
}

// CloseDisabled closes the idle connections to backends that were disabled. On
// the loop's thread.
func (p *Proxy) CloseDisabled() {
	for _, b := range p.backends {
		if b.disabled() {
			b.closeIdle()
		}
	}
	p.settle()
}

// Drain stops accepting, once what waits in the accept queue is taken, ends
// connections that have been idle for grace since then, lets exchanges finish,
// and cuts what is left at the deadline. Run returns when all is done. On the
// loop's thread.
func (p *Proxy) Drain(deadline, grace time.Duration) {
	if p.draining {
		return
	}
	p.draining = true
	for _, l := range p.listeners {
		if l != nil {
			l.leaveWhenEmpty()
		}
	}
	p.cutAt, p.drainGrace = p.now+int64(deadline), int64(grace)
	p.wheel.Schedule(&loop.Timer{Tag: timerCut}, p.cutAt)
	for c := range p.adopted() {
		c.mark()
	}
	p.settle()
}

// Run turns the loop until a Drain is complete. cut is the number of client
// connections that the deadline of the drain ended. An error is the engine's,
// and final.
func (p *Proxy) Run() (cut int, err error) {
	for {
		wait := p.wheel.Next(p.now)
		if p.leaveListeners() || len(p.shaking) > 0 {
			wait = 0
		}
		if p.draining {
			if p.now >= p.cutAt && cut == 0 {
				cut = p.cutAll()
			}
			if p.drained() || p.now >= p.cutAt+cutGrace {
				return cut, nil
			}
		}
		if err := p.engine.Poll(wait, p.deliverOp); err != nil {
			return cut, err
		}
		p.turn()
	}
}

// helpersMax is the number of signatures that are made at the same time.
const helpersMax = 2

// cutGrace is how long cut connections may take to close.
const cutGrace = int64(100e6)

// cutAll ends the client connections that a drain has left, and returns their
// number.
func (p *Proxy) cutAll() int {
	n := 0
	for c := range p.adopted() {
		if cl, ok := c.owner().(*client); ok && cl.state != clientFree && cl.state != clientClosing {
			cl.because(message.ReasonDraining)
			cl.cut()
			n++
		}
	}
	p.wheel.Schedule(&loop.Timer{Tag: timerCut}, p.cutAt+cutGrace)
	p.settle()
	return n
}

// turn does what follows a Poll.
func (p *Proxy) turn() {
	p.counters.LoopTurns++
	p.now = p.engine.Now()
	p.wheel.Advance(p.now, p.fireTimer)
	p.mailbox.Run()
	p.settle()
	p.shake()
	if p.lacking && !p.pressed(emergencyShare) {
		p.armAccepts()
	}
}

// drained reports whether nothing is left to do.
func (p *Proxy) drained() bool {
	return p.clients == 0 && !p.listening()
}

// deliver takes one result.
func (p *Proxy) deliver(op *loop.Op) {
	p.now = p.engine.Now()
	p.keepTicking()
	if op.Tag == tagAccept {
		p.acceptDone(op)
		p.settle()
		return
	}
	c := p.conn(op.User.Index)
	if c.self().Age != op.User.Age {
		p.quarantine("result", int(op.Tag), int(op.Code))
		return
	}
	switch op.Tag {
	case tagRecv:
		if c.isClient() {
			p.counters.BytesIn += uint64(max(op.N, 0))
		}
		c.received(op)
	case tagSend:
		c.sent(op)
	case tagConnect:
		c.owner().(*stream).connected(op)
	}
	p.settle()
}

// settle settles every marked connection, also those that get marked by it.
func (p *Proxy) settle() {
	for i := 0; i < len(p.dirty); i++ {
		c := p.dirty[i]
		c.dirty = false
		c.settle()
	}
	clear(p.dirty)
	p.dirty = p.dirty[:0]
}

// fire is called for each timer that is due.
func (p *Proxy) fire(t *loop.Timer) {
	switch t.Tag {
	case timerConn:
		p.conn(t.User).fired()
	case timerAccept:
		p.acceptPaused = false
		p.armAccepts()
	case timerShared:
		p.sharedPaused = false
		p.armAccepts()
	case timerRenew:
		p.renewAccepts()
	case timerTick:
		p.maintain()
	case timerStorm:
		p.calm()
	case timerCut:
		// Run looks at the clock.
	}
	p.settle()
}

// tickTime is how often a busy loop does its housekeeping, and twice that how
// soon it gives memory back when nothing moves any more. An idle one does
// none.
const tickTime = int64(400e6)

// keepTicking sees to it that the housekeeping is done within a tick.
func (p *Proxy) keepTicking() {
	if !p.ticking {
		p.ticking = true
		p.wheel.Schedule(&p.tick, p.now+tickTime)
	}
}

// maintain publishes gauges, gives memory back, and looks after those that
// wait for memory.
func (p *Proxy) maintain() {
	p.relieve()
	for _, c := range p.starved {
		c.starved = false
		c.mark()
	}
	results := p.engine.Stats().Results
	// Memory that comes back has no event of its own, nor has time: what is
	// stalled now may be so for long enough with the next tick.
	p.ticking = results != p.ticked || len(p.starved) > 0 || p.pressed(emergencyShare)
	if p.FlushLogs() {
		p.ticking = true
	}
	clear(p.starved)
	p.starved = p.starved[:0]
	p.Publish()
	p.ticked = results
	if p.ticking {
		p.pool.Trim(hotBytes)
	} else {
		p.pool.Trim(0) // nothing moves: nothing needs to be in cache
	}
	if p.ticking {
		p.wheel.Schedule(&p.tick, p.now+tickTime)
	}
}

// Publish copies the engine's and the pool's numbers to the shared counters. A
// busy loop does so with every tick, and once more when it has nothing to do. On
// the loop's thread.
func (p *Proxy) Publish() {
	s := p.engine.Stats()
	p.counters.Waits, p.counters.Calls = s.Waits, s.Calls
	p.counters.Results, p.counters.NoBuffers, p.counters.Overflows = s.Results, s.NoBuffers, s.Overflows
	p.counters.BuffersLent, p.counters.BuffersMapped = uint64(p.pool.Lent()-s.BuffersOut), uint64(p.pool.Mapped())
}

// quarantine counts a broken rule of ours. The connection that broke it ends;
// the first one's stack is logged.
func (p *Proxy) quarantine(what string, from, to int) {
	p.counters.Quarantined++
	if p.stackLogged {
		return
	}
	p.stackLogged = true
	p.log.Error("internal: an illegal move; the connection ends", "what", what, "from", from, "to", to,
		"stack", string(debug.Stack()))
}

// dateLayout is the preferred form of a date (RFC 9110 5.6.7), for time.Format.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 GMT"

// date is the current time as HTTP writes it, made once a second.
func (p *Proxy) date() []byte {
	if second := p.now / 1e9; second != p.dateAt || p.dateText == nil {
		p.dateAt = second
		p.dateText = time.Now().UTC().AppendFormat(p.dateText[:0], dateLayout)
	}
	return p.dateText
}

// streamIndex is set in the indexes of streams.
const streamIndex = 1 << 31

// conn returns the conn with the index.
func (p *Proxy) conn(index uint32) *conn {
	if index&streamIndex != 0 {
		return &p.streamTable.At(int(index &^ streamIndex)).conn
	}
	return &p.clientTable.At(int(index)).conn
}

// isClient reports whether c is of a client.
func (c *conn) isClient() bool { return c.self().Index&streamIndex == 0 }

// owner is what c is a part of.
func (c *conn) owner() owner {
	index := c.self().Index
	if index&streamIndex != 0 {
		return c.p.streamTable.At(int(index &^ streamIndex))
	}
	return c.p.clientTable.At(int(index))
}

// adopt makes the conn of a new element of a table.
func (p *Proxy) adopt(c *conn, index uint32) {
	c.p, c.work, c.fd = p, &p.nothing, -1
	c.recv.User, c.recv.Tag = loop.Token{Index: index, Age: 1}, tagRecv
	c.timer.User = index
}

// adopted goes through all conns, those in the free lists among them.
func (p *Proxy) adopted() iter.Seq[*conn] {
	return func(yield func(*conn) bool) {
		for i := range p.clientsMade {
			if !yield(&p.clientTable.At(i).conn) {
				return
			}
		}
		for i := range p.streamsMade {
			if !yield(&p.streamTable.At(i).conn) {
				return
			}
		}
	}
}

func (p *Proxy) takeClient() *client {
	var c *client
	if n := len(p.freeClients); n > 0 {
		c = p.freeClients[n-1]
		p.freeClients = p.freeClients[:n-1]
	} else {
		index := p.clientsMade
		p.clientsMade++
		p.clientTable.Grow(p.clientsMade)
		c = p.clientTable.At(index)
		p.adopt(&c.conn, uint32(index))
	}
	p.clients++
	p.rows.Load.Clients.Add(1)
	p.counters.Connections = uint64(p.clients)
	return c
}

func (p *Proxy) putClient(c *client) {
	c.requests, c.discarded, c.unsent, c.last = 0, 0, 0, false
	p.freeClients = append(p.freeClients, c)
	p.clients--
	p.rows.Load.Clients.Add(-1)
	p.counters.Connections = uint64(p.clients)
	if p.throttled {
		p.armAccepts()
	}
}

func (p *Proxy) takeStream() *stream {
	st := p.freeStreams
	if st == nil {
		index := p.streamsMade
		p.streamsMade++
		p.streamTable.Grow(p.streamsMade)
		st = p.streamTable.At(index)
		p.adopt(&st.conn, uint32(index)|streamIndex)
	} else {
		p.freeStreams, st.next = st.next, nil
	}
	p.streams++
	return st
}

func (p *Proxy) putStream(st *stream) {
	st.next, p.freeStreams = p.freeStreams, st
	p.streams--
}

func (p *Proxy) takeExchange(c *client) *exchange {
	x := p.freeExchanges
	if x == nil {
		x = &exchange{p: p}
	} else {
		p.freeExchanges, x.next = x.next, nil
	}
	x.take(c)
	x.become(exchangeHead)
	return x
}

// take makes c the client of x. The text of its address is made for each
// request: a connection that rests need not keep it.
func (x *exchange) take(c *client) {
	x.client, x.addr, x.from = c, c.peer(), x.from[:0]
	if x.addr.IsValid() {
		x.from = x.addr.AppendTo(x.from)
	}
}

// putExchange takes an exchange back. Its heads keep their field slices.
func (p *Proxy) putExchange(x *exchange) {
	if x.headBuf != nil {
		x.headBuf.Release()
	}
	x.become(exchangeFree)
	x.req.Reset()
	x.resp.Reset()
	x.reqParser.Reset()
	x.respParser.Reset()
	x.client, x.stream, x.route = nil, nil, nil
	x.head, x.headRest, x.headBuf, x.upgrade = nil, nil, nil, nil
	x.attempts, x.failure, x.stale, x.bodySeen = 0, message.ReasonNone, false, 0
	x.reqBody.moved, x.respBody.moved, x.rec = 0, 0, record{}
	x.location = x.location[:0]
	x.dropKept()
	x.next, p.freeExchanges = p.freeExchanges, x
}

func (p *Proxy) takeWork() *work {
	n := len(p.freeWorks)
	if n == 0 {
		return &work{}
	}
	w := p.freeWorks[n-1]
	p.freeWorks = p.freeWorks[:n-1]
	return w
}

// putWork takes back a work that nothing is in.
func (p *Proxy) putWork(w *work) { p.freeWorks = append(p.freeWorks, w) }
