package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/cloud-cup/cloud-cup/http1"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
)

// request is one that a byte stream has, as our own parsers understand it.
type request struct {
	head     string // what a proxy forwards of it: method, target, framing
	host     string
	method   message.Method
	name     string // of the method
	minor    uint8
	upgrade  string // to which a tunnel is asked for
	body     []byte // so far
	trailers []byte
	whole    bool
	broken   bool // the body's framing is
	last     bool // nothing behind it is a request
}

// parseRequests reads the requests in b. err tells why what follows the last
// one is none; a part of a request is no error.
func parseRequests(b []byte, lim *http1.Limits) (list []request, err error) {
	for len(b) > 0 {
		var p http1.RequestParser
		var h message.Head
		n, err := p.Parse(&h, b, lim)
		if err == http1.ErrPartial {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		r := request{
			head:   fmt.Sprintf("%s %s %d", h.Text(h.MethodName), h.AppendTarget(nil), h.Framing),
			host:   string(h.Text(h.Host)),
			method: h.Method,
			name:   string(h.Text(h.MethodName)),
			minor:  h.Minor,
			last:   !h.Persistent || proxy.AsksUpgrade(&h), // what follows was sent for the tunnel
		}
		if proxy.AsksUpgrade(&h) {
			r.upgrade = string(h.Text(h.Find(message.FieldUpgrade).Value))
		}
		m := body{framing: h.Framing, length: h.Length}
		b = b[n:]
		n = m.read(b)
		b = b[n:]
		r.body, r.trailers, r.whole, r.broken = m.payload, m.trailers, m.whole, m.broken
		list = append(list, r)
		if !r.whole || r.last {
			return list, nil
		}
	}
	return list, nil
}

// response is one that a byte stream has.
type response struct {
	status  int
	interim int    // heads before it
	upgrade string // of a 101
	ours    bool   // the proxy says it in its own name
	body    []byte
	framing message.Framing
	whole   bool
	broken  bool // its syntax is; with status 0 that of its head
	n       int  // its length
}

// parseResponse reads the final response that b begins with. fin tells whether
// b's sender ended properly behind it.
func parseResponse(b []byte, method message.Method, fin bool) (r response) {
	for {
		var p http1.ResponseParser
		var h message.Head
		n, err := p.Parse(&h, b[r.n:], nil, method)
		if err != nil {
			r.broken = err != http1.ErrPartial
			return r
		}
		r.n += n
		if h.Status < 200 && h.Status != 101 {
			r.interim++
			continue
		}
		r.status = h.Status
		r.ours = h.Find(message.FieldVia) == nil
		m := body{framing: h.Framing, length: h.Length, response: true, fin: fin}
		if h.Status == 101 {
			m.framing = message.FramingClose
			if f := h.Find(message.FieldUpgrade); f != nil {
				r.upgrade = string(h.Text(f.Value))
			}
		}
		r.n += m.read(b[r.n:])
		r.body, r.framing, r.whole, r.broken = m.payload, m.framing, m.whole, m.broken
		return r
	}
}

// body is a message's body being read.
type body struct {
	framing  message.Framing
	length   int64
	response bool
	fin      bool

	payload, trailers []byte
	whole, broken     bool
}

// read returns the number of bytes of b that belong to the body.
func (m *body) read(b []byte) int {
	switch m.framing {
	case message.FramingNone:
		m.whole = true
		return 0
	case message.FramingLength:
		n := int(min(m.length, int64(len(b))))
		m.payload, m.whole = b[:n], int64(n) == m.length
		return n
	case message.FramingClose:
		m.payload, m.whole = b, m.fin
		return len(b)
	}
	d := http1.Chunked{Response: m.response}
	at := 0
	for at < len(b) && !d.Done() {
		data, n, err := d.Next(b[at:])
		if err != nil {
			m.broken = true
			return len(b)
		}
		m.payload = append(m.payload, data...)
		at += n
	}
	m.whole, m.trailers = d.Done(), d.Trailers()
	return at
}

// asked is what a client's connection asked for, as it must be understood.
type asked struct {
	*side
	requests []request
	err      error // why what follows them is refused
}

func (p *play) asked() (list []asked) {
	lim := &http1.Limits{HeadBytes: fuzzHeadBytes, Fields: fuzzHeaders, TargetBytes: fuzzTargetBytes}
	for _, c := range p.clients {
		requests, err := parseRequests(c.sent, lim)
		list = append(list, asked{c, requests, err})
	}
	return list
}

// check holds what each side was told against what the other one said.
func (p *play) check() error {
	list := p.asked()
	var told map[string]int // requests that must not be sent twice
	if !p.harmed {          // a send that was told as failed may have arrived: then they are
		told = map[string]int{}
		for i := range list {
			for _, r := range list[i].requests {
				told[r.head]++
			}
		}
	}
	for i, s := range p.servers {
		if err := checkServer(s, list, told); err != nil {
			return fmt.Errorf("server %d: %w", i, err)
		}
	}
	for i := range list {
		if err := p.checkClient(&list[i]); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
	}
	return nil
}

// checkServer wants that a backend sees requests only, and only those that a
// client made, in their order, and the next one only when it has answered.
func checkServer(s *server, list []asked, told map[string]int) error {
	if s.seenErr != nil {
		return fmt.Errorf("no request: %w", s.seenErr)
	}
	next := make([]int, len(list)) // of each client's
	end := 0                       // of the responses so far
	for i := range s.seen {
		r := &s.seen[i]
		if !r.among(list, next) {
			return fmt.Errorf("request %d, %s, is none of the client's in its place", i, r.head)
		}
		if told != nil && !r.method.Idempotent() {
			if told[r.head]--; told[r.head] < 0 {
				return fmt.Errorf("request %d, %s, was sent twice", i, r.head)
			}
		}
		if i == 0 {
			continue
		}
		was := &s.seen[i-1]
		said := parseResponse(s.sent[end:s.begun[i].sent], was.method, false)
		end += said.n
		if !was.whole || !said.whole {
			return fmt.Errorf("request %d, %s, came before the answer to the last one", i, r.head)
		}
		if s.begun[i].quiet > end {
			return fmt.Errorf("request %d, %s, came behind bytes that nobody asked for", i, r.head)
		}
	}
	return checkNetRequests(s)
}

// among looks for the request that r was made of among those from next on, and
// moves next behind it.
func (r *request) among(list []asked, next []int) bool {
	for c := range list {
		at := slices.IndexFunc(list[c].requests[next[c]:], func(a request) bool { return r.from(&a) })
		if at >= 0 {
			next[c] += at + 1
			return true
		}
	}
	return false
}

// from reports whether r is what a proxy may make of a.
func (r *request) from(a *request) bool {
	if r.head != a.head || a.host != "" && r.host != a.host {
		return false
	}
	if !r.whole {
		return bytes.HasPrefix(a.body, r.body)
	}
	return a.whole && bytes.Equal(a.body, r.body) && (len(r.trailers) == 0 || bytes.Equal(a.trailers, r.trailers))
}

// checkNetRequests has net/http read what a backend got. It may refuse, but
// not understand something else.
func checkNetRequests(s *server) error {
	in := bufio.NewReader(bytes.NewReader(s.got))
	for i := 0; ; i++ {
		req, err := http.ReadRequest(in)
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
			if i != len(s.seen) {
				return fmt.Errorf("net/http sees %d requests instead of %d", i, len(s.seen))
			}
			return nil
		case err != nil:
			return nil
		case i == len(s.seen):
			return fmt.Errorf("net/http sees one more request: %s %s", req.Method, req.RequestURI)
		}
		r := &s.seen[i]
		if got := fmt.Sprintf("%s %s ", req.Method, req.RequestURI); !strings.HasPrefix(r.head, got) {
			return fmt.Errorf("net/http sees %q instead of %q", got, r.head)
		}
		b, err := io.ReadAll(req.Body)
		if (err == nil) != r.whole || r.whole && !bytes.Equal(b, r.body) {
			return fmt.Errorf("net/http sees the body %q (%v) instead of %q (whole: %v)", b, err, r.body, r.whole)
		}
		if !r.whole || r.last {
			return nil
		}
	}
}

