package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstActivated is the first descriptor that a service manager hands over
// (SD_LISTEN_FDS_START of sd_listen_fds(3)).
const firstActivated = 3

// activatedFDs are the descriptors that a service manager handed over to this
// process by LISTEN_PID and LISTEN_FDS. No child inherits the variables or the
// descriptors.
func activatedFDs() ([]int, error) {
	pid, number := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // they are another's, or there are none
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS: %w", err)
	}
	fds := make([]int, n)
	for i := range fds {
		fds[i] = firstActivated + i
		unix.CloseOnExec(fds[i])
	}
	return fds, nil
}

// adopt takes over sockets that listen already. Each must be of an address of
// roots.
func (set *socketSet) adopt(roots []string, fds []int) error {
	for _, fd := range fds {
		root, err := listeningOn(fd)
		if err != nil {
			return fmt.Errorf("activated socket: descriptor %d: %w", fd, err)
		}
		if !slices.Contains(roots, root) {
			return fmt.Errorf("activated socket: %s is not an address of root, which has %q", root, roots)
		}
		if err := set.adoptFor(root, fd); err != nil {
			return fmt.Errorf("activated socket: %s: %w", root, err)
		}
	}
	return nil
}

// adoptFor adds the socket fd to the group of root.
func (set *socketSet) adoptFor(root string, fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if err := unix.Listen(fd, backlog); err != nil { // again, for the queue's length
		return os.NewSyscallError("listen", err)
	}
	i := slices.IndexFunc(set.groups, func(g *group) bool { return g.root == root })
	if i < 0 {
		i = len(set.groups)
		set.groups = append(set.groups, &group{root: root, address: root, activated: true, lockFD: -1})
	}
	g := set.groups[i]
	g.sockets = append(g.sockets, set.newSocket(g, fd, len(g.sockets)))
	addr, err := boundTo(fd)
	if errors.Is(err, errNotTCP) {
		g.shared = true
		return nil
	}
	if err == nil {
		preferLocal(fd, addr)
		err = setOptions(fd, append(inherited, shares))
	}
	if err == nil && g.lockFD < 0 {
		g.address = addr.String()
		g.lockFD, err = lockAddress(addr.String())
	}
	return err
}

// listeningOn returns the address of a listening socket as config.Config.Root
// has it.
func listeningOn(fd int) (root string, err error) {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return "", os.NewSyscallError("SO_ACCEPTCONN", err)
	}
	if listens == 0 {
		return "", errors.New("it does not listen")
	}
	addr, err := boundTo(fd)
	if errors.Is(err, errNotTCP) {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return "", os.NewSyscallError("getsockname", err)
		}
		if local, ok := sa.(*unix.SockaddrUnix); ok {
			return "unix:" + local.Name, nil
		}
		return "", errNotTCP
	}
	if err != nil {
		return "", err
	}
	if addr.Addr() == netip.IPv6Unspecified() {
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return "", os.NewSyscallError("IPV6_V6ONLY", err)
		}
		if only == 0 {
			return ":" + strconv.Itoa(int(addr.Port())), nil
		}
	}
	return addr.String(), nil
}
