// Package worker is one worker process: it opens the engine, builds the proxy
// from the configuration that the master sent, takes the listeners that the
// master hands over, and obeys the control channel until it is drained. It opens
// no files and resolves no names; what it needs comes from the master.
//
// One goroutine, locked to its thread, turns the loop. The others belong to the
// control channel: they build the next snapshot beside the loop and post to it.
package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/proxy"
	"golang.org/x/sys/unix"
)

// threads are the loop's, and one for everything else. Go's own pace of
// collecting garbage is kept but in storms (see collector): nothing is allocated per request, so it seldom
// collects, and at a slower pace the garbage of reloads would stay. As much
// again as limits.memory lends makes it collect harder.
const threads = 2

// largeConfig is the length of a text whose parsing leaves so much behind that
// the memory is given back at once: 5 MiB of routes make 100 MiB of garbage.
const largeConfig = 1 << 20

// overtime is how long a loop may go on beyond the drain deadline before the
// process ends without it.
const overtime = 3 * time.Second

// Asked reports whether this process is to be a worker.
func Asked() bool { return os.Getenv(control.WorkerEnvironment) != "" }

// worker is the process.
type worker struct {
	log      *slog.Logger
	channel  *control.Channel
	page     *shm.Page
	backends *shm.Backends
	counters *shm.Counters // of page
	master   int           // its process id
	logs     *logs
	proxy    *proxy.Proxy
	engine   loop.Engine
	pool     *loop.Pool

	collector *collector

	slot int
	held control.Guard // what confine came to; without the CPU
	cpus unix.CPUSet   // that the process may use
	cpu  int           // that the loop is pinned to, or -1; of the loop's thread

	loopEnded chan struct{}
	answering sync.RWMutex // held for reading while a message is dealt with

	mu       sync.Mutex
	drain    time.Duration // deadline if the master is lost
	prepared *prepared
	aborted  uint64 // no generation up to this one is kept any more
	draining bool
	large    bool // the generation in force
	ticketed []ticketed
}

// prepared is a generation that waits for its commit.
type prepared struct {
	snapshot *proxy.Snapshot
	drain    time.Duration
	pin      bool
	large    bool
	ticketed []ticketed
}

// Run is the life of a worker, from the environment that the master made for
// it. It returns the exit status.
func Run(log *slog.Logger) int {
	runtime.LockOSThread() // before the engine opens, for good
	runtime.GOMAXPROCS(threads)
	// The terminal's signals reach the whole process group, and a service
	// manager's may: only the master acts on them. It asks by the channel.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE)
	master := os.Getppid()
	orphaned := make(chan os.Signal, 1)
	signal.Notify(orphaned, syscall.SIGTERM) // also the parent-death signal

	w := &worker{
		log:       log.With("slot", os.Getenv(control.WorkerEnvironment)),
		master:    master,
		loopEnded: make(chan struct{}),
		cpu:       -1,
	}
	w.logs = newLogs(w.log)
	nameProcess()
	if err := sys.NoDump(); err != nil { // after the name, which is a file in /proc
		w.log.Warn("this process may be looked into", "err", err)
	}
	if err := w.start(); err != nil {
		w.log.Error("worker does not start", "err", err)
		return 1
	}
	go w.receive()
	go w.watchMaster(orphaned)
	cut, err := w.proxy.Run()
	close(w.loopEnded)
	w.counters.LogDropped += w.logs.finish()
	w.answering.Lock() // the last acknowledgement leaves before the last words
	if err != nil {
		w.log.Error("event loop", "engine", w.engine.Name(), "err", err)
		return 1
	}
	// Without a master there is nobody to tell.
	_ = w.channel.Send(control.Message{Type: control.TypeDrained, Cut: cut}, -1)
	return 0
}

// nameProcess makes tools show "cup-worker N", not the "exe" of
// /proc/self/exe. Where that fails they do not.
func nameProcess() {
	_ = os.WriteFile("/proc/self/comm", []byte("cup-worker "+os.Getenv(control.WorkerEnvironment)), 0)
}

