package integration

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stage is where a script is played: the scripted backends' listeners, and the
// connections so far.
type stage struct {
	script    *script
	bytewise  bool        // everything is sent byte by byte
	addr      string      // of what stands between clients and backends
	secure    *tls.Config // how clients speak TLS, nil if they do not
	cup       *cup        // which may be a cloud-cup
	deadline  <-chan time.Time
	listeners []net.Listener
	accepting sync.WaitGroup
	arrived   chan *net.TCPConn // connections to backends, in order
	surplus   chan struct{}     // closed when more arrive than the script knows
	clients   map[int]*actor
	backends  map[int]*actor
	news      chan struct{} // there is one in it when an actor received something
}

// arrivalsMax bounds the connections to backends of one play.
const arrivalsMax = 1000

// newStage listens as the backends of s.
func newStage(t testing.TB, s *script, bytewise bool) *stage {
	t.Helper()
	surplus := make(chan struct{})
	g := &stage{
		script: s, bytewise: bytewise, deadline: time.After(patience),
		arrived: make(chan *net.TCPConn, arrivalsMax), surplus: surplus,
		clients: map[int]*actor{}, backends: map[int]*actor{}, news: make(chan struct{}, 1),
	}
	count, known := 0, s.connections()
	var mu sync.Mutex
	for range 2 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		g.listeners = append(g.listeners, l)
		g.accepting.Add(1)
		go func() {
			defer g.accepting.Done()
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				if count++; count == known+1 {
					close(surplus)
				}
				g.arrived <- conn.(*net.TCPConn)
				mu.Unlock()
			}
		}()
	}
	t.Cleanup(g.close)
	return g
}

// config is the configuration that the script asks for.
func (g *stage) config(t testing.TB) string {
	members := append([]string{`"root": "127.0.0.1:0"`, oneWorker}, g.script.config...)
	all := strings.Join(members, ",\n")
	if !strings.Contains(all, `"routes"`) {
		all += `,` + "\n" + `"routes": {"*": {"backends": [{"host": "{backend}"}]}}`
	}
	var pairs []string
	for name, address := range map[string]func() string{
		"{backend}":   g.listeners[0].Addr().String,
		"{backend-b}": g.listeners[1].Addr().String,
		"{refusing}":  func() string { return refusingPort(t) },
		"{silent}":    func() string { return silentPort(t) },
	} {
		if strings.Contains(all, name) {
			pairs = append(pairs, name, address())
		}
	}
	return "{" + strings.NewReplacer(pairs...).Replace(all) + "}\n"
}

// play plays all steps. Then another client must get its own answer, stop must
// end what stands in between, and nothing may be left that no step expected.
func (g *stage) play(stop func()) error {
	for i := range g.script.steps {
		if err := g.step(&g.script.steps[i]); err != nil {
			return fmt.Errorf("line %d: %w", g.script.steps[i].line, err)
		}
	}
	for _, c := range g.clients {
		if c.closed {
			continue
		}
		c.do(func() { _ = c.conn.CloseWrite() }) // it may be over already
		if c.judged {
			continue
		}
		if err := g.expect(c, nil, "end"); err != nil {
			return fmt.Errorf("after the last line: %w", err)
		}
	}
	if g.cup != nil && g.script.usual() {
		if err := g.another(); err != nil {
			return fmt.Errorf("another client, after the last line: %w", err)
		}
	}
	stop()
	for _, b := range g.backends {
		if b.closed {
			continue
		}
		if err := g.expect(b, nil, "over"); err != nil {
			return fmt.Errorf("after the last line: %w", err)
		}
	}
	return g.noneWaiting()
}

