package supervisor

import (
	"reflect"
	"strings"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
)

// changesShown bounds the routes that Changes names.
const changesShown = 20

// changesBetween tells in what two configurations differ.
func changesBetween(from, to *config.Config) *control.Changes {
	c := &control.Changes{Routes: []string{}, Settings: []string{}}
	note := func(mark, pattern string, count *int) {
		if *count++; len(c.Routes) < changesShown {
			c.Routes = append(c.Routes, mark+" "+pattern)
		}
	}
	before := make(map[string]*config.Route, len(from.Routes))
	for i := range from.Routes {
		before[from.Routes[i].Pattern] = &from.Routes[i]
	}
	for i := range to.Routes {
		r := &to.Routes[i]
		old := before[r.Pattern]
		delete(before, r.Pattern)
		switch {
		case old == nil:
			note("+", r.Pattern, &c.Added)
		case !reflect.DeepEqual(old, r):
			note("~", r.Pattern, &c.Changed)
		}
	}
	for i := range from.Routes {
		if pattern := from.Routes[i].Pattern; before[pattern] != nil {
			note("-", pattern, &c.Removed)
		}
	}
	a, b := reflect.ValueOf(*from), reflect.ValueOf(*to)
	for i := range a.NumField() {
		name := a.Type().Field(i).Name
		if name != "Routes" && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			c.Settings = append(c.Settings, strings.ToLower(name))
		}
	}
	return c
}

// summary is c in one line, for the log.
func summary(c *control.Changes) string {
	parts := append(append([]string{}, c.Settings...), c.Routes...)
	if c.Added+c.Removed+c.Changed > len(c.Routes) {
		parts = append(parts, "...")
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}
