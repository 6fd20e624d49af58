// Command bench compares Cloud Cup's two engines with each other, with nginx
// and with HAProxy under the same load, and writes what it saw to BENCHMARKS.md.
//
//	bin/bench              run, keep the raw results, write the tables
//	bin/bench --part=NAME  one part of it: see part.go, which lists them
//	bin/bench --load=TEXT  the closed loop under the loads with TEXT in their names
//	bin/bench table        write tables and plots again from the newest raw results
//	bin/bench table FILE   the same from FILE
//	bin/bench compare OLD NEW
//	                       compare two builds of Cloud Cup: files, or revisions
//	                       of this repository, which are built first
//
// The suite has parts. The closed loop (closed.go) is one of them; to add
// another, write its runs into a field of Results (result.go) and its tables from
// that field, in files of its own, and enter it in the list of part.go. Programs
// are started, asked and stopped by a lineup (lineup.go). ROUNDS= and SECONDS=
// shorten all parts; one round of everything is a rehearsal with runs of less
// than half a second.
//
// Every program under test has one worker, pinned with its master to one CPU.
// wrk and the backend share another CPU. A round runs every load against every
// program; the order of programs turns around from one run to the next
// (A B C D D C B A), so that a slow drift of the machine meets all of them alike.
// Programs are compared within a round only. A comparison does the same with
// two builds (A B B A), and tells how sure its ratios are.
//
// Other parts let things go wrong under the eyes of a client that checks every
// byte (failures.go), compare programs with and without logs and metrics
// (cost.go), weigh connections that rest (idle.go), and compare one worker with
// two (scaling.go).
//
// The first figure is CPU time per request of the proxy's own processes: it
// says what a proxy costs also when the client is the bottleneck. Requests per
// second and latency are wrk's, or of a client of ours where each request has a
// TLS handshake of its own.
package main
