package config

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/tailscale/hujson"
)

// RuleBytesMax bounds the lines that the rules of a route set and add in one
// direction, in the bytes that are sent. A head grows by no more than that.
const RuleBytesMax = 16 << 10

// More bounds of the rules of a route in one direction.
const (
	rulesMax          = 100 // lines set and added, and names removed
	fieldNameBytesMax = 256
)

// ruleDecoder decodes a route's header rules.
type ruleDecoder struct {
	route *Route
	// Of the direction that is being decoded:
	rules *HeaderRules
	what  string         // "headers.request"
	names map[string]int // where a name stands, in lower case
	count int
	bytes int
}

// headers decodes a route's header rules.
func (d *decoder) headers(v *hujson.Value, r *Route) {
	headersKeys.decode(d, v, &ruleDecoder{route: r})
}

// ruleKeys are the keys of one direction.
func ruleKeys(what string) object[ruleDecoder] {
	return object[ruleDecoder]{
		what: what,
		fields: []field[ruleDecoder]{
			{path: what + ".set", def: none, decode: func(d *decoder, v *hujson.Value, r *ruleDecoder) {
				r.fields(d, v, what+".set", &r.rules.Set, false)
			}},
			{path: what + ".add", def: none, decode: func(d *decoder, v *hujson.Value, r *ruleDecoder) {
				r.fields(d, v, what+".add", &r.rules.Add, true)
			}},
			{path: what + ".remove", def: none, decode: func(d *decoder, v *hujson.Value, r *ruleDecoder) {
				r.remove(d, v, what+".remove")
			}},
		},
	}
}

// direction decodes the rules for requests or those for responses.
func (r *ruleDecoder) direction(d *decoder, v *hujson.Value, keys *object[ruleDecoder], to *HeaderRules) {
	*r = ruleDecoder{route: r.route, rules: to, what: keys.what, names: make(map[string]int)}
	keys.decode(d, v, r)
	switch {
	case r.count > rulesMax:
		d.at(v.StartOffset, "", "%s has %d rules, at most %d are possible", r.what, r.count, rulesMax)
	case r.bytes > RuleBytesMax:
		d.at(v.StartOffset, "", "%s sets and adds %d bytes, at most %s are possible", r.what, r.bytes, sizeText(RuleBytesMax))
	}
}

// fields decodes an object from names to values; lists says whether a value may
// be a list of them.
func (r *ruleDecoder) fields(d *decoder, v *hujson.Value, path string, to *[]HeaderField, lists bool) {
	obj, ok := v.Value.(*hujson.Object)
	if !ok {
		d.at(v.StartOffset, `write {"X-Name": "value"}`, "%s must be an object, not %s", path, kindOf(v))
		return
	}
	for i := range obj.Members {
		m := &obj.Members[i]
		name, ok := r.name(d, &m.Name, path)
		if !ok {
			continue
		}
		values := []hujson.Value{m.Value}
		if list, ok := m.Value.Value.(*hujson.Array); ok {
			switch {
			case !lists:
				d.at(m.Value.StartOffset, "add takes lists", "%s %q must be a string, not a list", path, clip(name))
				continue
			case len(list.Elements) == 0:
				d.at(m.Value.StartOffset, "", "%s %q: the list is empty", path, clip(name))
				continue
			}
			values = list.Elements
		}
		for i := range values {
			if s, ok := r.value(d, &values[i], path, name); ok {
				*to = append(*to, HeaderField{Name: name, Value: s})
			}
		}
	}
}

// remove decodes a list of names.
func (r *ruleDecoder) remove(d *decoder, v *hujson.Value, path string) {
	list, ok := v.Value.(*hujson.Array)
	if !ok {
		d.at(v.StartOffset, `write ["X-Name"]`, "%s must be a list of names, not %s", path, kindOf(v))
		return
	}
	for i := range list.Elements {
		if name, ok := r.name(d, &list.Elements[i], path); ok {
			r.count++
			r.rules.Remove = append(r.rules.Remove, name)
		}
	}
}

