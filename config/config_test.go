package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseFillsDefaults(t *testing.T) {
	c, err := Parse("cup.json", []byte(`{
		"root": "127.0.0.1:8080", // comment
		"routes": {"*": {"backends": [{"host": "127.0.0.1:8081"}]}},
	}`), "/etc/cup")
	require.NoError(t, err)
	timeouts := Timeouts{
		ClientHead: 10 * time.Second, ClientBody: 30 * time.Second, ClientIdle: time.Minute,
		Connect: 2 * time.Second, Response: time.Minute, BackendIdle: 55 * time.Second,
		Drain: 30 * time.Second,
	}
	limits := Limits{
		HeadBytes: 32 << 10, Headers: 100, TargetBytes: 8 << 10, BodyBytes: -1,
		Connections: 50_000, Memory: 512 << 20,
	}
	require.Equal(t, &Config{
		Root: []string{"127.0.0.1:8080"},
		Routes: []Route{{
			Pattern:  "*",
			Strategy: "round-robin",
			Backends: []Backend{{Host: "127.0.0.1:8081", MaxFailure: 5, Cooldown: 2 * time.Second}},
			Timeouts: timeouts,
			Limits:   limits,
		}},
		Timeouts: timeouts,
		Limits:   limits,
	}, c)
	require.NoError(t, c.Servable())
}
