package controller

import (
	"context"
	"database/sql"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

// passed is what a permitted request is answered in TestPermissions.
const passed = 299

// mayCall is contract 3.8 and 4 once more: who may call each endpoint. It does
// not look at the policies.
var mayCall = map[string]string{
	"GET /healthz":                                        "anyone",
	"GET /v1/":                                            "users",
	"GET /v1/openapi.json":                                "anyone",
	"POST /v1/auth/register":                              "anyone",
	"POST /v1/auth/login":                                 "anyone",
	"POST /v1/auth/passwd":                                "users",
	"POST /v1/auth/tokens":                                "users",
	"DELETE /v1/auth/cancel":                              "users",
	"GET /v1/users":                                       "superuser",
	"GET /v1/admin/perms":                                 "superuser",
	"POST /v1/admin/perms":                                "superuser",
	"DELETE /v1/admin/perms/{username}":                   "superuser",
	"GET /v1/apps":                                        "users",
	"POST /v1/apps":                                       "users",
	"GET /v1/apps/{app}":                                  "members",
	"POST /v1/apps/{app}":                                 "members",
	"DELETE /v1/apps/{app}":                               "owner",
	"POST /v1/apps/{app}/scale":                           "members",
	"GET /v1/apps/{app}/logs":                             "members",
	"POST /v1/apps/{app}/run":                             "members",
	"GET /v1/apps/{app}/config":                           "members",
	"GET /v1/apps/{app}/disk":                             "members",
	"GET /v1/apps/{app}/drains":                           "members",
	"POST /v1/apps/{app}/config":                          "members",
	"GET /v1/apps/{app}/builds":                           "members",
	"POST /v1/apps/{app}/builds":                          "members",
	"DELETE /v1/apps/{app}/builds/cache":                  "members",
	"GET /v1/apps/{app}/builds/{uuid}":                    "members",
	"GET /v1/apps/{app}/builds/{uuid}/log":                "members",
	"GET /v1/apps/{app}/builds/{uuid}/sbom":               "members",
	"GET /v1/apps/{app}/builds/{uuid}/provenance":         "members",
	"GET /v1/apps/{app}/releases":                         "members",
	"GET /v1/apps/{app}/releases/{version}":               "members",
	"POST /v1/apps/{app}/releases/rollback":               "members",
	"GET /v1/apps/{app}/rollouts":                         "members",
	"GET /v1/apps/{app}/rollouts/{rollout}":               "members",
	"GET /v1/apps/{app}/instances":                        "members",
	"GET /v1/apps/{app}/containers":                       "members",
	"GET /v1/apps/{app}/containers/{type}":                "members",
	"GET /v1/apps/{app}/containers/{type}/{num}":          "members",
	"POST /v1/apps/{app}/containers/restart":              "members",
	"POST /v1/apps/{app}/containers/{type}/restart":       "members",
	"POST /v1/apps/{app}/containers/{type}/{num}/restart": "members",
	"GET /v1/apps/{app}/domains":                          "members",
	"POST /v1/apps/{app}/domains":                         "members",
	"DELETE /v1/apps/{app}/domains/{domain}":              "owner",
	"GET /v1/apps/{app}/perms":                            "members",
	"POST /v1/apps/{app}/perms":                           "owner",
	"DELETE /v1/apps/{app}/perms/{username}":              "owner or self",
	"GET /v1/keys":                                        "users",
	"POST /v1/keys":                                       "users",
	"GET /v1/keys/{id...}":                                "users",
	"DELETE /v1/keys/{id...}":                             "users",
	"GET /v1/certs":                                       "users",
	"POST /v1/certs":                                      "users",
	"GET /v1/certs/{name}":                                "users",
	"DELETE /v1/certs/{name}":                             "users",
	"POST /v1/hooks/key":                                  "builder",
	"POST /v1/hooks/access":                               "builder",
	"POST /v1/hooks/push":                                 "builder",
	"POST /v1/hooks/config":                               "builder",
	"POST /v1/hooks/build":                                "builder",
	"GET /v1/hooks/apps":                                  "builder",
	"GET /v1/hooks/releases":                              "builder",
	"GET /v1/hooks/disk":                                  "builder",
	"GET /v1/hooks/routes":                                "builder",
	"POST /v1/hooks/routers":                              "builder",
}

// answers says what each role is answered by each kind of endpoint.
var answers = map[string]map[string]int{
	"anyone":        {"anonymous": passed, "other": passed, "collaborator": passed, "owner": passed, "superuser": passed, "builder": passed},
	"users":         {"anonymous": 401, "other": passed, "collaborator": passed, "owner": passed, "superuser": passed, "builder": 401},
	"superuser":     {"anonymous": 401, "other": 403, "collaborator": 403, "owner": 403, "superuser": passed, "builder": 401},
	"members":       {"anonymous": 401, "other": 403, "collaborator": passed, "owner": passed, "superuser": passed, "builder": 401},
	"owner":         {"anonymous": 401, "other": 403, "collaborator": 403, "owner": passed, "superuser": passed, "builder": 401},
	"owner or self": {"anonymous": 401, "other": 403, "collaborator": 403, "owner": passed, "superuser": passed, "builder": 401},
	"builder":       {"anonymous": 401, "other": 403, "collaborator": 403, "owner": 403, "superuser": 403, "builder": passed},
}

// pathOf fills in the pattern of an endpoint.
func pathOf(pattern, app, username string) string {
	return strings.NewReplacer("{app}", app, "{username}", username, "{id...}", "x", "{uuid}", "x", "{version}", "v1",
		"{type}", "web", "{rollout}", "1", "{num}", "1", "{domain}", "a.test", "{name}", "a.test").Replace(pattern)
}

// withStubs makes every handler answer that it was called, and nothing else.
func withStubs(t *testing.T) {
	real := endpoints
	t.Cleanup(func() { endpoints = real })
	endpoints = slices.Clone(real)
	for i := range endpoints {
		endpoints[i].handle = func(c *call) error { return c.empty(passed) }
	}
}

// roles makes one client of each, around the app shop.
func roles(p *platform) map[string]*client {
	p.t.Helper()
	all := map[string]*client{
		"superuser": p.user("root"), "owner": p.user("owner"), "collaborator": p.user("helper"), "other": p.user("other"),
		"anonymous": p.anonymous(), "builder": p.builder(),
	}
	all["owner"].app("shop")
	all["owner"].want(201, "POST", "/v1/apps/shop/perms", `{"username":"helper"}`)
	return all
}

// TestPermissions is contract 3.8: every endpoint, in both slash forms, for
// every role. An endpoint that the table above does not name fails.
func TestPermissions(t *testing.T) {
	p := newPlatform(t)
	callers := roles(p)
	withStubs(t)
	stubs := httptest.NewServer(p.s.newHandler())
	t.Cleanup(stubs.Close)
	for _, e := range endpoints {
		route := e.method + " " + e.path
		kind := mayCall[route]
		if answers[kind] == nil {
			t.Errorf("nobody has said who may call %s", route)
			continue
		}
		for _, pattern := range append([]string{e.path}, e.aliases...) {
			for role, caller := range callers {
				for _, path := range bothSlashes(pathOf(pattern, "shop", "nobody")) {
					if resp, body := caller.at(stubs).do(e.method, path, nil); resp.StatusCode != answers[kind][role] {
						t.Errorf("%s: %s %s = %d %s, want %d", role, e.method, path, resp.StatusCode, body, answers[kind][role])
					}
				}
			}
		}
	}
	for _, role := range []string{"owner", "collaborator", "other"} {
		// Whom an unknown app belongs to is not told, nor is anything of it done.
		if resp, body := callers[role].at(stubs).do("GET", "/v1/apps/nothing", nil); resp.StatusCode != 404 {
			t.Errorf("%s: an unknown app = %d %s", role, resp.StatusCode, body)
		}
	}
	if resp, _ := callers["collaborator"].at(stubs).do("DELETE", "/v1/apps/shop/perms/helper", nil); resp.StatusCode != passed {
		t.Errorf("a collaborator may not leave: %d", resp.StatusCode)
	}
}

// TestNoPolicy: an endpoint whose policy was forgotten is closed to all but
// superusers, and a test finds it.
func TestNoPolicy(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range endpoints {
		if e.policy < anyone || e.policy > daemons {
			t.Errorf("%s %s has no policy", e.method, e.path)
		}
		if e.handle == nil || !slices.Contains([]string{get, post, del}, e.method) || seen[e.method+e.path] {
			t.Errorf("%s %s: no handler, an odd method, or twice in the table", e.method, e.path)
		}
		seen[e.method+e.path] = true
	}
	for _, res := range resources() {
		for method, e := range res.methods {
			if e.policy.gate() != res.gate {
				t.Errorf("%s: %s has another gate than the rest of the path", res.path, method)
			}
		}
	}
	s := &server{}
	ok, err := s.permits(context.Background(), 0, paas.User{Username: "alice", Active: true}, paas.App{Owner: "alice"})
	if ok || err != nil {
		t.Errorf("no policy permits: %v %v", ok, err)
	}
}

// TestUnknownMethods: who may call nothing on a path is told so first (contract 2.3).
func TestUnknownMethods(t *testing.T) {
	p := newPlatform(t)
	callers := roles(p)
	p.rows([]row{
		{callers["anonymous"], "PUT", "/v1/apps", nil, 401, noCredentials},
		{callers["anonymous"], "OPTIONS", "/v1/apps", nil, 401, noCredentials},
		{callers["other"], "PUT", "/v1/users", nil, 403, forbidden},
		{callers["superuser"], "PUT", "/v1/users", nil, 405, `{"detail":"Method 'PUT' not allowed."}`},
		{callers["other"], "PATCH", "/v1/hooks/push", nil, 403, forbidden},
		{callers["anonymous"], "PATCH", "/v1/hooks/push", nil, 401, noCredentials},
		{callers["builder"], "PATCH", "/v1/hooks/push", nil, 405, `{"detail":"Method 'PATCH' not allowed."}`},
		{callers["anonymous"], "GET", "/v1/auth/register", nil, 405, `{"detail":"Method 'GET' not allowed."}`},
		{callers["other"], "GET", "/v1/apps/shop/domains/a.test", nil, 405, `{"detail":"Method 'GET' not allowed."}`},
	})
}

// TestAccessToAnApp is what TestPermissions does not see: what is behind the
// refusals (contract 3.8).
func TestAccessToAnApp(t *testing.T) {
	p := newPlatform(t)
	callers := roles(p)
	owner, helper, other, root := callers["owner"], callers["collaborator"], callers["other"], callers["superuser"]
	p.rows([]row{
		{helper, "POST", "/v1/apps/shop", nil, 200, ""},
		{helper, "POST", "/v1/apps/shop", `{"owner":"helper"}`, 403, forbidden},
		{other, "POST", "/v1/apps/shop", nil, 403, forbidden},
		{other, "POST", "/v1/apps/shop/containers/restart", nil, 403, forbidden},
		{other, "DELETE", "/v1/apps/shop/perms/other", nil, 403, forbidden},
		{helper, "DELETE", "/v1/apps/shop/perms/owner", nil, 403, forbidden},
		{owner, "DELETE", "/v1/apps/shop/perms/other", nil, 403, forbidden},
		{owner, "DELETE", "/v1/apps/shop/perms/nobody", nil, 404, notFound},
		{owner, "POST", "/v1/apps/shop/perms", `{"username":"nobody"}`, 404, notFound},
		{owner, "POST", "/v1/apps/shop/perms", `{}`, 400, `{"username":["This field is required."]}`},
		{owner, "POST", "/v1/apps/shop/perms", `{"username":"helper"}`, 201, ""},
		{owner, "GET", "/v1/apps/shop/perms", nil, 200, `{"users":["helper"]}`},
		{helper, "POST", "/v1/apps/shop/domains", `{"domain":"www.helper.com"}`, 201, "*"},
		{helper, "DELETE", "/v1/apps/shop/domains/www.helper.com", nil, 403, forbidden},
		{root, "DELETE", "/v1/apps/shop/domains/www.helper.com", nil, 204, ""},
	})
	for who, sees := range map[*client]int{owner: 1, helper: 1, root: 1, other: 0} {
		var l api.List[api.App]
		if who.json(&l, 200, "GET", "/v1/apps", nil); l.Count != sees {
			t.Errorf("sees %d apps, want %d", l.Count, sees)
		}
	}
	// What one makes is one's own; containers are the app owner's.
	helper.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web"))
	var release api.Release
	owner.json(&release, 200, "GET", "/v1/apps/shop/releases/v2", nil)
	var c api.Container
	owner.json(&c, 200, "GET", "/v1/apps/shop/containers/web/1", nil)
	if release.Owner != "helper" || c.Owner != "owner" {
		t.Errorf("owners: release %s, container %s", release.Owner, c.Owner)
	}
	p.rows([]row{
		{helper, "DELETE", "/v1/apps/shop/perms/helper", nil, 204, ""},
		{helper, "GET", "/v1/apps/shop", nil, 403, forbidden},
		{owner, "POST", "/v1/apps/shop", `{"owner":"nobody"}`, 404, notFound},
		{root, "POST", "/v1/apps/shop", `{"owner":"other"}`, 200, ""},
		{owner, "GET", "/v1/apps/shop", nil, 403, forbidden},
		{other, "DELETE", "/v1/apps/shop", nil, 204, ""},
	})
}

// TestGitAccess: git asks by the same rule as the API.
func TestGitAccess(t *testing.T) {
	p := newPlatform(t)
	callers := roles(p)
	uuid := appUUID(t, p, "shop")
	ask := func(user, repo string) string { return `{"receive_user":"` + user + `","receive_repo":"` + repo + `"}` }
	b := callers["builder"]
	var all []row
	for _, user := range []string{"root", "owner", "helper"} {
		all = append(all, row{b, "POST", "/v1/hooks/access", ask(user, "shop"), 200, `{"app":"` + uuid + `"}`})
	}
	all = append(all,
		row{b, "POST", "/v1/hooks/access", ask("other", "shop"), 403, forbidden},
		row{b, "POST", "/v1/hooks/access", ask("nobody", "shop"), 404, notFound},
		row{b, "POST", "/v1/hooks/access", ask("root", "nothing"), 404, notFound},
		row{callers["owner"], "DELETE", "/v1/apps/shop/perms/helper", nil, 204, ""},
		row{b, "POST", "/v1/hooks/access", ask("helper", "shop"), 403, forbidden},
	)
	p.rows(all)
}

// TestKeysAndCertsAreOnesOwn: not even superusers see those of others.
func TestKeysAndCertsAreOnesOwn(t *testing.T) {
	p := newPlatform(t)
	root, alice := p.user("root"), p.user("alice")
	chain, key := certificate(t, "www.alice.com")
	alice.want(201, "POST", "/v1/keys", map[string]any{"id": "laptop", "public": sshKey(t)})
	alice.want(201, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key})
	empty := `{"count":0,"next":null,"previous":null,"results":[]}`
	p.rows([]row{
		{root, "GET", "/v1/keys", nil, 200, empty},
		{root, "GET", "/v1/keys/laptop", nil, 404, notFound},
		{root, "DELETE", "/v1/keys/laptop", nil, 404, notFound},
		{root, "GET", "/v1/certs", nil, 200, empty},
		{root, "GET", "/v1/certs/www.alice.com", nil, 404, notFound},
		{root, "DELETE", "/v1/certs/www.alice.com", nil, 404, notFound},
		{alice, "DELETE", "/v1/certs/www.alice.com", nil, 204, ""},
		{alice, "DELETE", "/v1/keys/laptop", nil, 204, ""},
	})
}