// name reads the name of a field that rules may change.
func (r *ruleDecoder) name(d *decoder, v *hujson.Value, path string) (string, bool) {
	s, ok := d.stringOf(v, "a name in "+path)
	if !ok {
		return "", false
	}
	lower := strings.ToLower(s)
	msg, hint := checkFieldName(s)
	if msg == "" {
		msg, hint = r.owned(lower)
	}
	if msg != "" {
		d.at(v.StartOffset, hint, "%s %q: %s", path, clip(s), msg)
		return "", false
	}
	if first, twice := r.names[lower]; twice {
		d.at(v.StartOffset, "", "%q stands twice in %s, first in line %d; one rule for a name is enough", clip(s), r.what, d.line(first))
		return "", false
	}
	r.names[lower] = v.StartOffset
	return s, true
}

// value reads the value of a field.
func (r *ruleDecoder) value(d *decoder, v *hujson.Value, path, name string) (string, bool) {
	s, ok := d.stringOf(v, fmt.Sprintf("%s %q", path, clip(name)))
	if !ok {
		return "", false
	}
	if msg, hint := checkFieldValue(s); msg != "" {
		d.at(v.StartOffset, hint, "%s %q: %s", path, clip(name), msg)
		return "", false
	}
	r.count++
	r.bytes += len(name) + len(": ") + len(s) + len("\r\n")
	return s, true
}

// owned tells why rules may not change a field, whose name is in lower case.
func (r *ruleDecoder) owned(lower string) (msg, hint string) {
	if framingFields[lower] {
		return "the proxy writes this field itself for each connection", "remove this rule"
	}
	if r.rules == &r.route.Headers.Response {
		return "", ""
	}
	switch lower {
	case "host":
		return "what backends see as Host is not a header rule", "use host_header"
	case "expect":
		return "the proxy waits for 100 (Continue) as this field of the client says", "remove this rule"
	case "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto":
		return "the proxy writes this field itself, or none", "use forwarded, and trusted_proxies for what others wrote"
	case "x-client-cert-subject":
		return "the proxy writes this field itself, of a client's verified certificate, or none", "remove this rule"
	case "x-request-id":
		if r.route.RequestID {
			return "the proxy passes it on or makes it in this route", "set request_id to false in this route to have a rule for it"
		}
	}
	return "", ""
}

// framingFields say where a message ends or how its connection goes on. They
// are the proxy's own in both directions.
var framingFields = map[string]bool{
	"connection": true, "content-length": true, "keep-alive": true, "proxy-connection": true, "te": true,
	"trailer": true, "transfer-encoding": true, "upgrade": true, "via": true,
}

// checkFieldName tells what is wrong with the name of a field (RFC 9110 5.1).
func checkFieldName(s string) (msg, hint string) {
	switch {
	case s == "":
		return "a name is not empty", ""
	case len(s) > fieldNameBytesMax:
		return fmt.Sprintf("the name has %d bytes, at most %d are possible", len(s), fieldNameBytesMax), ""
	}
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("!#$%&'*+-.^_`|~", c):
		default:
			if name, _, ok := strings.Cut(s, ":"); ok && name != "" {
				hint = fmt.Sprintf("did you mean %q?", clip(strings.TrimSpace(name)))
			}
			return fmt.Sprintf("a name has no %q", c), hint
		}
	}
	return "", ""
}

// checkFieldValue tells what is wrong with the value of a field (RFC 9110 5.5).
func checkFieldValue(s string) (msg, hint string) {
	switch {
	case s == "":
		return "the value is empty", "remove takes a field off"
	case strings.Trim(s, " \t") != s:
		return "a value has no blanks around it", ""
	case strings.Contains(s, "${"):
		return "variables are not supported in this version", ""
	}
	for _, c := range s {
		if c != '\t' && unicode.IsControl(c) {
			return fmt.Sprintf("a value has no control character %U", c), ""
		}
	}
	return "", ""
}
