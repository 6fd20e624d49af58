package shm

import (
	"reflect"
	"testing"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPageIsSharedByItsMappings(t *testing.T) {
	page, fd, err := Create()
	require.NoError(t, err)
	defer unix.Close(fd)
	other, err := Map(fd)
	require.NoError(t, err)
	other.Counters.Requests = 7
	other.Counters.Reasons[ReasonsMax-1] = 9
	other.Counters.Generation = 3
	require.Equal(t, other.Counters, page.Counters)
	require.EqualValues(t, 7, page.Counters.Requests)
	require.NoError(t, other.Close())
	require.NoError(t, page.Close())
}

func TestPageSizeIsWhatTheLayoutSays(t *testing.T) {
	require.EqualValues(t, pageBytes, reflect.TypeFor[Page]().Size())
}

func TestMapRefusesAnotherLayout(t *testing.T) {
	for name, change := range map[string]func(*Page){
		"magic":   func(p *Page) { p.magic++ },
		"version": func(p *Page) { p.version++ },
		"size":    func(p *Page) { p.size-- },
	} {
		t.Run(name, func(t *testing.T) {
			page, fd, err := Create()
			require.NoError(t, err)
			defer unix.Close(fd)
			change(page)
			_, err = Map(fd)
			require.ErrorContains(t, err, "shared memory has layout")
			require.NoError(t, page.Close())
		})
	}
	fd, err := sys.NewMemory("short", 16)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = Map(fd)
	require.ErrorContains(t, err, "16 bytes")
}

// Every word of Totals must be added: a forgotten one would go back to zero
// whenever a worker dies.
func TestAddAddsEveryWord(t *testing.T) {
	var a, b Totals
	words := func(t *Totals, each func(v reflect.Value)) {
		v := reflect.ValueOf(t).Elem()
		for i := range v.NumField() {
			f := v.Field(i)
			if f.Kind() == reflect.Array {
				for j := range f.Len() {
					each(f.Index(j))
				}
				continue
			}
			each(f)
		}
	}
	n := uint64(0)
	words(&a, func(v reflect.Value) { n++; v.SetUint(n) })
	words(&b, func(v reflect.Value) { v.SetUint(1000) })
	b.Add(&a)
	n = 0
	words(&b, func(v reflect.Value) { n++; require.Equal(t, 1000+n, v.Uint()) })
}
