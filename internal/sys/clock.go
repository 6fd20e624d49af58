package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// The origin of the runtime's monotonic clock.
var (
	clockStart = time.Now()
	clockBase  = monotonicRaw() - int64(time.Since(clockStart))
)

// Monotonic is the CLOCK_MONOTONIC time in nanoseconds, comparable between
// processes to within a microsecond. The runtime's own monotonic clock is
// CLOCK_MONOTONIC too and is read without a system call; only its origin is
// hidden, which is found once.
func Monotonic() int64 { return clockBase + int64(time.Since(clockStart)) }

func monotonicRaw() int64 {
	var ts unix.Timespec
	// clock_gettime cannot fail for this clock and address.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
