package worker

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/ring"
	"golang.org/x/sys/unix"
)

// Examine tries what this kernel and whatever confines this process allow of
// the engines, and says what to change.
func Examine() *control.IOReport {
	done := make(chan *control.IOReport)
	go func() {
		runtime.LockOSThread() // and never unlocked: what was tried ends with the thread
		done <- examine()
	}()
	return <-done
}

func examine() *control.IOReport {
	around := surroundings()
	r := &control.IOReport{Facts: around.facts()}
	var refused error
	for i, e := range engines {
		f := control.IOFinding{Name: e.name, Answer: control.AnswerYes}
		detail, err := Probe(e.name)
		if f.Detail = detail; err != nil {
			f.Answer, f.Errno, f.Detail = control.AnswerNo, errnoName(err), err.Error()
		}
		if i == 0 {
			refused = err
		}
		r.Engines = append(r.Engines, f)
	}
	pool := loop.NewPool(probeBytes)
	for _, f := range ring.Survey(pool) {
		r.Features = append(r.Features, finding(&f))
	}
	if err := pool.Close(); err != nil {
		r.Facts = append(r.Facts, control.IOFact{Name: "memory", Value: err.Error()})
	}
	if refused != nil {
		r.Advice = around.advice(refused)
	}
	return r
}

func finding(f *ring.Finding) control.IOFinding {
	out := control.IOFinding{Name: f.Name, Since: f.Since, Answer: control.AnswerUnknown, Detail: f.Cause}
	switch {
	case f.Has():
		out.Answer = control.AnswerYes
	case f.Tried:
		out.Answer, out.Errno = control.AnswerNo, unix.ErrnoName(f.Errno)
	}
	return out
}

func errnoName(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return ""
}

// around is what may forbid io_uring. A field is empty if the kernel does not
// tell.
type around struct {
	release, machine string
	disabled, group  string // the sysctls kernel.io_uring_disabled and io_uring_group
	seccomp, filters string // of proc_pid_status(5)
	noNewPrivs       string
	locked           string // memory of this process, of proc_pid_status(5)
	memlock          uint64 // RLIMIT_MEMLOCK in bytes
	ipcLock          bool   // CAP_IPC_LOCK: the limit does not count
	container        string
}

// Files by which containers can be told.
var containerFiles = map[string]string{"/.dockerenv": "Docker", "/run/.containerenv": "Podman"}

func surroundings() *around {
	var a around
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		a.release, a.machine = unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:])
	}
	a.disabled, a.group = readLine("/proc/sys/kernel/io_uring_disabled"), readLine("/proc/sys/kernel/io_uring_group")
	// What cannot be read stays empty.
	text, _ := os.ReadFile("/proc/thread-self/status")
	a.status(string(text))
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil {
		a.memlock = limit.Cur
	}
	for file, name := range containerFiles {
		if _, err := os.Stat(file); err == nil {
			a.container = name
		}
	}
	return &a
}

// capIPCLock is the bit of CAP_IPC_LOCK in CapEff.
const capIPCLock = 14

// status takes what is needed from the text of proc_pid_status(5).
func (a *around) status(text string) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Seccomp":
			a.seccomp = value
		case "Seccomp_filters":
			a.filters = value
		case "NoNewPrivs":
			a.noNewPrivs = value
		case "VmLck":
			a.locked = value
		case "CapEff":
			var bits uint64
			if _, err := fmt.Sscanf(value, "%x", &bits); err == nil {
				a.ipcLock = bits>>capIPCLock&1 == 1
			}
		}
	}
}

func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// filtered reports whether a seccomp filter looks at this process' calls.
func (a *around) filtered() bool { return a.seccomp == "2" }

