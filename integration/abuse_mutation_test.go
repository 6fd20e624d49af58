package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// source is the randomness of case n of the named attack.
func (s *siege) source(name string, n int) *rand.Rand {
	return rand.New(rand.NewPCG(s.seed^uint64(crc32.ChecksumIEEE([]byte(name))), uint64(n)))
}

// telling are bytes that mean something to HTTP/1.1.
const telling = "\r\n\x00\x0b \t:;,/?#0189aFxX-+_\"%\x7f\x80\xff"

// mutate changes a message in up to three places. others lend it lines.
func mutate(r *rand.Rand, message string, others []string) []byte {
	m := []byte(message)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(m))
		end := min(len(m), at+1+r.IntN(16))
		switch r.IntN(9) {
		case 0: // a bit
			m[at] ^= 1 << r.IntN(8)
		case 1: // another byte
			m[at] = telling[r.IntN(len(telling))]
		case 2: // one more
			m = append(m[:at], append([]byte{telling[r.IntN(len(telling))]}, m[at:]...)...)
		case 3: // some less
			if m = append(m[:at], m[end:]...); len(m) == 0 {
				return []byte{0}
			}
		case 4: // some twice
			m = append(m[:end], append(bytes.Clone(m[at:end]), m[end:]...)...)
		case 5, 6: // a line of another one
			other := strings.SplitAfter(others[r.IntN(len(others))], "\n")
			lines := strings.SplitAfter(string(m), "\n")
			lines[r.IntN(len(lines))] += other[r.IntN(len(other))]
			m = []byte(strings.Join(lines, ""))
		default: // lines swapped, or one in another one's place
			lines := bytes.SplitAfter(m, []byte("\n"))
			a, b := r.IntN(len(lines)), r.IntN(len(lines))
			if lines[a], lines[b] = lines[b], lines[a]; r.IntN(3) == 0 {
				lines[a] = lines[b]
			}
			m = bytes.Join(lines, nil)
			if len(m) == 0 {
				return []byte{0}
			}
		}
	}
	return m
}

// hidden is sent in bodies: no backend must take it for a request.
const hidden = "GET /hidden HTTP/1.1\r\nHost: cup.test\r\n\r\n"

// validRequests are what is mutated; another request follows each.
var validRequests = []string{
	"GET /a?b=c HTTP/1.1\r\nHost: cup.test\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
	"GET http://cup.test/absolute HTTP/1.1\r\nHost: cup.test\r\nX-One: 1\r\nConnection: x-one\r\n\r\n",
	"OPTIONS /o HTTP/1.1\r\nHost: cup.test:80\r\nMax-Forwards: 5\r\nTE: trailers\r\n\r\n",
	"GET /old HTTP/1.0\r\nHost: cup.test\r\nConnection: keep-alive\r\n\r\n",
	fmt.Sprintf("POST /length HTTP/1.1\r\nHost: cup.test\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%s", len(hidden), hidden),
	fmt.Sprintf("PUT /expect HTTP/1.1\r\nHost: cup.test\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
	fmt.Sprintf("POST /chunked HTTP/1.1\r\nHost: cup.test\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n5;x=\"y\"\r\nhello\r\n0\r\n\r\n", len(hidden), hidden),
	"POST /trailers HTTP/1.1\r\nHost: cup.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n0a\r\n0123456789\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n",
}

const requestAfter = "GET /after HTTP/1.1\r\nHost: cup.test\r\n\r\n"

// recorder is a backend that takes nothing but perfect requests, answers what
// it understood, and keeps what was wrong.
type recorder struct {
	addr string

	mu       sync.Mutex
	answered int
	wrong    []string
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	rec := &recorder{}
	rec.addr = listenRaw(t, rec.serve)
	return rec
}

// listenRaw is a backend that serves each connection by itself.
func listenRaw(t *testing.T, serve func(conn net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn, bufio.NewReader(conn))
			}()
		}
	}()
	return l.Addr().String()
}

