package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/loop"
)

// TestMain makes the test's own binary a helper for startServer and the like.
func TestMain(m *testing.M) {
	help(os.Args[1:])
	os.Exit(m.Run())
}

func startBackend(t *testing.T) *server {
	t.Helper()
	address, err := freeAddress()
	require.NoError(t, err)
	dir := t.TempDir()
	s, err := startServer(dir, backendCommand, address, []string{os.Args[0], backendCommand, address, filepath.Join(dir, "socket")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.stop()) })
	require.NoError(t, s.ready(t.Context(), loads))
	_, err = os.Stat(filepath.Join(dir, "socket"))
	require.NoError(t, err)
	return s
}

func TestBackendAnswersPiecesAndPipelines(t *testing.T) {
	s := startBackend(t)
	c, err := net.Dial("tcp", s.address)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	r := bufio.NewReader(c)
	wants := func(n int) {
		response, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, 200, response.StatusCode)
		require.Equal(t, backendBody(n), body)
	}
	head := "GET /bytes/100 HTTP/1.1\r\nHost: x\r\n\r\n"
	for i := range len(head) {
		_, err := c.Write([]byte(head[i : i+1]))
		require.NoError(t, err)
	}
	wants(100)
	// More than the sockets hold, unread until all is asked for, with a head
	// in two pieces in the middle.
	large := strings.Replace(head, "100", "300000", 1)
	_, err = c.Write([]byte(strings.Repeat(large, 20) + head[:17]))
	require.NoError(t, err)
	for range 20 {
		wants(300000)
	}
	_, err = c.Write([]byte(head[17:]))
	require.NoError(t, err)
	wants(100)
	// The end of the stream may come with the last request.
	_, err = c.Write([]byte(head))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	wants(100)
	_, err = r.ReadByte()
	require.ErrorIs(t, err, io.EOF)
}

func TestBackendRefusesOthers(t *testing.T) {
	s := startBackend(t)
	for _, request := range []string{
		"POST /bytes/1 HTTP/1.1\r\n\r\n",
		"POST /bytes/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /echo HTTP/1.1\r\n\r\n",
		"GET /bytes/x HTTP/1.1\r\n\r\n",
		"GET /bytes/99999999 HTTP/1.1\r\n\r\n",
		"GET /bytes/1\r\n\r\n",
		strings.Repeat("x", 2*backendReadBytes),
	} {
		c, err := net.Dial("tcp", s.address)
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = c.Write([]byte(request))
		require.NoError(t, err)
		n, err := c.Read(make([]byte, 1))
		require.Zero(t, n, "%.40q", request)
		require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "%.40q", request)
		require.NoError(t, c.Close())
	}
}

func TestReadyTellsWhyNot(t *testing.T) {
	s, err := startServer(t.TempDir(), "broken", "127.0.0.1:1", []string{"sh", "-c", "echo no such thing >&2; exit 3"})
	require.NoError(t, err)
	require.ErrorContains(t, s.ready(t.Context(), loads), "no such thing")
	require.ErrorContains(t, s.stop(), "had ended by itself")
}

func TestReadyChecksTheBody(t *testing.T) {
	s := startBackend(t)
	wrong := []Load{{Path: backendPath + "99", Bytes: 100}}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, s.ready(ctx, wrong), "99 bytes that are not the backend's 100")
}

// floorsOf are the floors that work here, in front of a backend.
func floorsOf(t *testing.T, backend *server) []*server {
	t.Helper()
	var list []*server
	for _, engine := range []string{"epoll", "uring"} {
		address, err := freeAddress()
		require.NoError(t, err)
		s, err := startServer(t.TempDir(), "floor", address, []string{os.Args[0], floorCommand, engine, address, backend.address})
		require.NoError(t, err)
		floored := slices.DeleteFunc(selected(""), func(l Load) bool { return !l.Floors })
		if err := s.ready(t.Context(), floored); engine == "uring" && err != nil && strings.Contains(err.Error(), loop.ErrNotSupported.Error()) {
			t.Logf("no io_uring here: %v", err)
			continue
		}
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.stop()) })
		list = append(list, s)
	}
	return list
}

// What is sent at once comes back at once, whole and in order, with a client
// that reads late, also through the floors.
func TestFloorsForward(t *testing.T) {
	backend := startBackend(t)
	for _, s := range append(floorsOf(t, backend), backend) {
		for _, size := range []int{100, 300000, 4 << 20} {
			c, err := net.Dial("tcp", s.address)
			require.NoError(t, err)
			require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			head := fmt.Sprintf("POST /bytes/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %[1]d\r\n\r\n", size)
			sent := make(chan error)
			go func() {
				for range 5 {
					if _, err := c.Write(append([]byte(head), backendBody(size)...)); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			r := bufio.NewReader(c)
			for range 5 {
				response, err := http.ReadResponse(r, nil)
				require.NoError(t, err)
				body, err := io.ReadAll(response.Body)
				require.NoError(t, err)
				require.True(t, bytes.Equal(backendBody(size), body), "%d of %d bytes", len(body), size)
			}
			require.NoError(t, <-sent)
			require.NoError(t, c.Close())
		}
	}
}

func TestTunnelsEcho(t *testing.T) {
	backend := startBackend(t)
	for _, s := range append(floorsOf(t, backend), backend) {
		target, err := url.Parse("http://" + s.address + backendEcho)
		require.NoError(t, err)
		w, err := tunnels(20, 100*time.Millisecond, target)
		require.NoError(t, err)
		require.Positive(t, w.Requests)
		require.Zero(t, w.Errors())
		require.LessOrEqual(t, w.P50, w.P99)
	}
	_, err := tunnels(1, 0, &url.URL{Host: backend.address, Path: backendPath + "1"})
	require.ErrorContains(t, err, "no tunnel")
}

// Frames may come in pieces and several at a time; one without a key is not a
// client's.
func TestEchoPieces(t *testing.T) {
	longer := append([]byte{0x82, frameMasked | frameLength16, 1, 0, 9, 8, 7, 6}, make([]byte, 256)...)
	in := slices.Concat(tunnelMessage, longer, tunnelMessage)
	var want []byte
	for size := range len(in) {
		b, c := new(backend), &backendConn{tunnel: true}
		var part, got []byte
		for piece := range slices.Chunk(in, size+1) {
			rest, ok := b.answer(c, append(part, piece...))
			require.True(t, ok)
			got, part, c.out = append(got, c.out...), bytes.Clone(rest), nil
		}
		require.Empty(t, part)
		if size == 0 {
			want = got
			require.Equal(t, tunnelEcho, want[:len(tunnelEcho)])
			require.Equal(t, []byte{0x82, frameLength16, 1, 0, 9, 8, 7, 6, 9}, want[len(tunnelEcho):][:9])
		}
		require.Equal(t, want, got)
	}
	_, ok := new(backend).answer(&backendConn{tunnel: true}, tunnelEcho)
	require.False(t, ok)
}
