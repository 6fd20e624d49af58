package supervisor

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
)

// filesEvery is how often the files are looked at that the configuration names.
const filesEvery = 10 * time.Second

// settleShare is the part of that time for which changed files must stay as they
// are before they are read: who renews a certificate writes several.
const settleShare = 10

// stamp tells versions of a file apart without reading it; the zero stamp is a
// file that is not there.
type stamp struct {
	device, inode     uint64
	size              int64
	modified, changed syscall.Timespec
}

// stampsOf looks at files.
func stampsOf(files config.Files) map[string]stamp {
	stamps := make(map[string]stamp, len(files))
	for path := range files {
		var s stamp
		if info, err := os.Stat(path); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				s = stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
			}
		}
		stamps[path] = s
	}
	return stamps
}

// fileWatch is what was seen of the files that the configuration names.
type fileWatch struct {
	read    map[string]stamp // when they were read, with success
	last    map[string]stamp
	failure string // that was told since the files changed last
	told    warnings
}

// keepFiles puts certificates, keys and authorities in force when their files
// change, and tells of certificates that expire, until done is closed.
func (m *Master) keepFiles(done <-chan struct{}) {
	w := new(fileWatch)
	for {
		wait := m.filesEvery
		if m.lookAtFiles(w) {
			wait /= settleShare
		}
		select {
		case <-done:
			return
		case <-time.After(wait):
		}
	}
}

// lookAtFiles does what there is to do about the files now. It reports whether
// they have just changed: then they are to be looked at again soon.
func (m *Master) lookAtFiles(w *fileWatch) (soon bool) {
	g := m.generation()
	defer func() { w.told = m.expiring(m.generation(), w.told, time.Now()) }()
	now := stampsOf(g.cfg.Files)
	if maps.Equal(now, w.read) {
		return false
	}
	if !maps.Equal(now, w.last) {
		w.last, w.failure = now, "" // what holds up others is told of each of them
		return true
	}
	err := m.refreshFiles()
	switch {
	case err == nil:
		w.read, w.failure = now, ""
	case err.Error() != w.failure: // it may be half written: the next time it may be right
		w.failure = err.Error()
		m.log.Error("changed certificates are not in use yet", "err", err)
	}
	return false
}

// refreshFiles reads the files again that the configuration in force names, and
// puts it in force with their new contents, if these can be used.
func (m *Master) refreshFiles() error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.retired.Load() || m.isStopping() {
		return nil
	}
	g := m.generation()
	files, err := g.cfg.Files.ReadAgain()
	if err != nil || maps.EqualFunc(files, g.cfg.Files, bytes.Equal) {
		return err
	}
	next := *g
	// Not Parse: a certificate that has expired since, and is none of the
	// changed ones, is no reason to refuse the others.
	if next.cfg, err = config.Reparse(g.name, g.text, g.dir, files); err != nil {
		return err
	}
	next.certificates = certificatesOf(next.cfg)
	if err := next.usable(g, time.Now()); err != nil {
		return err
	}
	if _, err := m.commit(&next); err != nil {
		return fmt.Errorf("%w; it will be tried again", err)
	}
	m.log.Info("changed certificates in use", "generation", next.number)
	return nil
}