func (rec *recorder) serve(conn net.Conn, r *bufio.Reader) {
	for {
		text, err := rec.request(conn, r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
				rec.mu.Lock()
				rec.wrong = append(rec.wrong, err.Error())
				rec.mu.Unlock()
			}
			return // what was cut is no request
		}
		rec.mu.Lock()
		rec.answered++
		rec.mu.Unlock()
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nX-Backend: recorder\r\nContent-Length: %d\r\n\r\n%s", len(text), text); err != nil {
			return
		}
	}
}

// requestLine is what a proxy may send: it makes the line itself.
var requestLine = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\\x00- \\x7f]+) HTTP/1\\.1\r\n$")

// request reads a request and tells what it was.
func (rec *recorder) request(conn net.Conn, r *bufio.Reader) (string, error) {
	var head strings.Builder
	var method, target string
	hosts, lengths, codings := 0, 0, 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\x00") {
			return "", fmt.Errorf("a line %q behind %q", line, head.String())
		}
		if head.Len() == 0 {
			match := requestLine.FindStringSubmatch(line)
			if match == nil {
				return "", fmt.Errorf("a request line %q", line)
			}
			// net/http looks into targets, which are forwarded as they are.
			method, target, line = match[1], match[2], match[1]+" / HTTP/1.1\r\n"
		}
		head.WriteString(line)
		name, _, _ := strings.Cut(strings.ToLower(line), ":")
		switch name {
		case "host":
			hosts++
		case "content-length":
			lengths++
		case "transfer-encoding":
			codings++
		}
		if line == "\r\n" {
			break
		}
	}
	whole := bufio.NewReader(io.MultiReader(strings.NewReader(head.String()), r))
	req, err := http.ReadRequest(whole)
	if err != nil {
		return "", fmt.Errorf("%q: %s", head.String(), err) // also an EOF
	}
	if hosts != 1 || lengths+codings > 1 {
		return "", fmt.Errorf("%d hosts, %d lengths, %d codings: %q", hosts, lengths, codings, head.String())
	}
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		if _, err := io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return "", err
		}
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return "", err
	}
	if n := whole.Buffered() + r.Buffered(); n > 0 {
		return "", fmt.Errorf("%d bytes behind a request before its answer: %q", n, head.String())
	}
	return understood(method, target, body), nil
}

func understood(method, target string, body []byte) string {
	return fmt.Sprintf("%s %s %q", method, target, body)
}

// requestsIn are what net/http understands of a client's bytes. It looks into
// targets, which are forwarded as they are: more says that it stopped at one,
// so that there may be more requests.
func requestsIn(sent []byte) (all []string, more bool) {
	r := bufio.NewReader(bytes.NewReader(sent))
	for {
		for { // empty lines before a request are allowed (RFC 9112 2.2)
			if line, _ := r.Peek(2); string(line) != "\r\n" {
				break
			}
			_, _ = r.Discard(2) // they are there
		}
		req, err := http.ReadRequest(r)
		if err != nil {
			var target *url.Error
			return all, errors.As(err, &target)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return all, false
		}
		target := req.RequestURI
		if _, rest, ok := strings.Cut(target, "://"); ok { // absolute-form
			end := strings.IndexAny(rest+"/", "/?")
			if target = rest[end:]; !strings.HasPrefix(target, "/") {
				target = "/" + target
			}
		}
		all = append(all, understood(req.Method, target, body))
	}
}

// ownAnswer stands for the proxy's answer to a request that was to be forwarded
// no further.
const ownAnswer = "max_forwards"

