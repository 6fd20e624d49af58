package loop

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	var table Table[int]
	require.Zero(t, table.Len())
	table.Grow(1)
	require.Equal(t, chunkSize, table.Len())
	first := table.At(0)
	*first = 7
	table.Grow(10 * chunkSize)
	require.Equal(t, 10*chunkSize, table.Len())
	require.Same(t, first, table.At(0), "elements do not move")
	require.Equal(t, 7, *table.At(0))
	for i := 1; i < table.Len(); i++ {
		require.Zero(t, *table.At(i))
		*table.At(i) = i
	}
	table.Grow(3)
	require.Equal(t, 10*chunkSize, table.Len(), "it does not shrink")
	for i := 1; i < table.Len(); i++ {
		require.Equal(t, i, *table.At(i))
	}
}
