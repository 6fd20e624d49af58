package loop_test

import (
	"syscall"
	"testing"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/stretchr/testify/require"
)

func TestPoolLendsUpToItsLimit(t *testing.T) {
	p := loop.NewPool(loop.HeadBytes + loop.SmallBytes)
	defer func() { require.NoError(t, p.Close()) }()
	head, small := p.Get(loop.ClassHead), p.Get(loop.ClassSmall)
	require.Len(t, head.Bytes(), loop.HeadBytes)
	require.Len(t, small.Bytes(), loop.SmallBytes)
	require.Equal(t, p.Limit(), p.Lent())
	require.Nil(t, p.Get(loop.ClassSmall))

	p.SetLimit(p.Limit() + loop.SmallBytes)
	more := p.Get(loop.ClassSmall)
	require.NotNil(t, more)
	require.NotEqual(t, small.ID(), more.ID())
	require.Same(t, more, p.Buffer(loop.ClassSmall, more.ID()))
	for _, b := range []*loop.Buffer{head, small, more} {
		require.EqualValues(t, 1, b.Refs())
		b.Release()
	}
	require.Zero(t, p.Lent())
}

func TestPoolCountsLenders(t *testing.T) {
	p := loop.NewPool(1 << 20)
	p.Poison = true
	defer func() { require.NoError(t, p.Close()) }()
	b := p.Get(loop.ClassSmall)
	b.Retain()
	copy(b.Bytes(), "kept")
	b.Release()
	require.Equal(t, "kept", string(b.Bytes()[:4]))
	require.Equal(t, loop.SmallBytes, p.Lent())
	b.Release()
	require.Equal(t, "\xDB\xDB\xDB\xDB", string(b.Bytes()[:4]))
	require.Zero(t, p.Lent())
	require.Panics(t, b.Release)
}

func TestPoolLendsTheLastReturnedFirst(t *testing.T) {
	p := loop.NewPool(1 << 20)
	defer func() { require.NoError(t, p.Close()) }()
	a, b := p.Get(loop.ClassHead), p.Get(loop.ClassHead)
	b.Release()
	a.Release()
	require.Same(t, a, p.Get(loop.ClassHead))
	require.Same(t, b, p.Get(loop.ClassHead))
}

// The limit is common: a class that was refused a buffer hears of it when one
// of another class comes back, and when the limit is raised.
func TestPoolTellsWhoWasRefused(t *testing.T) {
	p := loop.NewPool(loop.BodyBytes)
	defer func() { require.NoError(t, p.Close()) }()
	var told []loop.Class
	p.Returned = func(c loop.Class) { told = append(told, c) }

	body := p.Get(loop.ClassBody)
	require.Nil(t, p.Get(loop.ClassHead))
	require.Empty(t, told)
	body.Release()
	require.Equal(t, []loop.Class{loop.ClassHead}, told)

	body = p.Get(loop.ClassBody)
	body.Release()
	require.Len(t, told, 1, "nobody was refused since")

	body = p.Get(loop.ClassBody)
	require.Nil(t, p.Get(loop.ClassSmall))
	p.SetLimit(2 * loop.BodyBytes)
	require.Equal(t, []loop.Class{loop.ClassHead, loop.ClassSmall}, told)
	body.Release()
}

func TestPoolTrimGivesPagesBack(t *testing.T) {
	p := loop.NewPool(16 << 20)
	defer func() { require.NoError(t, p.Close()) }()
	var lent []*loop.Buffer
	for range 32 { // 8 MiB
		b := p.Get(loop.ClassBody)
		b.Bytes()[0], b.Bytes()[loop.BodyBytes-1] = 1, 1
		lent = append(lent, b)
	}
	require.Equal(t, 8<<20, p.Mapped())
	for _, b := range lent {
		b.Release()
	}
	p.Trim(2 << 20)
	kept := 0
	for _, b := range lent {
		if b.Bytes()[0] != 0 {
			require.EqualValues(t, 1, b.Bytes()[loop.BodyBytes-1])
			kept++
		}
	}
	require.Equal(t, 8, kept, "2 MiB stay hot")
	require.NotZero(t, lent[len(lent)-1].Bytes()[0], "the last returned is hot")

	again := p.Get(loop.ClassBody)
	again.Release()
	p.Trim(2 << 20)
	require.Equal(t, 8<<20, p.Mapped())
}

func TestPoolAllocatesNothing(t *testing.T) {
	p := loop.NewPool(1 << 20)
	defer func() { require.NoError(t, p.Close()) }()
	p.Get(loop.ClassHead).Release()
	require.Zero(t, testing.AllocsPerRun(1000, func() { p.Get(loop.ClassHead).Release() }))
}

// Free pipes are closed in time, the hottest last, and opened again when used.
func TestTrimClosesPipes(t *testing.T) {
	p := loop.NewPool(3 * loop.PipeBytes)
	defer func() { require.NoError(t, p.Close()) }()
	lent, cold, hot := p.Get(loop.ClassPipe), p.Get(loop.ClassPipe), p.Get(loop.ClassPipe)
	cold.Release()
	hot.Release()
	open := func() (n int) {
		for _, b := range []*loop.Buffer{lent, cold, hot} {
			if from, _ := b.Ends(); from != 0 {
				n++
			}
		}
		return n
	}
	require.Equal(t, 3, open())
	p.Trim(loop.PipeBytes)
	require.Equal(t, 2, open())
	require.Same(t, hot, p.Get(loop.ClassPipe))
	hot.Release()
	p.Trim(0)
	require.Equal(t, 1, open())
	require.Same(t, hot, p.Get(loop.ClassPipe))
	require.Equal(t, 2, open())
	hot.Release()
	lent.Release()
}

func TestPoolLendsFewPipes(t *testing.T) {
	p := loop.NewPool(3 * loop.PipeBytes)
	p.Pipes = 2
	defer func() { require.NoError(t, p.Close()) }()
	first, second := p.Get(loop.ClassPipe), p.Get(loop.ClassPipe)
	require.Nil(t, p.Get(loop.ClassPipe), "there are no more")
	require.Equal(t, 2*loop.PipeBytes, p.Lent())
	require.Empty(t, first.Bytes())
	require.True(t, first.IsPipe())

	// One that is given back with bytes in it comes back empty.
	_, to := second.Ends()
	n, err := syscall.Write(int(to), make([]byte, loop.PipeBytes))
	require.NoError(t, err)
	require.Equal(t, loop.PipeBytes, n, "the size of a pipe")
	second.Moved(n)
	second.Release()
	second = p.Get(loop.ClassPipe)
	require.Zero(t, second.Piped())
	from, _ := second.Ends()
	_, err = syscall.Read(int(from), make([]byte, 1))
	require.Equal(t, syscall.EAGAIN, err)

	// They count as memory.
	body := p.Get(loop.ClassBody)
	second.Release()
	more := p.Get(loop.ClassBody)
	require.NotNil(t, more)
	require.Nil(t, p.Get(loop.ClassPipe))
	p.Trim(0)
	for _, b := range []*loop.Buffer{first, body, more} {
		b.Release()
	}
	require.Zero(t, p.Lent())
}
