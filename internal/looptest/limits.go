package looptest

import (
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// starve opens n connections whose peers have all sent ten bytes, with a
// receive in flight on each, in a pool of two buffers, both of which are held.
func (r *rig) starve(n int, code loop.Code) (fds []int32, waiting []*task, held *[]*loop.Buffer) {
	l, addr := r.listen(64)
	held = &[]*loop.Buffer{}
	for range n {
		fd, peer := r.acceptFrom(l, addr)
		fds = append(fds, fd)
		write(r, peer, pattern(0, 10))
		k := &task{}
		k.keep = func(b *loop.Buffer) {
			require.True(r, matches(b.Bytes()[:k.N], 0))
			require.Equal(r, 10, k.N)
			*held = append(*held, b)
		}
		waiting = append(waiting, k)
	}
	r.close(l)
	for i, k := range waiting {
		r.startAs(k, loop.Op{Code: code, FD: fds[i], Size: loop.ClassHead})
	}
	r.until("two buffers", func() bool { return len(*held) == 2 })
	r.pollFor(quiet)
	require.Len(r, *held, 2)
	require.Equal(r, r.pool.Limit(), r.pool.Lent())
	require.NotZero(r, r.Stats().NoBuffers)
	return fds, waiting, held
}

// release gives back the first held buffer.
func release(held *[]*loop.Buffer) {
	b := (*held)[0]
	*held = (*held)[1:]
	b.Release()
}

func testBuffersRunOut(r *rig) {
	fds, waiting, held := r.starve(8, loop.Recv)
	for delivered := 2; delivered < len(waiting); {
		release(held)
		delivered++
		r.until("the next starved receive", func() bool { return len(*held) == 2 })
		before := r.Stats()
		r.pollFor(quiet)
		require.Len(r, *held, 2)
		after := r.Stats()
		require.Less(r, after.Waits+after.Calls-before.Waits-before.Calls, uint64(20), "starving is not waiting")
	}
	for len(*held) > 0 {
		release(held)
	}
	for i, k := range waiting {
		require.Equal(r, 1, k.done)
		r.close(fds[i])
	}
}

func testBuffersRunOutMulti(r *rig) {
	fds, waiting, held := r.starve(6, loop.RecvMulti)
	r.until("everybody's bytes", func() bool {
		n := 0
		for i, k := range waiting {
			got := 0
			for _, res := range k.results {
				require.Zero(r, res.err)
				got += res.n
			}
			n += got
			if got == 0 && !k.InFlight() {
				require.Fail(r, "a series ended without bytes", "connection %d", i)
			}
		}
		for len(*held) > 0 {
			release(held)
		}
		return n == 10*len(waiting)
	})
	for i, k := range waiting {
		r.Cancel(&k.Op)
		r.until("the end of the series", func() bool { return !k.InFlight() })
		r.close(fds[i])
	}
}

func testStarvedCancel(r *rig) {
	fds, waiting, held := r.starve(6, loop.Recv)
	var starving []*task
	for _, k := range waiting {
		if k.done == 0 {
			starving = append(starving, k)
		}
	}
	require.Len(r, starving, 4)
	for _, k := range starving[:3] {
		r.Cancel(&k.Op)
		require.Equal(r, syscall.ECANCELED, r.result(k).err)
	}
	for range 100 { // asked for and cancelled again and again
		r.again(starving[0])
		require.NoError(r, r.Poll(0, r.deliver))
		r.Cancel(&starving[0].Op)
		require.Equal(r, syscall.ECANCELED, r.result(starving[0]).err)
	}
	release(held)
	require.Equal(r, 10, r.result(starving[3]).n, "the last one's turn")
	r.again(starving[1])
	release(held)
	require.Equal(r, 10, r.result(starving[1]).n, "no byte was lost")
	for len(*held) > 0 {
		release(held)
	}
	r.close(fds...)
}

// One peer sends as fast as it can while another plays ping-pong: both get on,
// and the fast one does not take the pool.
func testGreedy(r *rig) {
	total := 100 << 20
	if testing.Short() {
		total = 20 << 20
	}
	greedyFD, greedy := r.pair()
	ballFD, ball := r.pair()

	var wg sync.WaitGroup
	wg.Go(func() {
		block := pattern(0, 1<<16) // which is the pattern's period of that place
		for range total / len(block) {
			write(r, greedy, block)
		}
	})
	wg.Go(func() {
		b := make([]byte, 1)
		for {
			if _, err := ball.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(ball, b); err != nil {
				return
			}
		}
	})

	block := pattern(0, 1<<16)
	got, rounds := 0, 0
	k := &task{}
	k.keep = func(b *loop.Buffer) {
		for data := b.Bytes()[:k.N]; len(data) > 0; {
			at := got % len(block)
			n := min(len(data), len(block)-at)
			if string(data[:n]) != string(block[at:at+n]) {
				require.Fail(r, "bytes differ")
			}
			got += n
			data = data[n:]
		}
		b.Release()
	}
	k.then = func(res result) {
		require.True(r, res.n > 0 || got == total, "%+v", res)
		if k.done > 0 && got < total {
			r.again(k)
		}
		k.results = k.results[:0]
	}
	in, out := &task{}, &task{}
	in.then = func(res result) {
		rounds++
		in.results, in.data = in.results[:0], in.data[:0]
		if res.n > 0 {
			r.again(out)
		}
	}
	out.then = func(res result) {
		out.results = out.results[:0]
		if res.n > 0 {
			r.again(in)
		}
	}
	r.startAs(k, loop.Op{Code: loop.RecvMulti, FD: greedyFD})
	r.startAs(in, loop.Op{Code: loop.Recv, FD: ballFD, Size: loop.ClassHead})
	out.Op = loop.Op{Code: loop.Send, FD: ballFD, Msg: &loop.Msg{Vecs: [][]byte{{1}}}}
	out.User = loop.Token{Index: uint32(len(r.tasks)), Age: 7}
	r.tasks = append(r.tasks, out)

	r.until("all of the greedy one's bytes", func() bool { return got == total })
	require.Greater(r, rounds, total>>20, "the other one waited")
	require.Less(r, r.peak, 8<<20, "memory lent")
	for _, fd := range []int32{ballFD, greedyFD} {
		require.Zero(r, r.Shutdown(fd, unix.SHUT_RDWR))
	}
	r.until("the end", func() bool { return r.Stats().InFlight == 0 })
	r.close(ballFD, greedyFD)
	wg.Wait()
}

// A number that is used again is a new descriptor: nothing of the old one's is
// seen.
func testReuse(r *rig) {
	l, addr := r.listen(16)
	again := 0
	for i := range 300 {
		old, peer := r.acceptFrom(l, addr)
		k := r.recv(old)
		if i%2 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		r.Cancel(&k.Op)
		r.result(k)
		write(r, peer, []byte("old")) // its event is on the way
		if i%3 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		r.close(old)

		require.NoError(r, r.Poll(0, r.deliver))
		other := r.connect(loop.Addr{AddrPort: addr})
		if other.FD == old {
			again++
		}
		require.Zero(r, r.result(other).err)
		k = r.recv(other.FD)
		accepted := r.result(r.accept(l))
		s := r.send(int32(accepted.n), []byte("new"))
		require.Equal(r, 3, r.result(s).n)
		require.Equal(r, 3, r.result(k).n)
		require.Equal(r, "new", string(k.data))
		r.close(other.FD, int32(accepted.n))
		require.NoError(r, peer.Close())
	}
	require.NotZero(r, again, "no number was used again")
	r.close(l)
}

// The same while results of one turn are being delivered: the first closes the
// descriptor of another that has data too, and takes its number.
func testReuseInDeliver(r *rig) {
	l, addr := r.listen(16)
	for range 200 {
		a, peerA := r.acceptFrom(l, addr)
		b, peerB := r.acceptFrom(l, addr)
		var fresh *task
		write(r, peerA, []byte("old"))
		write(r, peerB, []byte("old"))
		first := r.recv(a)
		first.then = func(result) {
			r.close(b)
			fresh = r.connect(loop.Addr{AddrPort: addr})
		}
		r.result(first)
		require.Zero(r, r.result(fresh).err)
		accepted := r.result(r.accept(l))
		k := r.recv(fresh.FD)
		r.Wake()
		require.NoError(r, r.Poll(0, r.deliver))
		require.Zero(r, k.done, "%q", k.data)
		s := r.send(int32(accepted.n), []byte("new"))
		require.Equal(r, 3, r.result(s).n)
		require.Equal(r, 3, r.result(k).n)
		require.Equal(r, "new", string(k.data))
		r.close(a, fresh.FD, int32(accepted.n))
		require.NoError(r, peerA.Close())
		require.NoError(r, peerB.Close())
	}
	r.close(l)
}

// Another process may hold the same socket, as the master holds listeners:
// closing ours ends what we hear of it.
func testShared(r *rig) {
	l, addr := r.listen(16)
	shared, err := unix.FcntlInt(uintptr(l), unix.F_DUPFD_CLOEXEC, 100)
	require.NoError(r, err)
	r.close(l)
	require.NoError(r, r.Poll(0, r.deliver))

	other, otherAddr := r.listen(16) // most likely with the same number
	k := r.accept(other)
	peer, err := net.Dial("tcp", addr.String())
	require.NoError(r, err)
	defer peer.Close()
	r.nothing(k)
	fd, _ := r.acceptedBy(k, otherAddr.String())
	r.close(fd, other)
	require.NoError(r, unix.Close(shared))
}

func (r *rig) acceptedBy(k *task, addr string) (int32, net.Conn) {
	peer, err := net.Dial("tcp", addr)
	require.NoError(r, err)
	r.Cleanup(func() { _ = peer.Close() })
	res := r.result(k)
	require.Zero(r, res.err)
	return int32(res.n), peer
}

func testWake(r *rig) {
	soon := func(what string) {
		start := time.Now()
		require.NoError(r, r.Poll(patience, r.deliver))
		require.Less(r, time.Since(start), patience/2, what)
	}
	// Nothing of the start may end the waits below.
	r.pollFor(quiet)

	r.Wake()
	soon("woken before")
	require.LessOrEqual(r, r.pollFor(quiet), 3, "a wake-up counts once")

	for range 20 {
		go func() {
			time.Sleep(5 * time.Millisecond)
			r.Wake()
		}()
		soon("woken meanwhile")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				r.Wake()
			}
		})
	}
	wg.Wait()
	require.Less(r, r.pollFor(quiet), 10, "many wake-ups count once")

	// Each wake-up is seen by a Poll that ends after it.
	turns, seen := make(chan int), 0
	go func() {
		for i := range 1000 {
			turns <- i
			r.Wake()
		}
		close(turns)
	}()
	for range turns {
		seen++
		require.NoError(r, r.Poll(patience, r.deliver))
	}
	require.Equal(r, 1000, seen)

	require.NoError(r, r.Engine.Close())
	r.dead = true
	r.Wake()
}

