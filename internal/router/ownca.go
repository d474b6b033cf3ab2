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
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// caLife is long, because people trust the authority by hand.
	caLife = 10 * 365 * 24 * time.Hour
	// caRenew before the end leaves time to spread a new one.
	caRenew = 90 * 24 * time.Hour
	// caCheck is how often the end and the domain are looked at.
	caCheck = time.Hour
	// leafLife is what browsers accept at most (398 days), less a day.
	leafLife = 397 * 24 * time.Hour
	// leafRenew before the end: no connection lasts that long.
	leafRenew = 7 * 24 * time.Hour
	// maxLeaves bounds the certificates kept in memory, 2 kB each; making one
	// again takes a tenth of a millisecond.
	maxLeaves = 10_000
)

// ownCA is the platform's own certificate authority. It signs a certificate for
// each of the platform's names that has no uploaded one. An authority and not
// one self-signed wildcard, because clients take no wildcard directly below a
// top-level name like localhost; and its names are constrained to the platform's domain (RFC
// 5280, 4.2.1.10), so that trusting it gives away nothing else.
type ownCA struct {
	// dir holds ca.pem, which may be given to anyone, and ca.key; "" keeps both
	// in memory only.
	dir string
	now func() time.Time

	cur atomic.Pointer[issuer]
}

// issuer is an authority for one domain.
type issuer struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	now    func() time.Time

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

func (ca *ownCA) current() *issuer { return ca.cur.Load() }

// ensure makes current an authority for the domain that is valid for long
// enough: the present one, that of the files, or a new one.
func (ca *ownCA) ensure(domain string) error {
	if i := ca.current(); i != nil && i.good(domain) {
		return nil
	}
	i, err := ca.load()
	if err == nil {
		i.domain = domain
	}
	if err != nil || !i.good(domain) {
		if i, err = newIssuer(domain, ca.now); err != nil {
			return fmt.Errorf("make the platform's own authority: %w", err)
		}
		err = ca.save(i)
	}
	ca.cur.Store(i)
	return err
}

// maintain renews the authority and follows the table's domain until ctx ends.
func (ca *ownCA) maintain(ctx context.Context, tb *table, fallbackDomain string, log *slog.Logger) {
	changed := tb.watch()
	tick := time.NewTicker(caCheck)
	defer tick.Stop()
	for {
		domain := tb.platformDomain()
		if domain == "" {
			domain = fallbackDomain
		}
		if err := ca.ensure(domain); err != nil {
			log.Error("the platform's own authority is not as it should be", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

func (ca *ownCA) path(name string) string { return filepath.Join(ca.dir, name) }

func (ca *ownCA) load() (*issuer, error) {
	if ca.dir == "" {
		return nil, fs.ErrNotExist
	}
	pair, err := tls.LoadX509KeyPair(ca.path("ca.pem"), ca.path("ca.key"))
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the authority's key is of another type")
	}
	return &issuer{cert: pair.Leaf, key: key, now: ca.now, leaves: map[string]*tls.Certificate{}}, nil
}

// save writes the key first: without its certificate it means nothing.
func (ca *ownCA) save(i *issuer) error {
	if ca.dir == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := writeFile(ca.path("ca.key"), key, 0o600); err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
	return writeFile(ca.path("ca.pem"), cert, 0o644)
}

func newIssuer(domain string, now func() time.Time) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:                serial,
		Subject:                     pkix.Name{CommonName: "Deis platform " + domain, Organization: []string{"Deis platform, own authority"}},
		NotBefore:                   now().Add(-time.Hour), // clocks differ
		NotAfter:                    now().Add(caLife),
		IsCA:                        true,
		MaxPathLenZero:              true,
		BasicConstraintsValid:       true,
		KeyUsage:                    x509.KeyUsageCertSign,
		PermittedDNSDomains:         []string{domain},
		PermittedDNSDomainsCritical: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &issuer{domain: domain, cert: cert, key: key, now: now, leaves: map[string]*tls.Certificate{}}, err
}

func (i *issuer) good(domain string) bool {
	return i.domain == domain && slices.Equal(i.cert.PermittedDNSDomains, []string{domain}) &&
		i.now().Before(i.cert.NotAfter.Add(-caRenew))
}

// owns reports whether a name is the domain or directly below it.
func (i *issuer) owns(name string) bool {
	_, parent, _ := strings.Cut(name, ".")
	return name == i.domain || parent == i.domain
}

// leaf returns the certificate for a name that i owns, nil if it cannot be made.
func (i *issuer) leaf(name string) *tls.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	if c := i.leaves[name]; c != nil && i.now().Before(c.Leaf.NotAfter.Add(-leafRenew)) {
		return c
	}
	c, err := i.sign(name)
	if err != nil {
		return nil
	}
	if len(i.leaves) >= maxLeaves {
		clear(i.leaves)
	}
	i.leaves[name] = c
	return c
}

// sign makes a leaf. It has the wildcard too, for clients that take it, so that
// HTTP/2 connections can be shared between apps. Issuer and leaves share a key:
// who has one has all.
func (i *issuer) sign(name string) (*tls.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	names := []string{name, i.domain, "*." + i.domain}
	slices.Sort(names)
	end := i.now().Add(leafLife)
	if end.After(i.cert.NotAfter) {
		end = i.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName(name)},
		DNSNames:     slices.Compact(names),
		NotBefore:    i.now().Add(-time.Hour),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, i.key.Public(), i.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, i.cert.Raw}, PrivateKey: i.key, Leaf: leaf}, nil
}

// commonName is a name as far as the field takes it (RFC 5280, ub-common-name).
func commonName(name string) string {
	const limit = 64
	if len(name) > limit {
		return ""
	}
	return name
}

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// writeFile replaces a file as a whole: after a crash it is the old or the new
// one. One writer at a time.
func writeFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
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
