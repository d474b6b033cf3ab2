package controller

import (
	"context"
	"database/sql"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/deis/deis/internal/paas"
)

// without makes the database fail where it needs a table, until the returned function is called.
func (p *platform) without(table string) (restore func()) {
	p.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(p.dir, "db", "deis.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { db.Close() })
	rename := func(from, to string) {
		p.t.Helper()
		if _, err := db.ExecContext(context.WithoutCancel(p.t.Context()), "ALTER TABLE "+from+" RENAME TO "+to); err != nil {
			p.t.Fatal(err)
		}
	}
	rename(table, "gone")
	return func() { rename("gone", table) }
}

// TestCreatedAppIsRouted: also one whose domains or certificates could not be read when it was made.
func TestCreatedAppIsRouted(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	restore := p.without("domains")
	alice.want(500, "POST", "/v1/apps", `{"id":"shop"}`)
	restore()
	alice.want(400, "POST", "/v1/apps", `{"id":"shop"}`) // it is there
	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc1234567", "web"))
	p.s.routes.mu.Lock()
	defer p.s.routes.mu.Unlock()
	if r := p.s.routes.routes["shop.example.test"]; r.App != "shop" || len(r.Targets) != 1 {
		t.Errorf("after a good deploy the route is %+v", r)
	}
}

// TestDeletionIsFinished: one that was begun ends by itself, whatever fails on the way.
func TestDeletionIsFinished(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	app, err := p.s.store.AppByID(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	restore := p.without("users") // no app can be read
	c := &call{s: p.s, w: &recorder{ResponseWriter: httptest.NewRecorder()}, ctx: t.Context(), user: paas.User{Username: "alice"}, app: app}
	if err := c.deleteApp(); err != nil {
		t.Errorf("an app is marked, and its user told: %v", err)
	}
	restore()
	p.s.routes.mu.Lock()
	if r, there := p.s.routes.routes["shop.example.test"]; there {
		t.Errorf("there is a route still: %+v", r)
	}
	p.s.routes.mu.Unlock()
	eventually(t, "the app is gone", func() bool {
		_, err := p.s.store.AppByUUID(t.Context(), app.UUID)
		return paas.CodeOf(err) == paas.NotFound
	})
}
