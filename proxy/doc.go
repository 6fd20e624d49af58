// Package proxy serves HTTP exchanges on one event loop: it reads requests
// from client connections, chooses a backend for each, and moves both bodies
// until the response is through. It talks to the kernel only through package
// loop, to the syntax of HTTP/1.1 only through package http1, and keeps no
// process-wide state: a worker has one Proxy, tests have many.
//
// # Where things are
//
//	conn.go      the transport under both sides: bytes in, bytes out, one deadline
//	client.go    a client's connection, with its state table
//	exchange.go  one request with its response, with its state table
//	stream.go    a connection to a backend and its pool, with its state table
//	body.go      moving one body from one side to the other
//	tunnel.go    moving bytes both ways, after a protocol was switched
//	head.go      heads as the next hop gets them, and responses of our own
//	forwarded.go who asks, as backends are told
//	session.go   TLS between a connection and what it carries
//	listenertls.go
//	             which certificate and which hosts go together, and redirects
//	credit.go    how much may wait in memory
//	accept.go    listeners
//	record.go    what is counted of an exchange
//	log.go       its line in the access log
//	told.go      what the program's own log is told now and then
//	proxy.go     the loop that turns it all
//	snapshot.go  the configuration that reloads swap
//
// # How a turn works
//
// Results change state and mark the connections that they touch; then settle
// lets each marked connection do all it can with the bytes and room there is
// (advance), and asks the engine for what its state wants: a receive, a send,
// a deadline, or to be freed. What is wanted is derived from the state, never
// remembered, so that no path can forget to ask.
//
// Ending takes three steps: shut down or cancel, wait until the kernel has
// returned every operation, then free. Memory that is freed earlier would
// still be written by the kernel.
package proxy
