package worker

import (
	"errors"
	"fmt"

	"github.com/cloud-cup/cloud-cup/epollfallback"
	"github.com/cloud-cup/cloud-cup/loop"
	"github.com/cloud-cup/cloud-cup/ring"
)

// engines in order of preference.
var engines = []struct {
	name string
	open func(*loop.Pool) (loop.Engine, error)
}{
	{"uring", func(p *loop.Pool) (loop.Engine, error) { return ring.Open(ring.Config{Pool: p}) }},
	{"epoll", func(p *loop.Pool) (loop.Engine, error) { return epollfallback.Open(epollfallback.Config{Pool: p}) }},
}

// EngineNames lists the engines in order of preference.
func EngineNames() []string {
	var names []string
	for _, e := range engines {
		names = append(names, e.name)
	}
	return names
}

// probeBytes is what the pool of a probe may lend.
const probeBytes = 4 << 20

// Probe opens the named engine for real, and closes it again. The thread that
// calls it must end afterwards: an engine belongs to its thread.
func Probe(name string) (detail string, err error) {
	engine, pool, err := open(name, probeBytes)
	if err != nil {
		return "", err
	}
	detail = engine.Detail()
	return detail, errors.Join(engine.Close(), pool.Close())
}

// open opens the named engine on this thread.
func open(name string, memory int) (loop.Engine, *loop.Pool, error) {
	for _, e := range engines {
		if e.name != name {
			continue
		}
		pool := loop.NewPool(memory)
		engine, err := e.open(pool)
		if err != nil {
			return nil, nil, errors.Join(err, pool.Close())
		}
		return engine, pool, nil
	}
	return nil, nil, fmt.Errorf("there is no engine %q", name)
}

// opened is an engine with its pool.
type opened struct {
	engine   loop.Engine
	pool     *loop.Pool
	fallback string // why it is not the one that was asked for
}

// openEngine opens the engine that the master chose, or, unless it is required,
// the next one that works.
func openEngine(name string, required bool, memory int) (*opened, error) {
	engine, pool, err := open(name, memory)
	if err == nil {
		return &opened{engine: engine, pool: pool}, nil
	}
	err = fmt.Errorf("%s cannot be used: %w", name, err)
	if required {
		return nil, err
	}
	for _, e := range engines {
		if e.name == name {
			continue
		}
		if engine, pool, nextErr := open(e.name, memory); nextErr == nil {
			return &opened{engine: engine, pool: pool, fallback: err.Error()}, nil
		}
	}
	return nil, err
}
