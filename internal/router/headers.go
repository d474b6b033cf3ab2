package router

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
)

// maxRequestID bounds a request id that a client made.
const maxRequestID = 200

// identify finds out who asks, how, and under which id. Only a trusted client,
// a load balancer in front, may speak for others: its X-Forwarded-For names the
// client, its X-Forwarded-Proto the scheme (contract 10.4).
func (p *proxy) identify(x *exchange, r *http.Request) {
	addr := clientAddr(r.RemoteAddr)
	x.trusted = p.trusts(addr)
	x.scheme = "http"
	if r.TLS != nil {
		x.scheme = "https"
	}
	if x.trusted {
		addr = p.firstUntrusted(addr, r.Header.Values("X-Forwarded-For"))
		if r.TLS == nil && strings.EqualFold(lastItem(r.Header.Values("X-Forwarded-Proto")), "https") {
			x.scheme = "https"
		}
	}
	if addr.IsValid() {
		x.client = addr.String()
	}
	x.id = r.Header.Get("X-Request-Id")
	if !validRequestID(x.id) {
		x.id = newID()
	}
}

func (p *proxy) trusts(addr netip.Addr) bool {
	for _, prefix := range p.trusted {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// firstUntrusted goes back along the proxies, from the nearest one, to the first
// address that is none of ours.
func (p *proxy) firstUntrusted(addr netip.Addr, forwarded []string) netip.Addr {
	items := strings.Split(strings.Join(forwarded, ","), ",")
	for i := len(items) - 1; i >= 0 && p.trusts(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(items[i]))
		if err != nil {
			break
		}
		addr = next.Unmap()
	}
	return addr
}

func lastItem(values []string) string {
	if len(values) == 0 {
		return ""
	}
	last := values[len(values)-1]
	return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
}

// validRequestID lets ids through that can do no harm in logs and headers.
func validRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.:+/=@", c) >= 0) {
			return false
		}
	}
	return true
}

// newID returns 128 random bits. They identify; they need not be secret.
func newID() string {
	var b [16]byte
	for i := range b {
		if i%8 == 0 {
			n := rand.Uint64()
			for j := range 8 {
				b[i+j] = byte(n >> (8 * j))
			}
		}
	}
	return hex.EncodeToString(b[:])
}

// owned are the headers that say who asks and how. Apps believe them, so they
// come from us or from a trusted client only.
var owned = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Scheme",
	"X-Forwarded-Server", "X-Forwarded-Ssl", "X-Real-Ip", "X-Request-Id",
}

// rewrite makes the request that the app gets: as it came, with the headers of
// contract 10.4. Hop-by-hop headers are gone already.
func rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In.Context())
	out, h := pr.Out, pr.Out.Header
	out.URL.Scheme = "http"
	out.URL.Host = x.target.conf.Address
	keepTarget(out, pr.In)
	out.Host = pr.In.Host
	// The server fills this very map when it has read the body.
	out.Trailer = pr.In.Trailer
	dropLookalikes(h)
	if x.trusted {
		for _, name := range []string{"Forwarded", "X-Forwarded-Host"} {
			if v, ok := pr.In.Header[name]; ok {
				h[name] = v
			}
		}
	} else {
		for _, name := range owned {
			delete(h, name)
		}
	}
	// CGI makes HTTP_PROXY of it, which many programs take for a setting (httpoxy).
	delete(h, "Proxy")
	setForwarded(h, x)
}

func setForwarded(h http.Header, x *exchange) {
	port, ssl := "80", "off"
	if x.scheme == "https" {
		port, ssl = "443", "on"
	}
	delete(h, "X-Forwarded-For")
	if x.client != "" {
		h["X-Forwarded-For"] = []string{x.client}
	}
	h["X-Forwarded-Proto"] = []string{x.scheme}
	h["X-Forwarded-Port"] = []string{port}
	h["X-Forwarded-Ssl"] = []string{ssl}
	h["X-Request-Id"] = []string{x.id}
}

// keepTarget passes on path and query as they came: net/url would decode and
// encode them again, and httputil drops parameters that it cannot read.
func keepTarget(out, in *http.Request) {
	out.URL.RawQuery = in.URL.RawQuery
	out.URL.ForceQuery = in.URL.ForceQuery
	path, _, _ := strings.Cut(in.RequestURI, "?")
	// net/url would take an opaque part with two slashes for a host.
	if strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path
	}
}

// dropLookalikes removes headers like X_Forwarded_For: CGI and WSGI make the
// same variable of - and _ in names.
func dropLookalikes(h http.Header) {
	for name := range h {
		if strings.IndexByte(name, '_') < 0 {
			continue
		}
		canonical := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		for _, o := range owned {
			if canonical == o || canonical == "Proxy" {
				delete(h, name)
				break
			}
		}
	}
}
