package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Names of programs. Ratios are to the reference.
const (
	nameRing    = "cloud-cup uring"
	nameEpoll   = "cloud-cup epoll"
	nameHAProxy = "haproxy"
	reference   = "nginx"
)

// candidate is a program that can be started.
type candidate struct {
	Program
	site
	file string // where its configuration will stand
}

// unixPrefix stands before the path of a backend's socket.
const unixPrefix = "unix:"

// site is what a configuration is written for.
type site struct {
	address string // where the program will listen
	secure  string // where it will listen for TLS
	backend string // address of the backend, or unixPrefix and its path
	dir     string // of its files, and the certificate's
}

// candidates are all programs under test that work here, in the order of a
// round. Their configurations will stand in dir.
func candidates(o *options, build *Build, dir, backend string) ([]candidate, error) {
	var list []candidate
	for _, c := range []struct {
		name, engine, file string
		config             func(*site) string
		command            func(file string) []string
	}{
		{nameRing, "uring", "uring.json", cupConfig, cupCommand(o.cup, "uring")},
		{nameEpoll, "epoll", "epoll.json", cupConfig, cupCommand(o.cup, "epoll")},
		{reference, "", "nginx.conf", nginxConfig, nginxCommand},
		{nameHAProxy, "", "haproxy.cfg", haproxyConfig, haproxyCommand},
	} {
		if c.engine != "" && !build.works(c.engine) {
			fmt.Fprintf(os.Stderr, "left out: %s does not work here\n", c.name)
			continue
		}
		made, err := newCandidate(o, c.name, filepath.Join(dir, c.file), backend, c.config, c.command)
		if err != nil {
			return nil, err
		}
		made.Ours = c.engine != ""
		list = append(list, made)
	}
	return list, nil
}

// newCandidate gives a program an address, and completes what depends on it.
func newCandidate(o *options, name, file, backend string, config func(*site) string,
	command func(file string) []string) (candidate, error) {
	address, err1 := freeAddress()
	secure, err2 := freeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return candidate{}, err
	}
	s := site{address, secure, backend, filepath.Dir(file)}
	if o.old != "" && !slices.ContainsFunc(o.compareLoads(), func(l Load) bool { return l.TLS }) {
		s.secure = "" // the old build may not speak TLS
	}
	words := command(file)
	return candidate{
		Program: Program{
			Name:    name,
			Command: pinned(o.proxyCPU, words[0], words[1:]...),
			Config:  config(&s),
		},
		site: s,
		file: file,
	}, nil
}

// start writes the configuration and starts the program.
func (c *candidate) start(dir string) (*server, error) {
	if c.file != "" {
		if err := os.WriteFile(c.file, []byte(c.Config), 0o644); err != nil {
			return nil, err
		}
	}
	s, err := startServer(dir, c.Name, c.address, c.Command)
	if err == nil {
		s.secure = c.secure
	}
	return s, err
}

// published is the program as the results show it.
func (c *candidate) published(dir string) Program {
	p := c.Program
	p.Config = strings.ReplaceAll(p.Config, dir, "DIR")
	p.Command = slices.Clone(p.Command)
	for i := range p.Command {
		p.Command[i] = strings.ReplaceAll(p.Command[i], dir, "DIR")
		if filepath.Base(p.Command[i]) == "bench" { // this program
			p.Command[i] = "bin/bench"
		}
	}
	return p
}

func cupCommand(program, engine string) func(file string) []string {
	return func(file string) []string {
		return []string{program, "--io=" + engine, "--admin=off", file}
	}
}

func cupConfig(s *site) string {
	listeners := `"ADDRESS"`
	if s.secure != "" {
		listeners = `["ADDRESS", {"address": "SECURE", "ssl": {"ssl_certificate": "DIR/CERTIFICATE", "ssl_certificate_key": "DIR/KEY"}}]`
	}
	return s.in(`{
  "root": ` + listeners + `,
  "workers": 1,
  "routes": {"*": {"backends": [{"host": "BACKEND"}]}},
}
`)
}

