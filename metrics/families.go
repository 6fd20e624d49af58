package metrics

import "slices"

// family is a Family with what writes its samples.
type family struct {
	Family
	write func(e *encoder, s *Snapshot)
}

// Families lists all that Append writes, in that order.
func Families() []Family {
	list := make([]Family, 0, len(families))
	for i := range families {
		list = append(list, families[i].Family)
	}
	return list
}

// families is the table of what is written.
var families = slices.Concat(masterFamilies, routeFamilies, backendFamilies, workerFamilies)

var (
	ofRoute   = []string{"route"}
	ofBackend = []string{"backend"}
	ofSlot    = []string{"slot"}

	tlsVersions = []string{"1.2", "1.3"}
	yesNo       = []string{"no", "yes"}
)

var masterFamilies = []family{
	{Family{"cloudcup_build_info", Gauge, "The version in use; always 1.", []string{"version", "go_version"}},
		func(e *encoder, s *Snapshot) { e.count(1, s.Version, s.GoVersion) }},
	{Family{"cloudcup_draining", Gauge, "Whether the program is being stopped.", nil},
		func(e *encoder, s *Snapshot) { e.count(flag(s.Draining)) }},
	{Family{"cloudcup_config_generation", Gauge, "Number of the configuration that every worker serves by.", nil},
		func(e *encoder, s *Snapshot) { e.count(s.Generation) }},
	{Family{"cloudcup_config_loaded_timestamp_seconds", Gauge, "When the configuration in force was loaded.", nil},
		func(e *encoder, s *Snapshot) { e.sample(s.ConfigLoaded) }},
	{Family{"cloudcup_reloads_total", Counter, "Configurations that were to be put in force.", []string{"result"}},
		func(e *encoder, s *Snapshot) {
			e.count(s.ReloadsOK, "ok")
			e.count(s.ReloadsFailed, "failed")
		}},
	{Family{"cloudcup_errors_total", Counter, "Responses of our own and cuts, by their reason.", []string{"reason"}},
		func(e *encoder, s *Snapshot) {
			for i := 1; i < min(len(s.Reasons), len(s.Errors)); i++ {
				e.count(s.Errors[i], s.Reasons[i])
			}
		}},
	{Family{"cloudcup_overhead_seconds", HistogramType, "Time that was our own work on a request, of one request in 64.", nil},
		func(e *encoder, s *Snapshot) { e.histogram(&s.Overhead, e.overhead) }},
	{Family{"cloudcup_tls_handshakes_total", Counter, "TLS handshakes with clients and backends.", []string{"result"}},
		func(e *encoder, s *Snapshot) {
			e.count(s.Handshakes, "ok")
			e.count(s.HandshakesFailed, "failed")
		}},
	{Family{"cloudcup_tls_sessions_total", Counter, "TLS handshakes that clients completed.", []string{"version", "resumed"}},
		func(e *encoder, s *Snapshot) {
			for version, counts := range s.Sessions {
				for resumed, n := range counts {
					e.count(n, tlsVersions[version], yesNo[resumed])
				}
			}
		}},
	{Family{"cloudcup_certificate_expiry_seconds", Gauge, "When a certificate expires, in Unix time.", []string{"file"}},
		func(e *encoder, s *Snapshot) {
			for _, c := range s.Certificates {
				e.sample(c.NotAfter, c.File)
			}
		}},
	{Family{"cloudcup_certificate_refused", Gauge, "A file of certificates that has changed and cannot be used as it is now; always 1.", []string{"file"}},
		func(e *encoder, s *Snapshot) {
			for _, file := range s.Refused {
				e.sample(1, file)
			}
		}},
	{Family{"process_cpu_seconds_total", Counter, "CPU time of the master.", nil},
		func(e *encoder, s *Snapshot) { e.sample(s.Master.CPU) }},
	{Family{"process_open_fds", Gauge, "Open descriptors of the master.", nil},
		func(e *encoder, s *Snapshot) { e.count(s.Master.Files) }},
	{Family{"process_resident_memory_bytes", Gauge, "Resident memory of the master.", nil},
		func(e *encoder, s *Snapshot) { e.count(s.Master.ResidentBytes) }},
	{Family{"process_start_time_seconds", Gauge, "When the master was started.", nil},
		func(e *encoder, s *Snapshot) { e.sample(s.Master.Started) }},
}

