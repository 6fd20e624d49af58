package proxy_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/looptest"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// In what a fuzzed client sends and a fuzzed backend answers, some bytes that
// no head may have are marks.
const (
	markFin    = 0x13 // the side sends a FIN
	markReset  = 0x14 // the side resets the connection
	markNext   = 0x1e // client: the rest comes when all is quiet; backend: the next answer begins
	markAgain  = 0x15 // client: the same on another connection; this one stays
	markEarly  = 0x11 // begins an answer that does not wait for the request's body
	markAtOnce = 0x12 // begins an answer that does not wait for a request
)

// What a fuzzed seed says beside the places where things break: its lowest
// bits.
const (
	seedFaults     = 3 // 1: harmless ones, 2: harmful ones, 3: connects are refused; otherwise none
	seedRing       = 1 << 2
	seedPieces     = 1 << 3 // both sides write in pieces
	seedClientEnds = 1 << 4 // before the backends do
)

// FuzzProxy lets a client meet a backend over a faulty engine. What is
// checked stands in fuzz_check_test.go: in short, nobody is told what the other
// side did not say, and nothing is left behind.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), uint64(0))
	fuzzWorlds(f, func(worlds map[string]*world) {
		f.Fuzz(func(t *testing.T, client, backend []byte, seed uint64) {
			if len(client)+len(backend) > 16<<10 {
				t.Skip("longer than what is of interest")
			}
			require.NoError(t, onWorlds(func() error { return playIn(worlds, plain, client, backend, seed) }))
		})
	})
}

// worldJobs run on the thread of the worlds' loops.
var worldJobs = make(chan func())

// fuzzWorlds has fuzz play in worlds, which are closed in the end.
func fuzzWorlds(f *testing.F, fuzz func(map[string]*world)) {
	worldJobs = make(chan func())
	go func(jobs chan func()) {
		runtime.LockOSThread() // what the engines want
		for job := range jobs {
			job()
		}
	}(worldJobs)
	worlds := map[string]*world{}
	f.Cleanup(func() {
		worldJobs <- func() {
			for _, w := range worlds {
				w.close()
			}
		}
		close(worldJobs)
	})
	fuzz(worlds)
}

// onWorlds calls play on the thread of the worlds' loops.
func onWorlds(play func() error) error {
	done := make(chan error, 1)
	worldJobs <- func() { done <- play() }
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		panic("the loop hangs") // with all stacks
	}
}

// What is spoken in a world.
const (
	plain  = ""
	secure = " TLS"
)

// playIn plays one input in the world that its seed names.
func playIn(worlds map[string]*world, speaks string, client, backend []byte, seed uint64) error {
	return inWorld(worlds, speaks, seed, func(p *play) error {
		if len(backend) > 0 {
			p.answers = bytes.Split(backend, []byte{markNext})
		}
		return p.run(client, seed&seedClientEnds != 0)
	})
}

// inWorld plays in the world that a seed names. Worlds last until something goes
// wrong in one.
func inWorld(worlds map[string]*world, speaks string, seed uint64, run func(*play) error) (err error) {
	name := "epoll"
	if seed&seedRing != 0 {
		name = "uring"
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
		if err != nil {
			delete(worlds, name)
		}
	}()
	w := worlds[name]
	if w == nil {
		if w, err = newWorld(name, speaks); errors.Is(err, loop.ErrNotSupported) {
			return nil // the other engine's inputs are as good
		} else if err != nil {
			return err
		}
		worlds[name] = w
	}
	p := &play{world: w, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), pieces: seed&seedPieces != 0}
	w.engine.Seed(seed)
	switch seed & seedFaults {
	case 1:
		w.engine.Rates = looptest.Harmless
	case 2:
		p.harmed = true
		w.engine.Rates = looptest.Harmful
	case 3:
		w.engine.Rates = looptest.Harmless
		w.engine.Rates.Refuse = 0.5
	default:
		w.engine.Rates = looptest.Rates{}
	}
	return run(p)
}

