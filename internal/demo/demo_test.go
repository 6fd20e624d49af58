package demo

import (
	"io"
	"net/http"
	"testing"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/stretchr/testify/require"
)

func TestBackendsAnswerWithTheirNames(t *testing.T) {
	d, err := Start()
	require.NoError(t, err)
	cfg, err := config.Parse(Name, d.Text, "/")
	require.NoError(t, err)
	names := map[string]string{"*": `"home"`, "/game/*": `"game"`}
	require.Len(t, cfg.Routes, len(names))
	for _, r := range cfg.Routes {
		resp, err := http.Get("http://" + r.Backends[0].Host + "/game/1")
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Contains(t, string(body), names[r.Pattern])
		require.Contains(t, string(body), "/game/1")
	}
	require.NoError(t, d.Close())
	_, err = http.Get("http://" + cfg.Routes[0].Backends[0].Host + "/")
	require.Error(t, err)
}
