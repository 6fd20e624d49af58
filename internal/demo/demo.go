// Package demo is what cloud-cup --demo serves: an embedded configuration and
// two small backends, so that a proxy can be seen working without any other
// program or file.
package demo

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
)

//go:embed config.json
var template string

// preferred is where the demo listens unless that port is taken.
const preferred = "127.0.0.1:8080"

// Name stands for the configuration in messages.
const Name = "demo.json"

// Demo is a running pair of backends with the configuration that names them.
type Demo struct {
	// Text is the configuration.
	Text []byte

	servers []*http.Server
}

// Start starts the backends inside this process.
func Start() (*Demo, error) {
	d := &Demo{}
	home, err := d.serve("home")
	if err != nil {
		return nil, err
	}
	game, err := d.serve("game")
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	text := strings.NewReplacer("@LISTEN@", freeAddress(), "@HOME@", home, "@GAME@", game).Replace(template)
	if _, err := config.Parse(Name, []byte(text), "/"); err != nil {
		return nil, errors.Join(fmt.Errorf("demo: %w", err), d.Close())
	}
	d.Text = []byte(text)
	return d, nil
}

// freeAddress is the preferred address, or one on a port that the kernel will
// choose.
func freeAddress() string {
	l, err := net.Listen("tcp", preferred)
	if err != nil {
		return "127.0.0.1:0"
	}
	// Nothing was accepted: the port is free again at once.
	_ = l.Close()
	return preferred
}

// serve starts a backend that says its name, and returns its address.
func (d *Demo) serve(name string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("demo backend %s: %w", name, err)
	}
	address := l.Addr().String()
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			// A client that went away needs no answer.
			_, _ = fmt.Fprintf(w, "Hello from the backend %q on %s: you asked for %s.\n", name, address, r.URL.Path)
		}),
	}
	d.servers = append(d.servers, s)
	// It returns when Close is called.
	go func() { _ = s.Serve(l) }()
	return address, nil
}

// Close ends the backends.
func (d *Demo) Close() error {
	var errs []error
	for _, s := range d.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
