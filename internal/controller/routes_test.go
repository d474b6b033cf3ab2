package controller

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/routerconf"
)

// sshKey returns a new public key as authorized_keys line without comment.
func sshKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// certificate makes a self-signed one with its key.
func certificate(t *testing.T, name string) (chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now(), NotAfter: time.Date(2036, 3, 5, 17, 14, 27, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// tableFollower is a router as the controller sees it.
type tableFollower struct {
	t       *testing.T
	p       *platform
	id      string
	changes chan routerconf.Change
	table   map[string]routerconf.Route
	certs   map[string]routerconf.Certificate
	at      uint64
	leave   context.CancelFunc
}

func (p *platform) follow(id string, generation uint64) *tableFollower {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s/v1/hooks/routes?generation=%d&router=%s", p.url, generation, id), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header = p.builder().header
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		p.t.Fatalf("follow: %v %v", resp, err)
	}
	f := &tableFollower{
		t: p.t, p: p, id: id, changes: make(chan routerconf.Change, 1000), leave: cancel,
		table: map[string]routerconf.Route{}, certs: map[string]routerconf.Certificate{}, at: generation,
	}
	go func() {
		defer resp.Body.Close()
		defer close(f.changes)
		lines := bufio.NewReader(resp.Body)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			var c routerconf.Change
			if len(line) > 1 && json.Unmarshal(line, &c) == nil {
				f.changes <- c
			}
		}
	}()
	p.t.Cleanup(cancel)
	return f
}

// next applies the next change and returns it.
func (f *tableFollower) next() routerconf.Change {
	f.t.Helper()
	select {
	case c, ok := <-f.changes:
		if !ok {
			f.t.Fatal("the stream ended")
		}
		f.apply(c)
		return c
	case <-time.After(patience):
		f.t.Fatal("no change came")
	}
	panic("unreachable")
}

func (f *tableFollower) apply(c routerconf.Change) {
	f.t.Helper()
	switch {
	case c.Snapshot != nil:
		if err := c.Snapshot.Validate(); err != nil {
			f.t.Errorf("snapshot: %v", err)
		}
		clear(f.table)
		clear(f.certs)
		c.SetRoutes, c.SetCertificates = c.Snapshot.Routes, c.Snapshot.Certificates
	case c.Generation != f.at+1:
		f.t.Errorf("generation %d after %d", c.Generation, f.at)
	}
	f.at = c.Generation
	for _, r := range c.SetRoutes {
		f.table[r.Host] = r
	}
	for _, h := range c.DropRoutes {
		delete(f.table, h)
	}
	for _, cert := range c.SetCertificates {
		f.certs[cert.Name] = cert
	}
	for _, n := range c.DropCertificates {
		delete(f.certs, n)
	}
}

// until applies changes until something holds.
func (f *tableFollower) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.After(patience); !ok(); {
		select {
		case c, open := <-f.changes:
			if !open {
				f.t.Fatalf("the stream ended before: %s", what)
			}
			f.apply(c)
		case <-end:
			f.t.Fatalf("not in time: %s; table %v", what, f.table)
		}
	}
}

func (f *tableFollower) report(drained uint64) {
	f.t.Helper()
	f.p.builder().want(204, "POST", "/v1/hooks/routers", routerconf.Status{Router: f.id, Applied: f.at, Drained: drained})
}

