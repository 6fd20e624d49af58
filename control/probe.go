package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// Probe is a question to a backend: whether it can be connected to, and what
// it answers.
type Probe struct {
	Timeout time.Duration // for all of it
	// Method and Path of the request that is sent; nothing is if Method is
	// empty.
	Method, Path string
}

// Probed is the answer of a backend to a Probe.
type Probed struct {
	Backend string  `json:"backend"` // its host in the configuration
	Address string  `json:"address"`
	Green   bool    `json:"green"`
	Seconds float64 `json:"seconds"`
	Status  int     `json:"status,omitempty"` // of the response
	Error   string  `json:"error,omitempty"`
}

// statusRed is the first status that says that a backend is not well.
const statusRed = 500

// Ask asks the backend host at an address, which is "IP:port", "name:port" or
// "unix:PATH". It is green if it can be connected to and, if a request is sent,
// answers with a status below 500.
func (p *Probe) Ask(host, address string) Probed {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	begin := time.Now()
	result := Probed{Backend: host, Address: address}
	err := p.ask(ctx, host, address, &result)
	result.Seconds = time.Since(begin).Seconds()
	if err == nil {
		result.Green = result.Status < statusRed
		return result
	}
	result.Error = err.Error()
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		result.Error = op.Err.Error() // the address stands beside it
	}
	return result
}

func (p *Probe) ask(ctx context.Context, host, address string, result *Probed) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil || p.Method == "" {
		return closed(conn, err)
	}
	name := host
	if strings.HasPrefix(host, "unix:") {
		name = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, p.Method, "http://"+name+p.Path, nil)
	if err != nil {
		return closed(conn, err)
	}
	once := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	resp, err := once.RoundTrip(req)
	if err != nil {
		return closed(conn, err)
	}
	result.Status = resp.StatusCode
	return resp.Body.Close()
}

// closed closes conn, if there is one, and passes err on.
func closed(conn net.Conn, err error) error {
	if conn != nil {
		_ = conn.Close() // it said what it had to say
	}
	return err
}
