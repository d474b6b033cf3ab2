package router

import (
	"net"
	"sync/atomic"
	"time"
)

// idleConn fails once nothing has moved for the limit. Time-outs are on
// inactivity, never on total time: a WebSocket may live for days.
type idleConn struct {
	net.Conn
	limit time.Duration
	// reads makes a read wait no longer than the limit too, if nothing was
	// written in the meantime. The server sets its clients' read deadlines by itself.
	reads bool
	// armed is when the deadline was last set: process time, ns; 0 is never.
	armed atomic.Int64
}

// processStart makes times that fit into an atomic and never jump.
var processStart = time.Now()

// arm sets the deadline anew, at most 32 times a limit: it costs as much as
// small reads do.
func (c *idleConn) arm() {
	now := time.Since(processStart)
	if armed := c.armed.Load(); armed != 0 && now-time.Duration(armed) < c.limit/32 {
		return
	}
	c.armed.Store(int64(now))
	// An error here means that the connection is closed; the caller's Read or
	// Write says so.
	if c.reads {
		_ = c.Conn.SetDeadline(time.Now().Add(c.limit))
	} else {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(c.limit))
	}
}

func (c *idleConn) Read(b []byte) (int, error) {
	if c.reads {
		c.arm()
	}
	return c.Conn.Read(b)
}

func (c *idleConn) Write(b []byte) (int, error) {
	c.arm()
	return c.Conn.Write(b)
}

// SetDeadline is the server's; ours is set again with the next write.
func (c *idleConn) SetDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline is like SetDeadline.
func (c *idleConn) SetWriteDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetWriteDeadline(t)
}

// CloseWrite passes on that one direction of an upgraded connection has ended.
func (c *idleConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

// idleListener makes clients that stop taking their answers time out.
type idleListener struct {
	net.Listener
	limit time.Duration
}

func (l idleListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &idleConn{Conn: c, limit: l.limit}, nil
}