func (a *around) facts() []control.IOFact {
	facts := []control.IOFact{{Name: "kernel", Value: "Linux " + a.release + " " + a.machine}}
	add := func(name, value string) { facts = append(facts, control.IOFact{Name: name, Value: value}) }
	switch a.disabled {
	case "":
		add("sysctl", "kernel.io_uring_disabled is not there (Linux 6.6): io_uring is not switched off by it")
	case "0":
		add("sysctl", "kernel.io_uring_disabled is 0: everybody may use io_uring")
	case "1":
		add("sysctl", "kernel.io_uring_disabled is 1: only the group "+a.group+" (kernel.io_uring_group) and CAP_SYS_ADMIN may use io_uring")
	default:
		add("sysctl", "kernel.io_uring_disabled is "+a.disabled+": nobody may use io_uring")
	}
	switch a.seccomp {
	case "":
		add("seccomp", "could not tell: /proc has no word of it")
	case "0":
		add("seccomp", "no filter")
	case "2":
		add("seccomp", fmt.Sprintf("filters look at this process' calls: %s; no_new_privs is %s", or(a.filters, "unknown how many"), or(a.noNewPrivs, "unknown")))
	default:
		add("seccomp", "mode "+a.seccomp)
	}
	add("memlock", a.memlockText())
	add("container", or(a.container, "no sign of one"))
	add("user", fmt.Sprint(os.Geteuid()))
	return facts
}

func (a *around) memlockText() string {
	needs := fmt.Sprintf("each worker's ring takes about %d KiB", ring.MemlockBytes>>10)
	switch {
	case a.ipcLock:
		return "no limit (CAP_IPC_LOCK); " + needs
	case a.memlock == unix.RLIM_INFINITY:
		return "no limit; " + needs
	}
	return fmt.Sprintf("%d KiB for all processes of user %d together; this one has locked %s; %s",
		a.memlock>>10, os.Geteuid(), or(a.locked, "an unknown amount"), needs)
}

// advice says what to change so that what was refused works.
func (a *around) advice(refused error) []string {
	filter := []string{
		"a seccomp filter refuses the calls io_uring_setup, io_uring_enter and io_uring_register: allow them",
		"Docker, Podman: --security-opt seccomp=PROFILE.json, with the three calls added to the default profile (to try: seccomp=unconfined)",
		"Kubernetes: securityContext.seccompProfile of type Localhost with such a profile",
		"systemd: SystemCallFilter= with @aio or the three calls among the allowed ones",
	}
	var errno syscall.Errno
	errors.As(refused, &errno)
	switch errno {
	case syscall.EPERM:
		switch {
		case a.disabled == "2":
			return []string{"sysctl -w kernel.io_uring_disabled=0 on the host, and a file in /etc/sysctl.d to keep it"}
		case a.disabled != "1" && a.seccomp == "0":
			return []string{"neither the sysctl nor a seccomp filter refuses it: look at the security modules (/sys/kernel/security/lsm) and their log"}
		case a.disabled != "1":
			return filter
		default:
			return []string{
				"sysctl -w kernel.io_uring_group=GID on the host, with a group of the workers' user, or",
				"sysctl -w kernel.io_uring_disabled=0 on the host",
			}
		}
	case syscall.ENOSYS:
		if a.filtered() {
			return filter
		}
		return []string{"a kernel with CONFIG_IO_URING=y; in gVisor there is none: use another runtime (runc)"}
	case syscall.EACCES:
		return append([]string{"SELinux: ausearch -m avc -c cloud-cup shows the denial; allow io_uring for its domain (audit2allow)"}, filter...)
	case syscall.ENOMEM:
		return []string{
			"raise RLIMIT_MEMLOCK; it counts for all processes of the user together",
			"systemd: LimitMEMLOCK=infinity",
			"Docker, Podman: --ulimit memlock=-1",
			"a shell: ulimit -l unlimited, as far as /etc/security/limits.conf permits",
			"or run fewer workers",
		}
	case syscall.EINVAL:
		return []string{"Linux 5.19 or newer, best 6.1 or newer; in gVisor there is no io_uring: use another runtime (runc)"}
	case syscall.EMFILE, syscall.ENFILE:
		return []string{"raise the limit of open files: LimitNOFILE= (systemd), --ulimit nofile= (Docker, Podman), ulimit -n"}
	}
	return []string{"nothing known: please report the error with the kernel's version"}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