// start brings the worker up to its first listener, and tells the master how
// it went.
func (w *worker) start() error {
	channel, err := control.Inherited(control.FDChannel)
	if err != nil {
		return fmt.Errorf("%s is set, but no master started this process: %w", control.WorkerEnvironment, err)
	}
	w.channel = channel
	if err := w.attach(); err != nil {
		return err
	}
	msg, fd, err := channel.Receive()
	if err != nil {
		return err
	}
	ack := control.Message{Type: control.TypeAck, Seq: msg.Seq}
	if msg.Type != control.TypeStart || msg.Start == nil || fd < 0 {
		err = fmt.Errorf("unexpected first message %q", msg.Type)
	} else {
		ack.Engine, err = w.build(msg.Start, fd)
	}
	if err == nil {
		w.confine()
		ack.Guard = w.guard()
	}
	if err != nil {
		ack.Error = err.Error()
	}
	return errors.Join(err, channel.Send(ack, -1))
}

// attach maps the memory that the master shares.
func (w *worker) attach() (err error) {
	if w.page, err = shm.Map(control.FDCounters); err != nil {
		return err
	}
	if w.backends, err = shm.MapBackends(control.FDBackends); err != nil {
		return err
	}
	w.counters = &w.page.Counters
	return os.NewSyscallError("close", errors.Join(unix.Close(control.FDCounters), unix.Close(control.FDBackends)))
}

// build opens the engine and makes the proxy of the payload in fd.
func (w *worker) build(start *control.Start, fd int) (*control.Engine, error) {
	first, err := w.prepare(fd)
	if err != nil {
		return nil, err
	}
	opened, err := openEngine(start.Engine, start.Required, first.snapshot.Limits.Memory)
	if err != nil {
		return nil, err
	}
	if opened.fallback != "" {
		w.log.Warn(opened.fallback, "instead", opened.engine.Name())
	}
	w.engine, w.pool, w.slot = opened.engine, opened.pool, start.Slot
	files, err := sys.RaiseFileLimit()
	if err != nil {
		return nil, err
	}
	w.pool.Pipes = pipesFor(files)
	if err := unix.SchedGetaffinity(0, &w.cpus); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	w.collector = newCollector()
	w.proxy = proxy.New(proxy.Config{
		Engine: w.engine, Pool: w.pool, Slot: start.Slot, Log: w.log, Page: w.page, Backends: w.backends,
		Clock: sys.Monotonic, Logs: w.logs, Storm: w.collector.storm,
	})
	w.apply(first)
	w.large = first.large
	return &control.Engine{Name: w.engine.Name(), Detail: w.engine.Detail(), Fallback: opened.fallback}, nil
}

// prepare builds what serving the payload in fd needs; it closes fd.
func (w *worker) prepare(fd int) (*prepared, error) {
	text, err := sys.ReadSealed(fd)
	if err := errors.Join(err, os.NewSyscallError("close", unix.Close(fd))); err != nil {
		return nil, err
	}
	var payload control.Payload
	if err := json.Unmarshal(text, &payload); err != nil {
		return nil, fmt.Errorf("configuration from the master: %w", err)
	}
	return newPrepared(&payload)
}

// apply puts a generation in force. On the loop's thread.
func (w *worker) apply(p *prepared) {
	w.collector.allow(p.snapshot.Limits.Memory)
	w.proxy.Apply(p.snapshot)
	w.pin(p.pin)
	w.mu.Lock()
	w.drain, w.ticketed = p.drain, p.ticketed
	w.mu.Unlock()
}

// receive obeys the master until it is gone.
func (w *worker) receive() {
	for {
		msg, fd, err := w.channel.Receive()
		if err != nil {
			w.abandoned(err)
			return
		}
		// A snapshot that takes long to build, or a loop that is stuck, must
		// not hide the next message or the end of the master.
		go func() {
			w.answering.RLock()
			defer w.answering.RUnlock()
			ack := control.Message{Type: control.TypeAck, Seq: msg.Seq}
			if err := w.obey(msg, fd, &ack); err != nil {
				ack.Error = err.Error()
			}
			if err := w.channel.Send(ack, -1); err != nil {
				w.log.Error("acknowledgement", "err", err)
			}
		}()
	}
}

