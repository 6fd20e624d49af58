package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAccessLogInherits(t *testing.T) {
	c, err := Parse("cup.json", []byte(`{
		"root": ":80",
		"routes": {
			"*":  {"backends": [{"host": "a.b:1"}]},
			"/a": {"backends": [{"host": "a.b:1"}], "access_log": {"format": "json"}},
			"/b": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "off"}},
			"/c": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "/dev/c"}},
			"/d": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "stderr", "format": "combined"}},
			"/e": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "logs/../all.log"}},
			"/f": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "./stderr"}},
		},
		"access_log": {"file": "all.log", "format": "cup"},
	}`), "/etc/cup")
	require.NoError(t, err)
	want := []AccessLog{
		{"/etc/cup/all.log", LogCup}, {"/etc/cup/all.log", LogJSON}, {"", LogCup}, {"/dev/c", LogCup},
		{LogStderr, LogCombined}, {"/etc/cup/all.log", LogCup}, {"/etc/cup/stderr", LogCup},
	}
	for i, r := range c.Routes {
		require.Equal(t, want[i], r.AccessLog, r.Pattern)
	}
	require.Equal(t, want[0], c.AccessLog)
	var files []string
	for i := range c.LogFiles {
		files = append(files, c.LogFiles[i].Path)
	}
	require.Equal(t, []string{"/etc/cup/all.log", "/dev/c", "/etc/cup/stderr"}, files)
	require.EqualError(t, c.LogFiles[1].Mistake(errors.New("it is odd")), strings.Join([]string{
		`cup.json:7:67: access_log.file: it is odd`,
		`  			"/c": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "/dev/c"}},`,
		`  			                                                               ^`,
	}, "\n"))
	var list Errors
	require.ErrorAs(t, c.LogFiles[0].Mistake(errors.New("")), &list)
	require.Equal(t, 12, list[0].Line)
}

func TestLogFilesAreBounded(t *testing.T) {
	text := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"/%d": {"backends": [{"host": "a.b:1"}], "access_log": {"file": "%d.log"}},`, i, i%(logFilesMax+1))
		}
		return []byte(`{"root": ":80", "routes": {` + b.String() + `"*": {"backends": [{"host": "a.b:1"}]}}}`)
	}
	c, err := Parse("cup.json", text(logFilesMax), "")
	require.NoError(t, err)
	require.Len(t, c.LogFiles, logFilesMax)
	_, err = Parse("cup.json", text(logFilesMax+1), "")
	require.ErrorContains(t, err, "this is the 65th file of access logs, at most 64 are possible")
}
