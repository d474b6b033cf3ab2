package router

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// selfSignedLife is what browsers accept at most (398 days), less a day.
	selfSignedLife = 397 * 24 * time.Hour
	// selfSignedRenew before the end leaves time for a router that was off.
	selfSignedRenew = 30 * 24 * time.Hour
	// selfSignedCheck is how often the end is looked at.
	selfSignedCheck = time.Hour
)

// selfSigned is the platform's certificate until one is uploaded: made once and
// kept in a file, so that who trusts it need not do so again.
type selfSigned struct {
	path string // "" keeps it in memory only
	now  func() time.Time
	pair atomic.Pointer[platformPair]
}

type platformPair struct {
	domain string
	pair   *tls.Certificate
}

func (s *selfSigned) current() *platformPair { return s.pair.Load() }

// ensure makes current a certificate for the domain that is valid for long
// enough: the present one, that of the file, or a new one.
func (s *selfSigned) ensure(domain string) error {
	if p := s.pair.Load(); p != nil && p.domain == domain && s.good(p.pair, domain) {
		return nil
	}
	pair, err := s.load()
	if err != nil || !s.good(pair, domain) {
		text, err := makeSelfSigned(domain, s.now())
		if err != nil {
			return fmt.Errorf("make the platform's certificate: %w", err)
		}
		if pair, err = parsePair(text); err != nil {
			return err
		}
		s.pair.Store(&platformPair{domain, pair})
		if s.path == "" {
			return nil
		}
		return writeFile(s.path, text)
	}
	s.pair.Store(&platformPair{domain, pair})
	return nil
}

// maintain renews the certificate and follows the table's domain until ctx ends.
func (s *selfSigned) maintain(ctx context.Context, tb *table, fallbackDomain string, log *slog.Logger) {
	changed := tb.watch()
	tick := time.NewTicker(selfSignedCheck)
	defer tick.Stop()
	for {
		domain := tb.platformDomain()
		if domain == "" {
			domain = fallbackDomain
		}
		if err := s.ensure(domain); err != nil {
			log.Error("the platform's certificate is not as it should be", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

func (s *selfSigned) load() (*tls.Certificate, error) {
	if s.path == "" {
		return nil, fs.ErrNotExist
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		return nil, err
	}
	return parsePair(text)
}

func parsePair(text []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(text, text)
	return &pair, err
}

func (s *selfSigned) good(pair *tls.Certificate, domain string) bool {
	return slices.Equal(pair.Leaf.DNSNames, selfSignedNames(domain)) && s.now().Before(pair.Leaf.NotAfter.Add(-selfSignedRenew))
}

// selfSignedNames has the controller's name of its own, as OpenSSL takes no
// wildcard directly below a top-level name like localhost.
func selfSignedNames(domain string) []string {
	return []string{domain, "*." + domain, "deis." + domain}
}

// makeSelfSigned returns certificate and key as PEM.
func makeSelfSigned(domain string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: domain, Organization: []string{"Deis platform, self-signed"}},
		DNSNames:              selfSignedNames(domain),
		NotBefore:             now.Add(-time.Hour), // clocks differ
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), nil
}

// writeFile replaces a file as a whole: after a crash it is the old or the new
// one. Only the owner can read it. One writer at a time.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