// world is a Proxy with its one backend, whose loop the test turns. Everything
// happens on one thread: an input plays the same way each time, as far as the
// kernel lets it.
type world struct {
	engine   *looptest.FaultyEngine
	proxy    *proxy.Proxy
	pool     *loop.Pool
	page     *shm.Page
	counters *shm.Counters       // of page
	address  *unix.SockaddrInet4 // of the proxy
	listener int                 // of the backend
	idle     loop.Stats

	clientTLS, serverTLS *tls.Config // what both sides speak; nil: without
}

// fuzzAddress is the address of worlds in their configuration.
const fuzzAddress = "127.0.0.1:80"

func newWorld(engine, speaks string) (*world, error) {
	page, _, err := shm.Create()
	if err != nil {
		return nil, err
	}
	rows, _, err := shm.CreateBackends()
	if err != nil {
		return nil, err
	}
	w := &world{page: page, counters: &page.Counters}
	s := snapshot(nil)
	w.pool = loop.NewPool(s.Limits.Memory)
	w.pool.Poison = true
	e, err := engines[engine](w.pool)
	if err != nil {
		return nil, err
	}
	w.engine = looptest.Faulty(e, 0)
	w.engine.Rates = looptest.Rates{}
	w.proxy = proxy.New(proxy.Config{
		Engine: w.engine, Pool: w.pool, Page: page, Backends: rows, Clock: monotonic, Log: slog.New(slog.DiscardHandler),
	})
	front, address, err := listen()
	if err != nil {
		return nil, err
	}
	w.address = address
	var back *unix.SockaddrInet4
	if w.listener, back, err = listen(); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(netip.AddrFrom4(back.Addr), uint16(back.Port))
	s = snapshot(to(at.String(), at.String(), at.String())) // so that there is another one to try
	for i := range s.Routes[0].Backends {
		s.Routes[0].Backends[i].MaxFailure = 0
	}
	s.Limits.HeadBytes, s.Limits.Headers, s.Limits.TargetBytes = fuzzHeadBytes, fuzzHeaders, fuzzTargetBytes
	if speaks == secure {
		id, err := newIdentity()
		if err != nil {
			return nil, err
		}
		id.secured(s)
		w.clientTLS, w.serverTLS = id.client(), id.server()
	}
	if err := proxy.Prepare(s); err != nil {
		return nil, err
	}
	w.proxy.Apply(s)
	if err := w.proxy.Listen(0, int32(front), fuzzAddress, fuzzAddress, false); err != nil {
		return nil, err
	}
	if err := w.proxy.Turn(0); err != nil {
		return nil, err
	}
	w.idle = w.engine.Stats()
	return w, nil
}

// Bounds of heads are small, so that inputs meet them.
const (
	fuzzHeadBytes   = 1 << 10
	fuzzHeaders     = 20
	fuzzTargetBytes = 128
)

// listen opens a non-blocking listener on the loopback interface.
func listen() (fd int, address *unix.SockaddrInet4, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, nil, err
	}
	err = errors.Join(noDelay(fd), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 128))
	if err != nil {
		return -1, nil, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return -1, nil, err
	}
	return fd, sa.(*unix.SockaddrInet4), nil
}

// noDelay has what is written arrive at once; accepted connections inherit it.
func noDelay(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

func (w *world) close() {
	w.engine.Rates = looptest.Rates{}
	w.proxy.Drain(0, 0)
	_, _ = w.proxy.Run() // what could go wrong was checked after each input
	w.engine.Close()
	unix.Close(w.listener)
}

// side is the test's end of a connection.
type side struct {
	fd     int
	tls    *tlsSide // nil: without
	got    []byte
	sent   []byte
	fin    bool // the peer's FIN came
	reset  bool // the connection was reset, by either side
	finned bool // we sent a FIN
	left   bool // we sent a reset
}

// read takes what has come, and reports whether something has.
func (s *side) read() bool {
	if s.tls == nil || s.fd < 0 {
		return s.receive()
	}
	moved := !s.tls.ended && s.receive()
	if len(s.tls.in) > 0 || s.fd >= 0 {
		moved = s.tls.pump() || moved
	}
	return moved
}

func (s *side) receive() bool {
	moved := false
	for b := make([]byte, 16<<10); s.fd >= 0 && !s.fin; moved = true {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == unix.EAGAIN:
			return moved
		case err != nil:
			s.lost()
		case n == 0 && s.tls == nil:
			s.fin = true
		case n == 0:
			s.tls.ended = true
			return moved
		case s.tls != nil:
			s.tls.in = append(s.tls.in, b[:n]...)
		default:
			s.got = append(s.got, b[:n]...)
		}
	}
	return moved
}

