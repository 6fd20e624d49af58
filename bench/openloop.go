package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// openLoopCommand runs this program as a client that starts requests when a
// schedule says so, and not when the answer before has come (which is what wrk
// does: a proxy that stalls is asked less, and the stall is one bad latency
// instead of hundreds). A latency counts from the moment at which the request
// was meant to start to the last byte of its answer, so what waits for a free
// connection waits in the figures too.
//
// It is one thread with edge-triggered epoll and a timer for the next start. It
// shares its CPU with the backend, so it never spins, and does in each turn all
// that can be done. How late it came to a request is a figure of its own: a
// client that cannot keep up is seen, and not taken for a slow proxy. When more
// is due than can be done, it is a closed loop and no slower than wrk: with 64
// connections 220,000 requests a second from a backend on the other CPU where
// wrk makes 202,000, and 117,000 through a proxy (110,000).
const openLoopCommand = "openloop"

// Ways of spacing the starts.
const (
	// arrivalsConstant is what the suite uses: every program meets the very
	// same moments, and nothing but the program makes a queue.
	arrivalsConstant = "constant"
	// arrivalsPoisson has exponential gaps, as many clients that know nothing
	// of each other have. Its bursts queue also before a fast proxy, and on the
	// CPU of the client and the backend.
	arrivalsPoisson = "poisson"
)

const (
	// What was meant to start in openLoopWarmUp is not in the latencies. It is
	// half of the rate: connecting makes a queue that would last.
	openLoopWarmUp = 300 * time.Millisecond
	// openLoopGrain is how fine the timer is. With an own wake-up for each start
	// the switches between client and backend took a third of their CPU at
	// 75,000/s, and the median latency was 0.84 ms instead of 0.30.
	openLoopGrain = 50 * time.Microsecond
	// openLoopPatience is how long after the last start answers are waited for.
	openLoopPatience = 2 * time.Second
	// openLoopLatencyMax bounds the histograms; more counts as this.
	openLoopLatencyMax = time.Minute
	// openLoopDigits of a latency count.
	openLoopDigits = 3

	openLoopReadBytes = 64 << 10
	openLoopHeadMax   = 16 << 10
	openLoopEvents    = 512
	openLoopTimer     = -1 // in an event: the timer instead of a connection

	poissonSeed = 1
)

// OpenLoop is what the client reports. Times are in microseconds.
type OpenLoop struct {
	Requests  int64     `json:"requests"` // answered, those of the warm-up too
	Bytes     int64     `json:"bytes"`    // of all responses
	Due       int64     `json:"due"`      // meant to start after the warm-up
	Rate      float64   `json:"requests_per_second"`
	Latency   Quantiles `json:"latency_us"` // from when a request was due
	Late      Quantiles `json:"late_us"`    // of it: due, with a free connection, and the client did not come to it
	Queued    int64     `json:"queued"`     // due when all connections were in use
	Connects  int64     `json:"connect_errors"`
	Broken    int64     `json:"broken"`     // connections that failed within an exchange
	BadStatus int64     `json:"bad_status"` // other than 2xx
	// Unanswered were due and had no answer at the end. The latencies have them
	// with the time that they had waited.
	Unanswered int64 `json:"unanswered"`
}

// Quantiles of a histogram, in microseconds.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// Errors is the number of requests that went wrong.
func (o *OpenLoop) Errors() int64 { return o.Connects + o.Broken + o.BadStatus + o.Unanswered }

// openLoopOptions are the client's arguments.
type openLoopOptions struct {
	arrivals    string
	rate        float64 // a second
	connections int
	length      time.Duration // after the warm-up
	address     netip.AddrPort
	host, path  string
}

// end is the moment from which on nothing is due, in nanoseconds.
func (o *openLoopOptions) end() int64 { return (openLoopWarmUp + o.length).Nanoseconds() }

// openLoopArguments are those of the client for a rate.
func openLoopArguments(rate float64, connections int, length time.Duration, target string) []string {
	return []string{openLoopCommand, "--arrivals=" + arrivalsConstant, fmt.Sprintf("--rate=%.0f", rate),
		fmt.Sprintf("--connections=%d", connections), fmt.Sprintf("--seconds=%g", length.Seconds()), target}
}