// checkClient wants that a client sees whole responses to its requests in
// their order, or can tell that one is not whole; and that it sees no reset
// otherwise.
func (p *play) checkClient(c *asked) error {
	rest, cut := c.got, false
	for i := 0; len(rest) > 0; i++ {
		var a request
		switch {
		case i < len(c.requests):
			a = c.requests[i]
		case i > len(c.requests) || c.err == nil:
			return fmt.Errorf("response %d to nothing: %q", i, rest)
		}
		r := parseResponse(rest, a.method, c.fin)
		if r.broken {
			return fmt.Errorf("response %d is none: %q", i, rest)
		}
		if r.status == 0 {
			break // a part of a head
		}
		if err := p.checkResponse(&r, &a, rest); err != nil {
			return fmt.Errorf("response %d: %w: %q", i, err, rest)
		}
		cut = r.framing == message.FramingClose && !r.whole
		if !r.whole {
			break
		}
		rest = rest[r.n:]
	}
	if c.reset && !c.left && !cut && !p.harmed {
		return errors.New("reset though nothing was cut")
	}
	return nil
}

// checkResponse wants that r, which text begins with, is an answer to a. An
// empty a stands for what is refused.
func (p *play) checkResponse(r *response, a *request, text []byte) error {
	if err := checkNetResponse(text, r, a.name); err != nil {
		return err
	}
	switch {
	case a.name == "" && !r.ours:
		return errors.New("what should be refused is answered")
	case a.name != "" && a.minor == 0 && r.interim > 0:
		return errors.New("interim heads for HTTP/1.0")
	case r.status == 101 && (a.upgrade == "" || !strings.EqualFold(a.upgrade, r.upgrade)):
		return errors.New("it switches to what was not asked for")
	case !p.explained(r, a):
		return errors.New("nobody said that")
	}
	return nil
}

