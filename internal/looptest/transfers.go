package looptest

import (
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cloud-cup/cloud-cup/loop"
)

// testRecv: small pieces one by one, the end of the stream, and more than fits
// into a buffer.
func testRecv(r *rig) {
	fd, peer := r.pair()
	k := r.recv(fd)
	r.nothing(k)
	for i := range 100 { // each comes alone
		write(r, peer, pattern(i*10, 10))
		require.Equal(r, result{n: 10}, r.result(k))
		r.again(k)
	}
	require.True(r, matches(k.data, 0))
	require.NoError(r, peer.Close())
	require.Equal(r, result{}, r.result(k), "the end")
	r.again(k)
	require.Equal(r, result{}, r.result(k), "the end, again")
	r.close(fd)

	// A receive takes no more than its buffer holds, and the next one the rest.
	fd, peer = r.pair()
	const total = 5*loop.BodyBytes + 77
	go write(r, peer, pattern(0, total))
	var got []byte
	for _, class := range []loop.Class{loop.ClassHead, loop.ClassBody} {
		k := r.start(loop.Op{Code: loop.Recv, FD: fd, Size: class})
		res := r.result(k)
		require.LessOrEqual(r, res.n, class.Bytes())
		got = append(got, k.data...)
	}
	for len(got) < total {
		k := r.start(loop.Op{Code: loop.Recv, FD: fd, Size: loop.ClassBody})
		require.Zero(r, r.result(k).err)
		got = append(got, k.data...)
	}
	require.Len(r, got, total)
	require.True(r, matches(got, 0))
	r.close(fd)
}

func write(r *rig, c net.Conn, b []byte) {
	if _, err := c.Write(b); err != nil {
		r.Errorf("peer: %v", err) // also called from other goroutines
	}
}

func testRecvCancel(r *rig) {
	fd, peer := r.pair()
	for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		r.Cancel(&k.Op) // not even begun
		require.Equal(r, syscall.ECANCELED, r.result(k).err)
		r.again(k)
		require.NoError(r, r.Poll(0, r.deliver))
		r.Cancel(&k.Op) // waiting
		r.Cancel(&k.Op)
		require.Equal(r, syscall.ECANCELED, r.result(k).err)
		r.pollFor(quiet)
		require.Len(r, k.results, 2)
	}
	// A cancelled receive loses no byte.
	got := 0
	for i := range 500 {
		k := r.recv(fd)
		if i%3 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		write(r, peer, pattern(i*3, 3))
		if i%2 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		r.Cancel(&k.Op)
		r.result(k)
		require.Contains(r, []syscall.Errno{0, syscall.ECANCELED}, k.Err)
		require.True(r, matches(k.data, got))
		got += len(k.data)
	}
	for got < 1500 {
		k := r.recv(fd)
		require.NotZero(r, r.result(k).n)
		require.True(r, matches(k.data, got))
		got += len(k.data)
	}
	r.close(fd)
	r.cancelEachOther()
}

// cancelEachOther cancels series whose results may be known already, from the
// delivery of another one's.
func (r *rig) cancelEachOther() {
	const count, size = 8, 100
	tasks, peers := make([]*task, count), make([]net.Conn, count)
	for i := range tasks {
		fd, peer := r.pair()
		tasks[i], peers[i] = r.recvMulti(fd), peer
		tasks[i].then = func(result) {
			for _, k := range tasks {
				r.Cancel(&k.Op)
			}
		}
	}
	require.NoError(r, r.Poll(0, r.deliver))
	for _, peer := range peers {
		write(r, peer, pattern(0, size))
	}
	r.until("the end of all series", func() bool {
		return !slices.ContainsFunc(tasks, func(k *task) bool { return k.InFlight() })
	})
	for _, k := range tasks {
		last := k.results[len(k.results)-1]
		require.Contains(r, []result{{n: size}, {err: syscall.ECANCELED}}, last)
		if len(k.data) == 0 { // the bytes are still there
			rest := r.recv(k.FD)
			require.Equal(r, size, r.result(rest).n)
			k.data = rest.data
		}
		require.Len(r, k.data, size)
		require.True(r, matches(k.data, 0))
		r.close(k.FD)
	}
}

