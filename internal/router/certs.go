package router

import (
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"

	"github.com/deis/deis/routerconf"
)

// certificate is an uploaded one. Parsing costs a hundred times what holding
// the text costs and most of ten thousand are never asked for in one router's
// life, so that is left to the first handshake.
type certificate struct {
	conf  routerconf.Certificate
	parse func() *tls.Certificate // nil: it cannot be used
}

func newCertificate(conf routerconf.Certificate, log *slog.Logger) *certificate {
	return &certificate{conf: conf, parse: sync.OnceValue(func() *tls.Certificate {
		pair, err := tls.X509KeyPair([]byte(conf.Chain), []byte(conf.Key))
		if err != nil {
			log.Error("a certificate cannot be used, another one stands in", "name", conf.Name, "error", err)
			return nil
		}
		return &pair
	})}
}

// certificateFor chooses by SNI (see hostKey): an uploaded one for the name
// itself, for the wildcard above it, for the platform's wildcard (contract 10.1,
// sslCert), and in the end one of the platform's own authority: for the name, if it is
// one of the platform's and known, else for the platform's domain. One that
// cannot be used is passed over.
func (tb *table) certificateFor(name string, ca *ownCA) *tls.Certificate {
	own := ca.current()
	for _, n := range [...]string{name, wildcardOf(name), "*." + own.domain} {
		if c := tb.certs.get(n); c != nil {
			if pair := c.parse(); pair != nil {
				return pair
			}
		}
	}
	// Only known names: strangers must not make us sign whatever they ask for.
	if own.owns(name) && tb.routes.get(name) != nil {
		return own.leaf(name)
	}
	return own.leaf(own.domain)
}

func wildcardOf(name string) string {
	if _, parent, ok := strings.Cut(name, "."); ok {
		return "*." + parent
	}
	return ""
}
