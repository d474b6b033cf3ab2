package controller

import (
	"bytes"
	"net"
	"net/http"
	"sync/atomic"
)

// upperReasons makes a server send its reason phrases in capitals: "404 NOT
// FOUND" (contract 2.3). Clients print the status line, and scripts search for
// that. net/http has no setting for it, so the connections that the returned
// listener accepts rewrite the status line, and nothing else, as it passes.
func upperReasons(srv *http.Server, l net.Listener) net.Listener {
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if c, ok := c.(*reasonConn); ok && state == http.StateActive {
			c.head.Store(true)
		}
	}
	return reasonListener{l}
}

type reasonListener struct{ net.Listener }

func (l reasonListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &reasonConn{Conn: c}, nil
}

// reasonConn is a connection of net/http, which flushes after each answer: the
// first bytes that it writes once a request has come in begin a status line.
type reasonConn struct {
	net.Conn
	head atomic.Bool // the next write begins with a status line
}

func (c *reasonConn) Write(b []byte) (int, error) {
	if !c.head.Load() {
		return c.Conn.Write(b)
	}
	line, rest, ok := bytes.Cut(b, []byte("\r\n"))
	interim := bytes.HasPrefix(line, []byte("HTTP/1.1 1")) && !bytes.HasPrefix(line, []byte("HTTP/1.1 101"))
	if !interim { // otherwise the answer proper is still to come
		c.head.Store(false)
	}
	if !ok || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return c.Conn.Write(b)
	}
	head := append(bytes.ToUpper(line), "\r\n"...) // as long as it was: the phrases are ASCII
	return c.Conn.Write(append(head, rest...))
}

// CloseWrite lets net/http end an answer before it closes the connection.
func (c *reasonConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
