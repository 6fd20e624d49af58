// Package integration drives the built programs from outside: real processes,
// real sockets, and what a client, a backend, an operator or the kernel's own
// accounts of a process see of them. It has tests only.
//
// Everything runs for each engine, or for the one that the environment variable
// CUP_IO names. CUP_LONG=1 asks for the long forms. With the build tag peers,
// programs that others wrote (nginx, curl, wrk, chromium, strace) take part too.
package integration
