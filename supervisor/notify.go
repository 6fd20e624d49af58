package supervisor

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// The variables by which a service manager asks to be told (sd_notify(3),
// sd_watchdog_enabled(3)). They are meant for the master alone.
const (
	notifyEnvironment      = "NOTIFY_SOCKET"
	watchdogEnvironment    = "WATCHDOG_USEC"
	watchdogPIDEnvironment = "WATCHDOG_PID"
)

// notifyTimeout bounds how long a service manager that does not read may hold
// up the master.
const notifyTimeout = time.Second

// notifier tells the service manager how the master is, by datagrams to the
// socket that it named. A nil *notifier has nobody to tell.
type notifier struct {
	address net.UnixAddr
	log     *slog.Logger
	// watchdog is the time without a sign of life after which the service
	// manager ends the service; 0 if it does not watch.
	watchdog time.Duration
}

// newNotifier reads what the environment asks for.
func newNotifier(log *slog.Logger) *notifier {
	name := os.Getenv(notifyEnvironment)
	if name == "" {
		return nil
	}
	// "@" stands for the zero byte of an abstract name, for package net too.
	if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "@") {
		log.Warn("service manager", notifyEnvironment, name, "err", "neither a path nor an abstract name")
		return nil
	}
	n := &notifier{address: net.UnixAddr{Name: name, Net: "unixgram"}, log: log}
	watched := os.Getenv(watchdogPIDEnvironment)
	if text := os.Getenv(watchdogEnvironment); text != "" && (watched == "" || watched == strconv.Itoa(os.Getpid())) {
		usec, err := strconv.ParseInt(text, 10, 64)
		if err != nil || usec <= 0 {
			log.Warn("service manager", watchdogEnvironment, text, "err", "not a number of microseconds")
		} else {
			n.watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	return n
}

// send sends assignments such as "READY=1" in one datagram. A service manager
// that cannot be reached is logged, and changes nothing.
func (n *notifier) send(assignments ...string) {
	if n == nil {
		return
	}
	// Not connected for good: the service manager may be executed anew.
	conn, err := net.DialUnix("unixgram", nil, &n.address)
	if err == nil {
		defer conn.Close()
		err = conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	}
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(assignments, "\n")))
	}
	if err != nil {
		n.log.Warn("service manager", "err", err)
	}
}

// beats ticks three times as often as the service manager expects a sign of
// life, so that one that is withheld does no harm; or never. stop ends it.
func (n *notifier) beats() (ticks <-chan time.Time, stop func()) {
	if n == nil || n.watchdog == 0 {
		return nil, func() {}
	}
	ticker := time.NewTicker(max(n.watchdog/3, time.Millisecond))
	return ticker.C, ticker.Stop
}

// statusText is the assignment of a line that people read. A text of several
// lines is cut after its first.
func statusText(text string) string {
	first, _, _ := strings.Cut(text, "\n")
	return "STATUS=" + first
}

// notifyServing tells the service manager that the master serves.
func (m *Master) notifyServing(more ...string) {
	m.notify.send(append([]string{"READY=1", statusText(m.serving())}, more...)...)
}

// serving describes what is served.
func (m *Master) serving() string {
	return fmt.Sprintf("serving %s with %d workers (%s), generation %d",
		strings.Join(m.addresses(), ", "), len(m.running()), m.engine.Used, m.generation().number)
}

// notifyReload tells the service manager that a reload begins. The function
// that it returns tells it how the reload ended.
func (m *Master) notifyReload() (ended func(error)) {
	if isClosed(m.leaving) || m.retired.Load() {
		return func(error) {} // the service manager knows that we end
	}
	m.notify.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", sys.Monotonic()/1000), "STATUS=reloading")
	return func(err error) {
		switch {
		case isClosed(m.leaving):
		case err != nil: // which is no reason not to go on as before
			m.notify.send("READY=1", statusText(m.serving()+"; last reload refused: "+err.Error()))
		default:
			m.notifyServing()
		}
	}
}

// notifyStopping tells the service manager that the end begins, and how long it
// may take.
func (m *Master) notifyStopping(atMost time.Duration) {
	m.notify.send("STOPPING=1", "STATUS=draining", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", atMost.Microseconds()))
}

// notifyAlive is the sign of life that the service manager's watchdog waits
// for. It is withheld when nobody serves: then a restart is what helps.
func (m *Master) notifyAlive() {
	if len(m.running()) > 0 {
		m.notify.send("WATCHDOG=1")
	}
}
