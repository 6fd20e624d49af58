// Package supervisor is the master process. It makes and keeps the listening
// sockets, starts one worker per slot from the running program's own image,
// replaces those that die, brings configurations to all of them in two phases,
// resolves names, and answers cupctl. No byte of traffic passes through it.
//
// What a worker does is not this package's business: it knows workers by the
// messages of package control and the pages of internal/shm.
package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// Engines that can be asked for.
const (
	EngineAuto  = "auto" // io_uring, or epoll where that is refused
	EngineRing  = "uring"
	EngineEpoll = "epoll"
)

// AdminOff as Options.Admin means that there is no admin socket.
const AdminOff = "off"

// Options say how a master runs. Flags beat the configuration.
type Options struct {
	// Path is the configuration file. If it is empty, Text is the
	// configuration, and Name stands for it in messages.
	Path string
	Text []byte
	Name string

	Engine  string // EngineAuto, EngineRing or EngineEpoll
	Workers int    // 0: as configured
	// Admin is "unix:PATH", AdminOff, or empty: as configured.
	Admin string
	// AdminOptional lets the master run without an admin socket when another
	// one has it.
	AdminOptional bool

	Version string
	Log     *slog.Logger
	// Probe opens an engine for real and describes it, or says why it cannot
	// be had here. It is called on a thread of its own.
	Probe func(engine string) (detail string, err error)
	// Examine tells what the kernel allows of the engines.
	Examine func() *control.IOReport
	// Reasons are the words for shm.Totals.Reasons, by index.
	Reasons []string
	// Ready, if set, is called when all workers accept connections.
	Ready func(addresses []string)
}

// Exit codes of the master.
const (
	exitFailed  = 1 // could not start
	exitCut     = 3 // the drain deadline passed, or a second signal came
	exitInvalid = 4
)

// ExitError is an end that is not clean.
type ExitError struct {
	Code int
	Err  error
}

// Error is the text of the cause.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the exit status that err means: 0 for nil.
func ExitCode(err error) int {
	var exit *ExitError
	var invalid config.Errors
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &invalid):
		return exitInvalid
	}
	return exitFailed
}

// Master supervises the workers.
type Master struct {
	options Options
	log     *slog.Logger
	started time.Time
	cpus    int // workers where nobody says how many
	engine  control.EngineStatus
	sockets socketSet // guarded by mu; changes only while turn is held for writing
	slots   []*slot   // guarded by mu; once there, a slot stays
	count   int       // of the slots that are wanted; guarded by mu, and by turn for reading
	spawner *spawner
	lookup  lookupFunc
	shared  *registry
	history *history
	scraper *scraper
	oom     oomCounter
	notify  *notifier
	logs    logFiles     // guarded by turn
	tickets tickets      // guarded by turn; changed with applying held, too
	admin   *adminServer // nil without one; set by start
	program string       // what an upgrade executes
	before  *predecessor // nil if this master did not take over from another

	beatEvery, beatDeadline time.Duration // see watch
	filesEvery              time.Duration // see keepFiles

	// applying serializes reloads; it is taken before turn.
	applying sync.Mutex
	// turn is held for reading while a worker starts, and for writing while
	// a reload runs.
	turn sync.RWMutex
	// handing serializes handOver; it is taken after turn.
	handing sync.Mutex

	mu       sync.Mutex
	current  *generation
	served   uint64                // the generation that every worker serves by
	failures map[string]string     // why names do not resolve now
	refused  []control.RefusedFile // never written to once it is here
	metrics  *metricsServer        // over TCP; changed with applying held
	// Configurations that were put in force, or were to be.
	reloadsOK, reloadsFailed uint64
	lastNumber               uint64 // of generations; guarded by turn

	cut, lost  int           // connections and workers that did not end in order while stopping
	leaving    chan struct{} // closed when a signal to stop came: no longer ready, but for the drain delay all goes on
	stopping   chan struct{} // closed when the master begins to drain
	slotsEnded sync.WaitGroup

	upgrading sync.Mutex // held while an upgrade is under way; taken before applying
	retired   atomic.Bool
	heirs     chan *heir   // that took over; at most one
	answering atomic.Int64 // questions on the admin socket that are being answered

	signals chan os.Signal // what obey obeys
}

