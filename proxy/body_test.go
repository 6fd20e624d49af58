package proxy

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/message"
	"github.com/stretchr/testify/require"
)

// The framing of as many chunks as one buffer holds, the first one a small
// piece, finds room whatever was written before.
func TestChunksFindRoom(t *testing.T) {
	var wire bytes.Buffer
	payload := 0
	add := func(n int) {
		fmt.Fprintf(&wire, "%x\r\n%s\r\n", n, make([]byte, n))
		payload += n
	}
	add(smallPiece)
	for wire.Len()+pushBytes+10 < loop.BodyBytes {
		add(pushBytes + 1)
	}
	for used := 0; used <= loop.SmallBytes; used++ {
		pool := loop.NewPool(8 << 20)
		p := &Proxy{pool: pool}
		c := &conn{p: p, work: &p.nothing}
		require.True(t, c.room(used))
		c.write(append(c.scratch(), make([]byte, used)...))
		var in inQueue
		buf := pool.Get(loop.ClassBody)
		in.add(buf, copy(buf.Bytes(), wire.Bytes()))
		var b body
		b.start(message.FramingChunked, 0, true, -1)
		require.NoError(t, b.move(&in, c))
		require.EqualValues(t, payload, b.moved)
		c.out.drop()
		c.dropPad()
		require.Zero(t, pool.Lent())
		require.NoError(t, pool.Close())
	}
}
