package config

import (
	"bytes"
	"slices"
	"time"
)

// Parse reads a configuration. Name is the file's name for error texts, dir the
// folder that relative paths in text are relative to. The error is of type
// Errors and holds every mistake found.
//
// Parse does not keep text.
func Parse(name string, text []byte, dir string) (*Config, error) {
	return (&decoder{name: name, text: text, dir: dir, now: time.Now(), files: Files{}}).result()
}

// Reparse reads what Parse has accepted once, in a process that reads no files:
// they are the Config.Files of then. It does not mind that certificates expire.
func Reparse(name string, text []byte, dir string, files Files) (*Config, error) {
	return (&decoder{name: name, text: text, dir: dir, files: files, given: true}).result()
}

// Refusal tells that the new content of a file cannot be used.
type Refusal struct {
	File  string // a certificate, which stands for its key, too, or authorities
	Cause string
}

// renewal is what a decoder needs that reads files again.
type renewal struct {
	before  Files // the contents in use
	kept    Files // those of before that stay
	keep    []string
	refused []Refusal
}

// Renew reads the files again of what Parse has accepted once, whose contents in
// use are before; the system's authorities stay as they are. What is used
// together, a certificate with its key or a file of authorities, takes its new
// contents if they can be used. If not, what was in use stays, for whoever shares
// one of these files, too, and holds nobody else up.
func Renew(name string, text []byte, dir string, before Files) (*Config, []Refusal, error) {
	r := &renewal{before: before, kept: Files{}}
	for {
		d := &decoder{name: name, text: text, dir: dir, now: time.Now(), files: Files{}, renewal: r}
		if roots, ok := before[SystemRoots]; ok {
			d.files[SystemRoots] = roots
		}
		c, err := d.result()
		if err != nil || len(r.keep) == 0 {
			return c, r.refused, err
		}
		for _, path := range r.keep {
			r.kept[path] = before[path]
		}
		r.keep = r.keep[:0]
	}
}

// refuse takes the mistakes behind the first n, which are of the contents of
// files that are used together, for a Refusal if files are read again: the next
// decoder goes by the contents in use.
func (d *decoder) refuse(n int, paths ...string) {
	r := d.renewal
	if r == nil || len(d.found) == n || !slices.ContainsFunc(paths, func(path string) bool { return r.kept[path] == nil }) {
		return
	}
	cause := d.found[n].msg
	if hint := d.found[n].hint; hint != "" {
		cause += "; " + hint
	}
	d.found = d.found[:n]
	r.keep = append(r.keep, paths...)
	if !slices.ContainsFunc(r.refused, func(other Refusal) bool { return other.File == paths[0] }) {
		r.refused = append(r.refused, Refusal{File: paths[0], Cause: cause})
	}
}

// inUse reports whether the content of the file at path has been accepted before.
func (d *decoder) inUse(path string, content []byte) bool {
	return d.given || d.renewal != nil && bytes.Equal(content, d.renewal.before[path])
}

func (d *decoder) result() (*Config, error) {
	d.lines = lines{text: d.text}
	c := d.parse()
	if err := d.errors(); err != nil {
		return nil, err
	}
	return c, nil
}