// Run runs a master until a signal stops it. The error tells how the process
// should exit: see ExitCode.
func Run(o Options) error {
	m := newMaster(o)
	var err error
	if m.program, err = programPath(); err != nil {
		return err
	}
	signal.Notify(m.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(m.signals)
	// A reader of the log that goes away must not end the master.
	signal.Ignore(syscall.SIGPIPE)

	if m.before, err = inherit(&o); err != nil {
		return err
	}
	admin, err := m.start()
	if err != nil {
		return err
	}
	m.announce(admin)
	go m.hearPredecessor()
	background := make(chan struct{})
	go m.keepResolving(background)
	go m.keepSampling(background)
	go m.keepWatching(background)
	go m.keepRotating(background)
	go m.keepFiles(background)
	err = m.obey(m.signals)
	close(background)
	admin.finish()
	return errors.Join(err, m.metricsServer().close(), admin.close())
}

func newMaster(o Options) *Master {
	m := &Master{
		options: o, log: o.Log, started: time.Now(), cpus: usableCPUs(), spawner: newSpawner(),
		lookup: net.DefaultResolver.LookupNetIP, notify: newNotifier(o.Log), leaving: make(chan struct{}), stopping: make(chan struct{}),
		heirs: make(chan *heir, 1), signals: make(chan os.Signal, 8),
		history: newHistory(time.Now()), oom: ownOOMCounter(), beatEvery: beatEvery, beatDeadline: beatDeadline,
		filesEvery: filesEvery,
	}
	m.scraper = &scraper{make: m.appendMetrics, timeout: scrapeTimeout}
	return m
}

// start brings everything up, or nothing.
func (m *Master) start() (*adminServer, error) {
	if err := m.bringUp(); err != nil {
		err = errors.Join(err, m.metrics.close(), m.admin.close(), m.closeListeners())
		return nil, m.before.refuse(err)
	}
	m.admin.serve()
	m.metrics.serve()
	return m.admin, nil
}

// bringUp does what start does, but for what is left behind after an error, and
// for answering cupctl.
func (m *Master) bringUp() error {
	if files, err := sys.RaiseFileLimit(); err != nil {
		m.log.Warn("descriptors", "limit", files, "err", err)
	}
	g, err := m.firstGeneration()
	if err != nil {
		return err
	}
	if err := m.restrain(&g.cfg.User); err != nil {
		return err
	}
	if m.engine, err = chooseEngine(m.options.Engine, m.options.Probe, m.log); err != nil {
		return err
	}
	if m.logs, _, err = m.logs.opened(g.cfg); err != nil {
		return err
	}
	m.count = m.workersFor(g)
	if err := m.listen(g.cfg.Root); err != nil {
		return err
	}
	if m.admin, err = m.listenAdmin(g); err != nil {
		return err
	}
	for host, why := range g.failures {
		m.log.Warn("backend does not resolve", "backend", host, "err", why)
	}
	if m.metrics, err = m.listenMetrics(g.cfg.Admin.Metrics, nil); err != nil {
		return err
	}
	if m.shared, err = newRegistry(); err != nil {
		return err
	}
	if err := m.shared.assign(g); err != nil {
		return err
	}
	m.shared.committed(g)
	m.current, m.failures, m.served = g, g.failures, g.number
	m.tickets = m.firstTickets()
	if m.before == nil {
		m.history.note(m.started, nil) // everybody has counted from zero
	} else {
		m.shared.take(m.before.left.Backends, sys.Monotonic())
	}
	err = m.fill(false)
	if err == nil {
		err = m.takeOver()
	}
	if err != nil {
		m.abandon()
	}
	return err
}

// firstGeneration is what the master was told to serve, or what the one before
// did.
func (m *Master) firstGeneration() (*generation, error) {
	if m.before != nil {
		m.lastNumber = m.before.left.Config.Last
		return m.before.left.Config.generation()
	}
	g, err := m.loadFirst()
	if err != nil {
		return nil, err
	}
	m.lastNumber, g.number = 1, 1
	g.resolve(m.lookup, nil)
	return g, nil
}

func (m *Master) loadFirst() (*generation, error) {
	if m.options.Path != "" {
		return load(m.options.Path, os.ReadFile)
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	return parse(m.options.Name, m.options.Text, dir, sourceDemo)
}

// listen begins to listen on roots, on sockets of a service manager where it
// handed some over.
func (m *Master) listen(roots []string) error {
	fds, err := activatedFDs()
	switch {
	case err != nil:
	case m.before != nil:
		m.sockets = *m.before.sockets
	default:
		err = m.sockets.adopt(roots, fds)
	}
	if err != nil {
		return err
	}
	change, err := m.sockets.prepare(roots, m.count)
	if err != nil {
		return err
	}
	for _, g := range m.sockets.groups {
		if g.activated && g.shared && g.lockFD >= 0 {
			m.log.Warn("all workers share the socket that was handed over: no other can be bound beside it", "address", g.address)
		}
	}
	_, err = change.commit()
	return errors.Join(err, change.abort())
}

// workersFor is the number of workers that g asks for. The flag beats it.
func (m *Master) workersFor(g *generation) int {
	switch {
	case m.options.Workers > 0:
		return m.options.Workers
	case g.cfg.Workers > 0:
		return g.cfg.Workers
	}
	return m.cpus
}

// abandon ends all workers at once.
func (m *Master) abandon() {
	m.mu.Lock()
	if !m.isStopping() {
		close(m.stopping)
	}
	m.mu.Unlock()
	m.killAll()
	m.slotsEnded.Wait()
}

// killAll kills every worker that there is. Those about to be started are not:
// a master that is stopping starts none.
func (m *Master) killAll() {
	kill := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, s := range m.slots {
			for _, in := range s.workers() {
				in.kill()
			}
		}
	}
	kill()
	m.awaitTurn() // which no worker that lives can hold up any more
	kill()
}

// awaitTurn waits for the starts and the reload under way. After stopping was
// closed no other follows.
func (m *Master) awaitTurn() {
	m.turn.Lock()
	defer m.turn.Unlock()
}

// announce tells that all workers accept connections.
func (m *Master) announce(admin *adminServer) {
	m.log.Info("ready", "version", m.options.Version, "pid", os.Getpid(), "listen", m.addresses(),
		"workers", m.count, "engine", m.engine.Used, "detail", m.engine.Detail, "admin", admin.name(), "metrics", m.metricsServer().name())
	m.notifyServing(fmt.Sprintf("MAINPID=%d", os.Getpid()))
	if m.options.Ready != nil {
		m.options.Ready(m.addresses())
	}
}

// addresses are those that are listened on, in the configuration's order.
func (m *Master) addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sockets.addresses()
}

// closeListeners gives all addresses up. No worker may be about to start.
func (m *Master) closeListeners() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.before != nil && m.before.pending {
		m.sockets.disown()
	}
	return m.sockets.close()
}

// generation is the one in force.
func (m *Master) generation() *generation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// unready says why no new requests should be sent here; it is empty while all
// is well.
func (m *Master) unready() string {
	switch {
	case isClosed(m.leaving):
		return "stopping"
	case len(m.running()) == 0:
		return "no worker is running"
	}
	return ""
}

// signal does as if the process had got s. Of very many at once some are lost.
func (m *Master) signal(s os.Signal) {
	select {
	case m.signals <- s:
	default:
	}
}

func (m *Master) isStopping() bool { return isClosed(m.stopping) }

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// keepResolving resolves the names of backends again and again until done is
// closed.
func (m *Master) keepResolving(done <-chan struct{}) {
	wait := resolveSooner
	for {
		select {
		case <-done:
			return
		case <-time.After(wait):
		}
		wait = resolveSooner
		if m.refreshAddresses() {
			wait = resolveEvery
		}
	}
}
