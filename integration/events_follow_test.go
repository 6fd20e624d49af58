package integration

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Workers that leave serve the last requests of their connections by the
// configuration that was acknowledged last: those of slots that were given up,
// and those of masters that were upgraded.
func TestEventLeavingWorkersFollow(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		w := foundTown(t, 4)
		c, _ := startFrom(t, engine, w.config(0))
		var generation int64
		reload := func() {
			generation++
			c.write(w.config(generation))
			_, err := c.admin.Reload()
			require.NoError(t, err)
		}
		for name, leave := range map[string]func(){
			"given up": func() { w.workers = 1; reload() },
			"upgraded": func() { c.upgrade() },
			"upgraded twice, then given up": func() {
				c.upgrade()
				c.upgrade()
				w.workers = 1
				reload()
			},
		} {
			w.workers = 4
			reload()
			here := settle(t, c.addr, 24)
			u := dig(t, c.addr, "/changed/tunnel")
			for i := range here.open {
				_, err := here.open[i].get("/changed", 100, 1, "")
				require.NoError(t, err)
			}
			leave()
			reload()
			reload()
			moved := 0
			for i, b := range here.open {
				a, err := b.get(fmt.Sprintf("/only-%d", generation), 100, int64(i), "")
				require.NoError(t, err, name)
				require.Equal(t, w.turn(generation).name, a.backend, "%s: an older configuration", name)
				if a.closes {
					moved++
				}
			}
			require.NotZero(t, moved, "%s: no worker left", name)
			require.NoError(t, u.echo(), name)
			require.NoError(t, u.conn.Close())
		}
	})
}