// checkNetResponse has net/http read the response that b begins with.
func checkNetResponse(b []byte, r *response, method string) error {
	in := bufio.NewReader(bytes.NewReader(b))
	for {
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		switch {
		case err != nil:
			return fmt.Errorf("net/http: %w", err)
		case res.StatusCode < 200 && res.StatusCode != 101:
			continue
		case res.StatusCode != r.status:
			return fmt.Errorf("net/http sees %d instead of %d", res.StatusCode, r.status)
		case r.status == 101:
			return nil
		}
		got, err := io.ReadAll(res.Body)
		whole := err == nil
		if r.framing == message.FramingClose {
			whole = r.whole // net/http was not told how the stream ended
		}
		if whole != r.whole || !bytes.Equal(got, r.body) {
			return fmt.Errorf("net/http sees the body %q (%v) instead of %q (whole: %v)", got, err, r.body, r.whole)
		}
		return nil
	}
}

// explained reports whether the response r to the request a is one that the
// proxy may give: its own, or what a backend said to this request.
func (p *play) explained(r *response, a *request) bool {
	if r.ours {
		begin := fmt.Sprintf("%d ", r.status)
		// OPTIONS and TRACE may be ours to answer.
		good := r.status >= 400 || r.status == 200 && (a.method == message.MethodOptions || a.method == message.MethodTrace)
		return good && (a.method == message.MethodHead || bytes.HasPrefix(r.body, []byte(begin)) || strings.HasPrefix(begin, string(r.body)))
	}
	for _, s := range p.servers {
		rest := s.sent
		for i := 0; len(rest) > 0; i++ {
			method := a.method
			mine := true
			if i < len(s.seen) {
				method, mine = s.seen[i].method, s.seen[i].head == a.head
			}
			said := parseResponse(rest, method, s.proper())
			if mine && said.status == r.status && r.carries(&said) {
				return true
			}
			if said.status == 0 || !said.whole {
				break
			}
			rest = rest[said.n:]
		}
	}
	return false
}

// carries reports whether r passes on what was said, and shows it if that is
// not whole.
func (r *response) carries(said *response) bool {
	if r.whole {
		return said.whole && bytes.Equal(r.body, said.body)
	}
	return bytes.HasPrefix(said.body, r.body)
}

// checkAnswered wants that a client that has not ended gets an answer to each
// of its requests: the backend has said all that it will ever say.
func (p *play) checkAnswered() error {
	for i, c := range p.asked() {
		if c.fin || c.reset || c.finned {
			continue
		}
		rest := c.got
		for k := range c.requests {
			r := parseResponse(rest, c.requests[k].method, false)
			if r.status == 101 || !c.requests[k].whole {
				break
			}
			if !r.whole {
				return fmt.Errorf("client %d: no answer to request %d, and the connection stays open", i, k)
			}
			rest = rest[r.n:]
		}
	}
	return nil
}

// checkEnded wants that nothing is open once both sides have ended.
func (p *play) checkEnded() error {
	if clients, streams := p.proxy.Open(); clients != 0 || streams != 0 {
		return fmt.Errorf("%d client connections and %d to backends are open when both sides have ended", clients, streams)
	}
	return nil
}
