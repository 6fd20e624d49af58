package main

import (
	"slices"
	"strconv"
	"strings"
)

// loads are all loads of the closed loop.
var loads = []Load{
	floored(plain("100 B, 1 connection", 1, 100)),
	floored(plain("100 B, 64 connections", 64, 100)),
	floored(plain("100 B, 256 connections", 256, 100)),
	floored(plain("100 B, 1000 connections", 1000, 100)),
	floored(plain("16 KiB, 64 connections", 64, 16<<10)),
	plain("16 KiB, 256 connections", 256, 16<<10),
	floored(plain("1 MiB, 16 connections", 16, 1<<20)),
	floored(posting("POST 16 KiB, 64 connections", 64, 16<<10)),
	floored(posting("POST 1 MiB, 16 connections", 16, 1<<20)),
	closing("100 B, a connection per request, 64", 64, 100),
	pipelined("100 B, 64 connections, 16 pipelined", 64, 100, 16),
	overUnix(plain("100 B, 64 connections, unix backend", 64, 100)),
	tunnelled("WebSocket, 64 B echoed, 64 tunnels", 64),
	secure("TLS, 100 B, 64 connections", 64, 100),
	secure("TLS, 16 KiB, 64 connections", 64, 16<<10),
	secure("TLS, 1 MiB, 16 connections", 16, 1<<20),
	shaking("TLS, new handshake, X25519", handshakeFull),
	shaking("TLS, new handshake, hybrid preferred", handshakeHybrid),
	shaking("TLS, resumed handshake", handshakeResumed),
	pausing("TLS, 100 B, 64 that pause", 0),
	pausing("TLS, 100 B, 64 that pause, beside handshakes", handshakers),
}

// handshakers is the number of clients that make handshakes at a time.
const handshakers = 32

func plain(name string, connections, bytes int) Load {
	return Load{Name: name, Connections: connections, Path: backendPath + strconv.Itoa(bytes), Bytes: bytes}
}

func floored(l Load) Load {
	l.Floors = true
	return l
}

func posting(name string, connections, bytes int) Load {
	l := plain(name, connections, 100)
	l.RequestBytes = bytes
	return l
}

func closing(name string, connections, bytes int) Load {
	l := plain(name, connections, bytes)
	l.Close = true
	return l
}

func pipelined(name string, connections, bytes, depth int) Load {
	l := plain(name, connections, bytes)
	l.Pipeline = depth
	return l
}

func overUnix(l Load) Load {
	l.Unix = true
	return l
}

func tunnelled(name string, connections int) Load {
	return Load{Name: name, Connections: connections, Path: backendEcho, Tunnel: true}
}

func secure(name string, connections, bytes int) Load {
	l := plain(name, connections, bytes)
	l.TLS = true
	return l
}

func shaking(name, kind string) Load {
	l := secure(name, handshakers, 100)
	l.Handshake = kind
	return l
}

func pausing(name string, beside int) Load {
	l := secure(name, 64, 100)
	l.Handshake, l.Beside = handshakeOnce, beside
	return l
}

// selected are the loads that have text in their names.
func selected(text string) []Load {
	return slices.DeleteFunc(slices.Clone(loads), func(l Load) bool { return !strings.Contains(l.Name, text) })
}

// serves reports whether a program can take part in a load.
func (p *Program) serves(l *Load) bool { return !p.Floor || l.Floors }