// another lets a further client ask for something. A backend must get this
// request, alone, and the client the answer to it.
func (g *stage) another() error {
	select {
	case <-g.surplus:
		return errors.New("a backend got a connection before that no line expects")
	default:
		g.surplus = nil // one more may come now
	}
	conn, err := g.dial()
	if err != nil {
		return err
	}
	c := g.newActor("another client", conn)
	defer c.finish()
	c.do(func() { c.send([]byte("GET /another HTTP/1.1\r\nHost: cup.test\r\n\r\n"), false) })
	b, err := g.asked()
	if err != nil {
		return err
	}
	for _, line := range []string{"GET /another HTTP/1.1", "Host: {any}"} {
		text, err := parsePattern(line)
		if err != nil {
			return err
		}
		if err := g.expect(b, text, ""); err != nil {
			return err
		}
	}
	for {
		got, changed, _ := b.received()
		if i := bytes.Index(got, []byte("\r\n\r\n")); i >= 0 {
			b.take(i + len("\r\n\r\n"))
			break
		}
		select {
		case <-changed:
		case <-g.deadline:
			return fmt.Errorf("its request has no end: %s", shown(got))
		}
	}
	b.do(func() { b.send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nits\n"), false) })
	text, err := parsePattern(`HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: {date}\r\nVia: 1.1 cloud-cup\r\n\r\nits\n\c`)
	if err != nil {
		return err
	}
	if err := g.expect(c, text, ""); err != nil {
		return err
	}
	c.do(func() { _ = c.conn.CloseWrite() })
	return g.expect(c, nil, "end")
}

// asked waits until a backend receives something, and returns which.
func (g *stage) asked() (*actor, error) {
	known := len(g.backends)
	for {
		for _, b := range g.backends {
			if got, _, _ := b.received(); len(got) > 0 {
				return b, nil
			}
		}
		if len(g.backends) > known+1 {
			return nil, errors.New("a connection to a backend that nobody needs")
		}
		select {
		case conn := <-g.arrived:
			n := len(g.backends) + 1
			g.backends[n] = g.newActor(fmt.Sprint("backend ", n), conn)
		case <-g.news:
		case <-g.deadline:
			return nil, errors.New("no backend gets its request")
		}
	}
}

// noneWaiting checks that no connection came to a backend that no step took.
// What was established before is accepted before one of ours.
func (g *stage) noneWaiting() error {
	for _, l := range g.listeners {
		own, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer own.Close()
		conn := <-g.arrived
		defer conn.Close()
		if conn.RemoteAddr().String() != own.LocalAddr().String() {
			return errors.New("a connection to a backend that no line expects")
		}
	}
	return nil
}

func (g *stage) close() {
	for _, l := range g.listeners {
		l.Close()
	}
	g.accepting.Wait()
	close(g.arrived)
	for conn := range g.arrived {
		conn.Close()
	}
	for _, side := range []map[int]*actor{g.clients, g.backends} {
		for _, a := range side {
			a.finish()
		}
	}
}

func (g *stage) step(st *step) error {
	if st.who == "proxy" {
		return g.tell(st.event)
	}
	a, err := g.actor(st)
	if err != nil {
		return err
	}
	switch st.op {
	case '<':
		err = g.expect(a, st.text, "")
	case '?':
		err = g.expect(a, nil, st.event)
		a.judged = true
	case '>':
		var b []byte
		if b, err = st.text.bytes(); err == nil {
			a.do(func() { a.send(b, g.bytewise) })
		}
	case '!':
		if st.event == "wait" {
			a.do(func() { time.Sleep(st.wait) })
			break
		}
		a.closed = st.event != "half-close"
		a.do(func() { a.act(st.event) })
	}
	return err
}

// tell does what a step wants of the program.
func (g *stage) tell(event string) error {
	if g.cup == nil {
		return errors.New("this is no cloud-cup")
	}
	switch event {
	case "reload":
		if _, stderr, code := g.cup.cupctl("reload"); code != 0 {
			return errors.New(stderr)
		}
	case "stop":
		g.cup.signal(syscall.SIGTERM)
	default:
		want := map[string]int{"stopped": 0, "cut": 3}[event]
		if code := g.cup.wait(); code != want {
			return fmt.Errorf("exit code %d, want %d", code, want)
		}
	}
	return nil
}

// dial connects a client.
func (g *stage) dial() (duplex, error) {
	conn, err := net.Dial("tcp", g.addr)
	switch {
	case err != nil:
		return nil, err
	case g.secure == nil:
		return conn.(*net.TCPConn), nil
	}
	return secure(conn, g.secure)
}

// actor is the connection that a step is about, which begins with it if it is
// the first.
func (g *stage) actor(st *step) (*actor, error) {
	if st.who == "client" {
		if a := g.clients[st.which]; a != nil {
			return a, nil
		}
		conn, err := g.dial()
		if err != nil {
			return nil, err
		}
		g.clients[st.which] = g.newActor(fmt.Sprint("client ", st.which), conn)
		return g.clients[st.which], nil
	}
	for len(g.backends) < st.which {
		select {
		case conn := <-g.arrived:
			n := len(g.backends) + 1
			g.backends[n] = g.newActor(fmt.Sprint("backend ", n), conn)
		case <-g.deadline:
			return nil, fmt.Errorf("connection %d to a backend does not come", st.which)
		}
	}
	return g.backends[st.which], nil
}

// expect waits until a has received what text says, or, with an event, that
// nothing more came before it: "end", "reset", or "over" for either.
func (g *stage) expect(a *actor, text pattern, event string) error {
	text = text.with(g.addr, g.listeners[0].Addr().String())
	if g.secure != nil {
		text = text.secured()
	}
	for {
		got, changed, end := a.received()
		if event == "" {
			n, done, differs := text.match(got)
			if done {
				a.take(n)
				return nil
			}
			if differs {
				return fmt.Errorf("%s received something else at byte %d:\n got %s\nwant %s", a.name, n, shown(got), text.expected())
			}
			if end != nil {
				return fmt.Errorf("%s: %v too early:\n got %s\nwant %s", a.name, end, shown(got), text.expected())
			}
		} else if len(got) > 0 {
			return fmt.Errorf("%s received what no line expects: %s", a.name, shown(got))
		} else if end != nil {
			is := "end"
			if !errors.Is(end, io.EOF) {
				is = "reset"
			}
			if event == "over" || is == event {
				return nil
			}
			return fmt.Errorf("%s: %v, want %s", a.name, end, event)
		}
		select {
		case <-changed:
		case <-g.surplus:
			return fmt.Errorf("a backend got a connection that no line expects, while %s had received %s", a.name, shown(got))
		case <-g.deadline:
			return fmt.Errorf("%s waits too long:\n got %s\nwant %s%s", a.name, shown(got), text.expected(), event)
		}
	}
}

// actor is one end of a connection. One goroutine reads all the time, and one
// does what the steps ask for, in order.
type actor struct {
	name   string
	conn   duplex
	closed bool // by a step
	judged bool // its end was, by a step
	todo   chan func()
	news   chan struct{}

	mu      sync.Mutex
	buf     []byte
	end     error
	changed chan struct{} // closed and replaced with each change
}

// stepsMax bounds the steps of a script that wait for the one before.
const stepsMax = 1000

func (g *stage) newActor(name string, conn duplex) *actor {
	a := &actor{name: name, conn: conn, news: g.news, todo: make(chan func(), stepsMax), changed: make(chan struct{})}
	go func() {
		for f := range a.todo {
			f()
		}
	}()
	go a.read()
	return a
}

// finish ends it, when it has done what it was asked for.
func (a *actor) finish() {
	close(a.todo)
	a.conn.Close()
}

func (a *actor) do(f func()) { a.todo <- f }

func (a *actor) read() {
	p := make([]byte, 64<<10)
	for {
		n, err := a.conn.Read(p)
		a.mu.Lock()
		a.buf = append(a.buf, p[:n]...)
		a.end = err
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
		select {
		case a.news <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// received is what came and was not taken, the channel that closes with the next
// change, and how the connection ended.
func (a *actor) received() (came []byte, changed <-chan struct{}, end error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.buf, a.changed, a.end
}

func (a *actor) take(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.buf = a.buf[n:]
}

// bytewiseMax is how much of a text is sent byte by byte; the rest goes in
// pieces of an odd size.
const (
	bytewiseMax  = 2000
	bytewiseRest = 777
)

// send sends b. Errors are those of a peer that has ended the connection, and
// what it said before that is for the next steps to judge.
func (a *actor) send(b []byte, bytewise bool) {
	for sent := 0; len(b) > 0; {
		n := len(b)
		if bytewise {
			n = 1
			if sent >= bytewiseMax {
				n = min(bytewiseRest, len(b))
			}
		}
		if _, err := a.conn.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
		sent += n
	}
}

func (a *actor) act(event string) {
	switch event {
	case "half-close":
		_ = a.conn.CloseWrite()
	case "reset":
		_ = a.conn.SetLinger(0)
		_ = a.conn.Close()
	case "close":
		_ = a.conn.Close()
	}
}
