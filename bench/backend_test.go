package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
	s, err := startServer(t.TempDir(), backendCommand, address, []string{os.Args[0], backendCommand, address})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.stop()) })
	require.NoError(t, s.ready(t.Context(), loads))
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
