package supervisor

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// usableCPUs is the number of workers that can run at the same time: the CPUs
// of the affinity mask, at most the cgroup's quota, rounded up.
func usableCPUs() int {
	cpus := runtime.NumCPU() // counts the affinity mask
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		if quota := cpuQuota("/sys/fs/cgroup", string(text)); quota > 0 {
			cpus = min(cpus, quota)
		}
	}
	return cpus
}

// cpuQuota returns the least number of CPUs that the cgroups named by memberships
// (the text of /proc/self/cgroup) and their parents allow under root, 0 if they
// set no bound.
func cpuQuota(root, memberships string) int {
	least := 0
	eachCgroup(root, memberships, "cpu", func(dir string, v2 bool) {
		read := quotaV1
		if v2 {
			read = quotaV2
		}
		if n := read(dir); n > 0 && (least == 0 || n < least) {
			least = n
		}
	})
	return least
}

// eachCgroup visits the folders under root of the cgroups with the controller
// that memberships (the text of /proc/self/cgroup, cgroups(7)) names, each
// followed by its parents.
func eachCgroup(root, memberships, controller string, visit func(dir string, v2 bool)) {
	for line := range strings.Lines(memberships) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		base, v2 := root, controllers == ""
		if !v2 {
			base = filepath.Join(root, controller)
			if !strings.Contains(","+controllers+",", ","+controller+",") {
				continue
			}
		}
		for dir := filepath.Join("/", path); ; dir = filepath.Dir(dir) {
			visit(filepath.Join(base, dir), v2)
			if dir == "/" {
				break
			}
		}
	}
}

// quotaV2 reads "QUOTA PERIOD" or "max PERIOD".
func quotaV2(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "cpu.max"))
	if err != nil {
		return 0
	}
	quota, period, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	return wholeCPUs(quota, period)
}

// quotaV1 reads quota and period; a quota of -1 is no bound.
func quotaV1(dir string) int {
	quota, err := os.ReadFile(filepath.Join(dir, "cpu.cfs_quota_us"))
	if err != nil {
		return 0
	}
	period, err := os.ReadFile(filepath.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return 0
	}
	return wholeCPUs(strings.TrimSpace(string(quota)), strings.TrimSpace(string(period)))
}

func wholeCPUs(quota, period string) int {
	q, err1 := strconv.Atoi(quota)
	p, err2 := strconv.Atoi(period)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return 0
	}
	return (q + p - 1) / p
}
