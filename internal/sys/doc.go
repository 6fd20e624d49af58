// Package sys holds what must match the kernel byte for byte: system calls
// that the standard library and x/sys/unix lack or wrap too thickly, socket
// addresses as the kernel lays them out, file descriptors sent over sockets,
// sealed memory files, and seccomp filters. It imports nothing of ours.
//
// Calls that serve the event loops return a syscall.Errno instead of an error:
// turning one into an error allocates.
package sys
