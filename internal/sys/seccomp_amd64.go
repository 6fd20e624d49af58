package sys

import "golang.org/x/sys/unix"

// auditArch is how seccomp names the architecture (<linux/audit.h>).
const auditArch = unix.AUDIT_ARCH_X86_64

// oldCalls open files on architectures that have had them from the beginning.
var oldCalls = []int{unix.SYS_OPEN, unix.SYS_CREAT}
