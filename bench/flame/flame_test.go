package flame

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const samples = `worker 1234
	ffffffff81e7e37f sock_sendmsg
	ffffffff82259cc1 do_syscall_64
	            a90e internal/runtime/syscall/linux.Syscall6
	          35fc56 example.org/ring.(*uring).enter
	           8d021 main.main

     worker 0  1234 
	          35fc56 example.org/http1.parse[go.shape.int]
	           8d021 main.main

worker 1234
	           8d021 main.main
`

func TestRead(t *testing.T) {
	root, err := Read(strings.NewReader(samples))
	require.NoError(t, err)
	require.Equal(t, 3, root.Count)
	main := root.Calls()
	require.Len(t, main, 1)
	require.Equal(t, "main.main", main[0].Name)
	require.Equal(t, 3, main[0].Count)
	require.False(t, main[0].Kernel)
	calls := main[0].Calls()
	require.Len(t, calls, 2)
	require.Equal(t, "example.org/http1.parse[go.shape.int]", calls[0].Name)
	require.Equal(t, 1, calls[0].Count)
	require.True(t, calls[1].Calls()[0].Calls()[0].Kernel)

	kernel, library := root.Shares()
	require.InDelta(t, 1.0/3, kernel, 1e-9)
	require.Zero(t, library, "no sample was taken there")

	_, err = Read(strings.NewReader(""))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = Read(strings.NewReader("\t8d021 main.main\n"))
	require.ErrorContains(t, err, "outside of a sample")
}

// The image is well-formed, names every function, and gives each its width.
func TestSVG(t *testing.T) {
	root, err := Read(strings.NewReader(samples))
	require.NoError(t, err)
	var b strings.Builder
	require.NoError(t, SVG(&b, root, "a <title>"))
	var image struct {
		Rects []struct {
			Class string  `xml:"class,attr"`
			X     float64 `xml:"x,attr"`
			Width string  `xml:"width,attr"`
			Title string  `xml:"title"`
		} `xml:"rect"`
	}
	require.NoError(t, xml.Unmarshal([]byte(b.String()), &image))
	var seen []string
	for _, r := range image.Rects[1:] {
		seen = append(seen, r.Class+" "+r.Width+" "+r.Title)
	}
	require.Equal(t, []string{
		"u 1200.0 all: 100.00 %",
		"u 1200.0 main.main: 100.00 %",
		"u 400.0 example.org/http1.parse[go.shape.int]: 33.33 %",
		"u 400.0 example.org/ring.(*uring).enter: 33.33 %",
		"g 400.0 internal/runtime/syscall/linux.Syscall6: 33.33 %",
		"k 400.0 do_syscall_64: 33.33 %",
		"k 400.0 sock_sendmsg: 33.33 %",
	}, seen)
	require.Contains(t, b.String(), "a &lt;title&gt;")
	require.Contains(t, b.String(), ">http1.parse[go.shape.int]<")
}
