package config

// Parse reads a configuration. Name is the file's name for error texts, dir the
// folder that relative paths in text are relative to. The error is of type
// Errors and holds every mistake found.
//
// Parse does not keep text.
func Parse(name string, text []byte, dir string) (*Config, error) {
	d := &decoder{name: name, text: text, dir: dir, lines: lines{text: text}}
	c := d.parse()
	if err := d.errors(); err != nil {
		return nil, err
	}
	return c, nil
}
