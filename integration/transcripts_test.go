package integration

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// scripts reads all transcripts whose names begin with prefix.
func scripts(t *testing.T, prefix string) map[string]*script {
	t.Helper()
	files, err := filepath.Glob("testdata/" + prefix + "*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := map[string]*script{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		s, err := parseScript(string(text))
		require.NoError(t, err, file)
		all[strings.TrimSuffix(filepath.Base(file), ".txt")] = s
	}
	return all
}

func TestTranscripts(t *testing.T) {
	all := scripts(t, "")
	eachEngine(t, func(t *testing.T, engine string) {
		for name, s := range all {
			modes := []string{"whole", "bytewise"}
			if s.waits() {
				modes = modes[:1]
			}
			for _, mode := range modes {
				t.Run(name+"/"+mode, func(t *testing.T) {
					t.Parallel()
					g := newStage(t, s, mode == "bytewise")
					c := startCup(t, engine, g.config(t))
					g.cup, g.addr = c, c.addr
					require.NoError(t, g.play(func() {
						if !c.stopped { // by the script
							c.stop()
						}
					}), s.title)
				})
			}
		}
	})
}

// Everything is the same over TLS.
func TestTranscriptsOverTLS(t *testing.T) {
	all := scripts(t, "")
	a := newAuthority(t)
	ssl := `"ssl": {` + a.issue("cup.test", nil).ssl() + `}`
	eachEngine(t, func(t *testing.T, engine string) {
		for name, s := range all {
			if s.waits() && !long() {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				g := newStage(t, s, false)
				g.secure = a.trusting("cup.test")
				config := strings.Replace(g.config(t), "{", "{"+ssl+",\n", 1)
				c := startCup(t, engine, config)
				g.cup, g.addr = c, c.addr
				require.NoError(t, g.play(func() {
					if !c.stopped { // by the script
						c.stop()
					}
				}), s.title)
			})
		}
	})
}

// A relay that lets everything through must fail each transcript that is about
// a refusal: otherwise that transcript could not fail.
func TestTranscriptsCanFail(t *testing.T) {
	for name, s := range scripts(t, "refuse-") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newStage(t, s, false)
			r := startRelay(t, g.listeners[0].Addr().String())
			g.addr = r.listener.Addr().String()
			require.Error(t, g.play(r.stop), s.title)
		})
	}
}

// relay passes bytes on and knows nothing of HTTP.
type relay struct {
	listener net.Listener
	backend  string
}

func startRelay(t *testing.T, backend string) *relay {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relay{l, backend}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go r.join(client.(*net.TCPConn))
		}
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *relay) stop() { r.listener.Close() }

func (r *relay) join(client *net.TCPConn) {
	defer client.Close()
	conn, err := net.Dial("tcp", r.backend)
	if err != nil {
		return
	}
	backend := conn.(*net.TCPConn)
	defer backend.Close()
	done := make(chan struct{})
	go func() {
		// How a side ends is for the script to judge.
		_, _ = io.Copy(backend, client)
		_ = backend.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(client, backend)
	_ = client.CloseWrite()
	<-done
}
