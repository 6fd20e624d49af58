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

// IO tells what was chosen, what the workers use, and what can be had now.
func (m *Master) IO() *control.IOStatus {
	s := m.Status()
	return &control.IOStatus{Engine: s.Engine, Workers: s.Workers, Report: m.options.Examine()}
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