func testWaiting(r *rig) {
	fd, _ := r.pair()
	k := r.recv(fd)
	r.pollFor(quiet)

	for _, d := range []time.Duration{time.Microsecond, time.Millisecond, 3 * time.Millisecond, 50 * time.Millisecond} {
		start, clock := time.Now(), r.Now()
		// A signal may end a wait early, but not all the time.
		require.LessOrEqual(r, r.pollFor(d), 3)
		require.Less(r, time.Since(start), d+500*time.Millisecond)
		require.Greater(r, r.Now(), clock)
		var ts unix.Timespec
		require.NoError(r, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
		require.InDelta(r, ts.Nano(), r.Now(), float64(500*time.Millisecond))
	}
	start := time.Now()
	for range 1000 {
		require.NoError(r, r.Poll(0, r.deliver))
	}
	require.Less(r, time.Since(start), time.Second, "Poll(0) waits")

	// Idle, but for a timer: a wait is a call or two, not many.
	before := r.Stats()
	r.pollFor(300 * time.Millisecond)
	after := r.Stats()
	require.LessOrEqual(r, after.Waits-before.Waits, uint64(6))
	require.LessOrEqual(r, after.Calls-before.Calls, uint64(6))
	require.Positive(r, after.Waits)

	r.Cancel(&k.Op)
	r.result(k)
	r.close(fd)
}

func testAllocations(r *rig) {
	l, addr := r.listen(16)
	accepted := r.accept(l)
	connected := r.connect(loop.Addr{AddrPort: addr})
	r.result(connected)
	a, b := connected.FD, int32(r.result(accepted).n)

	// Plain Ops, as the suite's own records allocate.
	text := make([]byte, 1000)
	send := loop.Op{Code: loop.Send, FD: a, Msg: &loop.Msg{Vecs: [][]byte{text[:10], text[10:]}}}
	recv := loop.Op{Code: loop.Recv, FD: b, Size: loop.ClassHead}
	answer := loop.Op{Code: loop.Send, FD: b, Msg: &loop.Msg{Vecs: [][]byte{text}}}
	multi := loop.Op{Code: loop.RecvMulti, FD: a}
	results := 0
	deliver := func(op *loop.Op) {
		results++
		if op.Buf != nil {
			op.Buf.Release()
		}
	}
	exchange := func() {
		results = 0
		r.Submit(&send)
		r.Submit(&recv)
		for results < 2 {
			_ = r.Poll(-1, deliver)
		}
		if !multi.InFlight() {
			r.Submit(&multi)
		}
		results = 0
		r.Submit(&answer)
		for results < 2 {
			_ = r.Poll(-1, deliver)
		}
	}
	for range 100 {
		exchange()
	}
	require.Zero(r, testing.AllocsPerRun(2000, exchange))
	if multi.InFlight() {
		r.Cancel(&multi)
		for multi.InFlight() {
			require.NoError(r, r.Poll(-1, deliver))
		}
	}
	r.close(a, b, l)

	// Connections that come and go.
	l, addr = r.listen(16)
	peer := loop.Addr{AddrPort: addr}
	connect := loop.Op{Code: loop.Connect, Msg: &loop.Msg{Peer: &peer}}
	accept := loop.Op{Code: loop.Accept, FD: l}
	cycle := func() {
		results = 0
		r.Submit(&accept)
		r.Submit(&connect)
		for results < 2 {
			_ = r.Poll(-1, deliver)
		}
		r.CloseFD(connect.FD)
		r.CloseFD(int32(accept.N))
	}
	for range 50 {
		cycle()
	}
	require.Zero(r, testing.AllocsPerRun(500, cycle))
	r.close(l)
}
