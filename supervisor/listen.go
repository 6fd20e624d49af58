package supervisor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/internal/sys"
	"golang.org/x/sys/unix"
)

// orphanWait is how long a new master waits for the workers of one that was
// killed to close their listeners.
const orphanWait = 3 * time.Second

// bindGroup binds root, an address as config.Config.Root has it, for slots
// workers. ":port" is all addresses of both families (IPv4's alone where there
// is no IPv6); an IPv6 address is IPv6 only, so that "0.0.0.0:80" and
// "[::]:80" can stand beside each other.
func (c *socketChange) bindGroup(root string, slots int) (*group, error) {
	if strings.HasPrefix(root, "unix:") {
		return c.set.bindUnix(root)
	}
	dual := strings.HasPrefix(root, ":")
	text := root
	if dual {
		text = "[::]" + root
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	g := &group{root: root, lockFD: -1}
	if addr.Port() != 0 {
		if g.lockFD, err = lockAddress(addr.String()); err != nil {
			return nil, err
		}
		if !c.overlaps(addr) {
			err = awaitFree(&addr, dual)
		}
	}
	if err == nil {
		err = c.set.bindAll(g, addr, dual, slots)
	}
	if err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

// bindAll binds a socket for each slot.
func (set *socketSet) bindAll(g *group, addr netip.AddrPort, dual bool, slots int) error {
	for n := range slots {
		fd, err := bind(addr, dual, true)
		if err != nil && dual && n == 0 && noIPv6(err) {
			addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
			dual = false
			fd, err = bind(addr, dual, true)
		}
		if err != nil {
			return err
		}
		g.sockets = append(g.sockets, set.newSocket(g, fd, n))
		if addr.Port() == 0 {
			if addr, err = boundTo(fd); err == nil {
				g.lockFD, err = lockAddress(addr.String())
			}
			if err != nil {
				return err
			}
		}
	}
	g.address = addr.String()
	return nil
}

// overlaps reports whether an address of ours, also one that the change
// removes, takes in addr or is taken in by it: then addr is not free, and yet
// may be bound.
func (c *socketChange) overlaps(addr netip.AddrPort) bool {
	return slices.ContainsFunc(slices.Concat(c.set.groups, c.groups), func(g *group) bool {
		other, err := netip.ParseAddrPort(g.address)
		return err == nil && other.Port() == addr.Port() &&
			(other.Addr().IsUnspecified() || addr.Addr().IsUnspecified())
	})
}

// awaitFree returns nil when nobody listens on addr, also not with
// SO_REUSEPORT: such a socket would share our connections silently. Since we
// hold the lock, a socket that is still there may belong to workers whose
// master was killed; they close it as soon as they notice.
func awaitFree(addr *netip.AddrPort, dual bool) error {
	for end := time.Now().Add(orphanWait); ; {
		fd, err := bind(*addr, dual, false)
		if err == nil {
			return os.NewSyscallError("close", unix.Close(fd))
		}
		if dual && noIPv6(err) {
			*addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
			dual = false
			continue
		}
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// noIPv6 reports whether err says that this host has no IPv6.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// option is a socket option.
type option struct {
	name               string
	level, opt, number int
}

// inherited are the options that accepted sockets inherit (tcp(7)).
var inherited = []option{
	{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
}

// shares lets several sockets have one address.
var shares = option{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}

func setOptions(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.number); err != nil {
			return os.NewSyscallError(o.name, err)
		}
	}
	return nil
}

// preferLocal prepares the listener of an address that only this host can reach.
// A refusal leaves it as good as any other.
func preferLocal(fd int, addr netip.AddrPort) {
	if addr.Addr().IsLoopback() {
		_ = sys.SetLocal(int32(fd))
	}
}

// bind makes a TCP socket bound to addr.
func bind(addr netip.AddrPort, dual, share bool) (fd int, err error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	options := append(inherited, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	if share {
		options = append(options, shares)
	}
	if family == unix.AF_INET6 {
		v6only := 1
		if dual {
			v6only = 0
		}
		options = append(options, option{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only})
	}
	if err := setOptions(fd, options); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	preferLocal(fd, addr)
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: another program is listening there", err)
		} else {
			err = os.NewSyscallError("bind", err)
		}
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// sockaddr is addr as the kernel wants it.
func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if zone := addr.Addr().Zone(); zone != "" {
		if link, err := net.InterfaceByName(zone); err == nil { // else bind refuses
			sa.ZoneId = uint32(link.Index)
		}
	}
	return sa
}

var errNotTCP = errors.New("not a TCP socket")

// boundTo is the address of a bound socket.
func boundTo(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, errNotTCP
}

// lockAddress takes the lock of what is listened on, which a master alone holds and the
// kernel drops when it ends: a listening unix socket with an abstract name
// (unix(7)), which lives in the same network namespace as the address. Only
// processes of one user can share an address, so each user has own names.
func lockAddress(what string) (fd int, err error) {
	name := &unix.SockaddrUnix{Name: fmt.Sprintf("@cloud-cup/%d/%s", os.Geteuid(), what)}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Bind(fd, name); err == nil {
		err = unix.Listen(fd, backlog) // nobody accepts: who is refused only looks at the pid
	}
	if err == nil {
		return fd, nil
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = errors.New("another cloud-cup is listening there")
		if unix.Connect(fd, name) == nil {
			if pid, _, peerErr := sys.PeerOf(fd); peerErr == nil {
				err = fmt.Errorf("another cloud-cup (pid %d) is listening there", pid)
			}
		}
	} else {
		err = fmt.Errorf("lock of the address: %w", err)
	}
	return -1, errors.Join(err, unix.Close(fd))
}
