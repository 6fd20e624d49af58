package config

import (
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// field is one key of an object that is decoded into a T.
type field[T any] struct {
	path   string // the key with the objects around it: "timeouts.connect"
	def    string // the default as the documentation shows it, empty if required
	routes bool   // it is global, and a route may have it as well
	decode func(d *decoder, v *hujson.Value, to *T)
	preset func(to *T) // sets the default; nil if that is the zero value
}

// name is the key itself.
func (f *field[T]) name() string { return f.path[strings.LastIndexByte(f.path, '.')+1:] }

// object is the table of an object's keys.
type object[T any] struct {
	what   string // how errors call it
	fields []field[T]
	later  []string // keys that only later versions support
	// inRoute refuses the fields that are global.
	inRoute bool
}

// preset fills to with the table's defaults.
func (o *object[T]) preset(to *T) {
	for i := range o.fields {
		if set := o.fields[i].preset; set != nil {
			set(to)
		}
	}
}

// decode decodes the members of v into to, in the order of the table. The
// result tells which keys there are; it is nil if v is no object.
func (o *object[T]) decode(d *decoder, v *hujson.Value, to *T) map[string]*hujson.Value {
	obj, ok := v.Value.(*hujson.Object)
	if !ok {
		d.at(v.StartOffset, "", "%s must be an object, not %s", o.what, kindOf(v))
		return nil
	}
	seen := make(map[string]*hujson.Value, len(obj.Members))
	for i := range obj.Members {
		m := &obj.Members[i]
		name, ok := d.stringOf(&m.Name, "a key")
		if !ok {
			continue
		}
		if first, twice := seen[name]; twice {
			d.at(m.Name.StartOffset, "", "key %q stands twice in %s, first in line %d", clip(name), o.what, d.line(first.StartOffset))
			continue
		}
		seen[name] = &m.Value
		o.check(d, m.Name.StartOffset, name)
	}
	for i := range o.fields {
		f := &o.fields[i]
		if v := seen[f.name()]; v != nil && (f.routes || !o.inRoute) {
			f.decode(d, v, to)
		}
	}
	return seen
}

// check reports a key that may not stand in the object.
func (o *object[T]) check(d *decoder, offset int, name string) {
	for i := range o.fields {
		f := &o.fields[i]
		if f.name() != name {
			continue
		}
		if o.inRoute && !f.routes {
			d.at(offset, "set it outside of routes", "%s is global and cannot be set for a route", f.path)
		}
		return
	}
	if slices.Contains(o.later, name) {
		d.at(offset, "", "%s is not supported in this version", name)
		return
	}
	names := make([]string, 0, len(o.fields))
	for i := range o.fields {
		names = append(names, o.fields[i].name())
	}
	hint := didYouMean(name, names)
	if place := places[name]; place != "" {
		hint = place
	}
	d.at(offset, hint, "unknown key %q in %s", clip(name), o.what)
}

// require reports the keys that must stand in v and are not in seen.
func (o *object[T]) require(d *decoder, v *hujson.Value, seen map[string]*hujson.Value) {
	for i := range o.fields {
		if f := &o.fields[i]; f.def == "" && seen[f.name()] == nil && seen != nil {
			d.at(v.StartOffset, "", "%s is missing in %s", f.name(), o.what)
		}
	}
}

// places tells where a key belongs that stands somewhere else.
var places = map[string]string{}

func init() {
	for _, k := range Keys() {
		dot := strings.LastIndexByte(k.Name, '.')
		switch {
		case strings.HasPrefix(k.Name, "headers."):
			places[k.Name[dot+1:]] = "it belongs in headers.request or headers.response"
		case dot >= 0:
			places[k.Name[dot+1:]] = "it belongs in " + k.Name[:dot]
		case k.Scope == "global":
			places[k.Name] = "it belongs to the top level"
		case k.Scope == "global, route":
			places[k.Name] = "it belongs to the top level or in a route"
		default:
			places[k.Name] = "it belongs in a " + k.Scope
		}
	}
	for _, group := range []string{"timeouts", "limits", "access_log"} {
		places[group] = "it belongs to the top level or in a route"
	}
	for _, direction := range []string{"request", "response"} {
		places[direction] = "it belongs in headers"
	}
	places["headers"] = "it belongs in a route; the number of fields is limits.headers"
}

// Key describes one supported key of the configuration.
type Key struct {
	Name    string // dotted: "timeouts.connect"
	Default string // empty if the key is required
	Scope   string // "global", "route", "backend", or "global, route"
}

// Keys lists every supported key, from the tables that Parse itself uses.
func Keys() []Key {
	list := keysOf(&configKeys, "global")
	list = append(list, keysOf(&routeKeys, "route")...)
	list = append(list, keysOf(&requestRuleKeys, "route")...)
	list = append(list, keysOf(&responseRuleKeys, "route")...)
	list = append(list, keysOf(&backendKeys, "backend")...)
	list = append(list, keysOf(&timeoutKeys, "global")...)
	list = append(list, keysOf(&limitKeys, "global")...)
	list = append(list, keysOf(&logKeys, "global")...)
	list = append(list, keysOf(&adminKeys, "global")...)
	list = append(list, keysOf(&sslKeys, "global")...)
	list = append(list, keysOf(&clientKeys, "global")...)
	list = append(list, keysOf(&backendTLSKeys, "backend")...)
	return list
}

// keysOf lists the fields of o but for those that are objects with keys of
// their own, and for those of routes that the top level lists.
func keysOf[T any](o *object[T], scope string) []Key {
	var list []Key
	for i := range o.fields {
		f := &o.fields[i]
		if f.def == group || f.routes && scope == "route" {
			continue
		}
		k := Key{Name: f.path, Default: f.def, Scope: scope}
		if f.routes {
			k.Scope += ", route"
		}
		list = append(list, k)
	}
	return list
}
