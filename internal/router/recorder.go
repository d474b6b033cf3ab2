package router

import (
	"bufio"
	"net"
	"net/http"
)

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	status   int
	bytes    int64 // of the body
	hijacked bool
}

// Unwrap lets http.ResponseController find the rest.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the final status. An app's 100 is not passed on: the server
// says it when the body is read, which is what the app's 100 makes us do.
func (w *recorder) WriteHeader(status int) {
	if status == http.StatusContinue {
		return
	}
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Hijack hands over what the client sent before it saw the 101, too.
// httputil.ReverseProxy reads from the connection only.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status, w.hijacked = http.StatusSwitchingProtocols, true
	if rw.Reader.Buffered() > 0 {
		conn = &earlyConn{Conn: conn, early: rw.Reader}
	}
	return conn, rw, nil
}

// earlyConn reads what was buffered first.
type earlyConn struct {
	net.Conn
	early *bufio.Reader
}

func (c *earlyConn) Read(b []byte) (int, error) {
	if n := c.early.Buffered(); n > 0 {
		return c.early.Read(b[:min(n, len(b))])
	}
	return c.Conn.Read(b)
}

// CloseWrite passes on the end of one direction.
func (c *earlyConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}
