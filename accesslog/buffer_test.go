package accesslog

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBufferDropsWhatNobodyTakes(t *testing.T) {
	b, w, r := NewBuffer(), NewWriter(0, "uring"), sample()
	require.True(t, b.HandOver(), "nothing to hand over")
	kept := 0
	for b.Append(w, Combined, r) {
		kept++
	}
	line := len(w.Append(nil, Combined, r))
	require.LessOrEqual(t, kept*line, BufferBytes)
	require.Greater(t, kept*line, BufferBytes-piecesMax*LineBytesMax)
	require.False(t, b.HandOver())

	first := <-b.Full()
	require.True(t, bytes.HasSuffix(first, []byte("\n")))
	b.Done(first, len(first))
	require.Zero(t, b.Lost())
	require.True(t, b.Append(w, Combined, r), "there is room again")
	require.False(t, b.HandOver(), "all others are full, and the last one has a line")

	second := <-b.Full()
	lines := countLines(second)
	b.Done(second, 2*line+1)
	require.EqualValues(t, lines-2, b.Lost(), "the third was written in part")
	require.Zero(t, b.Lost())
	require.True(t, b.HandOver())
	for !b.Idle() {
		lines := <-b.Full()
		b.Done(lines, len(lines))
	}
	require.Zero(t, b.Lost())
}

func TestCloseHandsTheRestOver(t *testing.T) {
	b, w, r := NewBuffer(), NewWriter(0, "uring"), sample()
	require.True(t, b.Idle())
	require.True(t, b.Append(w, JSON, r))
	require.False(t, b.Idle())
	b.Close(0)
	b.Close(0)
	require.False(t, b.Idle())
	lines, open := <-b.Full()
	require.True(t, open)
	require.EqualValues(t, 1, countLines(lines))
	b.Done(lines, len(lines))
	require.True(t, b.Idle())
	_, open = <-b.Full()
	require.False(t, open)
}

func TestCloseGivesUp(t *testing.T) {
	b, w, r := NewBuffer(), NewWriter(0, "uring"), sample()
	for b.HandOver() {
		require.True(t, b.Append(w, JSON, r))
	}
	b.Close(time.Millisecond)
	require.EqualValues(t, 1, b.Lost())
	for range piecesMax - 1 {
		_, open := <-b.Full()
		require.True(t, open, "what was handed over before")
	}
	_, open := <-b.Full()
	require.False(t, open)
}
