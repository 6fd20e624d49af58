package supervisor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// handedGroup describes a group to another master of the same host. Its
// descriptors travel beside it: the lock's, if it has one, then one per socket.
type handedGroup struct {
	Root      string `json:"root"`
	Address   string `json:"address"`
	Sockets   int    `json:"sockets"`
	Shared    bool   `json:"shared,omitempty"`
	Activated bool   `json:"activated,omitempty"`
	Path      string `json:"path,omitempty"`
	File      file   `json:"file"`
	Locked    bool   `json:"locked,omitempty"`
}

// export describes the set to another master. The descriptors stay the set's.
func (set *socketSet) export() (groups []handedGroup, fds []int) {
	for _, g := range set.groups {
		groups = append(groups, handedGroup{
			Root: g.root, Address: g.address, Sockets: len(g.sockets), Shared: g.shared, Activated: g.activated,
			Path: g.path, File: g.file, Locked: g.lockFD >= 0,
		})
		if g.lockFD >= 0 {
			fds = append(fds, g.lockFD)
		}
		for _, s := range g.sockets {
			fds = append(fds, s.fd)
		}
	}
	return groups, fds
}

// importSockets takes over what another master's set exported, with its
// descriptors, also after an error: then the set is to be closed. prepare brings
// it to what the configuration wants.
func importSockets(groups []handedGroup, fds []int) (*socketSet, error) {
	set := new(socketSet)
	take := func() int {
		if len(fds) == 0 {
			return -1
		}
		fd := fds[0]
		fds = fds[1:]
		unix.CloseOnExec(fd)
		return fd
	}
	for _, h := range groups {
		g := &group{
			root: h.Root, address: h.Address, shared: h.Shared, activated: h.Activated, path: h.Path, file: h.File, lockFD: -1,
		}
		set.groups = append(set.groups, g)
		if h.Locked {
			g.lockFD = take()
			// From now on it names this process to who is refused.
			if err := unix.Listen(g.lockFD, backlog); err != nil {
				return set, fmt.Errorf("lock of %s: %w", h.Address, os.NewSyscallError("listen", err))
			}
		}
		for n := range h.Sockets {
			g.sockets = append(g.sockets, set.newSocket(g, take(), n))
		}
	}
	if n := len(set.groups); len(fds) > 0 || n > 0 && set.groups[n-1].sockets[len(set.groups[n-1].sockets)-1].fd < 0 {
		return set, errors.New("listeners: their number is not that of the descriptors")
	}
	return set, nil
}

// disown makes the set's files survive it: another master has them.
func (set *socketSet) disown() {
	for _, g := range set.groups {
		g.path = ""
	}
}
