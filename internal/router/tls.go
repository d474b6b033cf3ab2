package router

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
)

// tlsConfig serves each name's certificate. Session tickets are on, their keys
// rotate by themselves (crypto/tls). TLS 1.2 is the oldest that browsers still
// speak.
func tlsConfig(tb *table, own *ownCA) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return tb.certificateFor(hostKey(hello.ServerName), own), nil
		},
	}
}

// misdirected reports whether a request came over an HTTP/2 connection whose
// certificate does not stand for its host. Browsers share connections between
// names; 421 makes them open another one (RFC 9110, 7.4).
func (p *proxy) misdirected(r *http.Request, host string) bool {
	if r.ProtoMajor < 2 || r.TLS == nil || r.TLS.ServerName == "" {
		return false
	}
	name := hostKey(r.TLS.ServerName)
	if name == host {
		return false
	}
	shown, right := p.table.certificateFor(name, p.ownCA), p.table.certificateFor(host, p.ownCA)
	return shown != right && !covers(shown, host)
}

func covers(pair *tls.Certificate, host string) bool {
	if pair == nil {
		return false
	}
	leaf := pair.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return false
		}
	}
	return leaf.VerifyHostname(host) == nil
}
