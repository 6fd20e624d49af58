package config

import (
	"strings"
	"unicode"

	"github.com/tailscale/hujson"
)

// User is who the workers are. Whether there is such a user is the machine's
// affair: see Refuse.
type User struct {
	Name  string // or a number; empty for whoever the master is
	Group string // or a number; empty for the user's own

	place *Error
}

// String is the user as the configuration writes it.
func (u *User) String() string {
	if u.Group == "" {
		return u.Name
	}
	return u.Name + ":" + u.Group
}

// Refuse is the error that says at user's place in the configuration why it
// cannot be.
func (u *User) Refuse(why string) error {
	e := *u.place
	e.Msg = "user: " + why
	return Errors{&e}
}

// user decodes user.
func (d *decoder) user(v *hujson.Value, c *Config) {
	s, ok := d.stringOf(v, "user")
	if !ok {
		return
	}
	name, group, both := strings.Cut(s, ":")
	odd := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == ':' }
	if name == "" || both && group == "" || strings.ContainsFunc(name, odd) || strings.ContainsFunc(group, odd) {
		d.at(v.StartOffset, `write "name", "name:group", or their numbers`, "user: %q is no user", clip(s))
		return
	}
	line, col := d.place(v.StartOffset)
	_, start := d.lines.find(v.StartOffset)
	source, caret := excerpt(d.text, start, v.StartOffset)
	c.User = User{Name: name, Group: group, place: &Error{File: d.name, Line: line, Col: col, Source: source, Caret: caret}}
}
