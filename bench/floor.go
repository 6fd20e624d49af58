package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
)

// floorCommand runs this program as a floor: it forwards bytes without looking
// at them, over one connection to the backend for each of a client. What a
// proxy costs beyond it is the price of understanding HTTP and of sharing
// connections. The one on epoll makes the system calls itself (floorepoll.go);
// the one on io_uring stands on the engine that Cloud Cup has (flooruring.go):
// it is the floor of what is built on that engine, not of what the kernel can do.
const floorCommand = "floor"

// Names of the floors.
const (
	floorEpoll = "floor epoll"
	floorRing  = "floor uring"
)

func serveFloor(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: bench floor epoll|uring IP:PORT BACKEND-IP:PORT")
	}
	address, err1 := netip.ParseAddrPort(args[1])
	backend, err2 := netip.ParseAddrPort(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	listener, err := listen(address)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	runtime.GOMAXPROCS(2) // as Cloud Cup's workers
	switch args[0] {
	case "epoll":
		return runFloorEpoll(listener, backend)
	case "uring":
		return runFloorRing(listener, backend)
	}
	return fmt.Errorf("no floor on %q: want epoll or uring", args[0])
}

// floors are the floors that work here. They need no configuration, and know no
// way to a unix socket. self is the file of this program.
func floors(o *options, build *Build, self, backend string) ([]candidate, error) {
	var list []candidate
	if strings.HasPrefix(backend, unixPrefix) {
		return nil, nil
	}
	for _, name := range []string{floorEpoll, floorRing} {
		engine := strings.TrimPrefix(name, floorCommand+" ")
		if !build.works(engine) {
			continue
		}
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		list = append(list, candidate{
			Program: Program{Name: name, Floor: true, Command: pinned(o.proxyCPU, self, floorCommand, engine, address, backend)},
			site:    site{address: address, backend: backend},
		})
	}
	return list, nil
}