// proper reports whether the peer knows that nothing more than sent comes.
func (s *side) proper() bool { return s.finned && (s.tls == nil || s.tls.notified) }

// write reports whether the kernel took all of b, or the connection is lost.
func (s *side) write(b []byte) bool {
	if s.fd < 0 || s.finned {
		return true
	}
	if s.tls != nil {
		return s.tls.write(b)
	}
	n, err := unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_NOSIGNAL)
	if err == unix.EAGAIN {
		return false
	}
	if err != nil {
		s.read() // what came before the end
		s.lost()
		return true
	}
	s.sent = append(s.sent, b[:n]...)
	return n == len(b)
}

func (s *side) lost() {
	if s.fd >= 0 {
		s.reset = true
		unix.Close(s.fd)
		s.fd = -1
		if s.tls != nil {
			s.tls.conn.Abort()
			s.left = s.left || s.tls.blamed()
		}
	}
}

func (s *side) sendFin() {
	if s.fd >= 0 && !s.finned {
		s.finned = true
		if s.tls != nil {
			s.tls.end()
			return
		}
		_ = unix.Shutdown(s.fd, unix.SHUT_WR) // it may be lost already
	}
}

func (s *side) sendReset() {
	if s.fd >= 0 {
		s.read()
		s.left = !s.reset
		_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		s.lost()
	}
}

// play is one input's way through a world.
type play struct {
	*world
	seed    uint64
	rng     *rand.Rand
	pieces  bool
	harmed  bool      // faults may break connections
	clients []*side   // the client's connections; it writes to the last one
	servers []*server // the backend's connections, in the order of their accepts
	answers [][]byte  // that are left
	closing bool      // the backend answers nothing more
	turns   int
}

// server is the backend's side of a connection.
type server struct {
	side
	seen     []request  // what came so far, understood anew when it grows
	begun    []progress // of each in seen
	quiet    int        // length of sent when all was quiet
	seenErr  error      // why the rest is no request
	parsed   int        // bytes of got that seen tells of
	answered int        // requests for which an answer was begun
	out      []byte     // of the answer, marks included
	pending  bool       // an answer is being sent
	rests    int        // turns before it goes on
}

// progress is how much a server had sent when it saw a request for the first
// time, and when all was quiet before that.
type progress struct{ sent, quiet int }

// turnsMax bounds the turns of one input: no input has that much to say.
const turnsMax = 50000

// step is one turn of the proxy, then of its backend and its client.
func (p *play) step() (moved bool, err error) {
	if p.turns++; p.turns > turnsMax {
		return false, fmt.Errorf("no end after %d turns\n%s", p.turns, p.proxy.Dump())
	}
	before := p.engine.Stats().Results
	if err := p.proxy.Turn(0); err != nil {
		return false, err
	}
	moved = p.engine.Stats().Results != before
	for {
		fd, _, err := unix.Accept4(p.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			break // nobody is there
		}
		s := &server{side: side{fd: fd}}
		if p.serverTLS != nil {
			p.speakTLS(&s.side, false)
		}
		p.servers = append(p.servers, s)
		moved = true
	}
	for _, s := range p.servers {
		moved = p.serve(s) || moved
	}
	for _, c := range p.clients {
		moved = c.read() || moved
	}
	return moved, nil
}

