package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A certificate whose file is half written stays in use as it was, through the
// death of a worker and an upgrade, and is told of; another one is renewed
// meanwhile.
func TestUnusableCertificateHoldsUpNoOther(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel() // it mostly waits
		back, a := startBackend(t, "a"), newAuthority(t)
		one, two := a.issue("one.test", nil), a.issue("two.test", nil)
		c, _ := startFrom(t, engine, configOf([]string{back.addr}, `"workers": 2`,
			fmt.Sprintf(`"ssl": {"certificates": [{%s}, {%s}]}`, one.ssl(), two.ssl())))
		open := browseSecurely(t, c.addr, a.trusting("one.test"))
		shown := func(name string, want *pair) {
			t.Helper()
			for range 4 { // at both workers
				b, err := openSecurely(c.addr, a.trusting(name))
				require.NoError(t, err)
				require.Equal(t, want.Leaf.SerialNumber, b.conn.(secureConn).ConnectionState().PeerCertificates[0].SerialNumber)
				b.conn.Close()
			}
		}
		const told = "a changed certificate is not in use"

		renewed := [...]*pair{a.issue("one.test", nil), a.issue("two.test", nil)}
		text, err := os.ReadFile(renewed[0].crt)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(one.crt, text[:len(text)/2], 0o600))
		require.NoError(t, os.Rename(renewed[1].crt, two.crt))
		require.NoError(t, os.Rename(renewed[1].key, two.key))
		_, err = c.await("changed certificates in use")
		require.NoError(t, err)
		served := func() {
			t.Helper()
			shown("one.test", one)
			shown("two.test", renewed[1])
			refused := c.status().Refused
			require.Len(t, refused, 1)
			require.Equal(t, one.crt, refused[0].File)
		}
		served()
		_, err = open.get("", 100, 1, "")
		require.NoError(t, err)
		stdout, stderr, code := c.cupctl("certs")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, one.crt+": its new content is not in use: ")
		_, stderr, code = c.cupctl("reload")
		require.NotZero(t, code)
		require.Contains(t, stderr, "cut or damaged")

		c.kill(0)
		served()
		require.Equal(t, 1, strings.Count(c.log.text(), told))
		c.upgrade()
		shown("one.test", one)
		eventually(t, "the new master to say so, too", func() bool { return strings.Count(c.log.text(), told) == 2 })
		served()

		require.NoError(t, os.Rename(renewed[0].crt, one.crt))
		require.NoError(t, os.Rename(renewed[0].key, one.key))
		_, err = c.await("a certificate can be used again")
		require.NoError(t, err)
		eventually(t, "it to be in use", func() bool { return strings.Count(c.log.text(), "changed certificates in use") == 2 })
		shown("one.test", renewed[0])
		require.Empty(t, c.status().Refused)
	})
}