func TestRoutes(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	f := p.follow("r1", 0)
	if c := f.next(); c.Snapshot == nil || c.Snapshot.Domain != "example.test" {
		t.Fatalf("first change = %+v", c)
	}
	if r := f.table["deis.example.test"]; !r.Controller || len(r.Targets) != 1 || "http://"+r.Targets[0].Address != p.url {
		t.Errorf("the controller's route = %+v", r)
	}
	alice.app("shop")
	if c := f.next(); len(c.SetRoutes) != 1 || c.SetRoutes[0].Host != "shop.example.test" || len(c.SetRoutes[0].Targets) != 0 {
		t.Errorf("change for a new app = %+v", c)
	}
	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web"))
	f.until("the app has a target", func() bool { return len(f.table["shop.example.test"].Targets) == 1 })
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	if f.next(); len(f.table["www.shop.com"].Targets) != 1 || f.table["www.shop.com"].App != "shop" {
		t.Errorf("route of the domain = %+v", f.table["www.shop.com"])
	}
	at := f.at
	f.leave()
	alice.want(204, "DELETE", "/v1/apps/shop/domains/www.shop.com", nil)
	alice.app("blog")

	again := p.follow("r1", at)
	if c := again.next(); c.Snapshot != nil || !slices.Equal(c.DropRoutes, []string{"www.shop.com"}) {
		t.Errorf("first change after coming back = %+v", c)
	}
	if c := again.next(); len(c.SetRoutes) != 1 || c.SetRoutes[0].App != "blog" {
		t.Errorf("second change after coming back = %+v", c)
	}
	if c := p.follow("r2", at+1e6).next(); c.Snapshot == nil {
		t.Errorf("a router from another time got %+v", c)
	}
	alice.want(204, "DELETE", "/v1/apps/blog", nil)
	again.until("the app's route is gone", func() bool { _, ok := again.table["blog.example.test"]; return !ok && again.at > at+2 })
	p.stop()
	select {
	case <-again.changes:
	case <-time.After(patience):
		t.Error("the stream did not end with the controller")
	}
}

func TestNotDrainedBeforeItIsServed(t *testing.T) {
	h := newHub("example.test", "127.0.0.1:1", slog.New(slog.DiscardHandler))
	h.settle = 0
	if h.Drained(t.Context(), h.generation, 10*time.Millisecond) {
		t.Error("drained although the routers of before may still send requests")
	}
}

func TestDrained(t *testing.T) {
	p := newPlatform(t)
	h := p.s.routes
	drained := func(generation uint64) bool { return h.Drained(t.Context(), generation, 50*time.Millisecond) }
	if !drained(h.generation) {
		t.Error("not drained although there is no router")
	}
	f := p.follow("r1", 0)
	f.next()
	if drained(f.at) {
		t.Error("drained although the router said nothing")
	}
	f.report(f.at)
	if !drained(f.at) || drained(f.at+1) {
		t.Error("the router's word does not count")
	}
	done := make(chan bool)
	go func() { done <- h.Drained(t.Context(), f.at+1, 5*time.Second) }()
	f.report(f.at + 1)
	if !<-done {
		t.Error("not drained after the router's word")
	}
	// A router that just lost its stream still counts for a while.
	h.mu.Lock()
	h.settle = time.Hour
	h.mu.Unlock()
	f.leave()
	eventually(t, "the router has left", func() bool { return h.connected() == 0 })
	if drained(f.at + 9) {
		t.Error("a router that left a moment ago does not count")
	}
	h.mu.Lock()
	h.settle = 0
	h.mu.Unlock()
	if !drained(f.at + 9) {
		t.Error("a router that left for good counts")
	}
}

// A change is answered when the routers serve it, and not before.
func TestAnsweredWhenServed(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	f := p.follow("r1", 0)
	f.next()
	f.report(f.at)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		alice.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web"))
	}()
	f.until("the app has a target", func() bool { return len(f.table["shop.example.test"].Targets) == 1 })
	select {
	case <-answered:
		t.Error("answered before the router said that it serves the change")
	case <-time.After(100 * time.Millisecond):
	}
	f.report(f.at)
	select {
	case <-answered:
	case <-time.After(4 * time.Second): // less than a rollout waits for a router that says nothing
		t.Error("not answered although the router serves the change")
	}
	<-answered
}

// TestSlowRouter: a router that takes nothing holds up nobody, costs a bounded
// queue, and gets the whole table when it is back.
func TestSlowRouter(t *testing.T) {
	h := newHub("example.test", "127.0.0.1:1", slog.New(slog.DiscardHandler))
	slow, quick := h.subscribe("slow", 0), h.subscribe("quick", 0)
	h.take(quick)
	h.take(slow)
	h.setApp("u", "shop", []string{"shop.example.test"}, nil)
	for i := range 3 * maxHistory {
		h.SetTargets("u", []routerconf.Target{{ID: fmt.Sprint(i), Address: "10.0.0.1:80"}})
		if i%100 == 0 {
			h.take(quick)
		}
	}
	if len(slow.pending) > maxPending || len(h.history) > 2*maxHistory {
		t.Errorf("%d changes wait and %d are kept", len(slow.pending), len(h.history))
	}
	got := h.take(slow)
	if len(got) != 1 || got[0].Snapshot == nil || got[0].Generation != h.generation {
		t.Errorf("the slow router got %d changes", len(got))
	}
	if all := h.take(quick); len(all) == 0 || all[0].Snapshot != nil || all[len(all)-1].Generation != h.generation {
		t.Errorf("the quick router got %d changes", len(all))
	}
	before := h.generation
	if g := h.SetTargets("u", []routerconf.Target{{ID: fmt.Sprint(3*maxHistory - 1), Address: "10.0.0.1:80"}}); g != before || h.generation != before {
		t.Error("equal targets made a change")
	}
}

