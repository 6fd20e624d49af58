package message

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An operator finds every reason by its word, and every one is explained.
func TestReasonsAreExplained(t *testing.T) {
	words := map[string]bool{}
	for _, r := range Reasons() {
		word := r.String()
		require.NotEmpty(t, word)
		require.False(t, words[word], "%s stands twice", word)
		words[word] = true
		found, ok := ReasonOf(word)
		require.True(t, ok)
		require.Equal(t, r, found)

		e := r.Explain()
		require.NotEmpty(t, e.Hint, word)
		require.LessOrEqual(t, len(e.Hint), 40, "%s: a hint stands in a table", word)
		require.True(t, strings.HasSuffix(e.Meaning, "."), "%s: a meaning is made of sentences", word)
		require.NotEmpty(t, e.Causes, word)
		require.NotEmpty(t, e.Advice, word)
		for _, line := range append(append([]string{e.Hint}, e.Causes...), e.Advice...) {
			require.NotEmpty(t, line, word)
			require.False(t, strings.HasSuffix(line, "."), "%s: %q stands in a list", word, line)
		}
	}
	for _, unknown := range []string{"", "none", "nothing"} {
		_, ok := ReasonOf(unknown)
		require.False(t, ok, unknown)
	}
}
