package loop_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/stretchr/testify/require"
)

func TestMailboxOrderAndNextTurn(t *testing.T) {
	var wakes int
	m := loop.NewMailbox(func() { wakes++ })
	var got []int
	m.Run()
	m.Post(func() {
		got = append(got, 1)
		m.Post(func() { got = append(got, 3) })
	})
	m.Post(func() { got = append(got, 2) })
	require.Equal(t, 1, wakes, "one wake-up per turn is enough")
	m.Run()
	require.Equal(t, []int{1, 2}, got)
	require.Equal(t, 2, wakes)
	m.Run()
	m.Run()
	require.Equal(t, []int{1, 2, 3}, got)
}

func TestMailboxFromManyGoroutines(t *testing.T) {
	const posters, each = 8, 1000
	wake := make(chan struct{}, 1)
	m := loop.NewMailbox(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	var wg sync.WaitGroup
	var posted atomic.Int64
	last := make([]int, posters)
	ran := 0
	for p := range posters {
		wg.Go(func() {
			for i := range each {
				posted.Add(1)
				m.Post(func() { // on this goroutine: no lock
					require.Equal(t, i, last[p])
					last[p]++
					ran++
				})
			}
		})
	}
	for ran < posters*each {
		<-wake // a lost wake-up hangs here
		m.Run()
	}
	wg.Wait()
	require.EqualValues(t, posters*each, posted.Load())
}