func testRecvReset(r *rig) {
	for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
		fd, peer := r.pair()
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		require.NoError(r, r.Poll(0, r.deliver))
		reset(r, peer)
		require.Equal(r, syscall.ECONNRESET, r.result(k).err)
		s := r.send(fd, []byte("x"))
		require.Equal(r, syscall.EPIPE, r.result(s).err)
		r.close(fd)
	}
}

// testRecvUrgent receives what came around urgent data, which a receive stops
// at and then steps over, though it all was there before.
func testRecvUrgent(r *rig) {
	const half = 1000
	for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
		fd, peer := r.pair()
		write(r, peer, pattern(0, half))
		raw, err := peer.SyscallConn()
		require.NoError(r, err)
		require.NoError(r, raw.Write(func(fd uintptr) bool {
			err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
			return true
		}))
		require.NoError(r, err)
		write(r, peer, pattern(half, half))
		require.NoError(r, raw.Control(func(fd uintptr) {
			for left := 1; left > 0 && err == nil; {
				left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			}
		}))
		require.NoError(r, err)
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		r.until("all bytes", func() bool {
			if !k.InFlight() && len(k.data) < 2*half {
				require.Zero(r, r.result(k).err)
				r.again(k)
			}
			return len(k.data) == 2*half
		})
		require.True(r, matches(k.data, 0))
		r.Cancel(&k.Op)
		r.until("the end of the series", func() bool { return !k.InFlight() })
		r.close(fd)
	}
}

func testMulti(r *rig) {
	fd, peer := r.pair()
	k := r.recvMulti(fd)
	k.then = func(res result) {
		require.Zero(r, res.err)
		if k.done > 0 && res.n > 0 {
			r.again(k)
		}
	}
	for i := range 300 { // each comes alone
		write(r, peer, pattern(i*100, 100))
		r.until("the bytes", func() bool { return len(k.data) == (i+1)*100 })
	}
	require.True(r, matches(k.data, 0))
	require.NoError(r, peer.CloseWrite())
	r.until("the end", func() bool { return k.done > 0 })
	require.Equal(r, result{}, k.results[len(k.results)-1])
	r.close(fd)
}

// A series ends by itself, and the next one goes on where it ended.
func testMultiEnds(r *rig) {
	const total = 20 << 20
	fd, peer := r.pair()
	go func() {
		write(r, peer, pattern(0, total))
		if err := peer.CloseWrite(); err != nil {
			r.Error(err)
		}
	}()
	k := r.recvMulti(fd)
	got, series, longest, ended := 0, 0, 0, 0
	k.keep = func(b *loop.Buffer) {
		require.True(r, matches(b.Bytes()[:k.N], got))
		got += k.N
		series += k.N
		b.Release()
	}
	end := false
	k.then = func(res result) {
		require.Zero(r, res.err)
		if k.done > 0 {
			longest = max(longest, series)
			series = 0
			ended++
			if end = res.n == 0; !end {
				r.again(k)
			}
		}
	}
	r.until("the end", func() bool { return end })
	require.Equal(r, total, got)
	require.Less(r, longest, loop.MultiBytes+2<<20)
	require.Greater(r, ended, 5)
	r.close(fd)
}

// The end comes at once after data, at any moment of the receive: it must
// never be missed.
func testDataThenEnd(r *rig) {
	l, addr := r.listen(16)
	n := 500
	if long() {
		n = 20_000
	}
	for i := range n {
		fd, peer := r.acceptFrom(l, addr)
		code := loop.Recv
		if i%2 == 0 {
			code = loop.RecvMulti
		}
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		if i%3 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		text := pattern(0, 1+i%(loop.HeadBytes+100))
		finish := func() {
			write(r, peer, text)
			if err := peer.Close(); err != nil {
				r.Error(err)
			}
		}
		if i%4 == 0 {
			go finish() // while the engine waits
		} else {
			finish()
		}
		end := false
		k.then = func(res result) {
			require.Zero(r, res.err)
			if end = res.n == 0; k.done > 0 && !end {
				r.again(k)
			}
		}
		r.until("the end", func() bool { return end })
		require.Len(r, k.data, len(text))
		require.True(r, matches(k.data, 0))
		r.close(fd)
	}
	r.close(l)
}

