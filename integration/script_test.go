package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A script is a transcript of testdata: one behaviour on the wire, which its
// first line names. The other lines are
//
//	config> MEMBER          a member of the configuration's top level
//	client> TEXT            the client sends the text
//	client< TEXT            the client must receive exactly the text, next
//	client! ACTION          half-close, close or reset
//	client! wait DURATION   it does nothing for so long
//	client? EVENT           end (FIN), reset, or over (one of both) must be next
//	backend> and so on      the same for the connection that Cloud Cup opens
//	proxy! reload           the configuration is put in force again
//	proxy! stop             Cloud Cup is told to stop
//	proxy? stopped          it has ended, and nothing was cut (or: cut)
//
// client2 is a second client, backend2 the second connection to a backend; the
// lines take place one after another. Clients connect with their first line.
// At the end everything must have been read: nothing may come that no line
// expects, on any connection, and no further connection to a backend.
//
// Each text ends with CR LF, except behind \c. It may hold \r, \n, \t, \\ and
// \xHH, and
//
//	{a*300}      300 times "a"
//	{date}       any date of HTTP
//	{any}        anything up to the end of the line
//	{port}       the port that Cloud Cup listens on
//	{id}         a request id of our making
//	{forwarded HOST}   the lines that a backend gets from us behind its own;
//	                   {forwarded HOST 1.0} for a request of HTTP/1.0
//	{chunked TEXT}     TEXT in chunks of any size, with the last one, alone in its line
//	{chunks TEXT}      the same without the last one
//	{own STATUS REASON close|keep}   a response of our own, whole, alone in its line
//
// and, in configurations, {backend} and {backend-b}, where scripted backends
// listen, {refusing}, where nobody does, and {silent}, where nobody answers.
// {backend} may stand in a text, too.
type script struct {
	title string
	// config are members of the top level, still with their placeholders.
	config []string
	steps  []step
}

// step is one or more lines of the same kind.
type step struct {
	line  int
	who   string // client, backend or proxy
	which int    // 1 for the first
	op    byte   // one of > < ! ?
	text  pattern
	event string        // of ! and ?
	wait  time.Duration // of ! wait
}

// parseScript reads a transcript.
func parseScript(text string) (*script, error) {
	s := &script{}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if i == 0 {
			title, ok := strings.CutPrefix(line, "# ")
			if !ok || !strings.HasSuffix(title, ").") {
				return nil, fmt.Errorf("line 1: want a sentence with its section: # What happens (RFC 9112 9.3).")
			}
			s.title = title
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if err := s.addLine(i+1, line); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return s, nil
}

func (s *script) addLine(number int, line string) error {
	at := strings.IndexAny(line, "><!?")
	if at < 0 {
		return fmt.Errorf("no >, <, ! or ? in %q", line)
	}
	op, rest := line[at], strings.TrimPrefix(line[at+1:], " ")
	if line[:at] == "config" && op == '>' {
		s.config = append(s.config, rest)
		return nil
	}
	st := step{line: number, op: op, which: 1}
	st.who = strings.TrimRight(line[:at], "0123456789")
	if digits := line[len(st.who):at]; digits != "" {
		n, err := strconv.Atoi(digits)
		if err != nil {
			return err
		}
		st.which = n
	}
	events, ok := events[st.who+string(op)]
	if !ok || st.which < 1 {
		return fmt.Errorf("who is %q?", line[:at])
	}
	if op == '!' || op == '?' {
		if d, ok := strings.CutPrefix(rest, "wait "); ok && st.who != "proxy" {
			wait, err := time.ParseDuration(d)
			st.event, st.wait = "wait", wait
			s.steps = append(s.steps, st)
			return err
		}
		for _, e := range events {
			if rest == e {
				st.event = e
				s.steps = append(s.steps, st)
				return nil
			}
		}
		return fmt.Errorf("%q is none of %v", rest, events)
	}
	text, err := parsePattern(rest)
	if err != nil {
		return err
	}
	// Lines of the same kind are one text: sent at once, expected as a whole.
	if n := len(s.steps); n > 0 {
		if last := &s.steps[n-1]; last.who == st.who && last.which == st.which && last.op == op {
			last.text = append(last.text, text...)
			return nil
		}
	}
	st.text = text
	s.steps = append(s.steps, st)
	return nil
}

// events are what may stand behind ! and ?, by who and which of both.
var events = map[string][]string{
	"client>": nil, "client<": nil, "client!": {"half-close", "close", "reset"}, "client?": {"end", "reset", "over"},
	"backend>": nil, "backend<": nil, "backend!": {"half-close", "close", "reset"}, "backend?": {"end", "reset", "over"},
	"proxy!": {"reload", "stop"}, "proxy?": {"stopped", "cut"},
}

// usual reports whether a request for any path goes to the scripted backend,
// also when the script was played.
func (s *script) usual() bool {
	for i := range s.steps {
		if s.steps[i].who == "proxy" && s.steps[i].event != "reload" {
			return false
		}
	}
	return !strings.Contains(strings.Join(s.config, ""), `"routes"`)
}

// waits reports whether the script is about time.
func (s *script) waits() bool {
	for i := range s.steps {
		if s.steps[i].event == "wait" {
			return true
		}
	}
	return false
}

// connections returns how many connections to backends the script knows.
func (s *script) connections() int {
	n := 0
	for i := range s.steps {
		if st := &s.steps[i]; st.who == "backend" {
			n = max(n, st.which)
		}
	}
	return n
}

// pattern is what a text says: bytes, and placeholders for bytes that vary.
type pattern []token

type token struct {
	literal []byte
	any     byte // 0 for a literal, else one of the varieties; literal is then the payload
}

// idDigits is how long a request id of our making is.
const idDigits = 32

// Varieties of tokens that are no literals.
const (
	anyLine byte = iota + 1 // bytes up to the end of the line
	anyDate
	anyPort
	anyBackend
	anyID
	anyChunks  // chunks that hold the literal
	anyChunked // with the last one
)

// parsePattern reads the text of a line, and adds its line end.
func parsePattern(s string) (pattern, error) {
	var p pattern
	var lit []byte
	flush := func() {
		if len(lit) > 0 {
			p = append(p, token{literal: lit})
			lit = nil
		}
	}
	lineEnd := !strings.HasPrefix(s, "{own ") && !strings.HasPrefix(s, "{chunk")
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			b, n, err := unescape(s[i:])
			if err != nil {
				return nil, err
			}
			if n == 0 { // \c
				if i+2 != len(s) {
					return nil, fmt.Errorf("something stands behind \\c")
				}
				lineEnd = false
				n = 2
			} else {
				lit = append(lit, b)
			}
			i += n - 1
		case '{':
			name, _, ok := strings.Cut(s[i+1:], "}")
			if !ok {
				return nil, fmt.Errorf("no } behind {")
			}
			more, err := placeholder(name)
			if err != nil {
				return nil, err
			}
			flush()
			p = append(p, more...)
			i += len(name) + 1
		default:
			lit = append(lit, s[i])
		}
	}
	if lineEnd {
		lit = append(lit, '\r', '\n')
	}
	flush()
	return p, nil
}

