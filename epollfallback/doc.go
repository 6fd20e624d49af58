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
// A receive takes its buffer when data is there. Poll makes the receives of all
// descriptors that are ready, delivers them, and then makes the sends that came
// of it. Where there are many bytes it does so for each descriptor: the buffer
// that one gives back is still in the cache when the next one asks for it, and
// Submit itself tries their sends. Each descriptor gets one receive per turn: no
// peer can hold up the others.
package epollfallback
