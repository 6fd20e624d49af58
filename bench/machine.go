package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// thisMachine tells what the kernel tells.
func thisMachine(o *options) (Machine, error) {
	m := Machine{CPUs: runtime.NumCPU(), ProxyCPU: o.proxyCPU, ClientCPU: o.clientCPU, Vulnerabilities: map[string]string{}}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("sysinfo: %w", err)
	}
	m.MemoryMiB = int64(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	// What follows differs between architectures and systems; what a machine
	// does not tell stays empty.
	cpu := fields("/proc/cpuinfo", ":")
	m.CPU = cpu["model name"]
	m.Virtual = strings.Contains(" "+cpu["flags"]+" ", " hypervisor ")
	m.System = strings.Trim(fields("/etc/os-release", "=")["PRETTY_NAME"], `"`)
	if text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		m.TCP = strings.TrimSpace(string(text))
	}
	m.SharedCore = shareCore(o.proxyCPU, o.clientCPU)
	files, err := filepath.Glob("/sys/devices/system/cpu/vulnerabilities/*")
	if err != nil {
		return m, err
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			m.Vulnerabilities[filepath.Base(file)] = strings.TrimSpace(string(text))
		}
	}
	return m, nil
}

// checkCPUs wants the CPUs that programs are to be pinned to.
func checkCPUs(o *options) error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, cpu := range []int{o.proxyCPU, o.clientCPU} {
		if !set.IsSet(cpu) {
			return fmt.Errorf("CPU %d cannot be used here: two of this process's %d are wanted, --proxy-cpu and --client-cpu", cpu, set.Count())
		}
	}
	return nil
}

// shareCore reports whether two CPUs are threads of one core, as far as the
// kernel tells (sysfs-devices-system-cpu in its documentation).
func shareCore(a, b int) bool {
	of := func(cpu int) string {
		text, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu))
		if err != nil {
			return fmt.Sprint(cpu)
		}
		return string(text)
	}
	return of(a) == of(b)
}

// mitigations tells what the kernel does against the CPU's vulnerabilities, and
// which it has none against.
func (m *Machine) mitigations() string {
	var list []string
	spared := 0
	for _, name := range slices.Sorted(maps.Keys(m.Vulnerabilities)) {
		state := m.Vulnerabilities[name]
		if state == "Not affected" {
			spared++
			continue
		}
		list = append(list, name+": "+strings.TrimPrefix(state, "Mitigation: "))
	}
	return strings.Join(append(list, fmt.Sprintf("not affected by %d others", spared)), "; ")
}

// fields reads a file of names and values; the first value of a name counts.
func fields(path, separator string) map[string]string {
	found := map[string]string{}
	text, err := os.ReadFile(path)
	if err != nil {
		return found
	}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(line, separator)
		name = strings.TrimSpace(name)
		if _, twice := found[name]; ok && !twice {
			found[name] = strings.TrimSpace(value)
		}
	}
	return found
}

// thisBuild asks the binary at path.
func thisBuild(path string) (Build, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return Build{}, fmt.Errorf("%w (make build makes it)", err)
	}
	b := Build{Go: info.GoVersion}
	out, err := exec.Command(path, "--version").CombinedOutput() // "cloud-cup fb383ea-dirty"
	if err != nil {
		return b, fmt.Errorf("%s --version: %w: %s", path, err, out)
	}
	// What make build set by git describe.
	b.Commit, b.Dirty = strings.CutSuffix(strings.TrimSpace(strings.TrimPrefix(string(out), "cloud-cup ")), "-dirty")
	if b.Commit == "development" { // built without make
		b.Commit = ""
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Dirty = s.Value == "true"
			}
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return b, err
	}
	sum := sha256.Sum256(text)
	b.SHA256 = hex.EncodeToString(sum[:])
	out, err = exec.Command(path, "--check-io").CombinedOutput()
	if err != nil {
		return b, fmt.Errorf("%s --check-io: %w: %s", path, err, out)
	}
	b.CheckIO = strings.TrimSpace(string(out))
	return b, nil
}

// works reports whether --check-io says yes of the engine.
func (b *Build) works(engine string) bool {
	for line := range strings.Lines(b.CheckIO) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == engine {
			return f[1] == "yes:"
		}
	}
	return false
}

// versions asks the programs that bench does not build.
func versions() (map[string]string, error) {
	// "nginx version: nginx/1.22.1", "built with OpenSSL 3.0.22 25 Aug 2026 (running with OpenSSL 3.0.19 27 Jan 2026)"
	out, err := exec.Command("nginx", "-V").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("nginx -V: %w", err)
	}
	found := map[string]string{"wrk": wrkVersion(), "nginx": wordAfter(string(out), "nginx version: nginx/")}
	if version := wordAfter(string(out), "OpenSSL "); version != "" {
		found["openssl"] = version
	}
	out, err = exec.Command("haproxy", "-v").CombinedOutput() // "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - ..."
	if err != nil {
		return nil, fmt.Errorf("haproxy -v: %w", err)
	}
	found["haproxy"] = wordAfter(string(out), "HAProxy version ")
	return found, nil
}

// wordAfter is the word behind the last place where text has the given name;
// empty without one.
func wordAfter(text, name string) string {
	at := strings.LastIndex(text, name)
	if at < 0 {
		return ""
	}
	return strings.Fields(text[at+len(name):] + " -")[0]
}

func wrkVersion() string {
	// It says it with its usage and the exit status of wrong usage.
	out, _ := exec.Command("wrk", "-v").CombinedOutput() // "wrk debian/4.1.0-3+b2 [epoll] Copyright ..."
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "wrk "), " [")
	return version
}
