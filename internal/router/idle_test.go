package router

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are net.Pipes: their deadlines follow
// synctest's clock.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// inBubble runs a router without routes over pipes, in synctest's time.
func inBubble(t *testing.T, f func(plain, secure *pipes)) {
	cfg := serveConfig(t)
	synctest.Test(t, func(t *testing.T) {
		r, err := newRouter(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		plain, secure := newPipes(), newPipes()
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx, plain, secure) }()
		f(plain, secure)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A client that sends its head byte by byte is cut off after headTimeout in all.
func TestSlowHeadTimesOut(t *testing.T) {
	inBubble(t, func(plain, secure *pipes) {
		for _, c := range []struct {
			what  string
			to    *pipes
			begin string
		}{
			{"head", plain, "GET / HTTP/1.1\r\nHost: a.test\r\nX: "},
			{"handshake", secure, "\x16\x03\x01\x3f\xff"}, // a record of 16 KiB
		} {
			conn := c.to.dial()
			began := time.Now()
			var writer sync.WaitGroup
			writer.Go(func() {
				for _, b := range []byte(c.begin + strings.Repeat("x", 1000)) {
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			_, _ = io.Copy(io.Discard, conn)
			if took := time.Since(began); took < headTimeout/2 || took > headTimeout+time.Second {
				t.Errorf("%s: cut off after %v", c.what, took)
			}
			conn.Close()
			writer.Wait()
		}
	})
}

func TestIdleClientsAreClosed(t *testing.T) {
	inBubble(t, func(plain, secure *pipes) {
		for _, name := range []string{"http", "https"} {
			var c net.Conn
			if name == "http" {
				c = plain.dial()
			} else {
				c = tls.Client(secure.dial(), &tls.Config{InsecureSkipVerify: true})
			}
			br := bufio.NewReader(c)
			for range 3 { // kept alive
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(name, err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				time.Sleep(idleLimit - time.Minute)
			}
			began := time.Now()
			_, _ = io.Copy(io.Discard, br)
			if took := time.Since(began); took != time.Minute {
				t.Errorf("%s: closed after %v more", name, took)
			}
			c.Close()
		}
	})
}

func TestIdleConn(t *testing.T) {
	const limit = time.Hour
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := &idleConn{Conn: near, limit: limit, reads: true}
		go func() { _, _ = io.Copy(io.Discard, far) }()
		// Writes keep a waiting read alive.
		go func() {
			for range 5 {
				time.Sleep(limit / 2)
				_, _ = c.Write([]byte("x"))
			}
		}()
		began := time.Now()
		_, err := c.Read(make([]byte, 1))
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took < 3*limit || took > 4*limit {
			t.Errorf("read: %v after %v", err, took)
		}
		c.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := &idleConn{Conn: near, limit: limit}
		defer c.Close()
		// The server's own deadlines, set and taken back, must not leave us
		// without one.
		c.arm()
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_ = c.SetWriteDeadline(time.Time{})
		began := time.Now()
		_, err := c.Write([]byte("nobody reads"))
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took != limit {
			t.Errorf("write: %v after %v", err, took)
		}
	})
}
