// Package loop is the contract between Cloud Cup and the kernel: the
// operations a worker's event loop asks for, the results it gets, and who owns
// which memory when. Package ring keeps it with io_uring, package
// epollfallback with epoll; internal/looptest holds both to it. The package
// makes no system call but the mapping of buffers, and knows nothing of HTTP.
//
// # Shape
//
// The contract speaks in completions. An Op is submitted, the kernel works on
// it, and a later Poll delivers it with its result. One goroutine, locked to
// its thread, calls everything but Wake.
//
// # What is promised
//
//   - Submit and Cancel never block and never deliver. A result that is known
//     at once is delivered by the next Poll, also when Poll may not wait, or by
//     the one that submitted it from deliver.
//   - Every submitted Op is delivered exactly once with More false; a
//     RecvMulti may be delivered any number of times with More true before.
//   - Per descriptor and direction, results come in the order of the bytes.
//     No order is promised across directions or descriptors.
//   - Poll collects results first and delivers them one after another, never
//     from inside Submit, so deliver is never entered twice.
//   - A descriptor carries at most one receive, one send, and one connect in
//     flight; a listener any number of accepts, served in submission order.
//   - Receives hold no buffer while there is no data, on either engine. When
//     the pool is at its limit, receives wait without a result until buffers
//     come back.
//   - A receive with N = 0 and no error is the end of the peer's stream, and
//     is final.
//   - A send may end with fewer bytes than were given; the rest is the
//     submitter's to submit again. A send that ends with an error has sent
//     nothing. SIGPIPE ends nobody.
//   - After CloseFD no result of that descriptor is delivered, and a new
//     descriptor that gets the same number is not taken for the old one.
//
// # What may never happen
//
//   - Submitting an Op that is in flight, or changing one.
//   - CloseFD while an Op of the descriptor is in flight: shut it down or
//     Cancel, and wait for the results. (close(2) with an armed receive sends
//     no FIN.)
//   - Quiet of a descriptor with a receive in flight, whose result may wait to
//     be delivered.
//   - Touching an engine from another goroutine, except by Wake.
//   - Keeping Vecs or a Buffer's bytes after giving them back.
//
// An engine that finds one of these broken panics: it is a bug of ours, and
// no peer can cause it.
//
// # Whose buffer is it
//
//	buffer is | owner                  | may write | ends with
//	----------|------------------------|-----------|------------------------
//	free      | Pool                   | nobody    | Get
//	filling   | engine                 | kernel    | delivery of a receive
//	held      | submitter (count >= 1) | submitter | Submit of a send, Release
//	sending   | submitter and engine   | nobody    | delivery of the send
//
// A Buffer is counted on the loop's thread. Delivery of a receive hands over
// one count. A send borrows the memory that its Vecs name: the submitter keeps
// its counts until the send is delivered. The last Release gives the buffer
// back to its pool; under test its bytes are overwritten then.
//
// A pipe (ClassPipe) is a buffer whose bytes nobody sees: it is filled by one
// Recv and emptied by Sends, in which it takes the place of Vecs. What is left
// in it at its last Release is lost.
package loop