// TestHostChangesHands: whichever app is published last, the host is with the
// one that has it.
func TestHostChangesHands(t *testing.T) {
	h := newHub("example.test", "127.0.0.1:1", slog.New(slog.DiscardHandler))
	h.setApp("a", "a", []string{"a.example.test", "www.test"}, []routerconf.Certificate{{Name: "www.test", Chain: "c", Key: "k"}})
	h.setApp("b", "b", []string{"b.example.test", "www.test"}, nil)
	h.setApp("a", "a", []string{"a.example.test"}, nil)
	if r := h.routes["www.test"]; r.App != "b" || len(h.certs) != 0 {
		t.Errorf("route = %+v, certificates = %d", r, len(h.certs))
	}
	h.SetTargets("a", []routerconf.Target{{ID: "1", Address: "10.0.0.1:80"}})
	if r := h.routes["www.test"]; len(r.Targets) != 0 {
		t.Errorf("route = %+v", r)
	}
}

func TestCertificates(t *testing.T) {
	p := newPlatform(t)
	root, alice, bob := p.user("root"), p.user("alice"), p.user("bob")
	alice.app("shop")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	f := p.follow("r1", 0)
	f.next()
	chain, key := certificate(t, "www.shop.com")
	_, otherKey := certificate(t, "www.shop.com")
	bob.want(403, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key})
	alice.want(400, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": otherKey})
	alice.want(400, "POST", "/v1/certs", map[string]any{"certificate": "rubbish", "key": key})
	alice.says(`{"common_name":["Wildcard certificates are not supported"]}`, 400, "POST", "/v1/certs",
		map[string]any{"certificate": chain, "key": key, "common_name": "*.shop.com"})
	var cert api.Cert
	alice.json(&cert, 201, "POST", "/v1/certs", map[string]any{"certificate": "some text\n" + chain, "key": key})
	if cert.CommonName != "www.shop.com" || cert.Expires != "2036-03-05T17:14:27UTC" || cert.Certificate != "" || cert.Key != "" {
		t.Errorf("cert = %+v", cert)
	}
	if f.next(); f.certs["www.shop.com"].Key != key {
		t.Error("the router did not get the certificate")
	}
	alice.says(`{"common_name":["This field must be unique."]}`, 400, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key})

	// Somebody takes a name before its owner comes.
	bob.want(201, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key, "common_name": "api.shop.com"})
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"api.shop.com"}`)
	if f.next(); f.certs["api.shop.com"].Key != "" {
		t.Error("a stranger's certificate is served")
	}
	alice.want(201, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key, "common_name": "API.shop.com"})
	if f.next(); f.certs["api.shop.com"].Key != key {
		t.Error("the owner's certificate is not served")
	}

	wild, wildKey := certificate(t, "*.example.test")
	alice.want(403, "POST", "/v1/certs", map[string]any{"certificate": wild, "key": wildKey})
	root.want(201, "POST", "/v1/certs", map[string]any{"certificate": wild, "key": wildKey})
	if f.next(); f.certs["*.example.test"].Key != wildKey {
		t.Error("the platform's certificate is not served")
	}
	alice.want(200, "POST", "/v1/apps/shop", `{"owner":"bob"}`)
	f.until("the former owner's certificates are gone", func() bool { return len(f.certs) == 1 })
	root.want(204, "DELETE", "/v1/certs/*.example.test", nil)
	f.until("the platform's certificate is gone", func() bool { return len(f.certs) == 0 })
	alice.want(204, "DELETE", "/v1/certs/www.shop.com", nil)
	alice.want(404, "GET", "/v1/certs/www.shop.com", nil)
}
