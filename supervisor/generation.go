package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/internal/shm"
	"github.com/cloud-cup/cloud-cup/internal/sys"
)

// Where a configuration came from.
const (
	sourceFile   = "file"
	sourceMemory = "memory" // applied over the admin socket
	sourceDemo   = "demo"
)

// generation is one configuration that was or is in force, with what its names
// resolve to. It never changes.
type generation struct {
	number    uint64
	name, dir string
	text      []byte
	cfg       *config.Config
	source    string
	loaded    time.Time
	addresses map[string][]string // by backend host, of the names among them
	failures  map[string]string   // why a name does not resolve

	certificates []certificate // our own, of cfg

	// Places in shared memory, set by registry.assign.
	rows       map[string]int // by control.BackendKey
	routeIndex []int          // by route
}

// parse validates text. The error is a config.Errors.
func parse(name string, text []byte, dir, source string) (*generation, error) {
	cfg, err := config.Parse(name, text, dir)
	if err != nil {
		return nil, err
	}
	return newGeneration(name, text, dir, source, cfg)
}

// reparse is parse of what was accepted before, with those files.
func reparse(name string, text []byte, dir, source string, files config.Files) (*generation, error) {
	cfg, err := config.Reparse(name, text, dir, files)
	if err != nil {
		return nil, err
	}
	return newGeneration(name, text, dir, source, cfg)
}

// newGeneration checks what package config leaves to others.
func newGeneration(name string, text []byte, dir, source string, cfg *config.Config) (*generation, error) {
	if err := checkBackends(name, cfg); err != nil {
		return nil, err
	}
	if _, err := credentialOf(&cfg.User); err != nil {
		return nil, err
	}
	return &generation{name: name, dir: dir, text: text, cfg: cfg, source: source, loaded: time.Now(), certificates: certificatesOf(cfg)}, nil
}

// checkBackends refuses a configuration with more backends than there are rows,
// each name counted as one address.
func checkBackends(name string, cfg *config.Config) error {
	keys := map[string]struct{}{}
	for i := range cfg.Routes {
		for j := range cfg.Routes[i].Backends {
			b := &cfg.Routes[i].Backends[j]
			keys[control.BackendKey(b.Host, b)] = struct{}{}
		}
	}
	if len(keys) <= shm.BackendRowsMax {
		return nil
	}
	return config.Errors{{File: name, Line: 1, Col: 1, Msg: fmt.Sprintf(
		"there are %d backends, at most %d are possible", len(keys), shm.BackendRowsMax)}}
}

// load reads the configuration file at path with read and validates it.
func load(path string, read func(string) ([]byte, error)) (*generation, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return parse(path, text, dir, sourceFile)
}

// readRegular reads a configuration file while the master runs, which must not
// wait for the writer of a pipe, nor take in more than there can be. At the
// start any file will do.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, configBytesMax+1)) // one too many is an error of the text
}

// Check validates the configuration file at path as a start with it would.
func Check(path string) error {
	_, err := load(path, os.ReadFile)
	return err
}

// sum is the SHA-256 of a configuration's text.
func sum(text []byte) string {
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

// seal puts the generation, with the keys of session tickets, into a sealed
// memory file for a worker.
func (g *generation) seal(keys [][32]byte) (fd int, err error) {
	text, err := json.Marshal(control.Payload{
		Generation: g.number, Name: g.name, Dir: g.dir, Text: g.text, Addresses: g.addresses,
		Rows: g.rows, RouteIndex: g.routeIndex, Files: g.cfg.Files, TicketKeys: keys,
	})
	if err != nil {
		return -1, fmt.Errorf("configuration for a worker: %w", err)
	}
	return sys.SealedMemory("cloud-cup-config", text)
}

// hosts returns the distinct hosts of the backends with the number of routes
// that name each.
func (g *generation) hosts() map[string]int {
	routes := map[string]int{}
	for i := range g.cfg.Routes {
		for j := range g.cfg.Routes[i].Backends {
			routes[g.cfg.Routes[i].Backends[j].Host]++
		}
	}
	return routes
}

// Resolving.
const (
	resolveTimeout  = 2 * time.Second  // for all names of a configuration
	resolveEvery    = 30 * time.Second // once all names resolve
	resolveSooner   = 5 * time.Second  // while one does not
	resolveParallel = 32
)

// lookupFunc finds the addresses of a host name; net.Resolver's LookupNetIP
// but in tests.
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// resolve fills in what the names among g's hosts resolve to. It takes no
// longer than resolveTimeout. A name that does not resolve now keeps what
// before, which may be nil, has for it: a failing name server takes no backend
// out.
func (g *generation) resolve(lookup lookupFunc, before *generation) {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	addresses, failures := map[string][]string{}, map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	turns := make(chan struct{}, resolveParallel)
	for host := range g.hosts() {
		if control.FixedAddress(host) {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			turns <- struct{}{}
			defer func() { <-turns }()
			found, err := resolveHost(ctx, lookup, config.Address(host))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[host] = err.Error()
				if before != nil {
					found = before.addresses[host]
				}
			}
			addresses[host] = found
		}()
	}
	wg.Wait()
	g.addresses, g.failures = addresses, failures
}

// resolveHost returns the addresses of "name:port", sorted.
func resolveHost(ctx context.Context, lookup lookupFunc, host string) ([]string, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return nil, err
	}
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	ch := make(chan answer, 1)
	go func() { // a resolver may not keep to its context
		addrs, err := lookup(ctx, "ip", name)
		ch <- answer{addrs, err}
	}()
	select {
	case <-ctx.Done():
		return nil, errors.New("no answer in time")
	case a := <-ch:
		if a.err != nil {
			return nil, a.err
		}
		var list []string
		for _, addr := range a.addrs {
			list = append(list, net.JoinHostPort(addr.Unmap().String(), port))
		}
		slices.Sort(list)
		return slices.Compact(list), nil
	}
}

// sameAddresses reports whether nothing changed from a to b for workers.
func sameAddresses(a, b map[string][]string) bool {
	return maps.EqualFunc(a, b, func(x, y []string) bool { return slices.Equal(x, y) })
}

// unchangeable returns why next cannot follow g without a restart, or nil.
func (g *generation) unchangeable(next *generation) error {
	var changed []string
	note := func(key string, from, to any) {
		changed = append(changed, fmt.Sprintf("%s (from %v to %v)", key, from, to))
	}
	if g.cfg.User.String() != next.cfg.User.String() {
		note("user", &g.cfg.User, &next.cfg.User)
	}
	if g.cfg.Admin.Socket != next.cfg.Admin.Socket {
		note("admin.socket", g.cfg.Admin.Socket, next.cfg.Admin.Socket)
	}
	if g.cfg.Admin.Group != next.cfg.Admin.Group {
		note("admin.group", g.cfg.Admin.Group, next.cfg.Admin.Group)
	}
	if changed == nil {
		return nil
	}
	return fmt.Errorf("%s cannot change while cloud-cup runs: restart it, or take the change back; nothing was changed",
		strings.Join(changed, ", "))
}
