package supervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is what a process has spent, and what it has now.
type usage struct {
	cpu           time.Duration // of all its threads, user and system
	residentBytes uint64
	files         uint64 // open descriptors; 0 if the kernel does not tell
}

func (u *usage) add(o usage) {
	u.cpu += o.cpu
	u.residentBytes += o.residentBytes
	u.files += o.files
}

// clockTick is the unit of times in /proc: USER_HZ is 100 wherever Linux runs
// Go.
const clockTick = time.Second / 100

// usageOf reads the usage of a process that has not been waited for, with
// what everybody may read: workers cannot be looked into. proc_pid_stat(5).
func usageOf(pid int) (usage, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return usage{}, err
	}
	// The name, in parentheses, may hold anything: what follows begins with
	// the third field.
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 22 {
		return usage{}, fmt.Errorf("%s/stat has %d fields", dir, len(fields)+2)
	}
	var numbers [3]uint64 // utime, stime, rss
	for i, field := range []int{14, 15, 24} {
		if numbers[i], err = strconv.ParseUint(fields[field-3], 10, 64); err != nil {
			return usage{}, fmt.Errorf("%s/stat: %w", dir, err)
		}
	}
	u := usage{
		cpu:           time.Duration(numbers[0]+numbers[1]) * clockTick,
		residentBytes: numbers[2] * uint64(os.Getpagesize()),
	}
	// Since Linux 6.2 the folder's size is the number of its entries, for
	// everybody; before, those who may list it count them.
	if info, err := os.Stat(dir + "/fd"); err == nil && info.Size() > 0 {
		u.files = uint64(info.Size())
	} else if entries, err := os.ReadDir(dir + "/fd"); err == nil {
		u.files = uint64(len(entries))
	}
	return u, nil
}

// usage is the worker's. Its CPU time never goes back, also while it ends.
// Master.mu is held.
func (in *incarnation) usage() usage {
	u, err := usageOf(in.pid)
	if err != nil {
		u = usage{} // it has been waited for just now
	}
	in.cpu = max(in.cpu, u.cpu)
	u.cpu = in.cpu
	return u
}
