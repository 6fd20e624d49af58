package supervisor

import (
	"reflect"
	"slices"
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
	c.Settings = append(c.Settings, settingsBetween(reflect.ValueOf(*from), reflect.ValueOf(*to))...)
	if !slices.Contains(c.Settings, "root") && !reflect.DeepEqual(ownPolicies(from), ownPolicies(to)) {
		c.Settings = append(c.Settings, "root")
	}
	return c
}

// ownPolicies are what addresses say themselves of what is spoken there.
func ownPolicies(c *config.Config) []config.Policy {
	list := slices.Clone(c.Policies)
	for i := range list {
		if list[i].SSL == c.SSL {
			list[i].SSL = nil
		}
	}
	return list
}

// settingOf is what control.Changes calls the fields of config.Config that have
// other names there. Those without one follow from others, or are compared by
// changesBetween.
var settingOf = map[string]string{
	"Routes": "", "Policies": "", "LogFiles": "",
	"AccessLog": "access_log", "TrustedProxies": "trusted_proxies", "TrustedUnix": "trusted_proxies",
	"HostHeader": "host_header", "RequestID": "request_id", "Files": "certificates",
}

// settingsBetween are the keys of the fields in which two structs differ.
func settingsBetween(from, to reflect.Value) (keys []string) {
	for i := range from.NumField() {
		field := from.Type().Field(i)
		key, other := settingOf[field.Name]
		switch {
		case field.Anonymous:
			keys = append(keys, settingsBetween(from.Field(i), to.Field(i))...)
			continue
		case !other:
			key = strings.ToLower(field.Name)
		}
		if key != "" && !slices.Contains(keys, key) && !reflect.DeepEqual(from.Field(i).Interface(), to.Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
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
