package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomCounter is the path of the file that counts the processes of our cgroup
// that were killed because memory ran out: memory.events of cgroup v2,
// memory.oom_control of v1 (since Linux 4.13). Empty if there is none.
type oomCounter string

// ownOOMCounter finds the file of this process's cgroup, in which its workers
// are too.
func ownOOMCounter() oomCounter {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return findOOMCounter("/sys/fs/cgroup", string(text))
}

// findOOMCounter is the file under root of the cgroup that memberships (the
// text of /proc/self/cgroup) names. In a container only one of its parents may
// be visible.
func findOOMCounter(root, memberships string) (found oomCounter) {
	eachCgroup(root, memberships, "memory", func(dir string, v2 bool) {
		file := "memory.oom_control"
		if v2 {
			file = "memory.events"
		}
		counter := oomCounter(filepath.Join(dir, file))
		if _, ok := counter.read(); found == "" && ok {
			found = counter
		}
	})
	return found
}

// kills is the counter's value, 0 if there is none.
func (c oomCounter) kills() uint64 {
	n, _ := c.read()
	return n
}

func (c oomCounter) read() (kills uint64, ok bool) {
	text, err := os.ReadFile(string(c))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "oom_kill "); found {
			kills, err = strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return kills, err == nil
		}
	}
	return 0, false
}