// obey does what a message asks for. What else is to be told it adds to ack.
func (w *worker) obey(msg control.Message, fd int, ack *control.Message) error {
	switch msg.Type {
	case control.TypePrepare:
		if fd < 0 {
			return errors.New("prepare without a configuration")
		}
		p, err := w.prepare(fd)
		if err != nil {
			return err
		}
		return w.keep(p)
	case control.TypeCommit:
		p, err := w.take(msg.Generation)
		if err != nil {
			return err
		}
		err = w.onLoop(func() {
			w.apply(p)
			ack.Guard = w.guard()
		})
		if err != nil {
			return err
		}
		w.mu.Lock()
		garbage := p.large || w.large
		w.large = p.large
		w.mu.Unlock()
		if garbage {
			go debug.FreeOSMemory()
		}
		return nil
	case control.TypeAbort:
		w.forget(msg.Generation)
		return w.forgetLogs()
	case control.TypeLog:
		return w.takeLog(msg.Log, fd)
	case control.TypeSample:
		return w.sample()
	case control.TypeListen:
		return w.listen(msg.Listener, fd)
	case control.TypeUnlisten:
		return w.unlisten(msg.Listener)
	case control.TypeRenew:
		return w.onLoop(w.proxy.RenewAccepts)
	case control.TypeBackends:
		return w.onLoop(w.proxy.CloseDisabled)
	case control.TypeBeat:
		return w.onLoop(func() {})
	case control.TypeTickets:
		return w.useTickets(msg.TicketKeys)
	case control.TypeDrain:
		return w.beginDrain(msg.Deadline, msg.Grace)
	}
	return fmt.Errorf("unknown message %q", msg.Type)
}

// keep holds p until its commit or abort.
func (w *worker) keep(p *prepared) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.snapshot.Generation <= w.aborted {
		return errors.New("aborted meanwhile")
	}
	w.prepared = p
	return nil
}

// take returns the prepared generation with the number.
func (w *worker) take(generation uint64) (*prepared, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.prepared
	if p == nil || p.snapshot.Generation != generation {
		return nil, fmt.Errorf("generation %d is not prepared", generation)
	}
	w.prepared = nil
	return p, nil
}

func (w *worker) forget(generation uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.aborted = max(w.aborted, generation)
	if w.prepared != nil && w.prepared.snapshot.Generation <= w.aborted {
		w.prepared = nil
	}
}

// onLoop calls f between two turns and returns when it has run.
func (w *worker) onLoop(f func()) error {
	done := make(chan struct{})
	w.proxy.Post(func() {
		f()
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-w.loopEnded:
	}
	select {
	case <-done: // in the loop's last turn
		return nil
	default:
		return errors.New("the worker has drained")
	}
}

// beginDrain lets the proxy drain, once. The process ends in any case.
func (w *worker) beginDrain(deadline, grace time.Duration) error {
	w.mu.Lock()
	first := !w.draining
	w.draining = true
	w.mu.Unlock()
	if !first {
		return nil
	}
	time.AfterFunc(deadline+overtime, func() {
		w.log.Error("the loop did not end at its drain deadline")
		os.Exit(1)
	})
	return w.onLoop(func() { w.proxy.Drain(deadline, grace) })
}

// abandoned drains a worker whose master is gone.
func (w *worker) abandoned(err error) {
	w.mu.Lock()
	deadline, draining := w.drain, w.draining
	w.mu.Unlock()
	if !draining {
		w.log.Warn("the master is gone: draining", "master", strconv.Itoa(w.master), "err", err,
			"deadline", deadline.String())
	}
	// It can only fail because there is nothing left to drain.
	_ = w.beginDrain(deadline, control.StopGrace)
}

// watchMaster drains when the parent-death signal comes, should the end of the
// control channel not have shown it.
func (w *worker) watchMaster(signals <-chan os.Signal) {
	for range signals {
		if os.Getppid() != w.master {
			w.abandoned(errors.New("parent-death signal"))
		}
	}
}
