package supervisor

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/metrics"
)

// certificate is one of our own that a configuration names.
type certificate struct {
	file     string
	leaf     *x509.Certificate
	roots    []string // addresses that show it, as configured
	backends []string // hosts that it is shown to
}

// certificatesOf finds the certificates of cfg, each once, in the order of the
// file.
func certificatesOf(cfg *config.Config) []certificate {
	var list []certificate
	of := func(file string) *certificate {
		at := slices.IndexFunc(list, func(c certificate) bool { return c.file == file })
		if at < 0 {
			at = len(list)
			list = append(list, certificate{file: file, leaf: leafOf(cfg.Files[file])})
		}
		return &list[at]
	}
	for i := range cfg.Policies {
		if ssl := cfg.Policies[i].SSL; ssl != nil {
			for _, pair := range ssl.Certificates {
				c := of(pair.Certificate)
				c.roots = append(c.roots, cfg.Root[i])
			}
		}
	}
	for i := range cfg.Routes {
		for j := range cfg.Routes[i].Backends {
			if b := &cfg.Routes[i].Backends[j]; b.TLS.Certificate != "" {
				if c := of(b.TLS.Certificate); !slices.Contains(c.backends, b.Host) {
					c.backends = append(c.backends, b.Host)
				}
			}
		}
	}
	return list
}

// leafOf is the first certificate of a PEM text in which package config found
// one that can be read.
func leafOf(text []byte) *x509.Certificate {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return new(x509.Certificate)
		}
		if b.Type == "CERTIFICATE" {
			if leaf, err := x509.ParseCertificate(b.Bytes); err == nil {
				return leaf
			}
		}
	}
}

// names are what a certificate is for.
func (c *certificate) names() []string {
	names := config.CertificateNames(c.leaf)
	for _, ip := range c.leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// daysLeft is how many whole days a certificate is still valid; negative once it
// is not.
func (c *certificate) daysLeft(now time.Time) int {
	left := c.leaf.NotAfter.Sub(now)
	days := int(left / (24 * time.Hour))
	if left < 0 {
		days--
	}
	return days
}

// Certificates tells which certificates are shown, and for how long they are
// valid.
func (m *Master) Certificates() []control.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, list := time.Now(), []control.Certificate{}
	for _, c := range m.current.certificates {
		issuer := c.leaf.Issuer.CommonName
		if issuer == "" {
			issuer = c.leaf.Issuer.String()
		}
		shown := control.Certificate{
			File: c.file, Names: c.names(), Issuer: issuer, NotBefore: c.leaf.NotBefore, NotAfter: c.leaf.NotAfter,
			DaysLeft: c.daysLeft(now), Listeners: []string{}, Backends: append([]string{}, c.backends...),
		}
		for _, g := range m.sockets.groups {
			if slices.Contains(c.roots, g.root) {
				shown.Listeners = append(shown.Listeners, g.address)
			}
		}
		if i := indexOf(m.refused, c.file); i >= 0 {
			shown.Refused = m.refused[i].Cause
		}
		list = append(list, shown)
	}
	return list
}

// indexOf is the place of a file in a list, -1 if it is not there.
func indexOf(list []control.RefusedFile, file string) int {
	return slices.IndexFunc(list, func(r control.RefusedFile) bool { return r.File == file })
}

// certificateMetrics are the certificates of g for package metrics.
func certificateMetrics(g *generation) []metrics.Certificate {
	var list []metrics.Certificate
	for _, c := range g.certificates {
		list = append(list, metrics.Certificate{File: c.file, NotAfter: float64(c.leaf.NotAfter.Unix())})
	}
	return list
}

// warnAhead is how many days before the end of a certificate the log tells of
// it, each time once; at last when it has come.
var warnAhead = []int{30, 7, 1, 0}

// warnings are what was told of certificates: the place in warnAhead, by file
// and end.
type warnings map[string]int

// expiring tells of the certificates of g that expire soon or have expired, and
// returns what has been told by then. before is what it returned last.
func (m *Master) expiring(g *generation, before warnings, now time.Time) warnings {
	told := warnings{}
	for _, c := range g.certificates {
		left, step := c.leaf.NotAfter.Sub(now), -1
		for i, days := range warnAhead {
			if left <= time.Duration(days)*24*time.Hour {
				step = i
			}
		}
		if step < 0 {
			continue
		}
		key := fmt.Sprintf("%s %d", c.file, c.leaf.NotAfter.Unix())
		last, known := before[key]
		told[key] = step
		if known && last >= step {
			continue
		}
		text, log := "a certificate expires soon", m.log.Warn
		if left <= 0 {
			text, log = "a certificate has expired", m.log.Error
		}
		log(text, "file", c.file, "names", c.names(), "not_after", c.leaf.NotAfter.Format(time.RFC3339), "days_left", c.daysLeft(now))
	}
	return told
}