// quietTurns is more than a faulty engine holds back a result.
const quietTurns = 8

// settle turns until nothing moves any more.
func (p *play) settle() error {
	for quiet := 0; quiet < quietTurns; quiet++ {
		moved, err := p.step()
		if err != nil {
			return err
		}
		if moved {
			quiet = 0
		}
	}
	for _, s := range p.servers {
		s.quiet = len(s.sent)
	}
	return nil
}

// next is the length of the next piece of n bytes.
func (p *play) next(n int) int {
	if !p.pieces {
		return n
	}
	return min(n, 1+p.rng.IntN(1+max(n/32, p.rng.IntN(8))))
}

// serve does what the backend can do on a connection.
func (p *play) serve(s *server) (moved bool) {
	if s.read() {
		moved = true
		if len(s.got) != s.parsed {
			s.parsed, s.rests = len(s.got), p.rng.IntN(3)
			s.seen, s.seenErr = parseRequests(s.got, nil)
			for len(s.begun) < len(s.seen) {
				s.begun = append(s.begun, progress{len(s.sent), s.quiet})
			}
		}
	}
	if s.fd < 0 {
		return moved
	}
	if p.closing {
		if !s.finned {
			s.sendFin()
			moved = true
		}
		return moved
	}
	if s.rests > 0 {
		s.rests--
		return true
	}
	if !s.pending && !p.answer(s) {
		return moved
	}
	for len(s.out) > 0 {
		switch s.out[0] {
		case markFin:
			s.sendFin()
		case markReset:
			s.sendReset()
		default:
			end := bytes.IndexAny(s.out, string([]byte{markFin, markReset}))
			if end < 0 {
				end = len(s.out)
			}
			n := p.next(end)
			if !s.write(s.out[:n]) {
				return moved // the proxy's side is full: a part may be sent twice, which is as good
			}
			s.out = s.out[n:]
			if p.pieces {
				return true
			}
			continue
		}
		s.out = s.out[1:]
	}
	s.pending = false
	return true
}

// answer begins the next answer, if its time has come on s.
func (p *play) answer(s *server) bool {
	text := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	mark := byte(0)
	if len(p.answers) > 0 {
		text = p.answers[0]
		if len(text) > 0 && (text[0] == markEarly || text[0] == markAtOnce) {
			mark, text = text[0], text[1:]
		}
	}
	switch {
	case len(s.seen) > s.answered && (s.seen[s.answered].whole || mark != 0):
	case mark == markAtOnce && !s.finned:
	default:
		return false
	}
	if len(p.answers) > 0 {
		p.answers = p.answers[1:]
	}
	s.answered++
	s.out, s.pending = text, true
	return true
}

// connect opens a connection of the client.
func (p *play) connect() error {
	fd, err := p.dial()
	c := &side{fd: fd}
	if p.clientTLS != nil {
		p.speakTLS(c, true)
	}
	p.clients = append(p.clients, c)
	return err
}

// dial opens a connection to the proxy. That of the loopback interface is there
// at once.
func (p *play) dial() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	return fd, errors.Join(noDelay(fd), unix.Connect(fd, p.address), unix.SetNonblock(fd, true))
}

// clientsMax bounds the client's connections.
const clientsMax = 4

func (p *play) client() *side { return p.clients[len(p.clients)-1] }

// run plays the input to its end and checks what was seen.
func (p *play) run(text []byte, clientEnds bool) error {
	if err := p.talk(text); err != nil {
		return err
	}
	if err := p.end(clientEnds); err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return p.explain(err)
	}
	// Whatever is open is ended, and the world must be as it was.
	p.engine.Rates = looptest.Rates{}
	for _, c := range p.clients {
		c.sendReset()
	}
	for _, s := range p.servers {
		s.sendReset()
	}
	return p.await(p.left)
}

