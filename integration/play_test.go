package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stage is where a script is played: the scripted backends' listeners, and the
// connections so far.
type stage struct {
	script    *script
	bytewise  bool   // everything is sent byte by byte
	addr      string // of what stands between clients and backends
	deadline  <-chan time.Time
	listeners []net.Listener
	accepting sync.WaitGroup
	arrived   chan *net.TCPConn // connections to backends, in order
	surplus   chan struct{}     // closed when more arrive than the script knows
	clients   map[int]*actor
	backends  map[int]*actor
}

// arrivalsMax bounds the connections to backends of one play.
const arrivalsMax = 1000

// newStage listens as the backends of s.
func newStage(t testing.TB, s *script, bytewise bool) *stage {
	t.Helper()
	g := &stage{
		script: s, bytewise: bytewise, deadline: time.After(patience),
		arrived: make(chan *net.TCPConn, arrivalsMax), surplus: make(chan struct{}),
		clients: map[int]*actor{}, backends: map[int]*actor{},
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
					close(g.surplus)
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

// play plays all steps. Then stop must end what stands in between, and nothing
// may be left that no step expected.
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
		if err := g.expect(c, nil, "end"); err != nil {
			return fmt.Errorf("after the last line: %w", err)
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
			close(a.todo)
			a.conn.Close()
		}
	}
}

func (g *stage) step(st *step) error {
	a, err := g.actor(st)
	if err != nil {
		return err
	}
	switch st.op {
	case '<':
		err = g.expect(a, st.text, "")
	case '?':
		err = g.expect(a, nil, st.event)
	case '>':
		var b []byte
		if b, err = st.text.bytes(); err == nil {
			a.do(func() { a.send(b, g.bytewise) })
		}
	case '!':
		a.closed = st.event != "half-close"
		a.do(func() { a.act(st.event) })
	}
	return err
}

// actor is the connection that a step is about, which begins with it if it is
// the first.
func (g *stage) actor(st *step) (*actor, error) {
	if st.who == "client" {
		if a := g.clients[st.which]; a != nil {
			return a, nil
		}
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			return nil, err
		}
		g.clients[st.which] = newActor(fmt.Sprint("client ", st.which), conn.(*net.TCPConn))
		return g.clients[st.which], nil
	}
	for len(g.backends) < st.which {
		select {
		case conn := <-g.arrived:
			n := len(g.backends) + 1
			g.backends[n] = newActor(fmt.Sprint("backend ", n), conn)
		case <-g.deadline:
			return nil, fmt.Errorf("connection %d to a backend does not come", st.which)
		}
	}
	return g.backends[st.which], nil
}

// expect waits until a has received what text says, or, with an event, that
// nothing more came before it: "end", "reset", or "over" for either.
func (g *stage) expect(a *actor, text pattern, event string) error {
	for {
		got, end, changed := a.received()
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
	conn   *net.TCPConn
	closed bool // by a step
	todo   chan func()

	mu      sync.Mutex
	buf     []byte
	end     error
	changed chan struct{} // closed and replaced with each change
}

// stepsMax bounds the steps of a script that wait for the one before.
const stepsMax = 1000

func newActor(name string, conn *net.TCPConn) *actor {
	a := &actor{name: name, conn: conn, todo: make(chan func(), stepsMax), changed: make(chan struct{})}
	go func() {
		for f := range a.todo {
			f()
		}
	}()
	go a.read()
	return a
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
		if err != nil {
			return
		}
	}
}

func (a *actor) received() ([]byte, error, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.buf, a.end, a.changed
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
