package control

import (
	"strings"

	"github.com/spf13/pflag"
)

// LongFlags rewrites arguments so that the long flags of fs also work with a
// single dash ("-io=uring" and "-io uring" become "--io=uring" and "--io
// uring"). Only known flags of two or more letters are rewritten, nothing
// after "--", and never the value of a flag before it.
func LongFlags(fs *pflag.FlagSet, args []string) []string {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		long, valueFollows := longFlag(fs, arg)
		out = append(out, long)
		if valueFollows && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// longFlag returns arg with two dashes if it is a known long flag, and whether
// the next argument is its value.
func longFlag(fs *pflag.FlagSet, arg string) (string, bool) {
	if len(arg) < 2 || arg[0] != '-' {
		return arg, false
	}
	name, _, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
	if len(name) > 1 || arg[1] == '-' {
		if f := fs.Lookup(name); f != nil {
			return "--" + strings.TrimLeft(arg, "-"), !hasValue && f.NoOptDefVal == ""
		}
	}
	if arg[1] == '-' {
		return arg, false
	}
	// A group of shorthands: the first that takes a value takes the rest of
	// the argument, or the next one if nothing is left.
	for i, letter := range arg[1:] {
		f := fs.ShorthandLookup(string(letter))
		if f == nil {
			return arg, false
		}
		if f.NoOptDefVal == "" {
			return arg, i == len(arg)-2
		}
	}
	return arg, false
}