var routeFamilies = []family{
	{Family{"cloudcup_requests_total", Counter, "Requests that have ended, by the class of their response.", []string{"route", "class"}},
		eachRoute(func(e *encoder, _ *Snapshot, r *Route) {
			for class, n := range r.Requests {
				e.count(n, r.Pattern, classNames[class])
			}
		})},
	{Family{"cloudcup_requests_in_flight", Gauge, "Requests under way, tunnels included.", ofRoute},
		eachRoute(func(e *encoder, _ *Snapshot, r *Route) { e.count(r.InFlight, r.Pattern) })},
	{Family{"cloudcup_route_errors_total", Counter, "Responses of our own and cuts by route and reason, of those that occurred.", []string{"route", "reason"}},
		eachRoute(func(e *encoder, s *Snapshot, r *Route) { e.occurred(r.Errors, s.Reasons, r.Pattern) })},
	{Family{"cloudcup_request_body_bytes_total", Counter, "Bytes of the bodies of requests; of tunnels, from the client.", ofRoute},
		eachRoute(func(e *encoder, _ *Snapshot, r *Route) { e.count(r.BytesIn, r.Pattern) })},
	{Family{"cloudcup_response_body_bytes_total", Counter, "Bytes of the bodies of responses; of tunnels, to the client.", ofRoute},
		eachRoute(func(e *encoder, _ *Snapshot, r *Route) { e.count(r.BytesOut, r.Pattern) })},
	{Family{"cloudcup_request_duration_seconds", HistogramType, "Time from a request's head to the end of its response.", ofRoute},
		eachRoute(func(e *encoder, _ *Snapshot, r *Route) { e.histogram(&r.Latency, e.latency, r.Pattern) })},
}