// unescape reads an escape that s begins with; n is 0 for \c.
func unescape(s string) (b byte, n int, err error) {
	if len(s) > 1 {
		switch s[1] {
		case 'c':
			return 0, 0, nil
		case 'r':
			return '\r', 2, nil
		case 'n':
			return '\n', 2, nil
		case 't':
			return '\t', 2, nil
		case '\\':
			return '\\', 2, nil
		case 'x':
			if len(s) > 3 {
				v, err := strconv.ParseUint(s[2:4], 16, 8)
				return byte(v), 4, err
			}
		}
	}
	return 0, 0, fmt.Errorf("no such escape: %.4q", s)
}

// patternOf is the pattern of several lines.
func patternOf(list ...string) (pattern, error) {
	var all pattern
	for _, l := range list {
		p, err := parsePattern(l)
		if err != nil {
			return nil, err
		}
		all = append(all, p...)
	}
	return all, nil
}

// placeholder is what stands for {name}.
func placeholder(name string) (pattern, error) {
	if kind, payload, ok := strings.Cut(name, " "); ok && (kind == "chunked" || kind == "chunks") {
		return chunksOf(payload, kind == "chunked")
	}
	if text, count, ok := strings.Cut(name, "*"); ok {
		n, err := strconv.Atoi(count)
		return pattern{{literal: bytes.Repeat([]byte(text), n)}}, err
	}
	words := strings.Fields(name)
	switch {
	case name == "date":
		return pattern{{any: anyDate}}, nil
	case name == "any":
		return pattern{{any: anyLine}}, nil
	case name == "port":
		return pattern{{any: anyPort}}, nil
	case name == "backend":
		return pattern{{any: anyBackend}}, nil
	case name == "id":
		return pattern{{any: anyID}}, nil
	case len(words) >= 2 && words[0] == "forwarded":
		version := append(words[2:], "1.1")[0]
		return patternOf("X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: "+words[1],
			"X-Forwarded-Port: {port}", "X-Request-Id: {id}", "Via: "+version+" cloud-cup\\c")
	case len(words) == 4 && words[0] == "own" && (words[3] == "close" || words[3] == "keep"):
		return ownResponse(words[1], words[2], words[3] == "close")
	}
	return nil, fmt.Errorf("no such placeholder: {%s}", name)
}

// chunksOf is what {chunks PAYLOAD} stands for, or if whole {chunked PAYLOAD}.
func chunksOf(payload string, whole bool) (pattern, error) {
	p, err := parsePattern(payload + `\c`)
	if strings.Contains(payload, "*") {
		p, err = placeholder(payload)
	}
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = pattern{{}}
	}
	p[0].any = anyChunks
	if whole {
		p[0].any = anyChunked
	}
	return p, nil
}

