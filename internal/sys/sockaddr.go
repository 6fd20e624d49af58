package sys

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"
)

// Sockaddr is room for a socket address of any family we use, as the kernel
// lays it out: struct sockaddr_in, sockaddr_in6 (<linux/in.h>, <linux/in6.h>)
// and sockaddr_un (<linux/un.h>).
type Sockaddr [128]byte

// SockaddrBytes is the size of struct sockaddr_storage (<linux/socket.h>).
const SockaddrBytes = 128

var _ = [1]struct{}{}[unsafe.Sizeof(Sockaddr{})-SockaddrBytes]

// pathBytes is the size of sun_path (UNIX_PATH_MAX).
const pathBytes = 108

// SetAddrPort writes a TCP address and returns its family and length. A zone
// of an IPv6 address is an interface's name or number: ENODEV if there is none.
func (s *Sockaddr) SetAddrPort(a netip.AddrPort) (family int, length uint32, errno syscall.Errno) {
	addr := a.Addr()
	switch {
	case !addr.IsValid():
		return 0, 0, syscall.EDESTADDRREQ
	case addr.Is4() || addr.Is4In6():
		binary.NativeEndian.PutUint16(s[0:], syscall.AF_INET)
		binary.BigEndian.PutUint16(s[2:], a.Port())
		ip := addr.As4()
		copy(s[4:8], ip[:])
		clear(s[8:16])
		return syscall.AF_INET, 16, 0
	}
	var scope uint32
	if zone := addr.Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			scope = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			scope = uint32(i.Index)
		} else {
			return 0, 0, syscall.ENODEV
		}
	}
	binary.NativeEndian.PutUint16(s[0:], syscall.AF_INET6)
	binary.BigEndian.PutUint16(s[2:], a.Port())
	clear(s[4:8])
	ip := addr.As16()
	copy(s[8:24], ip[:])
	binary.NativeEndian.PutUint32(s[24:], scope)
	return syscall.AF_INET6, 28, 0
}

// SetUnix writes the path of a unix socket, abstract if it begins with '@',
// and returns the length of the address. unix(7).
func (s *Sockaddr) SetUnix(path string) (length uint32, errno syscall.Errno) {
	if path == "" {
		return 0, syscall.EDESTADDRREQ
	}
	if len(path) >= pathBytes {
		return 0, syscall.ENAMETOOLONG
	}
	binary.NativeEndian.PutUint16(s[0:], syscall.AF_UNIX)
	copy(s[2:], path)
	if path[0] == '@' {
		s[2] = 0
		return uint32(2 + len(path)), 0
	}
	s[2+len(path)] = 0
	return uint32(2 + len(path) + 1), 0
}

// AddrPort reads a TCP address that the kernel wrote: IPv4 also when it came
// in an IPv6 socket, without a zone, and zero for other families. It does not
// allocate.
func (s *Sockaddr) AddrPort() netip.AddrPort {
	switch binary.NativeEndian.Uint16(s[0:]) {
	case syscall.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s[4:8])), binary.BigEndian.Uint16(s[2:]))
	case syscall.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s[8:24])).Unmap(), binary.BigEndian.Uint16(s[2:]))
	}
	return netip.AddrPort{}
}