// What came before a reset may be lost with it, but the receive always ends.
func testDataThenReset(r *rig) {
	l, addr := r.listen(16)
	for i := range 300 {
		fd, peer := r.acceptFrom(l, addr)
		code := loop.Recv
		if i%2 == 0 {
			code = loop.RecvMulti
		}
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		if i%3 == 0 {
			require.NoError(r, r.Poll(0, r.deliver))
		}
		write(r, peer, pattern(0, 1000))
		reset(r, peer)
		ended := syscall.Errno(0)
		k.then = func(res result) {
			if ended = res.err; k.done > 0 && ended == 0 {
				require.NotZero(r, res.n, "a reset is not the end of a stream")
				r.again(k)
			}
		}
		r.until("the reset", func() bool { return ended != 0 })
		require.Equal(r, syscall.ECONNRESET, ended)
		require.True(r, matches(k.data, 0))
		r.close(fd)
	}
	r.close(l)
}

func testHalfClose(r *rig) {
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	// The peer ends its direction, ours goes on.
	fd, peer := r.pair()
	require.NoError(r, peer.CloseWrite())
	k := r.recv(fd)
	require.Equal(r, result{}, r.result(k))
	read := readAll(peer)
	for i := range 10 {
		s := r.send(fd, pattern(i*1000, 1000))
		require.Equal(r, 1000, r.result(s).n)
	}
	// We end ours: the peer sees all of it and the end.
	require.Zero(r, r.Shutdown(fd, unix.SHUT_WR))
	got := await(r, read)
	require.Len(r, got, 10_000)
	require.True(r, matches(got, 0))
	s := r.send(fd, []byte("x"))
	require.Equal(r, syscall.EPIPE, r.result(s).err)
	r.pollFor(quiet)
	require.Empty(r, pipe, "SIGPIPE")
	r.close(fd)

	// We end our direction first, the peer's goes on.
	fd, peer = r.pair()
	require.Zero(r, r.Shutdown(fd, unix.SHUT_WR))
	k = r.recv(fd)
	r.nothing(k)
	require.Empty(r, await(r, readAll(peer)))
	for i := range 10 {
		write(r, peer, pattern(i*10, 10))
		require.Equal(r, 10, r.result(k).n)
		r.again(k)
	}
	require.NoError(r, peer.Close())
	require.Equal(r, result{}, r.result(k))
	require.True(r, matches(k.data, 0))
	r.close(fd)
}

// A connection that is aborted ends with a reset for its peer, and with nothing
// that looks like the end of the stream.
func testAbort(r *rig) {
	fd, peer := r.pair()
	s := r.send(fd, pattern(0, 1000))
	require.Equal(r, 1000, r.result(s).n)
	got := make([]byte, 1000)
	_, err := io.ReadFull(peer, got)
	require.NoError(r, err)
	r.Abort(fd)
	r.close(fd)
	require.NoError(r, r.Poll(0, r.deliver))
	require.NoError(r, peer.SetReadDeadline(time.Now().Add(patience)))
	_, err = peer.Read(got)
	require.ErrorIs(r, err, syscall.ECONNRESET)
}

// lastWords: they arrive behind what was sent, if there is room, and a receive in
// flight does not keep them; if there is none, nothing waits.
func (r *rig) lastWords() {
	fd, peer := r.pair()
	k := r.start(loop.Op{Code: loop.RecvMulti, FD: fd, Size: loop.ClassHead})
	require.NoError(r, r.Poll(0, r.deliver))
	s := r.send(fd, pattern(0, 1000))
	require.Equal(r, 1000, r.result(s).n)
	require.Equal(r, 10, r.SendNow(fd, pattern(1000, 10)))
	require.Zero(r, r.Shutdown(fd, unix.SHUT_RDWR))
	require.Equal(r, result{}, r.result(k))
	r.close(fd)
	require.NoError(r, r.Poll(0, r.deliver))
	require.NoError(r, peer.SetReadDeadline(time.Now().Add(patience)))
	got, err := io.ReadAll(peer)
	require.NoError(r, err)
	require.True(r, matches(got, 0))
	require.Len(r, got, 1010)

	full, _ := r.pair()
	b := r.blockedSend(full)
	r.Cancel(&b.Op)
	r.result(b)
	require.Zero(r, r.SendNow(full, pattern(0, 10)))
	r.close(full)
}