var backendFamilies = []family{
	{Family{"cloudcup_backend_requests_total", Counter, "Attempts to have a backend answer, by the class of its response.", []string{"backend", "class"}},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) {
			for class, n := range b.Requests {
				e.count(n, b.Host, classNames[class])
			}
		})},
	{Family{"cloudcup_backend_failures_total", Counter, "Failures of a backend by reason, of those that occurred.", []string{"backend", "reason"}},
		eachBackend(func(e *encoder, s *Snapshot, b *Backend) { e.occurred(b.Failures, s.Reasons, b.Host) })},
	{Family{"cloudcup_backend_retries_total", Counter, "Attempts that failed and were followed by another one, here or elsewhere.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(b.Retries, b.Host) })},
	{Family{"cloudcup_backend_connects_total", Counter, "Connections opened to a backend.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(b.Connects, b.Host) })},
	{Family{"cloudcup_backend_reused_total", Counter, "Attempts that took an idle connection to a backend.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(b.Reused, b.Host) })},
	{Family{"cloudcup_backend_in_flight", Gauge, "Attempts under way, tunnels included.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(b.InFlight, b.Host) })},
	{Family{"cloudcup_backend_connections_idle", Gauge, "Idle connections to a backend.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(b.Idle, b.Host) })},
	{Family{"cloudcup_backend_up", Gauge, "Whether a backend resolves and is not out because of failures.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.count(flag(b.Up), b.Host) })},
	{Family{"cloudcup_backend_state", Gauge, "What the administrator chose for a backend: 1 for the state in force.", []string{"backend", "state"}},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) {
			for i, state := range backendStates {
				e.count(flag(b.State == i), b.Host, state)
			}
		})},
	{Family{"cloudcup_backend_request_duration_seconds", HistogramType, "Time from the beginning of an attempt to the head of the response.", ofBackend},
		eachBackend(func(e *encoder, _ *Snapshot, b *Backend) { e.histogram(&b.Latency, e.latency, b.Host) })},
}

var workerFamilies = []family{
	{Family{"cloudcup_worker_engine", Gauge, "The engine that a worker uses; always 1.", []string{"slot", "engine"}},
		func(e *encoder, s *Snapshot) {
			for i := range s.Workers {
				if w := &s.Workers[i]; w.Engine != "" {
					e.count(1, w.Slot, w.Engine)
				}
			}
		}},
	perSlot("cloudcup_worker_running", Gauge, "Whether a slot has a worker that serves.",
		func(w *Worker) uint64 { return flag(w.Running) }),
	perSlot("cloudcup_worker_restarts_total", Counter, "Workers of a slot that were replaced.",
		func(w *Worker) uint64 { return w.Restarts }),
	perSlot("cloudcup_connections", Gauge, "Open connections of clients.",
		func(w *Worker) uint64 { return w.Connections }),
	perSlot("cloudcup_connections_accepted_total", Counter, "Connections of clients that were accepted.",
		func(w *Worker) uint64 { return w.Accepted }),
	perSlot("cloudcup_accept_pauses_total", Counter, "Times that accepting paused, for want of connections, descriptors or memory.",
		func(w *Worker) uint64 { return w.AcceptPaused }),
	perSlot("cloudcup_client_receive_bytes_total", Counter, "Bytes received from clients.",
		func(w *Worker) uint64 { return w.BytesIn }),
	perSlot("cloudcup_client_send_bytes_total", Counter, "Bytes sent to clients.",
		func(w *Worker) uint64 { return w.BytesOut }),
	perSlot("cloudcup_memory_lent_bytes", Gauge, "Buffers that connections hold.",
		func(w *Worker) uint64 { return w.BuffersLent }),
	perSlot("cloudcup_memory_mapped_bytes", Gauge, "Memory mapped for buffers.",
		func(w *Worker) uint64 { return w.BuffersMapped }),
	perSlot("cloudcup_snapshots", Gauge, "Configurations that requests and tunnels still use.",
		func(w *Worker) uint64 { return w.Snapshots }),
	perSlot("cloudcup_quarantined_total", Counter, "Connections that ended because they broke a rule of the program's own: a bug.",
		func(w *Worker) uint64 { return w.Quarantined }),
	perSlot("cloudcup_log_lines_dropped_total", Counter, "Lines of the access log that were dropped.",
		func(w *Worker) uint64 { return w.LogDropped }),
	perSlot("cloudcup_loop_turns_total", Counter, "Turns of the event loop.",
		func(w *Worker) uint64 { return w.LoopTurns }),
	perSlot("cloudcup_ring_waits_total", Counter, "System calls of the engine that may have slept (io_uring_enter, epoll_wait).",
		func(w *Worker) uint64 { return w.Waits }),
	perSlot("cloudcup_ring_calls_total", Counter, "Other system calls of the engine.",
		func(w *Worker) uint64 { return w.Calls }),
	perSlot("cloudcup_ring_results_total", Counter, "Results of operations that the engine delivered.",
		func(w *Worker) uint64 { return w.Results }),
	perSlot("cloudcup_ring_no_buffers_total", Counter, "Times that a receive had to wait for a buffer.",
		func(w *Worker) uint64 { return w.NoBuffers }),
	perSlot("cloudcup_ring_overflows_total", Counter, "Overflows of the completion queue; 0 with epoll.",
		func(w *Worker) uint64 { return w.Overflows }),
	{Family{"cloudcup_worker_cpu_seconds_total", Counter, "CPU time of a slot's workers.", ofSlot},
		func(e *encoder, s *Snapshot) {
			for i := range s.Workers {
				e.sample(s.Workers[i].Process.CPU, s.Workers[i].Slot)
			}
		}},
	perSlot("cloudcup_worker_open_fds", Gauge, "Open descriptors of a worker.",
		func(w *Worker) uint64 { return w.Process.Files }),
	perSlot("cloudcup_worker_resident_memory_bytes", Gauge, "Resident memory of a worker.",
		func(w *Worker) uint64 { return w.Process.ResidentBytes }),
}

// perSlot is a family with one number per slot.
func perSlot(name string, kind Type, help string, value func(w *Worker) uint64) family {
	return family{Family{name, kind, help, ofSlot}, func(e *encoder, s *Snapshot) {
		for i := range s.Workers {
			e.count(value(&s.Workers[i]), s.Workers[i].Slot)
		}
	}}
}

func eachRoute(write func(*encoder, *Snapshot, *Route)) func(*encoder, *Snapshot) {
	return func(e *encoder, s *Snapshot) {
		for i := range s.Routes {
			write(e, s, &s.Routes[i])
		}
	}
}

func eachBackend(write func(*encoder, *Snapshot, *Backend)) func(*encoder, *Snapshot) {
	return func(e *encoder, s *Snapshot) {
		for i := range s.Backends {
			write(e, s, &s.Backends[i])
		}
	}
}

// flag is 1 for true.
func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
