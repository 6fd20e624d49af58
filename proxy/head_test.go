package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/message"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
)

// seen starts a backend that answers with what it got: target, Host, and all
// fields, sorted.
func seen(t *testing.T) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		var lines []string
		for name, values := range r.Header {
			for _, v := range values {
				lines = append(lines, name+": "+v)
			}
		}
		sort.Strings(lines)
		w.Header().Set("Server", "test")
		w.Header().Set("X-Secret", "s")
		io.WriteString(w, r.RequestURI+"\nHost: "+r.Host+"\n"+strings.Join(lines, "\n")+"\n")
	})
}

// ask sends one request and returns the response with its body.
func (r *rig) ask(request string) (*http.Response, string) {
	r.t.Helper()
	c := r.dial()
	_, err := io.WriteString(c, request)
	require.NoError(r.t, err)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(r.t, err)
	body := readAll(r.t, res)
	c.Close()
	return res, body
}

const spoofed = "GET /x?y HTTP/1.1\r\nHost: cup.test\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n" +
	"X-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: mine\r\n\r\n"

func TestForwarded(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	each(t, func(t *testing.T, engine string) {
		backend := seen(t)
		for _, test := range []struct {
			name string
			edit func(*proxy.RouteSpec)
			want string
		}{
			{"untrusted", func(*proxy.RouteSpec) {}, `/x?y
Host: cup.test
Via: 1.1 cloud-cup
X-Forwarded-For: 127.0.0.1
X-Forwarded-Host: cup.test
X-Forwarded-Port: PORT
X-Forwarded-Proto: http
X-Request-Id: mine
`},
			{"trusted", func(r *proxy.RouteSpec) { r.TrustedProxies = loopback }, `/x?y
Host: cup.test
Forwarded: for=1.2.3.4
Via: 1.1 cloud-cup
X-Forwarded-For: 1.2.3.4, 5.6.7.8, 127.0.0.1
X-Forwarded-Host: cup.test
X-Forwarded-Port: 443
X-Forwarded-Proto: https
X-Request-Id: mine
`},
			{"rfc7239", func(r *proxy.RouteSpec) { r.RFC7239 = true }, `/x?y
Host: cup.test
Forwarded: for=127.0.0.1;host="cup.test";proto=http
Via: 1.1 cloud-cup
X-Request-Id: mine
`},
			{"rfc7239 trusted", func(r *proxy.RouteSpec) { r.RFC7239, r.TrustedProxies = true, loopback }, `/x?y
Host: cup.test
Forwarded: for=1.2.3.4, for=127.0.0.1;host="cup.test";proto=http
Via: 1.1 cloud-cup
X-Forwarded-For: 1.2.3.4
X-Forwarded-For: 5.6.7.8
X-Forwarded-Port: 443
X-Forwarded-Proto: https
X-Request-Id: mine
`},
		} {
			r := start(t, engine, to(backend), func(s *proxy.Snapshot) { test.edit(&s.Routes[0]) })
			_, body := r.ask(spoofed)
			port := r.addr[strings.LastIndexByte(r.addr, ':')+1:]
			require.Equal(t, strings.ReplaceAll(test.want, "PORT", port), body, test.name)
		}
	})
}

func TestRequestID(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(seen(t)), func(s *proxy.Snapshot) { s.Routes[0].RequestID = true })
		ids := map[string]bool{}
		for range 10 {
			_, body := r.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			i := strings.Index(body, "X-Request-Id: ")
			require.GreaterOrEqual(t, i, 0, body)
			id := strings.TrimSpace(body[i+len("X-Request-Id: "):])
			require.Len(t, id, 32)
			ids[id] = true
		}
		require.Len(t, ids, 10)
	})
}

