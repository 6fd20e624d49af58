package supervisor

import (
	"fmt"
	"log/slog"
	"runtime"

	"github.com/cloud-cup/cloud-cup/control"
)

// chooseEngine decides what the workers are to open.
func chooseEngine(asked string, probe func(string) (string, error), log *slog.Logger) (control.EngineStatus, error) {
	if asked == "" {
		asked = EngineAuto
	}
	status := control.EngineStatus{Asked: asked, Used: asked}
	if asked == EngineAuto {
		status.Used = EngineRing
	}
	var err error
	if status.Detail, err = probeOnThread(probe, status.Used); err == nil {
		return status, nil
	}
	if asked != EngineAuto {
		return status, fmt.Errorf("%s cannot be used: %w", asked, err)
	}
	log.Warn(fmt.Sprintf("%s cannot be used: %v", EngineRing, err), "instead", EngineEpoll)
	status.Used, status.Fallback = EngineEpoll, err.Error()
	if status.Detail, err = probeOnThread(probe, EngineEpoll); err != nil {
		return status, fmt.Errorf("%s cannot be used: %w", EngineEpoll, err)
	}
	return status, nil
}

// EngineProbe is what opening an engine for real came to.
type EngineProbe struct {
	Name   string
	Detail string
	Err    error // nil if it works
}

// ProbeAll tries the engines one after another.
func ProbeAll(names []string, probe func(engine string) (detail string, err error)) []EngineProbe {
	var list []EngineProbe
	for _, name := range names {
		detail, err := probeOnThread(probe, name)
		list = append(list, EngineProbe{name, detail, err})
	}
	return list
}

// probeOnThread runs probe on a thread that ends with it: an engine belongs to
// the thread that opened it.
func probeOnThread(probe func(string) (string, error), engine string) (detail string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		detail, err = probe(engine)
	}()
	<-done
	return detail, err
}