// TestDeactivated: a user who was switched off may nothing, with his token or
// his key.
func TestDeactivated(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	alice.app("shop")
	p.deactivate("alice")
	p.rows([]row{
		{alice, "GET", "/v1/apps/shop", nil, 401, `{"detail":"User inactive or deleted"}`},
		{p.anonymous(), "POST", "/v1/auth/login", `{"username":"alice","password":"secret-alice"}`, 400, `{"non_field_errors":["Unable to log in with provided credentials."]}`},
		{p.builder(), "POST", "/v1/hooks/access", `{"receive_user":"alice","receive_repo":"shop"}`, 403, forbidden},
	})
}

// bothSlashes is a path without and with a final slash, where both are known.
func bothSlashes(path string) []string {
	if path == "/healthz" || strings.HasSuffix(path, "/") || strings.HasPrefix(path, "/v1/keys/") {
		return []string{path}
	}
	return []string{path, path + "/"}
}

// at is the client as a caller of another server.
func (c *client) at(srv *httptest.Server) *client {
	return &client{&platform{t: c.p.t, url: srv.URL}, c.header}
}

// deactivate switches a user off, which no part of the API does.
func (p *platform) deactivate(username string) {
	p.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(p.dir, "db", "deis.db"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(p.t.Context(), "UPDATE users SET active = FALSE WHERE username = ?", username); err != nil {
		p.t.Fatal(err)
	}
}
