package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	out, err := exec.Command("nginx", "-v").CombinedOutput() // "nginx version: nginx/1.22.1"
	if err != nil {
		return nil, fmt.Errorf("nginx -v: %w", err)
	}
	_, nginx, _ := strings.Cut(strings.TrimSpace(string(out)), "/")
	out, err = exec.Command("haproxy", "-v").CombinedOutput() // "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - ..."
	if err != nil {
		return nil, fmt.Errorf("haproxy -v: %w", err)
	}
	haproxy := strings.Fields(strings.TrimPrefix(string(out), "HAProxy version "))[0]
	return map[string]string{"nginx": nginx, "haproxy": haproxy, "wrk": wrkVersion()}, nil
}

func wrkVersion() string {
	// It says it with its usage and the exit status of wrong usage.
	out, _ := exec.Command("wrk", "-v").CombinedOutput() // "wrk debian/4.1.0-3+b2 [epoll] Copyright ..."
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "wrk "), " [")
	return version
}
