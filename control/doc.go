// Package control holds the messages between cupctl, master and workers, and
// the sockets they travel on. Between master and worker that is a Channel: a
// socketpair of sequenced packets, on which the master asks and the worker
// acknowledges. Between cupctl and master it is HTTP with JSON on a unix
// socket: Client is cupctl's side of it, the master's is package supervisor's.
// What is done with a message is not this package's business.
package control
