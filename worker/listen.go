package worker

import (
	"errors"
	"fmt"
	"os"

	"github.com/cloud-cup/cloud-cup/control"
	"golang.org/x/sys/unix"
)

// listen begins to accept from the listening socket fd.
func (w *worker) listen(l *control.Listener, fd int) error {
	if l == nil || fd < 0 {
		return errors.New("listen without a listener")
	}
	err := unix.SetNonblock(fd, true)
	if err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	if late := w.onLoop(func() { err = w.proxy.Listen(l.ID, int32(fd), l.Address, l.Root, l.Shared) }); late != nil {
		return late // and the process ends, with its descriptors
	}
	if err != nil {
		return fmt.Errorf("listener %s: %w", l.Address, err)
	}
	return nil
}

// unlisten returns when the worker has let go of a listener.
func (w *worker) unlisten(l *control.Listener) error {
	if l == nil {
		return errors.New("unlisten without a listener")
	}
	left := make(chan struct{})
	known := false
	err := w.onLoop(func() { known = w.proxy.Unlisten(l.ID, l.Empty, func() { close(left) }) })
	switch {
	case err != nil:
		return err
	case !known:
		return fmt.Errorf("there is no listener %d", l.ID)
	}
	select {
	case <-left:
	case <-w.loopEnded: // with all its listeners
	}
	return nil
}