// talk has the client say all that it has to say.
func (p *play) talk(text []byte) error {
	if err := p.connect(); err != nil {
		return err
	}
	marks := string([]byte{markFin, markReset, markNext, markAgain})
	if p.clientTLS != nil {
		marks += string([]byte{markForged, markUpdate})
	}
	for len(text) > 0 {
		mark := bytes.IndexAny(text, marks)
		if mark < 0 {
			mark = len(text)
		}
		if mark > 0 {
			n := p.next(mark)
			if p.client().write(text[:n]) {
				text = text[n:]
			}
			if _, err := p.step(); err != nil {
				return err
			}
			continue
		}
		switch text[0] {
		case markFin:
			p.client().sendFin()
		case markReset:
			p.client().sendReset()
		case markForged, markUpdate:
			p.client().tls.mark(text[0])
		case markAgain:
			if len(p.clients) == clientsMax {
				break
			}
			if err := p.connect(); err != nil {
				return err
			}
		}
		text = text[1:]
		if err := p.settle(); err != nil {
			return err
		}
	}
	return p.settle()
}

// end has both sides send their FIN, one after the other.
func (p *play) end(clientFirst bool) error {
	for i := range 2 {
		if (i == 0) == clientFirst {
			for _, c := range p.clients {
				c.sendFin()
			}
		} else {
			p.closing = true
		}
		if err := p.settle(); err != nil {
			return err
		}
		if i == 0 && p.closing {
			if err := p.await(p.checkAnswered); err != nil {
				return err
			}
		}
	}
	return p.await(p.checkEnded)
}

// await turns until check is content, and no longer than one may wait for that:
// what was quiet may only have been slow.
func (p *play) await(check func() error) error {
	for until := time.Now().Add(5 * time.Second); ; {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(until) {
			return p.explain(err)
		}
		if err := p.proxy.Turn(time.Millisecond); err != nil {
			return err
		}
		if err := p.settle(); err != nil {
			return err
		}
	}
}

// left tells what is left of an input.
func (p *play) left() error {
	clients, streams := p.proxy.Open()
	s := p.engine.Stats()
	switch {
	case clients != 0 || streams != 0 || p.counters.Connections != 0 || p.counters.BackendIdle != 0:
		return fmt.Errorf("left: %d client connections (counted: %d), %d to backends (idle: %d)",
			clients, p.counters.Connections, streams, p.counters.BackendIdle)
	case p.pool.Lent() != s.BuffersOut:
		return fmt.Errorf("left: %d bytes of buffers, %d of them with the engine", p.pool.Lent(), s.BuffersOut)
	case s.InFlight != p.idle.InFlight || s.Attached != p.idle.Attached:
		return fmt.Errorf("left: %d operations in flight and %d descriptors, idle: %d and %d",
			s.InFlight, s.Attached, p.idle.InFlight, p.idle.Attached)
	case p.page.Routes[0].InFlight != 0 || p.page.Backends[0].InFlight != 0 || p.counters.Snapshots != 1:
		return fmt.Errorf("left: %d exchanges of the route, %d of the backend, %d snapshots",
			p.page.Routes[0].InFlight, p.page.Backends[0].InFlight, p.counters.Snapshots)
	case p.proxy.Strayed():
		return errors.New("something is queued for connections that rest")
	case p.counters.Quarantined != 0:
		return fmt.Errorf("quarantined: %d", p.counters.Quarantined)
	}
	return nil
}

// explain adds what was seen to an error.
func (p *play) explain(err error) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v\n", err)
	for i, c := range p.clients {
		fmt.Fprintf(&b, "client %d sent %q fin %v reset %v\nclient %d got  %q fin %v reset %v\n",
			i, c.sent, c.finned, c.left, i, c.got, c.fin, c.reset)
	}
	for i, s := range p.servers {
		fmt.Fprintf(&b, "server %d got  %q fin %v reset %v\nserver %d sent %q fin %v\n", i, s.got, s.fin, s.reset, i, s.sent, s.finned)
	}
	io.WriteString(&b, p.proxy.Dump())
	return errors.New(b.String())
}
