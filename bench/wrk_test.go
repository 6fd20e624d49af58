package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const wrkGood = `Running 1s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.61ms    3.19ms  33.28ms   93.08%
    Req/Sec    72.31k    14.86k   88.10k    72.73%
  Latency Distribution
     50%  635.00us
     75%    0.99ms
     90%    3.41ms
     99%    1.50s 
  78885 requests in 1.10s, 11.06MB read
Requests/sec:  71714.24
Transfer/sec:     10.06MB
`

func TestParseWrk(t *testing.T) {
	w, err := parseWrk(wrkGood)
	require.NoError(t, err)
	require.Equal(t, Wrk{Requests: 78885, Rate: 71714.24, P50: 635, P99: 1.5e6}, w)
	require.Zero(t, w.Errors())

	w, err = parseWrk(wrkGood + "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 50\n")
	require.NoError(t, err)
	require.Equal(t, Wrk{
		Requests: 78885, Rate: 71714.24, P50: 635, P99: 1.5e6,
		ConnectErrors: 1, ReadErrors: 2, WriteErrors: 3, Timeouts: 4, BadStatus: 50,
	}, w)
	require.EqualValues(t, 60, w.Errors())
}

func TestParseWrkRefuses(t *testing.T) {
	_, err := parseWrk("unable to connect to 127.0.0.1:8080 Connection refused\n")
	require.ErrorContains(t, err, `no "50%"`)
	require.ErrorContains(t, err, "Connection refused")
	_, err = parseWrk("  Latency Distribution\n     50%  fast\n")
	require.ErrorContains(t, err, "50%  fast")
}
