package containerd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/deis/deis/internal/hostnet"
)

const (
	// pullSilence is how long a registry may send nothing while something is awaited of it.
	pullSilence = time.Minute
	// dialTime bounds connecting, and the TLS handshake.
	dialTime = 30 * time.Second
)

// What of our own may keep a pull from a registry. The texts are for the user.
var (
	errSilent = errors.New("the registry sent nothing for " + pullSilence.String())
	errPlain  = errors.New("it does not use TLS")
	errPlace  = errors.New("it sends on to an address of this machine or of its cloud")
)

// insecure reports whether a registry may be spoken to without TLS: it is on this machine, or the
// operator says so.
func (e *Engine) insecure(host string) bool {
	local, err := docker.MatchLocalhost(host)
	return err == nil && local || slices.Contains(e.opts.InsecureRegistries, host)
}

// registryTransport reaches a registry. Where that sends on to, for a token or a layer, it does not
// reach the services of this machine, nor those of its cloud.
func (e *Engine) registryTransport(registry string) *http.Transport {
	trusted := append(proxies(), registry, net.JoinHostPort(registry, "443"), net.JoinHostPort(registry, "80"))
	dialer := &net.Dialer{Timeout: dialTime}
	guarded := &net.Dialer{Timeout: dialTime, Control: refuseOwn}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if slices.Contains(trusted, addr) {
				return dialer.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		},
		TLSClientConfig:     &tls.Config{RootCAs: e.opts.RegistryCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTime,
		// HTTP/2 would share one connection's window among the layers of an image.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// refuseOwn is a net.Dialer's Control.
func refuseOwn(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil || hostnet.Own(addr.Addr()) {
		return errPlace
	}
	return nil
}

// proxies are the addresses of those that the environment names: the operator's, and maybe on this machine.
func proxies() (addrs []string) {
	for _, scheme := range []string{"http", "https"} {
		anywhere := &http.Request{URL: &url.URL{Scheme: scheme, Host: "registry.invalid"}}
		if proxy, err := http.ProxyFromEnvironment(anywhere); err == nil && proxy != nil {
			port := map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[proxy.Scheme]
			addrs = append(addrs, net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), port, "80")))
		}
	}
	return addrs
}

// registryClient sends requests to a registry, and to where it sends on to. It encrypts, and does not wait for ever.
type registryClient struct {
	http.RoundTripper
	// plain says of which hosts TLS is not asked.
	plain func(host string) bool
	// silence is how long a server may send nothing.
	silence time.Duration
}

// RoundTrip implements http.RoundTripper.
func (c *registryClient) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !c.plain(req.URL.Host) {
		return nil, errPlain
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(c.silence, func() { cancel(errSilent) })
	resp, err := c.RoundTripper.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		defer cancel(nil)
		return nil, cause(ctx, err)
	}
	resp.Body = &body{resp.Body, ctx, cancel, timer, c.silence}
	return resp, nil
}

// cause is errSilent if that is why a context ended.
func cause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// body is a response's. Only the time that a Read waits counts.
type body struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	silence time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.silence)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = cause(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel(nil)
	b.timer.Stop()
	return b.ReadCloser.Close()
}
