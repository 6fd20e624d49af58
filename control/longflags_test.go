package control

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestLongFlags(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	fs.String("io", "auto", "")
	fs.String("admin", "", "")
	fs.Bool("test", false, "")
	fs.StringP("output", "o", "", "")
	fs.BoolP("verbose", "v", false, "")
	fs.BoolP("x", "x", false, "") // one letter: only a shorthand works

	for in, want := range map[string]string{
		"-io=uring c.json":          "--io=uring c.json",
		"-io uring c.json":          "--io uring c.json",
		"--io=uring c.json":         "--io=uring c.json",
		"--io uring -test":          "--io uring --test",
		"c.json -io=uring":          "c.json --io=uring",
		"-test -io epoll":           "--test --io epoll",
		"-test=false":               "--test=false",
		"-- -io=uring":              "-- -io=uring",
		"-test -- -io":              "--test -- -io",
		"-admin -io -test":          "--admin -io --test",
		"--admin -io -test":         "--admin -io --test",
		"-admin=-io -test":          "--admin=-io --test",
		"-o -io -test":              "-o -io --test",
		"-vo -io -test":             "-vo -io --test",
		"-ojson -test":              "-ojson --test",
		"-output json":              "--output json",
		"-v -x - --unknown -i -iox": "-v -x - --unknown -i -iox",
		"-io":                       "--io",
	} {
		require.Equal(t, strings.Fields(want), LongFlags(fs, strings.Fields(in)), "%s", in)
	}
}
