package router

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/routerconf"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func sign(t testing.TB, parent *authority, template *x509.Certificate) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	issuer, issuerKey := template, key
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func newAuthority(t testing.TB, parent *authority, name string) *authority {
	return sign(t, parent, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func leafFor(t testing.TB, ca *authority, names ...string) *authority {
	return sign(t, ca, &x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names})
}

func (a *authority) keyPEM(t testing.TB) string {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// shown is the certificate that a name gets, and its chain.
func (r *running) shown(t testing.TB, name string) []*x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", r.httpsAddr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates
}

func TestCertificateBySNI(t *testing.T) {
	root := newAuthority(t, nil, "root")
	between := newAuthority(t, root, "between")
	exact, wild := leafFor(t, between, "www.shop.test"), leafFor(t, between, "*.shop.test")
	upload := func(name string, leaf *authority) routerconf.Certificate {
		return routerconf.Certificate{Name: name, Chain: leaf.pem + between.pem, Key: leaf.keyPEM(t)}
	}
	table := oneRoute("www.shop.test", addrOf(named(t, "shop")))
	table.Certificates = []routerconf.Certificate{
		upload("www.shop.test", exact), upload("*.shop.test", wild),
		{Name: "broken.shop.test", Chain: exact.pem, Key: wild.keyPEM(t)},
		{Name: "nonsense.other", Chain: "x", Key: "y"},
	}
	r := serve(t, table)
	for name, want := range map[string]*authority{
		"www.shop.test": exact, "WWW.Shop.Test": exact, "api.shop.test": wild, "broken.shop.test": wild,
		"a.b.shop.test": nil, "shop.test": nil, "nonsense.other": nil, "app.test": nil, "": nil,
	} {
		chain := r.shown(t, name)
		if want == nil {
			if chain[0].VerifyHostname("app.test") != nil || chain[0].VerifyHostname("test") != nil {
				t.Errorf("%q: %v instead of the platform's own", name, chain[0].DNSNames)
			}
		} else if !chain[0].Equal(want.cert) || len(chain) != 2 || !chain[1].Equal(between.cert) {
			t.Errorf("%q: %v", name, chain[0].DNSNames)
		}
	}

	// As a client that checks sees it.
	roots := x509.NewCertPool()
	roots.AddCert(root.cert)
	client := r.client(t)
	client.Transport.(bothSchemes).secure.TLSClientConfig = &tls.Config{RootCAs: roots}
	if resp, body := fetch(t, client, "https://www.shop.test/"); body != "shop" || resp.ProtoMajor != 2 {
		t.Errorf("%s %s", resp.Proto, body)
	}

	// The platform's uploaded wildcard replaces the self-signed one, also for
	// custom domains without a certificate (contract 10.1).
	platform := leafFor(t, between, "*.test", "test")
	if err := r.table.apply(routerconf.Change{Generation: 2, SetCertificates: []routerconf.Certificate{upload("*.test", platform)}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app.test", "test", "custom.example", ""} {
		if !r.shown(t, name)[0].Equal(platform.cert) {
			t.Errorf("%q does not get the platform's certificate", name)
		}
	}
	if err := r.table.apply(routerconf.Change{Generation: 3, DropCertificates: []string{"*.test", "www.shop.test"}}); err != nil {
		t.Fatal(err)
	}
	if !r.shown(t, "www.shop.test")[0].Equal(wild.cert) || r.shown(t, "app.test")[0].Equal(platform.cert) {
		t.Error("a dropped certificate is still served")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	r := serve(t, routerconf.Table{})
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", r.httpsAddr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version})
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestSessionsResume(t *testing.T) {
	r := serve(t, routerconf.Table{})
	config := &tls.Config{InsecureSkipVerify: true, ServerName: "a.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i := range 2 {
		c, err := tls.Dial("tcp", r.httpsAddr, config)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		_, _ = io.ReadAll(c)
		if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
		c.Close()
	}
}

// One authority signs for every name of the platform and for no other, is kept
// over a restart, and is renewed in time.
func TestOwnCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "router")
	now := time.Now()
	clock := func() time.Time { return now }
	issuerOf := func(ca *ownCA, domain string) *issuer {
		t.Helper()
		if err := ca.ensure(domain); err != nil {
			t.Fatal(err)
		}
		return ca.current()
	}
	ca := &ownCA{dir: dir, now: clock}
	first := issuerOf(ca, "localhost")
	roots := x509.NewCertPool()
	roots.AddCert(first.cert)
	verify := func(i *issuer, name string) error {
		leaf := i.leaf(name)
		if leaf == nil {
			t.Fatalf("no certificate for %s", name)
		}
		_, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now})
		return err
	}
	for _, name := range []string{"localhost", "app.localhost", "deis.localhost", strings.Repeat("a", 64) + ".localhost"} {
		if err := verify(first, name); err != nil {
			t.Error(err)
		}
	}
	if verify(first, "bank.example") == nil {
		t.Error("the authority is good for any name")
	}
	if once, twice := first.leaf("app.localhost"), first.leaf("app.localhost"); once != twice {
		t.Error("the certificate is made anew each time")
	}
	for name, mode := range map[string]os.FileMode{"ca.pem": 0o644, "ca.key": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	again := &ownCA{dir: dir, now: clock}
	if !issuerOf(again, "localhost").cert.Equal(first.cert) {
		t.Error("another authority after a restart")
	}
	if err := verify(again.current(), "app.localhost"); err != nil {
		t.Error(err)
	}

	old := again.current().leaf("app.localhost")
	now = old.Leaf.NotAfter.Add(-leafRenew).Add(time.Second)
	if again.current().leaf("app.localhost") == old {
		t.Error("a certificate was not renewed before its end")
	}
	now = first.cert.NotAfter.Add(-caRenew).Add(time.Second)
	if issuerOf(again, "localhost").cert.Equal(first.cert) {
		t.Error("the authority was not renewed before its end")
	}
	if i := issuerOf(ca, "other.test"); i.leaf("app.other.test").Leaf.VerifyHostname("app.other.test") != nil {
		t.Error("not for the new domain")
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	issuerOf(&ownCA{dir: dir, now: clock}, "other.test")
	text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil || !bytes.Contains(text, []byte("BEGIN CERTIFICATE")) {
		t.Errorf("a file of garbage was not replaced: %v", err)
	}
}

// Only names that the table knows are signed for: a stranger's get the domain's.
func TestOwnCASignsKnownNamesOnly(t *testing.T) {
	r := serve(t, routerconf.Table{Domain: "localhost", Routes: []routerconf.Route{routeTo("app.localhost", "app", "127.0.0.1:1")}})
	if names := r.shown(t, "app.localhost")[0].DNSNames; !slices.Contains(names, "app.localhost") {
		t.Errorf("for a known name: %v", names)
	}
	for _, name := range []string{"stranger.localhost", "deep.app.localhost", "else.example"} {
		if names := r.shown(t, name)[0].DNSNames; !slices.Equal(names, []string{"*.localhost", "localhost"}) {
			t.Errorf("for %s: %v", name, names)
		}
	}
}

// The table's domain counts, not the setting, as soon as there is a table.
func TestOwnCAFollowsTheTable(t *testing.T) {
	r := serve(t, routerconf.Table{Domain: "one.test"})
	if err := r.shown(t, "a.one.test")[0].VerifyHostname("a.one.test"); err != nil {
		t.Error(err)
	}
	mustApply(t, r.table, routerconf.Change{Generation: 5, Snapshot: &routerconf.Table{Generation: 5, Domain: "two.test"}})
	eventually(t, "a certificate for the new domain", func() bool {
		return r.shown(t, "a.two.test")[0].VerifyHostname("a.two.test") == nil
	})
}

func TestMisdirectedRequest(t *testing.T) {
	ca := newAuthority(t, nil, "ca")
	one, two, both := leafFor(t, ca, "one.test"), leafFor(t, ca, "two.example"), leafFor(t, ca, "three.test", "two.example")
	b := addrOf(named(t, "served"))
	table := routerconf.Table{Domain: "test"}
	for _, host := range []string{"one.test", "two.example", "three.test", "a.test", "b.test"} {
		table.Routes = append(table.Routes, routeTo(host, "app", b))
	}
	for name, leaf := range map[string]*authority{"one.test": one, "two.example": two, "three.test": both} {
		table.Certificates = append(table.Certificates, routerconf.Certificate{Name: name, Chain: leaf.pem, Key: leaf.keyPEM(t)})
	}
	r := serve(t, table)
	for _, c := range []struct {
		sni, host string
		h2        bool
		status    int
	}{
		{"one.test", "one.test", true, 200},
		{"one.test", "two.example", true, 421},
		{"one.test", "two.example", false, 200},
		{"three.test", "two.example:443", true, 200}, // its certificate covers both
		{"a.test", "b.test", true, 200},
		{"a.test", "two.example", true, 421},
		{"a.test", "one.test", true, 200}, // covered, although there is a better one
		{"", "one.test", true, 200},       // an address, no name
	} {
		protos := []string{"http/1.1"}
		if c.h2 {
			protos = []string{"h2"}
		}
		transport := &http.Transport{
			ForceAttemptHTTP2: c.h2,
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.httpsAddr)
				if err != nil {
					return nil, err
				}
				tc := tls.Client(conn, &tls.Config{ServerName: c.sni, InsecureSkipVerify: true, NextProtos: protos})
				return tc, tc.HandshakeContext(ctx)
			},
		}
		resp, body := fetch(t, &http.Client{Transport: transport}, "https://"+c.host+"/")
		if resp.StatusCode != c.status || (resp.ProtoMajor == 2) != c.h2 {
			t.Errorf("%+v: %s %s %s", c, resp.Proto, resp.Status, strings.TrimSpace(body))
		}
		transport.CloseIdleConnections()
	}
}