// answersTo sends bytes and returns what backends answered; all that comes
// must be responses up to the end of the connection.
func (s *siege) answersTo(sent []byte) ([]string, error) {
	conn, err := openBrowser(s.addr)
	if err != nil {
		return nil, err
	}
	defer conn.conn.Close()
	if err := conn.conn.SetDeadline(time.Now().Add(abuseTime)); err != nil {
		return nil, err
	}
	if _, err := conn.conn.Write(sent); err != nil {
		return nil, err
	}
	if err := conn.conn.CloseWrite(); err != nil {
		return nil, err
	}
	var answers []string
	for closes := false; ; {
		if _, err := conn.r.Peek(1); err == io.EOF {
			return answers, nil
		}
		if closes {
			return nil, errors.New("bytes behind the last response")
		}
		resp, err := http.ReadResponse(conn.r, getRequest)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		switch closes = resp.Close; {
		case resp.Header.Get("X-Backend") != "":
			answers = append(answers, string(body))
		case strings.Contains(string(body), "max_forwards"):
			answers = append(answers, ownAnswer)
		case resp.StatusCode >= 200 && !strings.Contains(string(body), "\n"):
			return nil, fmt.Errorf("%s %q", resp.Status, body)
		}
	}
}

// Whatever clients send, a backend gets only what is a request, and nothing
// that was not sent as one.
func TestAbuseOfRequests(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		rec := startRecorder(t)
		s := besiege(t, engine, rec.addr)
		t.Run("random bytes", func(t *testing.T) {
			s.attack(t, func(t *testing.T, worst func()) {
				s.flood(t, rec, worst, pick(20_000, 2000), func(i int) []byte {
					r := s.source("bytes", i)
					b := make([]byte, 1+r.IntN(4000))
					for j := range b {
						b[j] = byte(r.Uint32())
					}
					return b
				})
			})
			require.Zero(t, rec.answered, "noise was taken for requests")
		})
		t.Run("mutated", func(t *testing.T) {
			s.attack(t, func(t *testing.T, worst func()) {
				s.flood(t, rec, worst, pick(50_000, 2000), func(i int) []byte {
					return append(mutate(s.source("requests", i), validRequests[i%len(validRequests)], validRequests), requestAfter...)
				})
			})
			require.NotZero(t, rec.answered)
		})
		s.t = t
	})
}

