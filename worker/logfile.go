package worker

import (
	"bytes"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipeBytes is what a pipe takes whole or not at all; PIPE_BUF in pipe(7).
const pipeBytes = 4096

// logFile is what the lines of a log are written to. Other workers write to it
// at the same time, each with an open file description of its own.
type logFile struct {
	fd      int
	regular bool // else a pipe, a terminal, a socket, a device
	shared  bool // the descriptor is not ours to close
	torn    bool // half a line was written last; of what is not regular
}

// newLogFile takes fd over.
func newLogFile(fd int) (*logFile, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(os.NewSyscallError("fstat", err), os.NewSyscallError("close", unix.Close(fd)))
	}
	return &logFile{fd: fd, regular: st.Mode&unix.S_IFMT == unix.S_IFREG}, nil
}

// standardError is the process's own, which it shares with the master and the
// other workers: nothing of it may be locked, cut or made non-blocking.
func standardError() *logFile { return &logFile{fd: 2, shared: true} }

func (f *logFile) close() error {
	if f.shared {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(f.fd))
}

// appendLines writes whole lines to the end of a regular file and returns how
// many bytes of them are in it. On a full disk no half line stays, and one that
// a killed process or a crash has left is ended first. The lock keeps workers
// from seeing each other's writes half done; where there is no locking, lines
// are written all the same.
func (f *logFile) appendLines(lines []byte) (n int, err error) {
	locked := retry(func() error { return unix.Flock(f.fd, unix.LOCK_EX) }) == nil
	if locked {
		defer func() {
			err = errors.Join(err, os.NewSyscallError("flock", unix.Flock(f.fd, unix.LOCK_UN)))
		}()
	}
	end, err := unix.Seek(f.fd, 0, unix.SEEK_END)
	if err != nil {
		return 0, os.NewSyscallError("lseek", err)
	}
	if f.endsTorn(end) {
		k, err := f.write([]byte{'\n'})
		if err != nil {
			return 0, err
		}
		end += int64(k)
	}
	for n < len(lines) && err == nil {
		var k int
		k, err = f.write(lines[n:])
		n += k
	}
	if whole := bytes.LastIndexByte(lines[:n], '\n') + 1; whole < n && locked {
		if cut := unix.Ftruncate(f.fd, end+int64(whole)); cut == nil {
			n = whole
		}
	}
	return n, err
}

// endsTorn reports whether what ends at end is no whole line.
func (f *logFile) endsTorn(end int64) bool {
	var last [1]byte
	n, err := unix.Pread(f.fd, last[:], max(end-1, 0))
	return err == nil && n == 1 && last[0] != '\n'
}

// ready waits for room in what is not a regular file, no longer than the given
// time.
func (f *logFile) ready(patience time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, int(patience.Milliseconds()))
	return n > 0 && err == nil
}

// put writes the first lines, as many as a pipe takes at once, to what is not a
// regular file and is ready.
func (f *logFile) put(lines []byte) (int, error) {
	if f.torn {
		if _, err := f.write([]byte{'\n'}); err != nil {
			return 0, err
		}
		f.torn = false
	}
	if len(lines) > pipeBytes {
		lines = lines[:bytes.LastIndexByte(lines[:pipeBytes], '\n')+1]
	}
	n, err := f.write(lines)
	for n < len(lines) && n > 0 && err == nil { // not of a pipe
		var k int
		k, err = f.write(lines[n:])
		n += k
	}
	if errors.Is(err, unix.EAGAIN) && n == 0 {
		return 0, nil // somebody else was faster
	}
	f.torn = n > 0 && lines[n-1] != '\n'
	return n, err
}

// write is write(2), again where a signal came first.
func (f *logFile) write(b []byte) (n int, err error) {
	err = retry(func() error {
		n, err = unix.Write(f.fd, b)
		return err
	})
	return max(n, 0), os.NewSyscallError("write", err)
}

// retry calls f again as long as signals interrupt it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