// serveOpenLoop is the client. It prints an OpenLoop as JSON.
func serveOpenLoop(args []string) error {
	fs := pflag.NewFlagSet(openLoopCommand, pflag.ContinueOnError)
	var o openLoopOptions
	fs.StringVar(&o.arrivals, "arrivals", arrivalsConstant, "")
	fs.Float64Var(&o.rate, "rate", 5000, "")
	fs.IntVar(&o.connections, "connections", 64, "")
	seconds := fs.Float64("seconds", 1, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	target, err := url.Parse(fs.Arg(0))
	if err != nil {
		return err
	}
	if o.address, err = netip.ParseAddrPort(target.Host); err != nil {
		return fmt.Errorf("want http://IP:PORT/PATH: %w", err)
	}
	o.length, o.host, o.path = time.Duration(*seconds*float64(time.Second)), target.Host, target.RequestURI()
	if target.Scheme != "http" || !o.address.Addr().Is4() || o.rate <= 0 || o.connections < 1 || o.length <= 0 ||
		o.arrivals != arrivalsConstant && o.arrivals != arrivalsPoisson {
		return fmt.Errorf("cannot do %q", args)
	}
	// It takes nothing from the heap while it runs; with one P the runtime's
	// monitor would take it away in every wait.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(2)
	result, err := openLoop(&o)
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	fmt.Println(string(text))
	return err
}

// schedule yields the moments at which requests are meant to start, in
// nanoseconds from the begin. Two of the same options yield the same moments.
type schedule struct {
	at  float64 // of the request that is next
	gap float64 // on average
	rng *rand.Rand
}

func newSchedule(o *openLoopOptions) schedule {
	s := schedule{gap: float64(time.Second) / o.rate}
	if o.arrivals == arrivalsPoisson {
		s.rng = rand.New(rand.NewPCG(poissonSeed, 0))
	}
	return s
}

func (s *schedule) next() int64 { return int64(s.at) }

func (s *schedule) advance() {
	gap := s.gap
	if s.at < float64(openLoopWarmUp) {
		gap *= 2
	}
	if s.rng != nil {
		gap *= s.rng.ExpFloat64()
	}
	s.at += gap
}

// openClient is the client's state. Moments are in nanoseconds from began.
type openClient struct {
	result       OpenLoop
	latency      *hdrhistogram.Histogram
	late         *hdrhistogram.Histogram
	began        time.Time
	end          int64 // nothing is due from here on
	schedule     schedule
	armed        int64 // moment for which the timer is set
	answers      int64 // that came between the warm-up and end
	epoll, timer int
	to           unix.SockaddrInet4
	request      []byte
	in           []byte // what one read brings
	conns        []openConn
	free         []int32 // ring of the indices of conns without a request: the one that rests longest is next
	freeFrom     int     // its place in free
	freeCount    int
	busy         int

	// The last head and what it said: most are alike.
	head  []byte
	bytes int
	good  bool
}

// openConn is a connection.
type openConn struct {
	fd      int // -1 without one: made with the next request
	busy    bool
	greeted bool   // connected, and the request sent
	due     int64  // moment at which its request was meant to start
	freed   int64  // moment at which it became free
	part    []byte // of a head whose rest is missing
	left    int    // bytes of the body that are missing
	good    bool   // the status was 2xx
}

// openLoop makes all requests.
func openLoop(o *openLoopOptions) (*OpenLoop, error) {
	c, err := newOpenClient(o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.run(); err != nil {
		return nil, err
	}
	return c.finish(), nil
}

// newOpenClient is a client whose schedule begins now.
func newOpenClient(o *openLoopOptions) (*openClient, error) {
	c := &openClient{
		latency:  hdrhistogram.New(1, int64(openLoopLatencyMax), openLoopDigits),
		late:     hdrhistogram.New(1, int64(openLoopLatencyMax), openLoopDigits),
		end:      o.end(),
		schedule: newSchedule(o),
		armed:    -1,
		epoll:    -1,
		timer:    -1,
		to:       unix.SockaddrInet4{Port: int(o.address.Port()), Addr: o.address.Addr().As4()},
		request:  fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", o.path, o.host),
		in:       make([]byte, openLoopReadBytes),
		conns:    make([]openConn, o.connections),
		free:     make([]int32, o.connections),
	}
	for i := range c.conns {
		c.conns[i].fd = -1
		c.release(int32(i), 0)
	}
	var err1, err2 error
	c.epoll, err1 = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	c.timer, err2 = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err := errors.Join(err1, err2); err != nil {
		c.close()
		return nil, fmt.Errorf("epoll_create1, timerfd_create: %w", err)
	}
	// Setting it anew takes back what was not read: nobody reads it.
	if err := c.watch(c.timer, openLoopTimer, unix.EPOLLIN|unix.EPOLLET); err != nil {
		c.close()
		return nil, err
	}
	c.began = time.Now()
	return c, nil
}

// close closes all descriptors.
func (c *openClient) close() {
	for i := range c.conns {
		unix.Close(c.conns[i].fd) // EBADF if there is none
	}
	unix.Close(c.timer)
	unix.Close(c.epoll)
}

// now is the moment.
func (c *openClient) now() int64 { return time.Since(c.began).Nanoseconds() }

// run returns when all that was due has been answered, or nothing is waited for
// any longer.
func (c *openClient) run() error {
	events := make([]unix.EpollEvent, openLoopEvents)
	for {
		if err := c.startDue(); err != nil {
			return err
		}
		now := c.now()
		if now >= c.end && (c.busy == 0 || now >= c.end+openLoopPatience.Nanoseconds()) {
			return nil
		}
		if err := c.arm(now); err != nil {
			return err
		}
		n, err := unix.EpollWait(c.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for i := range max(n, 0) {
			if events[i].Fd == openLoopTimer {
				continue
			}
			if err := c.serve(events[i].Fd, events[i].Events); err != nil {
				return err
			}
		}
	}
}

// startDue starts what is due, as far as connections are free.
func (c *openClient) startDue() error {
	for c.freeCount > 0 {
		now := c.now()
		if c.schedule.next() > min(now, c.end-1) {
			return nil
		}
		if err := c.start(now); err != nil {
			return err
		}
	}
	return nil
}

// start sends the request that is next on the connection that rests longest.
func (c *openClient) start(now int64) error {
	index := c.free[c.freeFrom]
	c.freeFrom = (c.freeFrom + 1) % len(c.free)
	c.freeCount--
	c.busy++
	conn := &c.conns[index]
	conn.busy, conn.due = true, c.schedule.next()
	c.schedule.advance()
	if counts(conn.due) {
		c.result.Due++
		if conn.freed > conn.due {
			c.result.Queued++
		}
		record(c.late, now-max(conn.due, conn.freed))
	}
	if conn.fd < 0 {
		return c.connect(index)
	}
	c.send(index)
	return nil
}

// connect begins a connection. Its first event says how that went.
func (c *openClient) connect(index int32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	conn := &c.conns[index]
	conn.fd, conn.greeted = fd, false
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("TCP_NODELAY: %w", err)
	}
	if err := unix.Connect(fd, &c.to); err != nil && err != unix.EINPROGRESS {
		c.fail(index, &c.result.Connects)
		return nil
	}
	return c.watch(fd, index, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
}

// watch has events reported with an index.
func (c *openClient) watch(fd int, index int32, events uint32) error {
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: index}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// send sends a request. It is far smaller than an empty socket's buffer.
func (c *openClient) send(index int32) {
	conn := &c.conns[index]
	conn.greeted = true
	if n, err := unix.Write(conn.fd, c.request); err != nil || n < len(c.request) {
		c.fail(index, &c.result.Broken)
	}
}

// fail ends a connection and its request, and counts it.
func (c *openClient) fail(index int32, count *int64) {
	*count++
	now := c.now()
	c.observe(c.conns[index].due, now)
	c.hangUp(index)
	c.release(index, now)
	c.busy--
}

// hangUp closes the descriptor. Events of it that were reported already find a
// connection without one, or a new one that has nothing to tell.
func (c *openClient) hangUp(index int32) {
	conn := &c.conns[index]
	unix.Close(conn.fd)
	conn.fd, conn.part, conn.left = -1, conn.part[:0], 0
}

// release gives a connection back.
func (c *openClient) release(index int32, now int64) {
	c.conns[index].busy, c.conns[index].freed = false, now
	c.free[(c.freeFrom+c.freeCount)%len(c.free)] = index
	c.freeCount++
}

// arm sets the timer for the next moment at which there is something to do
// without an event.
func (c *openClient) arm(now int64) error {
	grain := openLoopGrain.Nanoseconds()
	at := (c.schedule.next() + grain - 1) / grain * grain
	switch {
	case now >= c.end:
		at = c.end + openLoopPatience.Nanoseconds()
	case c.freeCount == 0 || at > c.end:
		at = c.end
	}
	if at == c.armed {
		return nil
	}
	c.armed = at
	// A time of zero would stop it.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(at-c.now(), 1))}
	if err := unix.TimerfdSettime(c.timer, 0, &spec, nil); err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	return nil
}

// serve does what can be done on a connection that has changed, and then
// starts what has become due meanwhile.
func (c *openClient) serve(index int32, events uint32) error {
	conn := &c.conns[index]
	if conn.fd < 0 {
		return nil
	}
	if !conn.greeted && !c.connected(index) {
		return nil
	}
	hangup := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	for conn.fd >= 0 {
		n, err := unix.Read(conn.fd, c.in)
		if err == unix.EAGAIN {
			break
		}
		if err != nil || n == 0 || !c.take(index, c.in[:n]) {
			if conn.busy {
				c.fail(index, &c.result.Broken)
			} else {
				c.hangUp(index) // it was let go: no request was on it
			}
			break
		}
		// Less than was asked for: nothing is left, and more is a new event.
		// Unless that event has been: the end of the stream comes with it.
		if n < len(c.in) && !hangup {
			break
		}
	}
	return c.startDue()
}

// connected sends the request of a new connection. It reports whether there is
// one; if the event was an older one's, it is not known yet.
func (c *openClient) connected(index int32) bool {
	fd := c.conns[index].fd
	problem, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || problem != 0 {
		c.fail(index, &c.result.Connects)
		return false
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return false // ENOTCONN
	}
	c.send(index)
	return c.conns[index].fd >= 0
}

// take takes what arrived on a connection. It reports whether that was part of
// the answer to its request.
func (c *openClient) take(index int32, data []byte) bool {
	conn := &c.conns[index]
	c.result.Bytes += int64(len(data))
	if !conn.busy {
		return false // nothing was asked for
	}
	if conn.left == 0 {
		if len(conn.part) > 0 {
			conn.part = append(conn.part, data...)
			data = conn.part
		}
		end := bytes.Index(data, []byte("\r\n\r\n"))
		if end < 0 {
			conn.part = append(conn.part[:0], data...)
			return len(conn.part) < openLoopHeadMax
		}
		if !c.readHead(data[:end]) {
			return false
		}
		data = data[end+len("\r\n\r\n"):]
		conn.part, conn.left, conn.good = conn.part[:0], c.bytes, c.good
	}
	if conn.left -= len(data); conn.left > 0 {
		return true
	}
	if conn.left < 0 {
		return false
	}
	c.answered(index)
	return true
}

// answered counts an answer that is complete.
func (c *openClient) answered(index int32) {
	now := c.now()
	c.observe(c.conns[index].due, now)
	c.result.Requests++
	if !c.conns[index].good {
		c.result.BadStatus++
	}
	if counts(now) && now < c.end {
		c.answers++
	}
	c.release(index, now)
	c.busy--
}

// readHead reads a head up to its last line, and reports whether it is one
// that this client understands: with a length, on a connection that is kept.
func (c *openClient) readHead(head []byte) bool {
	if bytes.Equal(head, c.head) {
		return true
	}
	lines := strings.Split(string(head), "\r\n")
	if !strings.HasPrefix(lines[0], "HTTP/1.1 ") {
		return false
	}
	length := ""
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		switch strings.ToLower(name) {
		case "content-length":
			length = strings.TrimSpace(value)
		case "connection":
			if !strings.EqualFold(strings.TrimSpace(value), "keep-alive") {
				return false
			}
		case "transfer-encoding":
			return false
		}
	}
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 {
		return false
	}
	c.head, c.bytes, c.good = append(c.head[:0], head...), n, strings.HasPrefix(lines[0], "HTTP/1.1 2")
	return true
}

// counts reports whether the warm-up is over at a moment.
func counts(at int64) bool { return at >= openLoopWarmUp.Nanoseconds() }

// observe records the latency of a request that was due and is over now.
func (c *openClient) observe(due, now int64) {
	if counts(due) {
		record(c.latency, now-due)
	}
}

// record records a time, as the histogram's bounds allow.
func record(h *hdrhistogram.Histogram, ns int64) {
	_ = h.RecordValue(min(max(ns, 1), int64(openLoopLatencyMax))) // within bounds: no error
}

// finish completes the result.
func (c *openClient) finish() *OpenLoop {
	now := c.now()
	for i := range c.conns {
		if c.conns[i].busy {
			c.result.Unanswered++
			c.observe(c.conns[i].due, now)
		}
	}
	for ; c.schedule.next() < c.end; c.schedule.advance() {
		c.result.Unanswered++
		if counts(c.schedule.next()) {
			c.result.Due++
		}
		c.observe(c.schedule.next(), now)
	}
	c.result.Rate = float64(c.answers) / time.Duration(c.end-openLoopWarmUp.Nanoseconds()).Seconds()
	c.result.Latency, c.result.Late = quantiles(c.latency), quantiles(c.late)
	return &c.result
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / float64(time.Microsecond) }
	return Quantiles{P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: at(100)}
}
