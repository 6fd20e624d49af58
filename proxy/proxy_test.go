package proxy_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGet(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s for %s", r.Method, r.URL, r.Header.Get("X-Forwarded-For"))
		})
		r := start(t, engine, to(backend), nil)
		for range 3 {
			res, err := http.Get("http://" + r.addr + "/x?y=1")
			require.NoError(t, err)
			require.Equal(t, 200, res.StatusCode)
			require.Equal(t, "GET /x?y=1 for 127.0.0.1", readAll(t, res))
		}
		require.EqualValues(t, 3, r.counted().Requests)
		require.EqualValues(t, 1, r.counted().BackendConnects)
		http.DefaultClient.CloseIdleConnections()
	})
}

// echo answers with the hash and the length of the request's body.
func echo(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
}

func TestUpload(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to(serve(t, echo)), nil)
		for _, size := range []int{0, 1, 100, 16 << 10, 1 << 20, 6 << 20} {
			for _, chunked := range []bool{false, true} {
				data := random(size)
				var body io.Reader = bytes.NewReader(data)
				if chunked {
					body = struct{ io.Reader }{body}
				}
				res, err := http.Post("http://"+r.addr+"/", "application/octet-stream", body)
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("%d %x <nil>", size, sha256.Sum256(data)), readAll(t, res))
			}
		}
		http.DefaultClient.CloseIdleConnections()
	})
}

func TestDownload(t *testing.T) {
	data := random(6 << 20)
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, r *http.Request) {
			var size int
			fmt.Sscanf(r.URL.Path, "/%d", &size)
			switch r.URL.RawQuery {
			case "length":
				w.Header().Set("Content-Length", fmt.Sprint(size))
				w.Write(data[:size])
			case "chunked":
				for i := 0; i < size; {
					n := min(size-i, 1+i%9000)
					w.Write(data[i : i+n])
					if i < 50000 {
						w.(http.Flusher).Flush()
					}
					i += n
				}
			case "close":
				w.Header().Set("Connection", "close")
				w.Header().Set("Transfer-Encoding", "identity")
				w.Write(data[:size])
			}
		})
		r := start(t, engine, to(backend), nil)
		for _, size := range []int{0, 1, 100, 5000, 16 << 10, 1 << 20, 6 << 20} {
			for _, framing := range []string{"length", "chunked", "close"} {
				res, err := http.Get(fmt.Sprintf("http://%s/%d?%s", r.addr, size, framing))
				require.NoError(t, err)
				got := readAll(t, res)
				require.True(t, got == string(data[:size]), "%d bytes %s: got %d bytes, first difference at %d",
					size, framing, len(got), difference(got, string(data)))
			}
		}
		http.DefaultClient.CloseIdleConnections()
	})
}

func difference(a, b string) int {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func random(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b)
	return b
}

func TestNoBackend(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to("127.0.0.1:1"), nil)
		for i := range 7 {
			res, err := http.Get("http://" + r.addr + "/")
			require.NoError(t, err)
			body := readAll(t, res)
			if i < 5 {
				require.Equal(t, 502, res.StatusCode)
				require.Contains(t, body, "backend_refused")
			} else {
				require.Equal(t, 503, res.StatusCode)
				require.Contains(t, body, "no_backend")
			}
		}
		http.DefaultClient.CloseIdleConnections()
	})
}
