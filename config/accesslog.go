package config

import (
	"fmt"

	"github.com/tailscale/hujson"
)

// AccessLog says where a line for each request goes.
type AccessLog struct {
	// File is a path, LogStderr, or empty: there is no log. It is joined to
	// the given folder if it is relative.
	File   string
	Format LogFormat
}

// LogStderr as AccessLog.File is the standard error of the program. A file of
// that name is written "./stderr".
const LogStderr = "stderr"

// logOff stands for no log in the file.
const logOff = "off"

// LogFormat chooses what a line looks like.
type LogFormat string

// The formats of a line, the default first.
const (
	LogCombined LogFormat = "combined" // as Apache and nginx name it
	LogCup      LogFormat = "cup"      // combined, then what only Cloud Cup knows
	LogJSON     LogFormat = "json"     // an object
)

// logFilesMax bounds the files that a configuration writes to: each worker has
// a descriptor and buffers for each of them.
const logFilesMax = 64

// LogFile is a file that access logs are written to.
type LogFile struct {
	Path  string
	place Error // where it is named first
}

// Mistake is the error that tells where the configuration names the file, and
// what is wrong with it; it is of type Errors.
func (f *LogFile) Mistake(err error) error {
	e := f.place
	e.Msg = fmt.Sprintf("access_log.file: %v", err)
	return Errors{&e}
}

var logKeys = object[AccessLog]{
	what: "access_log",
	fields: []field[AccessLog]{
		{path: "access_log.file", def: logOff, routes: true, decode: (*decoder).logFile},
		word("access_log.format", true, func(l *AccessLog) *LogFormat { return &l.Format }, LogCombined, LogCup, LogJSON),
	},
}

// accessLog decodes an access_log into l, which holds what it inherits.
func (d *decoder) accessLog(v *hujson.Value, keys *object[AccessLog], l *AccessLog) {
	if v.Value.Kind() == '"' {
		d.at(v.StartOffset, `write {"file": "/var/log/cup.log"}, or {"file": "off"}`, "access_log must be an object, not a string")
		return
	}
	mistakes := len(d.found)
	seen := keys.decode(d, v, l)
	if seen["format"] != nil && l.File == "" && len(d.found) == mistakes {
		d.at(seen["format"].StartOffset, "set access_log.file", "access_log.format is set where no log is written")
	}
}

// logFile decodes access_log.file.
func (d *decoder) logFile(v *hujson.Value, l *AccessLog) {
	s, ok := d.stringOf(v, "access_log.file")
	switch {
	case !ok:
		return
	case s == logOff:
		l.File = ""
		return
	case s == LogStderr:
		l.File = LogStderr
		return
	}
	if l.File = d.path(v, "access_log.file"); l.File != "" {
		d.addLogFile(v.StartOffset, l.File)
	}
}

// addLogFile notes a file that is named at offset.
func (d *decoder) addLogFile(offset int, path string) {
	for i := range d.global.LogFiles {
		if d.global.LogFiles[i].Path == path {
			return
		}
	}
	if len(d.global.LogFiles) == logFilesMax {
		d.at(offset, "let routes share files", "this is the %dth file of access logs, at most %d are possible", logFilesMax+1, logFilesMax)
		return
	}
	e := Error{File: d.name}
	var start int
	e.Line, start = d.lines.find(offset)
	_, e.Col = d.place(offset)
	e.Source, e.Caret = excerpt(d.text, start, offset)
	d.global.LogFiles = append(d.global.LogFiles, LogFile{Path: path, place: e})
}