// flood sends count messages on a connection each and compares what comes of
// them with what net/http understands.
func (s *siege) flood(t *testing.T, rec *recorder, worst func(), count int, message func(i int) []byte) {
	before := rec.answered
	got := make([]int, count)
	done := make(chan error, 1)
	go func() {
		done <- crowd(count, 50, func(i int) error {
			sent := message(i)
			answers, err := s.answersTo(sent)
			if err != nil {
				return fmt.Errorf("%q: %w", sent, err)
			}
			for _, a := range answers {
				if a != ownAnswer {
					got[i]++
				}
			}
			want, more := requestsIn(sent)
			if len(answers) > len(want) && !more {
				return fmt.Errorf("%q: the backend got %q, net/http understands %q", sent, answers, want)
			}
			for j, a := range answers[:min(len(answers), len(want))] {
				if a != want[j] && a != ownAnswer {
					return fmt.Errorf("%q: the backend got %s, net/http understands %s", sent, a, want[j])
				}
			}
			return nil
		})
	}()
	worst()
	require.NoError(t, <-done)
	total := 0
	for _, n := range got {
		total += n
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	require.Empty(t, rec.wrong, "what backends got")
	require.Equal(t, rec.answered-before, total, "requests that backends got, and answers from them")
	t.Logf("%d messages brought %d requests", count, total)
}

// validResponses are what is mutated. NUMBER is the case's.
var validResponses = []string{
	"HTTP/1.1 200 OK\r\nX-Backend: script\r\nContent-Length: 17\r\nConnection: keep-alive\r\n\r\nresponse NUMBER!\n",
	"HTTP/1.1 200 OK\r\nX-Backend: script\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nresponse NUMBER!\r\n1;a=b\r\n\n\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nX-Backend: script\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n11\r\nresponse NUMBER!\n\r\n0\r\nX-Sum: 1\r\n\r\n",
	"HTTP/1.1 200 OK\r\nX-Backend: script\r\nConnection: close\r\n\r\nresponse NUMBER!\n",
	"HTTP/1.0 200 OK\r\nX-Backend: script\r\nContent-Length: 17\r\n\r\nresponse NUMBER!\n",
	"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\nX-Backend: script\r\nContent-Length: 17\r\n\r\nresponse NUMBER!\n",
	"HTTP/1.1 204 No Content\r\nX-Backend: script\r\n\r\n",
	"HTTP/1.1 304 Not Modified\r\nX-Backend: script\r\nETag: \"x\"\r\nContent-Length: 17\r\n\r\n",
}

func (s *siege) mutatedResponse(i int) []byte {
	valid := strings.ReplaceAll(validResponses[i%len(validResponses)], "NUMBER", fmt.Sprintf("%06d", i))
	return mutate(s.source("responses", i), valid, validResponses)
}

// reply is a whole response.
type reply struct {
	status int
	body   string
	closes bool
}

// readReply reads the final response to a GET; an error tells that none came to
// its end.
func readReply(r *bufio.Reader) (reply, error) {
	for {
		resp, err := http.ReadResponse(r, getRequest)
		if err != nil {
			return reply{}, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return reply{}, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return reply{resp.StatusCode, string(body), resp.Close}, nil
		}
	}
}

// Whatever a backend answers, clients get a response that is one, or an end
// that looks like it; and what follows is right.
func TestAbuseOfResponses(t *testing.T) {
	count := pick(20_000, 500)
	eachEngine(t, func(t *testing.T, engine string) {
		var s *siege
		started := make(chan struct{})
		addr := listenRaw(t, func(conn net.Conn, r *bufio.Reader) {
			<-started
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				var i int
				if _, err := fmt.Sscanf(req.URL.Path, "/mutated/%d", &i); err != nil {
					return
				}
				if _, err := conn.Write(s.mutatedResponse(i)); err != nil || i%2 == 0 {
					return // the other half waits for the next request
				}
			}
		})
		s = newSiege(t)
		s.begin(startCup(t, engine, strings.Replace(s.config(addr), `"max_failure": 0}]`, `"max_failure": 0}], "timeouts": {"response": "500ms"}`, 1)))
		close(started)
		s.attack(t, func(t *testing.T, worst func()) {
			done := make(chan error, 1)
			go func() {
				done <- crowd(count, 50, func(i int) error {
					if err := s.askMutated(i); err != nil {
						return fmt.Errorf("%q: %w", s.mutatedResponse(i), err)
					}
					return nil
				})
			}()
			worst()
			require.NoError(t, <-done)
		})
		s.t = t
	})
}

func (s *siege) askMutated(i int) error {
	b, err := openBrowser(s.addr)
	if err != nil {
		return err
	}
	defer b.conn.Close()
	if err := b.ask("GET", fmt.Sprintf("/mutated/%d", i), ""); err != nil {
		return err
	}
	got, err := readReply(b.r)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, http.ErrLineTooLong) {
			return err
		}
		// A truncation, at which the connection must end.
		rest, err := io.ReadAll(b.r)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
			return fmt.Errorf("behind a truncation: %q, %w", rest, err)
		}
		return nil
	}
	want, err := readReply(bufio.NewReader(bytes.NewReader(s.mutatedResponse(i))))
	ours := got.status >= http.StatusInternalServerError && strings.Contains(got.body, "backend_")
	if !ours && err == nil && (got.status != want.status || got.body != want.body) {
		return fmt.Errorf("the client got %+v, net/http understands %+v", got, want)
	}
	if !ours && errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the client got %+v for half a response", got)
	}
	if got.closes {
		return nil
	}
	_, err = b.get("/calm", 1000, int64(i), "")
	return err
}
