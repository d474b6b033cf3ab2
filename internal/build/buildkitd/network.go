package buildkitd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/worker/base"

	"github.com/deis/deis/internal/hostnet"
)

// isolated is BuildKit's network of RUN steps, whose members do not reach each other.
type isolated struct {
	network.Provider
	net *hostnet.Network
}

// New is part of network.Provider. The process of the step is started after it.
func (p isolated) New(ctx context.Context, hostname string, opts network.NamespaceOptions) (network.Namespace, error) {
	ns, err := p.Provider.New(ctx, hostname, opts)
	if err != nil {
		return nil, err
	}
	if err := p.net.Isolate(); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// What BuildKit fetches for a build (FROM, ADD of a URL), it fetches from this host and not from the network of
// RUN steps, so it must keep away by itself from what they may not reach.

// fetchTimeout bounds connecting and the TLS handshake.
const fetchTimeout = 30 * time.Second

// errForbidden is looked for by the client, by its text.
var errForbidden = errors.New("builds may not reach this address")

// forbidden reports whether builds must not reach an address: this host's own, those of instances and of builds,
// and link-local ones, where clouds keep the host's credentials.
func forbidden(addr netip.Addr, allow []netip.Prefix) bool {
	addr = addr.Unmap()
	for _, p := range allow {
		if p.Contains(addr) {
			return false
		}
	}
	return hostnet.Own(addr)
}

// fetcher makes requests for builds. A proxy of the environment is the operator's, and is asked as it is.
type fetcher struct{ direct, proxied *http.Transport }

// proxyNames are the variables by which an operator sends what this host fetches to a proxy.
var proxyNames = []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"}

func newFetcher(allow []netip.Prefix) *fetcher {
	dialer := &net.Dialer{Timeout: fetchTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil || forbidden(addr.Addr(), allow) {
			return errForbidden // the dialer says which
		}
		return nil
	}}
	f := &fetcher{
		direct: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: fetchTimeout,
			MaxIdleConns: 30, MaxIdleConnsPerHost: 4, IdleConnTimeout: 2 * time.Minute, ExpectContinueTimeout: 5 * time.Second,
			// HTTP/2 shares one connection's window among the layers of an image.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
	}
	f.proxied = f.direct.Clone()
	f.proxied.Proxy = http.ProxyFromEnvironment
	f.proxied.DialContext = (&net.Dialer{Timeout: fetchTimeout}).DialContext
	return f
}

// RoundTrip implements http.RoundTripper.
func (f *fetcher) RoundTrip(req *http.Request) (*http.Response, error) {
	if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil {
		return f.proxied.RoundTrip(req)
	}
	return f.direct.RoundTrip(req)
}

// registries are the registries' hosts, reached by a fetcher.
func registries(f *fetcher) docker.RegistryHosts {
	hosts := resolver.NewRegistryConfig(nil)
	return func(host string) ([]docker.RegistryHost, error) {
		list, err := hosts(host)
		for i := range list {
			list[i].Client = &http.Client{Transport: f}
		}
		return list, err
	}
}

// guardSources replaces the sources of a worker that fetch from URLs.
func guardSources(w *base.Worker, f *fetcher, allow []netip.Prefix) error {
	urls, err := httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: f})
	if err != nil {
		return err
	}
	w.HTTPSource = urls
	w.SourceManager.Register(urls)
	if w.GitSource != nil {
		w.SourceManager.Register(gitGuard{w.GitSource, allow})
	}
	return nil
}
