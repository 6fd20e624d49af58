package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// TestStress lets clients of every kind of behaviour meet backends of every
// kind. What is checked: whatever a client is told is a whole answer is the
// right answer to its request, and nothing leaks. The seed is printed.
func TestStress(t *testing.T) {
	eachFaulty(t, func(t *testing.T, engine string) {
		backends := make([]string, 3)
		for i := range backends {
			backends[i] = scripted(t, func(n int, c *net.TCPConn) {
				stressBackend(rand.New(rand.NewPCG(seed+uint64(i), uint64(n))), c)
			})
		}
		r := start(t, engine, to(backends...), func(s *proxy.Snapshot) {
			for i := range s.Routes[0].Backends {
				s.Routes[0].Backends[i].MaxFailure = 0
			}
			s.Limits.Memory = 16 << 20
			s.Routes[0].Limits = s.Limits
		})
		var wg sync.WaitGroup
		const clients = 24
		whole := make([]int, clients)
		for i := range clients {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(1000+i)))
				until := time.Now().Add(1500 * time.Millisecond)
				for n := 0; time.Now().Before(until) && !t.Failed(); n++ {
					k, err := stressClient(rnd, r.addr, i*1000000+n*1000)
					if err != nil {
						t.Error(err)
						r.onLoop(func() { t.Log(r.proxy.Dump()) })
					}
					whole[i] += k
				}
			})
		}
		wg.Wait()
		total := 0
		for _, n := range whole {
			total += n
		}
		t.Logf("%d whole answers, %d requests, %d retries", total, r.counted().Requests, r.counted().Retries)
		require.Greater(t, total, clients)
	})
}

// stressBody is the body of a given length that belongs to a request.
func stressBody(key string, n int) []byte {
	h := fnv.New64a()
	io.WriteString(h, key)
	src := rand.NewPCG(h.Sum64(), 7)
	b := make([]byte, 0, n+8)
	for len(b) < n {
		v := src.Uint64()
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b[:n]
}

// size draws a length: mostly small, sometimes large.
func size(rnd *rand.Rand) int {
	switch rnd.IntN(10) {
	case 0:
		return 0
	case 1:
		return rnd.IntN(1 << 20)
	case 2, 3:
		return rnd.IntN(100 << 10)
	}
	return rnd.IntN(3000)
}

// writePieces writes b in random pieces.
func writePieces(w io.Writer, rnd *rand.Rand, b []byte) error {
	whole := rnd.IntN(3) > 0
	for len(b) > 0 {
		n := len(b)
		if !whole {
			n = min(n, 1+rnd.IntN(1+rnd.IntN(20000)))
		}
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// chunks frames b as chunks of random lengths.
func chunks(rnd *rand.Rand, b []byte) []byte {
	var out bytes.Buffer
	small := rnd.IntN(3) == 0
	for len(b) > 0 {
		n := min(len(b), 1+rnd.IntN(20000))
		if small {
			n = min(n, 1+rnd.IntN(30))
		}
		fmt.Fprintf(&out, "%x\r\n%s\r\n", n, b[:n])
		b = b[n:]
	}
	out.WriteString("0\r\n")
	if rnd.IntN(4) == 0 {
		out.WriteString("X-Trailer: t\r\n")
	}
	out.WriteString("\r\n")
	return out.Bytes()
}

// stressBackend answers requests: in any framing and any pieces, early, late,
// truncated, or not at all.
func stressBackend(rnd *rand.Rand, c *net.TCPConn) {
	in := bufio.NewReaderSize(c, 64<<10)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		key := req.URL.Path
		if rnd.IntN(40) == 0 {
			if rnd.IntN(2) == 0 {
				c.SetLinger(0)
			}
			return // before it read the body
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		want := stressBody("request"+key, len(body))
		status := 200
		if !bytes.Equal(body, want) {
			status = 599 // the client fails the test
		}
		n := size(rnd)
		answer := stressBody("response"+key, n)
		var out bytes.Buffer
		if rnd.IntN(10) == 0 {
			out.WriteString("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
		}
		fmt.Fprintf(&out, "HTTP/1.1 %d S\r\nX-Key: %s\r\n", status, key)
		last := rnd.IntN(10) == 0
		switch framing := rnd.IntN(5); {
		case req.Method == "HEAD":
			fmt.Fprintf(&out, "Content-Length: %d\r\n\r\n", n)
		case framing < 3:
			fmt.Fprintf(&out, "Content-Length: %d\r\n\r\n%s", n, answer)
		case framing == 3:
			fmt.Fprintf(&out, "Transfer-Encoding: chunked\r\n\r\n%s", chunks(rnd, answer))
		default:
			fmt.Fprintf(&out, "Connection: close\r\n\r\n%s", answer)
			last = true
		}
		text := out.Bytes()
		if rnd.IntN(20) == 0 {
			text, last = text[:rnd.IntN(len(text))], true
			if bytes.Contains(out.Bytes(), []byte("Connection: close\r\n")) {
				c.SetLinger(0) // else nobody could tell
			}
		}
		if writePieces(c, rnd, text) != nil || last {
			return
		}
	}
}

// stressClient sends a few requests on one connection and checks the answers.
// It returns how many were whole.
func stressClient(rnd *rand.Rand, addr string, id int) (int, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(patience))
	type asked struct{ method, key string }
	var list []asked
	var out bytes.Buffer
	for i := range 1 + rnd.IntN(8) {
		a := asked{"GET", "/" + strconv.Itoa(id+i)}
		body := ""
		if n := rnd.IntN(6); n == 0 {
			a.method = "HEAD"
		} else if n < 3 {
			a.method = "POST"
			b := stressBody("request"+a.key, size(rnd))
			if n == 1 {
				body = fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(b), b)
			} else {
				body = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%s", chunks(rnd, b))
			}
		}
		if body == "" {
			body = "\r\n"
		}
		fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nHost: cup.test\r\n%s", a.method, a.key, body)
		list = append(list, a)
	}
	abort := rnd.IntN(8) == 0
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	wg.Go(func() {
		text := out.Bytes()
		if abort {
			text = text[:rnd.IntN(len(text))]
		}
		// Errors show on the reading side.
		_ = writePieces(c, rand.New(rand.NewPCG(uint64(id), 1)), text)
		if abort {
			c.SetLinger(0)
			c.Close()
		}
	})
	in := bufio.NewReader(c)
	for i, a := range list {
		res, err := http.ReadResponse(in, &http.Request{Method: a.method})
		for err == nil && res.StatusCode < 200 {
			res, err = http.ReadResponse(in, &http.Request{Method: a.method})
		}
		if err != nil {
			return i, timedOut(a.key, err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return i, timedOut(a.key, err)
		}
		switch {
		case res.StatusCode == 200:
			if key := res.Header.Get("X-Key"); key != a.key {
				return i, fmt.Errorf("%s was answered with the response to %s", a.key, key)
			}
			if a.method != "HEAD" && !bytes.Equal(body, stressBody("response"+a.key, len(body))) {
				return i, fmt.Errorf("%s: wrong bytes in a body of %d", a.key, len(body))
			}
		case res.StatusCode == 502 && strings.Contains(string(body)+a.method, "backend_"), res.StatusCode == 502 && a.method == "HEAD":
		default:
			return i, fmt.Errorf("%s: status %d: %s", a.key, res.StatusCode, body)
		}
		if res.Close {
			return i + 1, nil
		}
	}
	return len(list), nil
}

// timedOut lets only time-outs be errors: everything else may happen to a
// client whose backend broke off.
func timedOut(key string, err error) error {
	var e net.Error
	if errors.As(err, &e) && e.Timeout() {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
