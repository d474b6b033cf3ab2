package deis

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// dialTime bounds connecting and the TLS handshake. Answers have no limit: a
// deploy takes as long as it takes.
const dialTime = 10 * time.Second

// maxRedirects is how many are followed, all within the controller.
const maxRedirects = 3

func httpClient(verify bool) *http.Client {
	return &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy:               proxy,
			DialContext:         dial,
			TLSHandshakeTimeout: dialTime,
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: !verify}, // #nosec G402 -- the user's choice at login
		},
	}
}

// isLocal reports whether a name means this machine whatever DNS says
// (RFC 6761 section 6.3): localhost and everything below it.
func isLocal(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime}
	host, port, err := net.SplitHostPort(address)
	if err != nil || !isLocal(host) {
		return d.DialContext(ctx, network, address)
	}
	conn, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if conn, err6 := d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err6 == nil {
		return conn, nil
	}
	return nil, err
}

func proxy(r *http.Request) (*url.URL, error) {
	if isLocal(r.URL.Hostname()) {
		return nil, nil
	}
	return http.ProxyFromEnvironment(r)
}

// checkRedirect follows a reading request within the controller only: elsewhere
// it would take the token along, and a changing request would lose its body.
func checkRedirect(r *http.Request, via []*http.Request) error {
	first := via[0]
	if r.URL.Scheme != first.URL.Scheme || r.URL.Host != first.URL.Host {
		there := r.URL.Scheme + "://" + r.URL.Host
		return fail("The controller sends us on to "+there+".", "deis login "+there)
	}
	if first.Method != http.MethodGet || len(via) > maxRedirects {
		return errors.New("the controller sends us in circles")
	}
	return nil
}
