package router

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/deis/deis/routerconf"
)

const (
	// idleLimit is how long nothing may move between router and app, router and
	// client, and two requests of a client (contract 10.1, defaultTimeout).
	idleLimit = 1300 * time.Second
	// controllerIdleLimit is the same for the controller (contract 10.1).
	controllerIdleLimit = 20 * time.Minute
	// dialTimeout of one attempt. Instances are in the same network; one that
	// does not answer for so long is gone.
	dialTimeout = 5 * time.Second
	// dialTimeAll bounds all attempts for one request (contract 10.1, connect).
	dialTimeAll = 30 * time.Second
	// keepIdle is how long an unused connection to an instance is kept: shorter
	// than the keep-alive of any usual app server (gunicorn 2 s, Node.js and
	// uvicorn 5 s), as otherwise a request may meet the app's closing. Under
	// load connections are hardly ever idle for so long.
	keepIdle = 1500 * time.Millisecond
	// keepConns is how many unused connections to one instance are kept.
	keepConns = 1024
	// maxAnswerHead bounds the head of an app's answer.
	maxAnswerHead = 64 << 10
	// maxRepeats bounds how often a request is sent again after an instance took
	// it and closed the connection without an answer: one that kills
	// instances must not go through all of them.
	maxRepeats = 1
)

// upstream is the connections to one target. It implements pool.
type upstream struct{ http.Transport }

func newUpstream(t routerconf.Target, controller bool) pool {
	limit := idleLimit
	if controller {
		limit = controllerIdleLimit
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	u := &upstream{}
	u.Transport = http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, t.Address)
			if err != nil {
				return nil, &dialError{err}
			}
			return &idleConn{Conn: c, limit: limit, reads: true}, nil
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    keepConns,
		IdleConnTimeout:        keepIdle,
		MaxResponseHeaderBytes: maxAnswerHead,
		ExpectContinueTimeout:  time.Second,
		WriteBufferSize:        8 << 10,
		ReadBufferSize:         8 << 10,
	}
	return u
}

func (u *upstream) closeIdle() { u.CloseIdleConnections() }

// dialError says that no connection came about, so nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

var (
	errNoRoute    = errors.New("the host is not in the routing table any more")
	errNoInstance = errors.New("the app has no instance any more")
)

// RoundTrip sends a request to the target that was chosen for it, and to others
// where it can be neither lost nor done twice: after a failed connection always
// (each other instance once), after a connection that closed without an answer
// only if the request changes nothing and has no body (RFC 9110, 9.2.2).
func (p *proxy) RoundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req.Context())
	if req.Body != nil {
		x.body = &sentBody{ReadCloser: req.Body}
		req.Body = x.body
	}
	repeats := 0
	for {
		req.URL.Host = x.target.conf.Address
		resp, err := x.target.pool.(*upstream).RoundTrip(req)
		if err == nil || req.Context().Err() != nil {
			return resp, err
		}
		switch {
		case errors.As(err, new(*dialError)):
			x.target.refused()
			if time.Since(x.began) > dialTimeAll {
				return nil, err
			}
		case repeats < maxRepeats && repeatable(req) && !timedOut(err):
			repeats++
		default:
			return nil, err
		}
		if again := p.next(x); again != nil {
			return nil, errors.Join(again, err)
		}
	}
}

// next gives the exchange another target. The table is asked anew: if targets
// have changed meanwhile, the present ones count. An app that has no further
// instance keeps its first error.
func (p *proxy) next(x *exchange) error {
	x.tried = append(x.tried, x.target)
	x.letGo()
	r, t := p.table.acquire(x.host, x.tried)
	switch {
	case r == nil:
		return errNoRoute
	case t == nil && len(r.targets) == 0:
		return errNoInstance
	case t == nil:
		return errAllTried
	}
	x.route, x.target = r, t
	x.retries++
	p.metrics.retries.Inc()
	return nil
}

var errAllTried = errors.New("no other instance is left")

// repeatable requests change nothing on the server. Those that ask for an upgrade are: what the client says in
// the new protocol is passed on only after the answer.
func repeatable(r *http.Request) bool {
	if r.Body != nil && r.Body != http.NoBody {
		return false
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return false
}

// timedOut tells an instance that hangs from one that ended the connection.
func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// sentBody is a request's body that outlives a failed attempt, and remembers
// that it could not be read: that is the client's fault, not the app's.
type sentBody struct {
	io.ReadCloser
	broken atomic.Bool
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.broken.Store(true)
	}
	return n, err
}

// Close leaves the body open: a transport closes it after a failed connection,
// before anything was read. The server closes it in the end.
func (b *sentBody) Close() error { return nil }

func (b *sentBody) failed() bool { return b != nil && b.broken.Load() }
