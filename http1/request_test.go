package http1

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

func TestRequestPrefixes(t *testing.T) {
	for _, head := range []string{wrkGet, browserGet} {
		var h message.Head
		for i := range len(head) {
			var p RequestParser
			_, err := p.Parse(&h, []byte(head[:i]), nil)
			require.Equal(t, ErrPartial, err, "prefix %q", head[:i])
		}
		var p RequestParser
		n, err := p.Parse(&h, []byte(head), nil)
		require.NoError(t, err)
		require.Equal(t, len(head), n)
	}
}
