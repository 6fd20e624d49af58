package supervisor

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The old master's answer is that to what was asked; late ones to what was asked
// before count for nothing, and with its end there is nobody left to follow.
func TestFollow(t *testing.T) {
	g, err := parse("x.json", []byte(configWith(1, "127.0.0.1:0")), t.TempDir(), sourceFile)
	require.NoError(t, err)
	g.number = 7
	h, p := linked(t, testLog{t})
	p.followed = make(chan heirMessage, lateMax)
	m := newMaster(testOptions("x", testLog{t}))
	m.before = p
	go m.hearPredecessor()

	answer := func(answers ...heirMessage) error {
		done := make(chan error, 1)
		go func() { done <- p.follow(g) }()
		msg := <-h.messages
		if msg.Type == heirServes {
			msg = <-h.messages
		}
		require.Equal(t, heirConfig, msg.Type)
		config := new(handedConfig)
		require.NoError(t, msg.decode(config))
		require.Equal(t, g.text, config.Text)
		for _, a := range answers {
			require.NoError(t, h.say(a))
		}
		return <-done
	}
	require.NoError(t, answer(heirMessage{Type: heirFollowed, Generation: 7}))
	late := heirMessage{Type: heirFollowed, Generation: 6, Error: "of another one"}
	require.NoError(t, answer(late, heirMessage{Type: heirFollowed, Generation: 7}))
	require.EqualError(t, answer(heirMessage{Type: heirFollowed, Generation: 7, Error: "I cannot"}), "I cannot")
	require.NoError(t, answer(heirMessage{Type: heirEnd}))
	require.NoError(t, p.follow(g), "nobody is there any more")
	require.NoError(t, (*predecessor)(nil).follow(g))
}
