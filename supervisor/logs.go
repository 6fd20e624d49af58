package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"golang.org/x/sys/unix"
)

// logFileMode is the mode of a log file that the master makes.
const logFileMode = 0o640

// logFiles are the files of the access logs, by path. The master opens them,
// since workers may not; it writes nothing.
type logFiles map[string]int

// openLog opens a log file, and makes it if there is none. A FIFO is not waited
// for, neither now nor when it is written to: without a reader it is an error.
func openLog(path string) (fd int, err error) {
	mode := unix.O_RDWR // what a crash has left half written is looked at
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		mode = unix.O_WRONLY | unix.O_NONBLOCK
	}
	fd, err = openAppending(path, mode|unix.O_CREAT|unix.O_NOCTTY)
	if errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("open %s: nobody reads from this FIFO", path)
	}
	return fd, err
}

func openAppending(path string, mode int) (fd int, err error) {
	fd, err = unix.Open(path, mode|unix.O_APPEND|unix.O_CLOEXEC, logFileMode)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// forWorker returns a descriptor of what fd refers to, to be closed, for one
// worker. Of a regular file it has an open file description of its own, since
// workers lock the file and must not share the lock; the file may have another
// name by now, or none. Where that cannot be had, and of a FIFO, which could
// not be opened without a reader, the worker shares the master's.
func forWorker(fd int) (int, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		if own, err := openAppending("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDWR); err == nil {
			return own, nil
		}
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return own, os.NewSyscallError("fcntl", err)
}

// opened returns what a configuration needs: the files of f that it names, and
// those that it names besides, newly opened. The error names the place in the
// configuration, and nothing is open more than before.
func (f logFiles) opened(cfg *config.Config) (all, fresh logFiles, err error) {
	all, fresh = logFiles{}, logFiles{}
	for i := range cfg.LogFiles {
		file := &cfg.LogFiles[i]
		fd, have := f[file.Path]
		if !have {
			if fd, err = openLog(file.Path); err != nil {
				return nil, nil, errors.Join(file.Mistake(err), fresh.close())
			}
			fresh[file.Path] = fd
		}
		all[file.Path] = fd
	}
	return all, fresh, nil
}

// without returns the files of f that o has not.
func (f logFiles) without(o logFiles) logFiles {
	rest := logFiles{}
	for path, fd := range f {
		if _, have := o[path]; !have {
			rest[path] = fd
		}
	}
	return rest
}

func (f logFiles) close() error {
	var errs []error
	for _, fd := range f {
		errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
	}
	return errors.Join(errs...)
}

// giveTo hands the files over to a worker.
func (f logFiles) giveTo(in *incarnation) error {
	for path, fd := range f {
		own, err := forWorker(fd)
		if err != nil {
			return fmt.Errorf("log %s: %w", path, err)
		}
		_, err = in.call(control.Message{Type: control.TypeLog, Log: path}, own, reloadTimeout)
		if err := errors.Join(err, os.NewSyscallError("close", unix.Close(own))); err != nil {
			return fmt.Errorf("log %s: %w", path, err)
		}
	}
	return nil
}

// ReopenLogs opens all log files anew by their names, as after a rotation, and
// has the workers go on in them. When it returns, nothing is written to the
// files before any more, but by workers that the error names. A file that
// cannot be opened stays as it is.
func (m *Master) ReopenLogs() error {
	m.turn.Lock()
	defer m.turn.Unlock()
	var errs []error
	fresh := logFiles{}
	for path := range m.logs {
		fd, err := openLog(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fresh[path] = fd
	}
	old := logFiles{}
	for path, fd := range fresh {
		old[path], m.logs[path] = m.logs[path], fd
	}
	for pid, err := range eachWorker(m.logWriters(), fresh.giveTo) {
		if err != nil && !errors.Is(err, errGone) {
			errs = append(errs, fmt.Errorf("worker with pid %d: %w", pid, err))
		}
	}
	errs = append(errs, old.close())
	m.log.Info("access logs reopened", "files", len(fresh))
	return errors.Join(errs...)
}

// giveAll hands files over to all workers at once. The error is that of the
// first that did not take them.
func giveAll(workers map[int]*incarnation, files logFiles) error {
	if len(files) == 0 {
		return nil
	}
	return firstRefusal(eachWorker(workers, files.giveTo))
}

// logWriters are all workers, also those that drain, by their process ids.
func (m *Master) logWriters() map[int]*incarnation {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[int]*incarnation{}
	for _, s := range m.slots {
		for _, in := range s.workers() {
			all[in.pid] = in
		}
	}
	return all
}
