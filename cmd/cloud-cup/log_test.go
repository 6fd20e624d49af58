package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is read comes at once and in order.
func TestErrorOutput(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	e := newErrorOutput(w)
	lines := bufio.NewReader(r)
	for i := range 100 {
		want := fmt.Sprintf("line %d\n", i)
		n, err := io.WriteString(e, want)
		require.NoError(t, err)
		require.Equal(t, len(want), n)
		got, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	e.flush()
	require.NoError(t, w.Close())
}

// Nobody waits for a reader that is stuck. When it reads again it gets what
// waited, in order, and learns how much was dropped.
func TestErrorOutputIsStuck(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	e := newErrorOutput(w)
	text := make([]byte, 1000)
	for i := range text {
		text[i] = 'x'
	}
	const count = 2 * linesMax
	begin := time.Now()
	for i := range count {
		_, err := fmt.Fprintf(e, "%04d %s\n", i, text)
		require.NoError(t, err)
	}
	// If each waited, it would be 40 s.
	require.Less(t, time.Since(begin), count*lineWait/4)
	begin = time.Now()
	e.flush()
	require.Less(t, time.Since(begin), 5*endWait)

	lines := bufio.NewReader(r)
	taken := 0
	for ; ; taken++ {
		got, err := lines.ReadString('\n')
		require.NoError(t, err)
		if got[0] == '{' {
			require.Contains(t, got, "lines of the log were dropped")
			require.Contains(t, got, fmt.Sprintf(`"lines":%d}`, count-taken))
			break
		}
		require.Equal(t, fmt.Sprintf("%04d ", taken), got[:5])
	}
	require.GreaterOrEqual(t, taken, linesMax)
	require.NoError(t, w.Close())
}
