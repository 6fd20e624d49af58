package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"golang.org/x/sys/unix"
)

// errGone says that a worker ended before it acknowledged.
var errGone = errors.New("the worker ended")

// spawner starts processes from one thread that never ends: the kernel sends
// the parent-death signal when the thread that started the child ends, not the
// process (prctl(2), PR_SET_PDEATHSIG).
//
// What that thread is not allowed, its children are not allowed: see restrain.
type spawner struct {
	jobs       chan func()
	credential *syscall.Credential // of the children; nil for our own. Of the thread.
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// start executes this program again, the image that runs now even if the file
// was replaced, with the descriptors as its first ones.
func (s *spawner) start(name string, env []string, fds []uintptr) (pid int, err error) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		pid, err = syscall.ForkExec("/proc/self/exe", []string{name}, &syscall.ProcAttr{
			Env:   env,
			Files: fds,
			Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Credential: s.credential},
		})
	}
	<-done
	if err != nil && s.credential != nil {
		return 0, s.explain(err)
	}
	if err != nil {
		return 0, fmt.Errorf("start of a worker: %w", err)
	}
	return pid, nil
}

// incarnation is one worker process in a slot.
type incarnation struct {
	pid     int
	process *os.Process
	channel *control.Channel
	page    *shm.Page
	started time.Time
	served  time.Time // when it acknowledged its start; zero before; of its slot's keeper

	oom       oomCounter
	oomBefore uint64 // its value at the start

	ended chan struct{} // closed when everything that it said was read
	over  chan struct{} // closed when the process has ended
	how   string        // it ended, once over is closed
	clean bool          // and whether by itself

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan control.Message
	gone    bool             // the channel has ended
	fate    string           // why it was killed, if we did
	guard   *control.Guard   // what it said last
	drained *control.Message // its last words

	engine control.Engine   // set by the acknowledgement of the start
	built  bool             // the start was acknowledged; guarded by Master.mu
	unfit  error            // why it is being killed; guarded by Master.mu
	holds  map[*socket]bool // that it accepts from; guarded by Master.handing
	cpu    time.Duration    // read last; guarded by Master.mu
	spent  time.Duration    // CPU time of the whole life, set by wait
}

// spawn starts the worker of a slot.
func (m *Master) spawn(number int) (in *incarnation, err error) {
	channel, childEnd, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer childEnd.Close()
	page, pageFD, err := shm.Create()
	if err != nil {
		return nil, errors.Join(err, channel.Close())
	}
	defer unix.Close(pageFD)

	fds := []uintptr{0, 1, 2, childEnd.Fd(), uintptr(pageFD), uintptr(m.shared.fd)} // see control.FDChannel
	env := append(workersEnvironment(), control.WorkerEnvironment+"="+strconv.Itoa(number))
	in = &incarnation{
		channel: channel, page: page, started: time.Now(), waiting: map[uint64]chan control.Message{},
		ended: make(chan struct{}), over: make(chan struct{}), holds: map[*socket]bool{},
		oom: m.oom, oomBefore: m.oom.kills(),
	}
	in.pid, err = m.spawner.start(fmt.Sprintf("cloud-cup: worker %d", number), env, fds)
	if err == nil {
		in.process, err = os.FindProcess(in.pid)
	}
	if err != nil {
		return nil, errors.Join(err, channel.Close(), page.Close())
	}
	m.shared.attach(page)
	go in.receive()
	go func() {
		in.how, in.clean = in.wait()
		close(in.over)
	}()
	return in, nil
}

// workersEnvironment is the master's without what is addressed to it alone.
func workersEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		switch name {
		case notifyEnvironment, watchdogEnvironment, watchdogPIDEnvironment:
			return true
		}
		return false
	})
}