// in puts the site into a configuration.
func (s *site) in(text string) string {
	return strings.NewReplacer("ADDRESS", s.address, "SECURE", s.secure, "BACKEND", s.backend, "DIR", s.dir,
		"CERTIFICATE", certificateFile, "KEY", keyFile, "BOTH", bothFile, "SUITE", suite, "ECHO", backendEcho).Replace(text)
}

func nginxCommand(file string) []string {
	return []string{"nginx", "-e", "stderr", "-p", filepath.Dir(file), "-c", file}
}

// nginxConfig is tuned as nginx's documentation advises, and adds the same
// header fields as Cloud Cup, so that both do the same work. Bodies are passed on
// as they come, in both directions: buffered responses of 1 MiB cost it half as
// much again, and nothing else costs less with them.
func nginxConfig(s *site) string {
	return s.in(`daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid DIR/nginx.pid;
error_log stderr warn;
events {
    use epoll;
    worker_connections 4096;
}
http {
    access_log off;
    client_max_body_size 16m;
    client_body_temp_path DIR/client_body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    keepalive_requests 1000000000;
    upstream backend {
        server BACKEND;
        keepalive 1024;
        keepalive_requests 1000000000;
    }
    server {
        listen ADDRESS backlog=4096;
        listen SECURE ssl backlog=4096;
        ssl_certificate DIR/CERTIFICATE;
        ssl_certificate_key DIR/KEY;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ecdh_curve X25519;
        ssl_conf_command Ciphersuites SUITE;
        location / {
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_buffer_size 32k;
            proxy_buffers 8 32k;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header Via "1.1 nginx";
            add_header Via "1.1 nginx";
        }
        location = ECHO {
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "upgrade";
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Host $http_host;
        }
    }
}
`)
}

func haproxyCommand(file string) []string {
	return []string{"haproxy", "-db", "-f", file}
}

// haproxyConfig is tuned as haproxy's documentation advises, and adds the same
// header fields. Its buffers hold a head with 16 KiB of body. Bodies go through
// pipes: a POST of 1 MiB costs it half, and nothing costs more. By default it
// ends idle connections to backends when a quarter of its descriptors is in use,
// as with 1000 clients here, which doubled what a request cost.
func haproxyConfig(s *site) string {
	return strings.ReplaceAll(s.in(`global
    nbthread 1
    maxconn 4096
    tune.bufsize 32768
    tune.pool-high-fd-ratio 90
    tune.pool-low-fd-ratio 80
    tune.ssl.maxrecord 16384
    ssl-default-bind-options ssl-min-ver TLSv1.2
    ssl-default-bind-ciphersuites SUITE
    ssl-default-bind-curves X25519
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    http-reuse always
    option splice-request
    option splice-response
frontend clients
    bind ADDRESS backlog 4096
    bind SECURE ssl crt DIR/BOTH alpn http/1.1 backlog 4096
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http unless { ssl_fc }
    http-request set-header X-Forwarded-Proto https if { ssl_fc }
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    http-request set-header Via "1.1 haproxy"
    http-response set-header Via "1.1 haproxy"
    default_backend all
backend all
    server backend BACKEND
`), unixPrefix, "unix@")
}

// tool is a program that bench does not build, with its Debian package.
type tool struct{ program, debianPackage string }

// compareTools are what a comparison needs, runTools what a run does.
var (
	compareTools = []tool{{"taskset", "util-linux"}, {"chrt", "util-linux"}, {"wrk", "wrk"}}
	runTools     = append(slices.Clip(compareTools), tool{"nginx", "nginx"}, tool{"haproxy", "haproxy"})
)

// install brings what is missing, by apt.
func install(needed []tool) error {
	// Where Debian has nginx and haproxy; not everybody's PATH has it.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin"); err != nil {
		return err
	}
	var packages []string
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			packages = append(packages, n.debianPackage)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "installing what is missing: %s\n", strings.Join(packages, ", "))
	for _, arguments := range [][]string{
		{"apt-get", "update"},
		append([]string{"apt-get", "install", "--yes", "--no-install-recommends"}, packages...),
	} {
		if os.Geteuid() != 0 {
			arguments = append([]string{"sudo"}, arguments...)
		}
		cmd := exec.Command(arguments[0], arguments[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w; install %s by hand", strings.Join(arguments, " "), err, strings.Join(packages, ", "))
		}
	}
	return nil
}