// Shutdown is how operations are asked to end.
func testShutdown(r *rig) {
	for _, code := range []loop.Code{loop.Recv, loop.RecvMulti} {
		fd, _ := r.pair()
		k := r.start(loop.Op{Code: code, FD: fd, Size: loop.ClassHead})
		require.NoError(r, r.Poll(0, r.deliver))
		s := r.blockedSend(fd)
		require.Zero(r, r.Shutdown(fd, unix.SHUT_RDWR))
		require.Equal(r, result{}, r.result(k))
		if res := r.result(s); res.err == 0 { // a part had gone
			r.again(s)
			require.Equal(r, syscall.EPIPE, r.result(s).err)
		} else {
			require.Equal(r, syscall.EPIPE, res.err)
		}
		require.Equal(r, syscall.Errno(0), r.Shutdown(fd, unix.SHUT_RDWR)&^syscall.ENOTCONN)
		r.close(fd)
	}
	r.lastWords()
}

func testSend(r *rig) {
	fd, peer := r.pair()
	read := readAll(peer)
	// Known at once, delivered by Poll also if it may not wait.
	k := r.send(fd, pattern(0, 100))
	require.Zero(r, k.done, "delivered by Submit")
	for range 10 {
		require.NoError(r, r.Poll(0, r.deliver))
	}
	require.Equal(r, 100, r.result(k).n)
	// Sixteen pieces, byte for byte.
	at := 100
	for _, size := range []int{0, 1, 16, 1000, 100_000} {
		k := r.send(fd, cut(pattern(at, size), loop.VecsMax)...)
		require.Equal(r, result{n: size}, r.result(k))
		at += size
	}
	// Nothing at all is sent at once.
	require.Equal(r, result{}, r.result(r.send(fd)))
	r.close(fd)
	got := await(r, read)
	require.Len(r, got, at)
	require.True(r, matches(got, 0))
}

// blockedSend sends to a peer that does not read, until a send stays in flight.
func (r *rig) blockedSend(fd int32) *task {
	text := pattern(0, 1<<20)
	k := r.send(fd, cut(text, loop.VecsMax)...)
	for range 100 {
		r.pollFor(quiet)
		if k.done == 0 {
			return k
		}
		require.Zero(r, k.Err)
		require.NotZero(r, k.N)
		r.again(k)
	}
	require.FailNow(r, "a socket that takes everything")
	return nil
}

func testSendSlow(r *rig) {
	const total = 32 << 20
	fd, peer := r.pair()
	text := pattern(0, total)
	sent := 0
	k := &task{}
	k.then = func(res result) {
		require.Zero(r, res.err)
		require.LessOrEqual(r, res.n, total-sent)
		if sent += res.n; sent < total {
			k.Vecs = cut(text[sent:], loop.VecsMax)
			r.again(k)
		}
	}
	r.startAs(k, loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: cut(text, loop.VecsMax)}})
	r.pollFor(2 * quiet)
	require.Less(r, sent, total)
	require.True(r, k.InFlight())

	read := make(chan []byte, 1)
	go func() { // in fits and starts
		got := make([]byte, 0, total)
		for i := 0; ; i++ {
			if i%64 == 0 {
				time.Sleep(time.Millisecond)
			}
			n, err := peer.Read(got[len(got):cap(got)])
			if got = got[:len(got)+n]; err != nil || len(got) == total {
				read <- got
				return
			}
		}
	}()
	r.until("all to be sent", func() bool { return sent == total })
	got := await(r, read)
	require.Len(r, got, total)
	require.True(r, matches(got, 0))
	r.close(fd)
}

func testSendCancel(r *rig) {
	fd, _ := r.pair()
	k := r.blockedSend(fd)
	r.Cancel(&k.Op)
	r.Cancel(&k.Op)
	res := r.result(k)
	require.True(r, res.err == syscall.ECANCELED || res.n > 0, "%+v", res)
	r.close(fd)
}

func testSendReset(r *rig) {
	fd, peer := r.pair()
	k := r.blockedSend(fd)
	reset(r, peer)
	res := r.result(k)
	if res.err == 0 { // a part had gone
		r.again(k)
		res = r.result(k)
	}
	require.Contains(r, []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE}, res.err)
	require.True(r, r.Dead(fd), "whatever a receive tells")
	r.close(fd)
}