// ownResponse is a response of our own.
func ownResponse(code, reason string, last bool) (pattern, error) {
	status, err := strconv.Atoi(code)
	if err != nil {
		return nil, err
	}
	phrase := http.StatusText(status)
	switch status { // what RFC 9110 calls differently
	case http.StatusRequestEntityTooLarge:
		phrase = "Content Too Large"
	case http.StatusRequestURITooLong:
		phrase = "URI Too Long"
	}
	head := []string{
		"HTTP/1.1 " + code + " " + phrase,
		"Content-Type: text/plain; charset=utf-8",
		"Cache-Control: no-store",
		"Date: {date}",
		"Content-Length: {any}",
	}
	if last {
		head = append(head, "Connection: close")
	}
	return patternOf(append(head, "", code+" "+phrase+": "+reason+`\n\c`, `{any}\n\c`)...)
}

// bytes is the pattern as sent; it must be literal.
func (p pattern) bytes() ([]byte, error) {
	var b []byte
	for _, t := range p {
		if t.any != 0 {
			return nil, fmt.Errorf("a placeholder for what varies cannot be sent")
		}
		b = append(b, t.literal...)
	}
	return b, nil
}

// match compares p with the beginning of b. done means that b[:n] is all that
// p says. Otherwise it matches so far, or differs at n.
func (p pattern) match(b []byte) (n int, done bool, differs bool) {
	for _, t := range p {
		switch t.any {
		case 0:
			k := 0
			for k < len(t.literal) && n+k < len(b) && b[n+k] == t.literal[k] {
				k++
			}
			n += k
			if k < len(t.literal) {
				return n, false, n < len(b)
			}
		case anyLine:
			k := bytes.IndexAny(b[n:], "\r\n")
			if k < 0 {
				return len(b), false, false
			}
			n += k
		case anyDate:
			if len(b)-n < len(http.TimeFormat) {
				return len(b), false, false
			}
			if _, err := time.Parse(http.TimeFormat, string(b[n:n+len(http.TimeFormat)])); err != nil {
				return n, false, true
			}
			n += len(http.TimeFormat)
		case anyPort, anyBackend:
			return n, false, true // known when it is played
		case anyID:
			k := 0
			for k < idDigits && n+k < len(b) && strings.IndexByte("0123456789abcdef", b[n+k]) >= 0 {
				k++
			}
			n += k
			if k < idDigits {
				return n, false, n < len(b)
			}
		case anyChunks, anyChunked:
			k, done, differs := matchChunks(t.literal, b[n:], t.any == anyChunked)
			n += k
			if !done {
				return n, false, differs
			}
		}
	}
	return n, true, false
}

// matchChunks is match for chunks that hold the payload, and, if whole, for the
// last chunk without trailers.
func matchChunks(payload, b []byte, whole bool) (n int, done, differs bool) {
	for whole || len(payload) > 0 {
		line := bytes.Index(b[n:], []byte("\r\n"))
		if line < 0 {
			return n, false, len(b)-n > len("ffffffff\r")
		}
		size, err := strconv.ParseUint(string(b[n:n+line]), 16, 32)
		if err != nil || int(size) > len(payload) || size == 0 && !whole {
			return n, false, true
		}
		want := append(payload[:size:size], '\r', '\n')
		n += line + 2
		k := min(len(want), len(b)-n)
		switch {
		case !bytes.Equal(b[n:n+k], want[:k]):
			return n, false, true
		case k < len(want):
			return n, false, false
		}
		n += k
		payload = payload[size:]
		if size == 0 {
			return n, len(payload) == 0, len(payload) != 0
		}
	}
	return n, true, false
}

// with is p with what the addresses of Cloud Cup and of the backend tell.
func (p pattern) with(addr, backend string) pattern {
	var q pattern
	for _, t := range p {
		switch t.any {
		case anyPort:
			t = token{literal: []byte(addr[strings.LastIndexByte(addr, ':')+1:])}
		case anyBackend:
			t = token{literal: []byte(backend)}
		}
		q = append(q, t)
	}
	return q
}

// secured is p where clients speak TLS.
func (p pattern) secured() pattern {
	q := slices.Clone(p)
	for i := range q {
		for _, field := range []string{"X-Forwarded-Proto: http", ";proto=http"} { // the last of its line, as we write them
			q[i].literal = bytes.ReplaceAll(q[i].literal, []byte(field+"\r"), []byte(field+"s\r"))
		}
	}
	return q
}

// expected shows p for messages, as its lines.
func (p pattern) expected() string {
	var b strings.Builder
	for _, t := range p {
		switch t.any {
		case 0:
			b.Write(t.literal)
		case anyLine:
			b.WriteString("{any}")
		case anyDate:
			b.WriteString("{date}")
		case anyPort:
			b.WriteString("{port}")
		case anyBackend:
			b.WriteString("{backend}")
		case anyID:
			b.WriteString("{id}")
		case anyChunks, anyChunked:
			b.WriteString("{chunked " + string(t.literal) + "}")
		}
	}
	return shown([]byte(b.String()))
}

// shown is b, quoted and not too long.
func shown(b []byte) string {
	if len(b) > 1500 {
		return fmt.Sprintf("%q… (%d bytes)", b[:1500], len(b))
	}
	return fmt.Sprintf("%q", b)
}
