package control

// Guard tells what holds a worker back, as the kernel told the worker when it
// began to serve, and where its loop is pinned.
type Guard struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups,omitempty"` // supplementary
	// Capabilities are those that it has or could give itself, in base 16
	// as in /proc/PID/status; "0" is none.
	Capabilities string `json:"capabilities"`
	NoNewPrivs   bool   `json:"no_new_privs"`
	Dumpable     bool   `json:"dumpable"`
	// Seccomp says that a filter refuses what a worker does not need;
	// SeccompError, why ours is not in force.
	Seccomp      bool   `json:"seccomp"`
	SeccompError string `json:"seccomp_error,omitempty"`
	// CPU is the one that the loop is pinned to, nil if it is not.
	CPU *int `json:"cpu,omitempty"`
}
