package control

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cloud-cup/cloud-cup/config"
)

// BackendKey is the identity of one address of a backend: as long as
// configurations name it, its health, its connections and its counters live
// on. Weight and max_connections are no part of it; max_failure and cooldown
// are, because the health that they make can only be one.
func BackendKey(addr string, b *config.Backend) string {
	return fmt.Sprintf("%d %v %s %s %v", b.MaxFailure, b.Cooldown, addr, b.Host, b.TLS)
}

// BackendAddresses returns the addresses of a backend's host, each "IP:port" or
// "unix:PATH": none if its name is not among resolved, or did not resolve.
func BackendAddresses(host string, resolved map[string][]string) []string {
	if FixedAddress(host) {
		return []string{config.Address(host)}
	}
	return resolved[host]
}

// FixedAddress reports whether a backend's host needs no resolving.
func FixedAddress(host string) bool {
	if strings.HasPrefix(host, "unix:") {
		return true
	}
	_, err := netip.ParseAddrPort(config.Address(host))
	return err == nil
}
