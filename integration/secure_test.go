package integration

import (
	"bufio"
	"crypto/tls"
	"net"
)

// duplex is a connection whose sides end apart.
type duplex interface {
	net.Conn
	CloseWrite() error
	SetLinger(seconds int) error
}

// secureConn is a client's TLS connection. Its CloseWrite sends a close_notify.
type secureConn struct {
	*tls.Conn
	tcp *net.TCPConn
}

func (c secureConn) SetLinger(seconds int) error { return c.tcp.SetLinger(seconds) }

// secure does a client's handshake.
func secure(conn net.Conn, config *tls.Config) (secureConn, error) {
	c := secureConn{tls.Client(conn, config), conn.(*net.TCPConn)}
	return c, c.Handshake()
}

// openSecurely is openBrowser over TLS.
func openSecurely(addr string, config *tls.Config) (*browser, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	c, err := secure(conn, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &browser{conn: c, r: bufio.NewReaderSize(c, 64<<10)}, nil
}
