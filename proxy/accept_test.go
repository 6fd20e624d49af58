package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listening is a listener of the test's, whose socket it hands to proxies.
type listening struct {
	t      *testing.T
	net    net.Listener
	addr   string
	shared bool
}

func listenFor(t *testing.T) *listening {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return &listening{t: t, net: l, addr: l.Addr().String()}
}

// give makes r accept from the socket.
func (l *listening) give(r *rig, id uint32) {
	l.t.Helper()
	raw, err := l.net.(*net.TCPListener).SyscallConn()
	require.NoError(l.t, err)
	copied := -1
	require.NoError(l.t, raw.Control(func(fd uintptr) { copied, err = unix.Dup(int(fd)) }))
	require.NoError(l.t, err)
	r.onLoop(func() { err = r.proxy.Listen(id, int32(copied), l.addr, l.addr, l.shared) })
	require.NoError(l.t, err)
}

// unlisten returns when r has let go of the listener.
func (r *rig) unlisten(id uint32, empty bool) {
	r.t.Helper()
	left := make(chan struct{})
	var known bool
	r.onLoop(func() { known = r.proxy.Unlisten(id, empty, func() { close(left) }) })
	require.True(r.t, known)
	<-left
}

// perRequest is a client that opens a connection for each request.
func perRequest() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

// A listener that goes back and forth between two proxies under load loses no
// connection.
func TestListenerChangesHands(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
		proxies := []*rig{start(t, engine, to(backend), nil), start(t, engine, to(backend), nil)}
		l := listenFor(t)
		l.give(proxies[0], 1)
		done := make(chan struct{})
		errs := make(chan error, 100)
		var wg sync.WaitGroup
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for client := perRequest(); ; {
					select {
					case <-done:
						return
					default:
					}
					res, err := client.Get("http://" + l.addr)
					if err != nil {
						errs <- err
						return
					}
					res.Body.Close()
				}
			}()
		}
		for turn := range 40 {
			l.give(proxies[(turn+1)%2], uint32(turn+2))
			proxies[turn%2].unlisten(uint32(turn+1), false)
		}
		close(done)
		wg.Wait()
		close(errs)
		require.NoError(t, <-errs)
	})
}

// What waits in the accept queue is served before a listener is given up, and
// not by who leaves it to others.
func TestUnlisten(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
		r := start(t, engine, to(backend), nil)
		l := listenFor(t)
		var waiting []net.Conn
		for range 50 {
			conn, err := net.Dial("tcp", l.addr)
			require.NoError(t, err)
			defer conn.Close()
			waiting = append(waiting, conn)
		}
		l.give(r, 1)
		r.unlisten(1, true)
		require.EqualValues(t, len(waiting), r.counted().Accepted)
		for _, conn := range waiting {
			_, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: cup.test\r\n\r\n")
			require.NoError(t, err)
			var status [12]byte
			_, err = io.ReadFull(conn, status[:])
			require.NoError(t, err)
			require.Equal(t, "HTTP/1.1 200", string(status[:]), "and stays as it is")
		}

		late, err := net.Dial("tcp", l.addr)
		require.NoError(t, err)
		defer late.Close()
		ours, err := l.net.Accept()
		require.NoError(t, err, "nobody takes it any more")
		require.NoError(t, ours.Close())

		var known bool
		r.onLoop(func() { known = r.proxy.Unlisten(1, false, nil) })
		require.False(t, known)
		l.give(r, 2) // in the place of the other
		res, err := perRequest().Get("http://" + l.addr)
		require.NoError(t, err)
		require.Equal(t, "ok", readAll(t, res))
	})
}

// A worker with more than its share of the clients leaves those of a shared
// listener to others for a while, and then takes what they left.
func TestSharedListener(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		backend := serve(t, func(http.ResponseWriter, *http.Request) {})
		r := start(t, engine, to(backend), nil)
		r.rows.Load.Workers.Store(2) // the other one has no clients
		l := listenFor(t)
		l.shared = true
		l.give(r, 1)
		const clients = 100
		begun := time.Now()
		for range clients {
			conn, err := net.Dial("tcp", l.addr)
			require.NoError(t, err)
			defer conn.Close()
		}
		for r.counted().Accepted < clients {
			require.Less(t, time.Since(begun), 30*time.Second)
			time.Sleep(time.Millisecond)
		}
		// From the 43rd on it rests after each turn of at most 16.
		require.Greater(t, time.Since(begun), 200*time.Millisecond)
		require.EqualValues(t, clients, r.rows.Load.Clients.Load())
	})
}

// Accepting pauses while memory is nearly used up, and goes on as soon as it is
// there again.
func TestAcceptPausesForMemory(t *testing.T) {
	each(t, func(t *testing.T, engine string) {
		r := start(t, engine, to("127.0.0.1:1"), func(s *proxy.Snapshot) { s.Limits.Memory = 16 << 20 })
		var lent []*loop.Buffer
		r.onLoop(func() {
			r.proxy.StopTicking() // it would do the same, later
			for r.pool.Lent() <= r.pool.Limit()/100*95 {
				lent = append(lent, r.pool.Get(loop.ClassHead))
			}
		})
		const clients = 100
		for range clients {
			conn, err := net.Dial("tcp", r.addr)
			require.NoError(t, err)
			defer conn.Close()
		}
		accepted := uint64(0)
		require.Eventually(t, func() bool { // those that were asked for before
			before := accepted
			accepted = r.counted().Accepted
			return accepted > 0 && accepted == before
		}, patience, 50*time.Millisecond)
		require.Less(t, accepted, uint64(clients))
		r.onLoop(func() {
			for _, b := range lent {
				b.Release()
			}
		})
		require.Eventually(t, func() bool { return r.counted().Accepted == clients }, patience, time.Millisecond)
	})
}