func TestHostOfBackend(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := seen(t)
		// The first one refuses: the second gets its own name, not the first's.
		r := start(t, engine, to("127.0.0.1:1", backend), func(s *proxy.Snapshot) { s.Routes[0].HostBackend = true })
		for range 4 {
			_, body := r.ask("POST /x HTTP/1.1\r\nHost: cup.test\r\nContent-Length: 2\r\n\r\nhi")
			require.True(t, strings.HasPrefix(body, "/x\nHost: "+backend+"\n"), body)
			require.Contains(t, body, "X-Forwarded-Host: cup.test\n")
		}
	})
}

func TestFieldRules(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(seen(t)), func(s *proxy.Snapshot) {
			s.Routes[0].Request = proxy.FieldRules{
				Set:    []proxy.FieldRule{{Name: "X-Set", Value: "ours"}},
				Add:    []proxy.FieldRule{{Name: "X-Add", Value: "1"}, {Name: "X-Add", Value: "2"}},
				Remove: []string{"Cookie"},
			}
			s.Routes[0].Response = proxy.FieldRules{
				Set:    []proxy.FieldRule{{Name: "Server", Value: "cup"}},
				Remove: []string{"X-Secret"},
			}
		})
		res, body := r.ask("GET / HTTP/1.1\r\nHost: a\r\ncookie: c\r\nX-SET: theirs\r\nX-Add: 0\r\n\r\n")
		require.NotContains(t, body, "Cookie")
		require.Contains(t, body, "X-Add: 0\nX-Add: 1\nX-Add: 2\nX-Forwarded")
		require.Contains(t, body, "X-Set: ours\n")
		require.NotContains(t, body, "theirs")
		require.Equal(t, []string{"cup"}, res.Header.Values("Server"))
		require.Empty(t, res.Header.Values("X-Secret"))
	})
}

func TestStripPrefix(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := seen(t)
		routes := []proxy.RouteSpec{routeTo("*", backend), routeTo("/game/*", backend), routeTo("/game", backend)}
		routes[1].StripPrefix, routes[2].StripPrefix = "/game", "/game"
		r := start(t, engine, routes, nil)
		for target, want := range map[string]string{
			"/game/x?q=/game/": "/x?q=/game/",
			"/game/":           "/",
			"/game//x":         "//x",
			"/game":            "/",
			"/game?q":          "/?q",
			"/gamer":           "/gamer",
			"http://a/game/x":  "/x",
		} {
			_, body := r.ask("GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n")
			require.True(t, strings.HasPrefix(body, want+"\nHost: a\n"), "%s: %s", target, body)
		}
	})
}

func TestTrailerWish(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(seen(t)), nil)
		_, body := r.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: deflate, Trailers;q=0.5\r\n\r\n")
		require.Contains(t, body, "Te: trailers\n")
		_, body = r.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: deflate\r\n\r\n")
		require.NotContains(t, body, "Te: ")
	})
}

func TestBodyRate(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(serve(t, echo)), func(s *proxy.Snapshot) {
			s.Routes[0].Timeouts.ClientBody = 1100 * time.Millisecond // wants 102 bytes a time
		})
		for _, size := range []int{10, 1000} {
			c := r.dial()
			_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
			require.NoError(t, err)
			stop := make(chan bool)
			go func() {
				piece := make([]byte, size/10)
				for tick := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-tick.C:
						c.Write(piece)
					case <-stop:
						return
					}
				}
			}()
			c.SetReadDeadline(time.Now().Add(2500 * time.Millisecond))
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			close(stop)
			if size == 1000 {
				require.ErrorContains(t, err, "timeout", "a slow body is a body")
			} else {
				require.NoError(t, err)
				require.Equal(t, 408, res.StatusCode)
			}
			c.Close()
		}
		require.EqualValues(t, 1, r.counted().Reasons[message.ReasonClientTimeout])
	})
}

func TestMaxForwards(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(seen(t)), nil)
		_, body := r.ask("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n")
		require.Contains(t, body, "Max-Forwards: 2\n")
		_, body = r.ask("GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n")
		require.Contains(t, body, "Max-Forwards: 3\n")
		res, body := r.ask("TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n")
		require.Equal(t, 200, res.StatusCode)
		require.Contains(t, body, "max_forwards")
	})
}
