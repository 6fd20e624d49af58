package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// backlog is the length of each accept queue; the kernel clamps it to
// net.core.somaxconn.
const backlog = 4096

// socket is a listening socket. The master keeps it as long as its address is
// configured, so that the accept queue outlives workers; which worker accepts
// from it is handOver's choice.
type socket struct {
	id    uint32 // in messages to workers; never used again
	fd    int
	home  int // the slot whose worker accepts from it, if it can
	group *group
}

// group is one address of the configuration with one SO_REUSEPORT socket per
// slot, or with one for all. It never loses a socket while it is configured: the
// kernel would reset what waits in the socket's queue.
type group struct {
	root    string    // as configured
	address string    // as bound: with the port, if the kernel chose it
	sockets []*socket // by slot; more than there are slots if there once were more
	shared  bool      // there is one socket, which all workers accept from
	path    string    // of the file that goes with the group, if it has one
	file    file      // there
	lockFD  int       // -1 without one
	removed bool      // it is configured no more
	// activated says that a service manager made the first socket.
	activated bool
}

// dual reports whether the group takes connections of both families.
func (g *group) dual() bool {
	return strings.HasPrefix(g.root, ":") && strings.HasPrefix(g.address, "[")
}

// close closes the sockets and gives the address up.
func (g *group) close() error {
	errs := []error{g.removeFile(), closeFD(g.lockFD)}
	g.path = ""
	for _, s := range g.sockets {
		errs = append(errs, closeFD(s.fd))
	}
	g.sockets, g.lockFD = nil, -1
	return errors.Join(errs...)
}

// closeFD closes fd unless it is negative.
func closeFD(fd int) error {
	if fd < 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// socketSet is all that the master listens on.
type socketSet struct {
	groups []*group // in the configuration's order
	lastID uint32
}

// addresses are those that are listened on, in the configuration's order.
func (set *socketSet) addresses() []string {
	var list []string
	for _, g := range set.groups {
		list = append(list, g.address)
	}
	return list
}

// close gives all addresses up; their names stay.
func (set *socketSet) close() error {
	var errs []error
	for _, g := range set.groups {
		errs = append(errs, g.close())
	}
	return errors.Join(errs...)
}

// socketChange is what a socketSet is to become, all bound, nothing listening
// yet: it ends with commit or abort.
type socketChange struct {
	set    *socketSet
	groups []*group // those of the set that stay, and fresh ones
	fresh  []*group
	more   map[*group][]*socket // for the slots that staying groups lack
}

// prepare binds what listening on roots for slots workers needs. Addresses as
// config.Config.Root has them are known by their text, so that port 0 stays
// the port it was.
func (set *socketSet) prepare(roots []string, slots int) (*socketChange, error) {
	c := &socketChange{set: set, more: map[*group][]*socket{}}
	for _, root := range roots {
		if err := c.prepareGroup(root, slots); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", root, err), c.abort())
		}
	}
	return c, nil
}

// check tells whether prepare would succeed now.
func (set *socketSet) check(roots []string, slots int) error {
	c, err := set.prepare(roots, slots)
	if err != nil {
		return err
	}
	return c.abort()
}

func (c *socketChange) prepareGroup(root string, slots int) error {
	i := slices.IndexFunc(c.set.groups, func(g *group) bool { return g.root == root })
	if i < 0 {
		g, err := c.bindGroup(root, slots)
		if err == nil {
			c.groups, c.fresh = append(c.groups, g), append(c.fresh, g)
		}
		return err
	}
	g := c.set.groups[i]
	c.groups = append(c.groups, g)
	if g.shared {
		return nil
	}
	addr, err := netip.ParseAddrPort(g.address)
	if err != nil {
		return err
	}
	for n := len(g.sockets); n < slots; n++ {
		fd, err := bind(addr, g.dual(), true)
		if err != nil && g.activated && n == 1 {
			// Who may not bind beside the service manager's socket, because
			// that is another user's or has a port that is reserved, shares it.
			g.shared = true
			return nil
		}
		if err != nil {
			return err
		}
		c.more[g] = append(c.more[g], c.set.newSocket(g, fd, n))
	}
	return nil
}

// abort closes what was bound. After commit it does nothing.
func (c *socketChange) abort() error {
	var errs []error
	for _, g := range c.fresh {
		errs = append(errs, g.close())
	}
	for _, sockets := range c.more {
		for _, s := range sockets {
			errs = append(errs, closeFD(s.fd))
		}
	}
	c.fresh, c.more = nil, nil
	return errors.Join(errs...)
}

// commit begins to listen and makes the change the set's state. The groups
// that it returns are not configured any more: whoever serves them must let go
// before they are closed. After an error the change is to be aborted.
func (c *socketChange) commit() (removed []*group, err error) {
	for _, s := range c.bound() {
		if err := unix.Listen(s.fd, backlog); err != nil {
			return nil, fmt.Errorf("%s: %w", s.group.root, os.NewSyscallError("listen", err))
		}
	}
	for g, sockets := range c.more {
		g.sockets = append(g.sockets, sockets...)
	}
	for _, g := range c.set.groups {
		if !slices.Contains(c.groups, g) {
			g.removed = true
			removed = append(removed, g)
		}
	}
	c.set.groups = c.groups
	c.fresh, c.more = nil, nil
	return removed, nil
}

// bound are the change's own sockets.
func (c *socketChange) bound() []*socket {
	list := slices.Concat(slices.Collect(maps.Values(c.more))...)
	for _, g := range c.fresh {
		list = append(list, g.sockets...)
	}
	return list
}

// newSocket returns fd as a socket of g for a slot.
func (set *socketSet) newSocket(g *group, fd, home int) *socket {
	set.lastID++
	return &socket{id: set.lastID, fd: fd, home: home, group: g}
}
