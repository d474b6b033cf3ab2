package router

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// proxy is the data path: requests come in, are counted on a target and passed
// on. It uses the table through acquire and the targets' counters only, so that
// another data path can take its place.
type proxy struct {
	table   *table
	ownCA   *ownCA
	trusted []netip.Prefix
	metrics *metrics
	access  *accessLog // nil: none
	reverse *httputil.ReverseProxy
}

// copyBuffer is what bodies are copied through, flushDelay how long the first
// bytes of an answer of known length may wait for more of it. Streams (events,
// unknown length) are passed on at once.
const (
	copyBuffer = 32 << 10
	flushDelay = 2 * time.Millisecond
)

func newProxy(tb *table, own *ownCA, trusted []netip.Prefix, m *metrics, access *accessLog, log *slog.Logger) *proxy {
	p := &proxy{table: tb, ownCA: own, trusted: trusted, metrics: m, access: access}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      p,
		ModifyResponse: answered,
		ErrorHandler:   p.failed,
		FlushInterval:  flushDelay,
		BufferPool:     &bufferPool{},
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return p
}

// exchange is one request on its way. It is used by the request's goroutine.
type exchange struct {
	w       recorder
	host    string // as in the table
	route   *route
	target  *target // on which the request is counted now
	served  *target // the last one
	tried   []*target
	began   time.Time
	reached time.Time // when the answer's head came
	id      string    // X-Request-Id
	client  string    // address without port
	scheme  string
	trusted bool // whether the client may tell about others
	upgrade bool
	body    *sentBody // nil if the request has none
	retries int
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// ServeHTTP is the whole life of a request.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := p.begin(w, r)
	defer p.end(x, r)
	switch {
	case r.Method == http.MethodConnect:
		// No tunnels: RFC 9110, 9.3.6 is for forward proxies.
		x.answer(r, pageMethod)
	case p.misdirected(r, x.host):
		x.answer(r, pageMisdirected)
	default:
		p.forward(x, r)
	}
}

func (p *proxy) begin(w http.ResponseWriter, r *http.Request) *exchange {
	p.metrics.inFlight.Add(1)
	x := &exchange{w: recorder{ResponseWriter: w}, host: hostKey(r.Host), began: time.Now()}
	p.identify(x, r)
	return x
}

// end also runs when the connection is aborted by a panic (net/http's way).
func (p *proxy) end(x *exchange, r *http.Request) {
	x.letGo()
	p.metrics.inFlight.Add(-1)
	p.metrics.observe(x)
	if p.access != nil {
		p.access.log(x, r)
	}
}

func (p *proxy) forward(x *exchange, r *http.Request) {
	x.route, x.target = p.table.acquire(x.host, nil)
	switch {
	case x.route == nil && r.URL.Path == "/health-check":
		// Load balancers ask for this under any name (contract 10.2).
		x.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		x.w.WriteHeader(http.StatusOK)
	case x.route == nil && !p.table.loaded.Load():
		x.answer(r, pageStarting)
	case x.route == nil:
		x.answer(r, pageUnknownHost)
	case x.target == nil:
		x.answer(r, pageNoInstance)
	default:
		p.reverse.ServeHTTP(&x.w, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
	}
}

// letGo releases the present target.
func (x *exchange) letGo() {
	if x.target != nil {
		x.target.release(!x.upgrade)
		x.target, x.served = nil, x.target
	}
}

// answered is called when the answer's head is there.
func answered(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	x.reached = time.Now()
	// An answer without a type must not get one that net/http guesses.
	x.w.Header()["Content-Type"] = nil
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.upgrade = true
		x.target.upgraded()
	}
	return nil
}

// failed says honestly and without addresses why there is no answer.
func (p *proxy) failed(_ http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	switch {
	case x.w.hijacked:
		// There is no HTTP on this connection any more.
	case r.Context().Err() != nil:
		x.w.status = statusClientGone
		panic(http.ErrAbortHandler)
	case x.body.failed():
		x.answer(r, pageBadBody)
	case errors.Is(err, errNoRoute):
		x.answer(r, pageUnknownHost)
	case errors.Is(err, errNoInstance):
		x.answer(r, pageNoInstance)
	case x.route.conf.Controller && errors.As(err, new(*dialError)):
		x.answer(r, pageNoController)
	case errors.As(err, new(*dialError)):
		x.answer(r, pageRefused)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.answer(r, pageTimeout)
	default:
		x.answer(r, pageBroken)
	}
}

// statusClientGone is nginx's number for a client that did not wait; it is only
// logged.
const statusClientGone = 499

type bufferPool struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[copyBuffer]byte); ok {
		return b[:]
	}
	return make([]byte, copyBuffer)
}

// Put implements httputil.BufferPool.
func (p *bufferPool) Put(b []byte) { p.pool.Put((*[copyBuffer]byte)(b)) }

// clientAddr is the address without port, or the zero Addr.
func clientAddr(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// parsePrefixes reads a comma list of CIDRs or addresses.
func parsePrefixes(list string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if addr, err := netip.ParseAddr(item); err == nil {
			prefixes = append(prefixes, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, &net.ParseError{Type: "CIDR", Text: item}
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}
