package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Names of programs. Ratios are to the reference.
const (
	nameRing  = "cloud-cup uring"
	nameEpoll = "cloud-cup epoll"
	reference = "nginx"
)

// loads are all loads of a full run.
var loads = []Load{
	{"100 B, 1 connection", 1, backendPath + "100", 100},
	{"100 B, 64 connections", 64, backendPath + "100", 100},
	{"100 B, 256 connections", 256, backendPath + "100", 100},
	{"16 KiB, 1 connection", 1, backendPath + "16384", 16384},
	{"16 KiB, 64 connections", 64, backendPath + "16384", 16384},
	{"16 KiB, 256 connections", 256, backendPath + "16384", 16384},
}

// selected are the loads that have text in their names.
func selected(text string) []Load {
	return slices.DeleteFunc(slices.Clone(loads), func(l Load) bool { return !strings.Contains(l.Name, text) })
}

// candidate is a program that can be started.
type candidate struct {
	Program
	address string // where it will listen
	file    string // where its configuration will stand
}

// candidates are all programs under test that work here, in the order of a
// round. Their configurations will stand in dir.
func candidates(o *options, build *Build, dir, backend string) ([]candidate, error) {
	var list []candidate
	for _, c := range []struct {
		name, engine, file string
		config             func(address, backend, dir string) string
		command            func(file string) []string
	}{
		{nameRing, "uring", "uring.json", cupConfig, cupCommand(o.cup, "uring")},
		{nameEpoll, "epoll", "epoll.json", cupConfig, cupCommand(o.cup, "epoll")},
		{reference, "", "nginx.conf", nginxConfig, nginxCommand},
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
func newCandidate(o *options, name, file, backend string, config func(address, backend, dir string) string,
	command func(file string) []string) (candidate, error) {
	address, err := freeAddress()
	if err != nil {
		return candidate{}, err
	}
	words := command(file)
	return candidate{
		Program: Program{
			Name:    name,
			Command: pinned(o.proxyCPU, words[0], words[1:]...),
			Config:  config(address, backend, filepath.Dir(file)),
		},
		address: address,
		file:    file,
	}, nil
}

// start writes the configuration and starts the program.
func (c *candidate) start(dir string) (*server, error) {
	if err := os.WriteFile(c.file, []byte(c.Config), 0o644); err != nil {
		return nil, err
	}
	return startServer(dir, c.Name, c.address, c.Command)
}

// published is the program as the results show it.
func (c *candidate) published(dir string) Program {
	p := c.Program
	p.Config = strings.ReplaceAll(p.Config, dir, "DIR")
	p.Command = strings.Split(strings.ReplaceAll(strings.Join(p.Command, "\x00"), dir, "DIR"), "\x00")
	return p
}

func cupCommand(program, engine string) func(file string) []string {
	return func(file string) []string {
		return []string{program, "--io=" + engine, "--admin=off", file}
	}
}

func cupConfig(address, backend, _ string) string {
	return fmt.Sprintf(`{
  "root": %q,
  "workers": 1,
  "routes": {"*": {"backends": [{"host": %q}]}},
}
`, address, backend)
}

func nginxCommand(file string) []string {
	return []string{"nginx", "-e", "stderr", "-p", filepath.Dir(file), "-c", file}
}

// nginxConfig is tuned as nginx's documentation advises, and adds the same
// header fields as Cloud Cup, so that both do the same work.
func nginxConfig(address, backend, dir string) string {
	return strings.NewReplacer("ADDRESS", address, "BACKEND", backend, "DIR", dir).Replace(`daemon off;
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
    client_body_temp_path DIR/client_body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    keepalive_requests 1000000000;
    upstream backend {
        server BACKEND;
        keepalive 512;
        keepalive_requests 1000000000;
    }
    server {
        listen ADDRESS backlog=4096;
        location / {
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_buffer_size 32k;
            proxy_buffers 8 32k;
            proxy_busy_buffers_size 64k;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header Via "1.1 nginx";
            add_header Via "1.1 nginx";
        }
    }
}
`)
}

// tool is a program that bench does not build, with its Debian package.
type tool struct{ program, debianPackage string }

// compareTools are what a comparison needs, runTools what a run does.
var (
	compareTools = []tool{{"taskset", "util-linux"}, {"wrk", "wrk"}}
	runTools     = append(slices.Clip(compareTools), tool{"nginx", "nginx"})
)

// install brings what is missing, by apt.
func install(needed []tool) error {
	// Where Debian has nginx; not everybody's PATH has it.
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