// receive hands acknowledgements to their callers until the channel ends.
func (in *incarnation) receive() {
	defer close(in.ended)
	for {
		msg, fd, err := in.channel.Receive()
		in.mu.Lock()
		if err != nil {
			in.gone = true
			for seq, ch := range in.waiting {
				delete(in.waiting, seq)
				close(ch)
			}
			in.mu.Unlock()
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				in.killFor("killed: what it says cannot be understood")
			}
			return
		}
		switch msg.Type {
		case control.TypeAck:
			if msg.Guard != nil {
				in.guard = msg.Guard
			}
			if ch, ok := in.waiting[msg.Seq]; ok {
				delete(in.waiting, msg.Seq)
				ch <- msg
			}
		case control.TypeDrained:
			in.drained = &msg
		}
		in.mu.Unlock()
		if fd >= 0 {
			_ = unix.Close(fd) // workers have nothing to hand over
		}
	}
}

// ask sends msg, with the descriptor fd unless it is negative. Its
// acknowledgement comes by the channel, which is closed if the worker ends
// before. The error is errGone if it has ended already.
func (in *incarnation) ask(msg control.Message, fd int) (<-chan control.Message, error) {
	_, ch, err := in.send(msg, fd)
	return ch, err
}

// send is ask; the number is for forget.
func (in *incarnation) send(msg control.Message, fd int) (seq uint64, answer <-chan control.Message, err error) {
	ch := make(chan control.Message, 1)
	in.mu.Lock()
	if in.gone {
		in.mu.Unlock()
		return 0, nil, errGone
	}
	in.seq++
	msg.Seq = in.seq
	in.waiting[msg.Seq] = ch
	in.mu.Unlock()

	if err := in.channel.Send(msg, fd); err != nil {
		in.forget(msg.Seq)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			err = errGone
		}
		return 0, nil, err
	}
	return msg.Seq, ch, nil
}

// call sends msg, with the descriptor fd unless it is negative, and waits for
// its acknowledgement. The error is errGone if the worker ended before.
func (in *incarnation) call(msg control.Message, fd int, timeout time.Duration) (control.Message, error) {
	seq, ch, err := in.send(msg, fd)
	if err != nil {
		return msg, err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case ack, ok := <-ch:
		switch {
		case !ok:
			return msg, errGone
		case ack.Error != "":
			return ack, errors.New(ack.Error)
		}
		return ack, nil
	case <-timer.C:
		in.forget(seq)
		return msg, fmt.Errorf("no answer to %s within %v", msg.Type, timeout)
	}
}

func (in *incarnation) forget(seq uint64) {
	in.mu.Lock()
	delete(in.waiting, seq)
	in.mu.Unlock()
}

// kill ends the process at once.
func (in *incarnation) kill() {
	// The error says that it has ended already.
	_ = in.process.Kill()
}

// killFor ends the process at once, and lets why be the reason of its death,
// unless it dies of something else first.
func (in *incarnation) killFor(why string) {
	in.mu.Lock()
	if in.fate == "" {
		in.fate = why
	}
	in.mu.Unlock()
	in.kill()
}

// wait waits for the process to end and returns how it did.
func (in *incarnation) wait() (reason string, clean bool) {
	state, err := in.process.Wait()
	<-in.ended
	if err != nil {
		return err.Error(), false
	}
	in.spent = state.UserTime() + state.SystemTime()
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case ok && status.Signaled() && status.Signal() == syscall.SIGKILL:
		return in.killedBecause(), false
	case ok && status.Signaled() && status.CoreDump():
		return "killed by " + unix.SignalName(status.Signal()) + ", core dumped", false
	case ok && status.Signaled():
		return "killed by " + unix.SignalName(status.Signal()), false
	case status.ExitStatus() == 0:
		return "ended by itself", true
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus()), false
}

// killedBecause is the reason of a death by SIGKILL, which anybody may send.
func (in *incarnation) killedBecause() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.fate != "":
		return in.fate
	case in.oom.kills() > in.oomBefore:
		return "killed by SIGKILL: out of memory (the cgroup's oom_kill counter rose)"
	}
	return "killed by SIGKILL"
}

// restrictions are what holds it back; nil before it serves.
func (in *incarnation) restrictions() *control.Guard {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.guard
}

// isGone reports whether the worker has ended or is about to.
func (in *incarnation) isGone() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.gone
}

// lastWords is the TypeDrained message of a worker that ended in order.
func (in *incarnation) lastWords() *control.Message {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.drained
}
