// Package tidy holds the tests of the tree itself: rules that a program can
// check are checked here and not remembered. Each message says what to do.
// The tests read and parse the files themselves: a test that asks the go
// command instead is served from the test cache and passes wrongly.
//
// Every rule is a function from files to complaints, so that it is itself
// tested with small sources that break it.
package tidy
