package loop

// chunkSize is how many elements a Table grows by. Chunks so large have pages of
// their own, of which those that nothing was written to take no memory.
const chunkSize = 1024

// Table is an array that grows, whose elements stay where they are. Growing
// copies nothing and leaves no garbage, and at most one chunk is unused. The
// zero Table is ready to use.
type Table[T any] struct {
	chunks []*[chunkSize]T
}

// Len is the number of elements, those not used yet among them.
func (t *Table[T]) Len() int { return len(t.chunks) * chunkSize }

// At returns the element with the index, which must be below Len.
func (t *Table[T]) At(i int) *T { return &t.chunks[uint(i)/chunkSize][uint(i)%chunkSize] }

// Grow makes Len at least n. New elements are zero.
func (t *Table[T]) Grow(n int) {
	for t.Len() < n {
		t.chunks = append(t.chunks, new([chunkSize]T))
	}
}
