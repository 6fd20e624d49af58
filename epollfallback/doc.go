// Package epollfallback keeps the contract of package loop with epoll(7), for
// kernels that lack io_uring and places that forbid it. It knows nothing of
// what the descriptors are for.
//
// Every descriptor is registered once, edge-triggered, for both directions.
// What an edge told is remembered until a call says EAGAIN, or a receive came
// back short: the socket is empty then and the next byte makes a new edge. The
// end of the stream makes its edge only once, so after EPOLLRDHUP, EPOLLHUP or
// EPOLLERR only EAGAIN counts.
//
// Sends are tried by Submit itself, and their results delivered by Poll. A
// receive takes its buffer when data is there, and Poll delivers it before it
// receives for the next descriptor, so that the buffer it gives back is still
// in the cache. Each descriptor gets one receive per turn: no peer can hold up
// the others.
package epollfallback
