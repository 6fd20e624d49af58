package integration

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An address is added and removed again and again, under the load of clients
// that open a connection for each request there and at an address that stays:
// the one that stays loses nothing, and the other one serves as long as it is
// configured.
func TestEventAddresses(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		cycles := pick(100, 8)
		w := foundTown(t, 2)
		other := freePort(t)
		one := w.config(0)
		both := withAddress(one, other)
		c := startCup(t, engine, one)
		pids := c.workers()
		here := settle(t, c.addr, 8)
		stays := startLoad(t, 32, func(worker, turn int) error {
			if worker < len(here.open) {
				_, err := here.request(worker, func(b *browser) (answer, error) { return b.get("", 1000, int64(turn), "") })
				return err
			}
			return onePerConnection(c.addr)(worker, turn)
		})
		// Even when it was acknowledged that the address is there, odd from
		// the moment when it is asked to go.
		var age, refused atomic.Int64
		age.Store(1)
		goes := startLoad(t, 16, func(worker, turn int) error {
			before := age.Load()
			err := onePerConnection(other)(worker, turn)
			if before%2 == 1 || age.Load() != before {
				refused.Add(1)
				// It may be gone, but what was accepted is served.
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
					time.Sleep(time.Millisecond) // as a client would, not to spin
					return nil
				}
			}
			return err
		})
		var took []time.Duration
		reload := func(text string) {
			c.write(text)
			took = append(took, timed(func() {
				_, err := c.admin.Reload()
				require.NoError(t, err)
			}))
		}
		for range cycles {
			stays.more(50)
			reload(both)
			age.Add(1)
			goes.more(50)
			age.Add(1)
			reload(one)
			_, err := openBrowser(other)
			require.ErrorIs(t, err, syscall.ECONNREFUSED, "after it was acknowledged that the address is gone")
		}
		stays.renewed()
		failed, other16 := stays.stop(), goes.stop()
		median, most := spread(took)
		report(t, fmt.Sprintf("an address added and removed %d times, %s", cycles, engine),
			"%d failed of %d requests at the other address, %d of %d at the one that came and went; reloads p50 %v, max %v",
			len(failed), stays.done.Load(), len(other16), goes.done.Load()-refused.Load(), median, most)
		require.Empty(t, failed)
		require.Empty(t, other16)
		require.Equal(t, pids, c.workers(), "the workers")
	})
}

// The number of workers changes under load: no connection is lost, and clients
// with a connection that stays learn by the last response that it ends.
func TestEventWorkerCount(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 1)
		c := startCup(t, engine, w.config(0))
		var took []time.Duration
		work := func(workers int) {
			w.workers = workers
			c.write(w.config(0))
			took = append(took, timed(func() {
				_, err := c.admin.Reload()
				require.NoError(t, err)
			}))
			require.Equal(t, workers, runningWorkers(c))
		}
		l := startLoad(t, 32, onePerConnection(c.addr))
		work(4)
		// These come to all four.
		tunnels := startTunnels(t, c.addr, "/fixed/tunnel", 8)
		var moved atomic.Int64
		stay := settle(t, c.addr, 16)
		kept := startLoad(t, 16, func(worker, turn int) error {
			_, err := stay.request(worker, func(b *browser) (answer, error) { return b.get("", 1000, int64(turn), "") })
			if errors.Is(err, errMoved) {
				moved.Add(1)
				return nil
			}
			return err
		})
		rounds := pick(20, 2)
		for range rounds {
			for _, workers := range []int{2, 4, 1, 4} {
				work(workers)
				l.more(200)
				kept.more(50)
			}
		}
		l.renewed()
		tunnels.renewed()
		failed := append(append(l.stop(), kept.stop()...), tunnels.stop()...)
		median, most := spread(took)
		report(t, fmt.Sprintf("workers 1, 4, then %d times 2, 4, 1, 4, %s", rounds, engine),
			"%d failed of %d requests and %d messages in tunnels, %d connections ended in order; reloads p50 %v, max %v",
			len(failed), l.done.Load()+kept.done.Load(), tunnels.done.Load(), moved.Load(), median, most)
		require.Empty(t, failed)
	})
}