// Both directions of one connection at once, more than any socket holds.
func testBothDirections(r *rig) {
	const total = 8 << 20
	fd, peer := r.pair()
	read := readAll(peer)
	go func() { write(r, peer, pattern(0, total)) }()
	text, sent, got := pattern(0, total), 0, 0
	send, recv := &task{}, &task{}
	send.then = func(res result) {
		require.Zero(r, res.err)
		if sent += res.n; sent < total {
			send.Vecs = [][]byte{text[sent:min(sent+200_000, total)]}
			r.again(send)
		}
	}
	recv.keep = func(b *loop.Buffer) {
		require.True(r, matches(b.Bytes()[:recv.N], got))
		got += recv.N
		b.Release()
	}
	recv.then = func(res result) {
		require.True(r, res.n > 0 || got == total, "%+v", res)
		if recv.done > 0 && got < total {
			r.again(recv)
		}
	}
	r.startAs(recv, loop.Op{Code: loop.RecvMulti, FD: fd})
	r.startAs(send, loop.Op{Code: loop.Send, FD: fd, Msg: &loop.Msg{Vecs: [][]byte{text[:10]}}})
	r.until("all bytes", func() bool { return sent == total && got == total })
	if recv.InFlight() {
		r.Cancel(&recv.Op)
		r.until("the cancel", func() bool { return !recv.InFlight() })
	}
	r.close(fd)
	back := await(r, read)
	require.Len(r, back, total)
	require.True(r, matches(back, 0))
}

// What is unsent shrinks when the peer reads: that is progress of a send.
func testUnsent(r *rig) {
	fd, peer := r.pair()
	require.False(r, r.Dead(fd))
	require.Zero(r, r.Unsent(fd))
	k := r.blockedSend(fd)
	before := r.Unsent(fd)
	require.Positive(r, before)
	read := readAll(peer)
	r.until("the send", func() bool { return k.done > 0 })
	end := time.Now().Add(patience)
	for r.Unsent(fd) >= before && time.Now().Before(end) {
		r.pollFor(time.Millisecond)
	}
	require.Less(r, r.Unsent(fd), before)
	r.close(fd)
	await(r, read)
}

// A descriptor is quiet while a receive would wait, not when one has taken all
// that it had room for.
func testQuiet(r *rig) {
	const size = loop.HeadBytes
	fd, peer := r.pair()
	loud := func() {
		r.Helper()
		end := time.Now().Add(patience)
		for r.Quiet(fd) && time.Now().Before(end) {
			r.pollFor(time.Millisecond)
		}
		require.False(r, r.Quiet(fd))
	}
	require.True(r, r.Quiet(fd))
	for _, more := range []int{0, 1} {
		k := r.recv(fd)
		write(r, peer, pattern(0, size+more))
		for got := r.result(k).n; got < size; got += r.result(k).n { // it may come in parts
			r.again(k)
		}
		require.Equal(r, more == 0, r.Quiet(fd))
		if more > 0 {
			require.Equal(r, more, r.result(r.recv(fd)).n)
			require.True(r, r.Quiet(fd))
		}
	}

	raw, err := peer.SyscallConn()
	require.NoError(r, err)
	require.NoError(r, raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
		return true
	}))
	require.NoError(r, err)
	loud()
	k := r.recv(fd)
	write(r, peer, pattern(0, 10))
	require.Equal(r, 10, r.result(k).n, "what is behind the urgent byte")
	require.NoError(r, peer.CloseWrite())
	loud()
	require.Equal(r, result{}, r.result(r.recv(fd)))
	r.close(fd)

	fd, peer = r.pair()
	reset(r, peer)
	loud()
	require.Equal(r, syscall.ECONNRESET, r.result(r.recv(fd)).err)
	r.close(fd)
}

// A series that ends, after so many bytes, hides none: the last receive is not cut
// short.
func testMultiWhole(r *rig) {
	fd, peer := r.pair()
	k := r.recvMulti(fd)
	total, began := 0, 0 // bytes sent, and those before the series
	for _, n := range []int{20_000, 60_000} {
		write(r, peer, pattern(total, n))
		total += n
		for len(k.data) < total {
			r.until("more", func() bool { return k.done > 0 || len(k.data) == total })
			if k.done == 0 {
				break
			}
			last := k.results[len(k.results)-1].n
			require.False(r, last < loop.HeadBytes && len(k.data)-began == loop.MultiBytes, "cut to %d bytes", last)
			began = len(k.data)
			r.again(k)
		}
	}
	require.True(r, matches(k.data, 0))
	r.Cancel(&k.Op)
	require.Equal(r, syscall.ECANCELED, r.result(k).err)
	r.close(fd)
}
