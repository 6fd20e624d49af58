package config

import "time"

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

func (d *decoder) result() (*Config, error) {
	d.lines = lines{text: d.text}
	c := d.parse()
	if err := d.errors(); err != nil {
		return nil, err
	}
	return c, nil
}
