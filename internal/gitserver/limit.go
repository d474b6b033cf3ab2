package gitserver

import (
	"net"
	"sync"
)

// limitListener closes connections beyond maxConns and maxConnsPerHost at once.
type limitListener struct {
	net.Listener
	mu    sync.Mutex
	total int
	hosts map[string]int
}

func newLimitListener(l net.Listener) *limitListener {
	return &limitListener{Listener: l, hosts: map[string]int{}}
}

// tooMany is sent before the protocol's first line, where RFC 4253 4.2 allows
// other lines; clients show it with -v.
const tooMany = "Too many connections. Try again in a moment.\r\n"

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			host = conn.RemoteAddr().String()
		}
		if l.enter(host) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		// The socket's buffer is empty, so this does not block.
		_, _ = conn.Write([]byte(tooMany))
		conn.Close()
	}
}

func (l *limitListener) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxConns || l.hosts[host] >= maxConnsPerHost {
		return false
	}
	l.total++
	l.hosts[host]++
	return true
}

func (l *limitListener) leave(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
