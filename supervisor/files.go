package supervisor

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
)

// filesEvery is how often the files are looked at that the configuration names.
const filesEvery = 10 * time.Second

// settleShare is the part of that time for which changed files must stay as they
// are before they are read: who renews a certificate writes several.
const settleShare = 10

// unsettledMax is how many looks in a row may find another change before the
// files are read all the same: one that changes on and on holds up no other.
const unsettledMax = 10

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
	read      map[string]stamp // when they were read, with success
	last      map[string]stamp
	unsettled int    // looks in a row that found other changes
	failure   string // that was told since the files changed last
	told      warnings
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
		w.last, w.failure = now, ""
		if w.unsettled++; w.unsettled < unsettledMax {
			return true
		}
	}
	w.unsettled = 0
	all, err := m.refreshFiles()
	switch {
	case err == nil && all:
		w.read, w.failure = now, ""
	case err == nil: // what is refused may be half written: the next time it may be right
	case err.Error() != w.failure:
		w.failure = err.Error()
		m.log.Error("changed certificates are not in use yet", "err", err)
	}
	return false
}

// refreshFiles reads the files again that the configuration in force names, and
// puts it in force with those new contents that can be used. It reports whether
// all can.
func (m *Master) refreshFiles() (all bool, err error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.retired.Load() || m.isStopping() {
		return true, nil
	}
	g := m.generation()
	cfg, refused, err := config.Renew(g.name, g.text, g.dir, g.cfg.Files)
	if err != nil {
		return false, err
	}
	m.refuse(refused)
	var changed []string
	for path, text := range cfg.Files {
		if !bytes.Equal(text, g.cfg.Files[path]) {
			changed = append(changed, path)
		}
	}
	if changed != nil {
		next := *g
		next.cfg, next.certificates = cfg, certificatesOf(cfg)
		if _, err := m.commit(&next); err != nil {
			return false, fmt.Errorf("%w; it will be tried again", err)
		}
		slices.Sort(changed)
		m.log.Info("changed certificates in use", "generation", next.number, "files", changed)
	}
	return len(refused) == 0, nil
}

// refuse notes which files are refused now, and tells what is new about it.
func (m *Master) refuse(list []config.Refusal) {
	m.mu.Lock()
	before := m.refused
	m.mu.Unlock()
	var refused []control.RefusedFile
	for _, r := range list {
		f := control.RefusedFile{File: r.File, Cause: r.Cause, Since: time.Now()}
		i := indexOf(before, r.File)
		if i >= 0 {
			f.Since = before[i].Since
		}
		if i < 0 || before[i].Cause != r.Cause {
			m.log.Error("a changed certificate is not in use: what was read before stays", "file", r.File, "err", r.Cause)
		}
		refused = append(refused, f)
	}
	for _, r := range before {
		if indexOf(refused, r.File) < 0 {
			m.log.Info("a certificate can be used again", "file", r.File)
		}
	}
	m.mu.Lock()
	m.refused = refused
	m.mu.Unlock()
}
