package controller

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

func TestRegisterAndLogin(t *testing.T) {
	p := newPlatform(t)
	anon := p.anonymous()
	var first, second api.User
	anon.json(&first, 201, "POST", "/v1/auth/register/", map[string]any{"username": "alice", "password": "secret-alice", "is_superuser": false})
	anon.json(&second, 201, "POST", "/v1/auth/register", map[string]any{"username": "bob", "password": "secret-bob", "is_superuser": true})
	if !first.IsSuperuser || !first.IsStaff || second.IsSuperuser {
		t.Errorf("superusers: first %v, second %v; want the first only", first.IsSuperuser, second.IsSuperuser)
	}
	for body, want := range map[string]string{
		`{}`:                                  `{"password":["This field is required."],"username":["This field is required."]}`,
		`{"username":"alice","password":"x"}`: `{"username":["This field must be unique."]}`,
		`{"username":"a b","password":""}`:    `{"password":["This field may not be blank."],"username":["Enter a valid username."]}`,
		`{"username":null,"password":"x"}`:    `{"username":["This field may not be null."]}`,
		`[1]`:                                 `{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}`,
	} {
		anon.says(want, 400, "POST", "/v1/auth/register", body)
	}
	alice := p.login("alice")
	again := p.login("alice")
	if alice.header.Get("Authorization") != again.header.Get("Authorization") {
		t.Error("the second login gave another token")
	}
	refused := `{"non_field_errors":["Unable to log in with provided credentials."]}`
	anon.says(refused, 400, "POST", "/v1/auth/login", `{"username":"alice","password":"wrong"}`)
	anon.says(refused, 400, "POST", "/v1/auth/login", `{"username":"nobody","password":"wrong"}`)
	form := &client{p, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}}
	form.want(200, "POST", "/v1/auth/login/", "username=bob&password=secret-bob")

	alice.want(200, "POST", "/v1/auth/tokens/", `{"username":"bob"}`)
	alice.want(200, "GET", "/v1/users", nil)
	var renewed struct{ Token string }
	alice.json(&renewed, 200, "POST", "/v1/auth/tokens", nil)
	alice.says(`{"detail":"Invalid token"}`, 401, "GET", "/v1/apps", nil)
	alice.header.Set("Authorization", "TOKEN "+renewed.Token)
	alice.says(`{}`, 200, "GET", "/v1/", nil)

	bob := p.login("bob")
	bob.says(`{"detail":"Current password does not match"}`, 400, "POST", "/v1/auth/passwd", `{"password":"x","new_password":"y"}`)
	bob.want(200, "POST", "/v1/auth/passwd", `{"password":"secret-bob","new_password":"y"}`)
	alice.want(200, "POST", "/v1/auth/passwd", `{"username":"bob","new_password":"secret-bob"}`)
	p.login("bob")
	bob.want(403, "POST", "/v1/auth/passwd", `{"username":"alice","new_password":"z","password":"z"}`)
}

func TestTransport(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	resp, body := p.anonymous().do("GET", "/v1/", nil)
	if resp.StatusCode != 401 || body != `{"detail":"Authentication credentials were not provided."}` {
		t.Errorf("GET /v1/ = %d %s", resp.StatusCode, body)
	}
	for name, want := range map[string]string{
		"Deis_api_version": "1.7", "Deis_platform_version": "1.13.4", "X_deis_api_version": "1.7", "X_deis_platform_version": "1.13.4",
		"Content-Type": "application/json", "WWW-Authenticate": "Token", "Allow": "GET, HEAD, OPTIONS",
		"Deis-Git-Url": "ssh://git@example.test:2222",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("header %s = %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		method, path string
		body         any
		header       http.Header
		status       int
		want         string
	}{
		{"GET", "/nowhere", nil, nil, 404, "<h1>Not Found</h1>"},
		{"GET", "/v1", nil, nil, 404, "<h1>Not Found</h1>"},
		{"GET", "/healthz", nil, nil, 200, "OK"},
		{"PUT", "/v1/apps", nil, nil, 405, `{"detail":"Method 'PUT' not allowed."}`},
		{"GET", "/v1/apps/nope/", nil, nil, 404, `{"detail":"Not found"}`},
		{"POST", "/v1/apps", "{", nil, 400, `{"detail":"JSON parse error - unexpected EOF"}`},
		{"POST", "/v1/apps", "x", http.Header{"Content-Type": {"text/plain"}}, 415, `{"detail":"Unsupported media type 'text/plain' in request."}`},
		{
			"GET", "/v1/apps", nil,
			http.Header{"Deis_version": {"9"}},
			405,
			`{"error":"Client and server versions do not match. Client version: 9 Server version: 1"}`,
		},
		{"POST", "/v1/apps", `{"id":"` + strings.Repeat("a", maxBody) + `"}`, nil, 413, `{"detail":"The request is larger than 4194304 bytes."}`},
		{"GET", "/v1/apps?page=9", nil, nil, 404, `{"detail":"Not found"}`},
	} {
		caller := &client{p, alice.header.Clone()}
		for k, v := range c.header {
			caller.header[k] = v
		}
		resp, got := caller.do(c.method, c.path, c.body)
		if resp.StatusCode != c.status || got != c.want {
			t.Errorf("%s %s = %d %s, want %d %s", c.method, c.path, resp.StatusCode, got, c.status, c.want)
		}
	}
	p.anonymous().want(401, "PUT", "/v1/apps", nil)
}

func TestPages(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	for i := range 5 {
		alice.app(fmt.Sprintf("app%d", i))
	}
	var l api.List[api.App]
	alice.json(&l, 200, "GET", "/v1/apps?page_size=2&page=2", nil)
	if l.Count != 5 || len(l.Results) != 2 || l.Results[0].ID != "app2" {
		t.Fatalf("page 2 = %+v", l)
	}
	if want := p.url + "/v1/apps?page=3&page_size=2"; l.Next == nil || *l.Next != want {
		t.Errorf("next = %v, want %s", l.Next, want)
	}
	if want := p.url + "/v1/apps?page=1&page_size=2"; l.Previous == nil || *l.Previous != want {
		t.Errorf("previous = %v, want %s", l.Previous, want)
	}
	alice.json(&l, 200, "GET", "/v1/apps?page_size=2&page=last", nil)
	if len(l.Results) != 1 || l.Next != nil {
		t.Errorf("last page = %+v", l)
	}
}

// TestPermissions walks the table: every endpoint has a policy, and the policy
// decides for each role (contract 3.8).
func TestPermissions(t *testing.T) {
	p := newPlatform(t)
	roles := map[string]*client{"superuser": p.user("root"), "owner": p.user("owner"), "collaborator": p.user("helper"), "other": p.user("other")}
	roles["anonymous"], roles["builder"] = p.anonymous(), p.builder()
	roles["owner"].app("shop")
	roles["owner"].want(201, "POST", "/v1/apps/shop/perms", `{"username":"helper"}`)
	// What a role is answered where it may not: 0 means that it may.
	matrix := map[policy]map[string]int{
		anyone:       {},
		users:        {"anonymous": 401, "builder": 401},
		superusers:   {"anonymous": 401, "builder": 401, "other": 403, "collaborator": 403, "owner": 403},
		members:      {"anonymous": 401, "builder": 401, "other": 403},
		owners:       {"anonymous": 401, "builder": 401, "other": 403, "collaborator": 403},
		ownersOrSelf: {"anonymous": 401, "builder": 401, "other": 403, "collaborator": 403},
		daemons:      {"anonymous": 401, "other": 403, "collaborator": 403, "owner": 403, "superuser": 403},
	}
	for _, e := range endpoints {
		want, ok := matrix[e.policy]
		if !ok || e.policy != policyOf(e.method, e.path) {
			t.Errorf("%s %s has no policy, or a wrong one", e.method, e.path)
			continue
		}
		path := strings.NewReplacer("{app}", "shop", "{username}", "nobody", "{id...}", "x", "{uuid}", "x", "{version}", "v9",
			"{type}", "web", "{num}", "1", "{domain}", "a.test", "{name}", "a.test").Replace(e.path)
		for role, c := range roles {
			if refused := want[role]; refused != 0 {
				if resp, body := c.do(e.method, path, nil); resp.StatusCode != refused {
					t.Errorf("%s: %s %s = %d %s, want %d", role, e.method, path, resp.StatusCode, body, refused)
				}
				continue
			}
			if e.method == "DELETE" && role != "superuser" || strings.Contains(e.path, "auth") || strings.HasSuffix(e.path, "routes") {
				continue // would take away what the others need, or never end
			}
			// Nothing is sent, so that what is allowed fails for another reason.
			resp, body := c.do(e.method, path, `{"receive_user":"x","receive_repo":"shop","username":"nobody"}`)
			if (resp.StatusCode == 401 || resp.StatusCode == 403) && role != "builder" && e.path != "/v1/apps/{app}/perms/{username}" {
				t.Errorf("%s: %s %s = %d %s, want leave", role, e.method, path, resp.StatusCode, body)
			}
			if e.path == "/v1/apps/{app}" && e.method == "DELETE" {
				roles["owner"].app("shop")
				roles["owner"].want(201, "POST", "/v1/apps/shop/perms", `{"username":"helper"}`)
			}
		}
	}
	roles["collaborator"].want(403, "POST", "/v1/apps/shop", `{"owner":"helper"}`)
	roles["collaborator"].want(204, "DELETE", "/v1/apps/shop/perms/helper", nil)
	roles["collaborator"].want(403, "GET", "/v1/apps/shop", nil)
	if strings.Contains(roles["other"].want(200, "GET", "/v1/apps", nil), `"shop"`) {
		t.Error("another user sees the app in the list")
	}
}

// policyOf says contract 3.8 and 4 once more, by rule rather than by row.
func policyOf(method, path string) policy {
	switch {
	case path == "/healthz" || path == "/v1/auth/register" || path == "/v1/auth/login":
		return anyone
	case strings.HasPrefix(path, "/v1/hooks/"):
		return daemons
	case strings.HasPrefix(path, "/v1/admin/") || path == "/v1/users":
		return superusers
	case path == "/v1/apps/{app}/perms/{username}":
		return ownersOrSelf
	case strings.HasPrefix(path, "/v1/apps/{app}") && (method == "DELETE" || method == "POST" && strings.HasSuffix(path, "/perms")):
		return owners
	case strings.HasPrefix(path, "/v1/apps/{app}"):
		return members
	}
	return users
}

func TestApps(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	p.user("bob")
	var app api.App
	alice.json(&app, 201, "POST", "/v1/apps", nil)
	if !regexpMatch(`^[a-z]{6}-[a-z]{8}$`, app.ID) || app.URL != app.ID+".example.test" || app.Owner != "alice" || len(app.Structure) != 0 {
		t.Errorf("generated app = %+v", app)
	}
	if _, err := time.Parse(api.TimeLayout, app.Created); err != nil {
		t.Error(err)
	}
	for body, want := range map[string]string{
		`{"id":"deis"}`:            `{"id":["deis is a reserved name."]}`,
		`{"id":"Foo"}`:             `{"id":["App IDs can only contain [a-z0-9-]."]}`,
		`{"id":"a b"}`:             `{"id":["App IDs can only contain [a-z0-9-].","Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."]}`,
		`{"id":""}`:                `{"id":["This field may not be blank."]}`,
		`{"id":"` + app.ID + `"}`:  `{"id":["This field must be unique."]}`,
		`{"id":{"a":1}}`:           `{"id":["Not a valid string."]}`,
		`{"id":"` + l65 + `"}`:     `{"id":["Ensure this field has no more than 64 characters."]}`,
		`{"id":"../../etc/pass"}`:  `{"id":["App IDs can only contain [a-z0-9-].","Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."]}`,
		`{"id":"a","id":"deis"}  `: `{"id":["deis is a reserved name."]}`,
	} {
		alice.says(want, 400, "POST", "/v1/apps", body)
	}
	alice.want(201, "POST", "/v1/apps", `{"id":123}`)
	alice.want(201, "POST", "/v1/apps", `{"id":"-a--b-","structure":{"web":9}}`)
	var release api.Release
	alice.json(&release, 200, "GET", "/v1/apps/123/releases/v1", nil)
	if release.Build != nil || release.Summary != "alice created initial release" {
		t.Errorf("first release = %+v", release)
	}

	alice.says("", 200, "POST", "/v1/apps/123", nil)
	alice.want(404, "POST", "/v1/apps/123", `{"owner":"nobody"}`)
	alice.want(409, "DELETE", "/v1/auth/cancel", nil)
	alice.want(200, "POST", "/v1/apps/123", `{"owner":"bob"}`)
	alice.want(403, "GET", "/v1/apps/123", nil)

	alice.want(201, "POST", "/v1/apps/-a--b-/builds", build("", "web"))
	if n := instances(t, p.engine); n != 1 {
		t.Errorf("%d instances before the deletion, want 1", n)
	}
	alice.says("", 204, "DELETE", "/v1/apps/-a--b-/", nil)
	alice.want(404, "GET", "/v1/apps/-a--b-", nil)
	if n := instances(t, p.engine); n != 0 {
		t.Errorf("%d instances after the deletion", n)
	}
	alice.want(201, "POST", "/v1/apps", `{"id":"-a--b-"}`)
}

var l65 = strings.Repeat("a", 65)

func regexpMatch(pattern, s string) bool { return regexpFor(pattern).MatchString(s) }

func instances(t *testing.T, e engine.Engine) int {
	t.Helper()
	all, err := e.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestConfigAndReleases(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	post := func(status int, body string) (c api.Config, header http.Header) {
		t.Helper()
		resp, text := alice.do("POST", "/v1/apps/shop/config", body)
		if resp.StatusCode != status {
			t.Fatalf("config %s = %d %s, want %d", body, resp.StatusCode, text, status)
		}
		if status == 201 {
			if err := json.Unmarshal([]byte(text), &c); err != nil {
				t.Fatal(err)
			}
		}
		return c, resp.Header
	}
	c, header := post(201, `{"values":"{\"PORT\": 5000, \"A\": true, \"B\": 1.5, \"C\": \"\"}"}`)
	if want := map[string]any{"PORT": "5000", "A": "True", "B": "1.5", "C": ""}; !reflect.DeepEqual(c.Values, want) {
		t.Errorf("values = %v, want %v", c.Values, want)
	}
	if header.Get("Deis-Release") != "2" || header.Get("X-Deis-Release") != "2" {
		t.Errorf("release headers = %q %q", header.Get("Deis-Release"), header.Get("X-Deis-Release"))
	}
	c, _ = post(201, `{"values":{"A":null,"NOT":null,"B":"2","D":"x"},"memory":{"web":"128M"},"cpu":{"web":"512"},"tags":{"rack":"x1"}}`)
	if want := map[string]any{"PORT": "5000", "B": "2", "C": "", "D": "x"}; !reflect.DeepEqual(c.Values, want) {
		t.Errorf("values = %v, want %v", c.Values, want)
	}
	if c.Memory["web"] != "128M" || c.CPU["web"] != 512.0 || c.Tags["rack"] != "x1" {
		t.Errorf("limits = %v %v %v", c.Memory, c.CPU, c.Tags)
	}
	post(400, `{"values":{"1A":"x"}}`)
	post(400, `{"values":{"A\n":"x"}}`)
	post(400, `{"values":["x"]}`)
	post(400, `{"memory":{"web":"1T"}}`)
	post(400, `{"cpu":{"web":"many"}}`)
	post(201, ``)

	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc1234567", "web"))
	c, _ = post(201, `{"values":{"E":"1"}}`)
	if c.Values["DEIS_APP"] != "shop" || c.Values["DEIS_RELEASE"] != "v6" {
		t.Errorf("values after a build = %v", c.Values)
	}
	var summaries []string
	var l api.List[api.Release]
	alice.json(&l, 200, "GET", "/v1/apps/shop/releases", nil)
	for _, r := range l.Results {
		summaries = append(summaries, fmt.Sprintf("v%d %s", r.Version, r.Summary))
	}
	want := []string{
		"v6 alice added E", "v5 alice deployed abc1234", "v4 alice changed nothing",
		"v3 alice added D, changed B, deleted A and alice changed limits for memory, cpu and alice added tag rack",
		"v2 alice added A, B, C, PORT", "v1 alice created initial release",
	}
	if !slices.Equal(summaries, want) {
		t.Errorf("summaries = %q, want %q", summaries, want)
	}

	alice.want(404, "GET", "/v1/apps/shop/releases/6", nil)
	alice.want(404, "GET", "/v1/apps/shop/releases/v7", nil)
	alice.says(`{"version":7}`, 201, "POST", "/v1/apps/shop/releases/rollback", nil)
	alice.says(`{"version":8}`, 201, "POST", "/v1/apps/shop/releases/rollback", `{"version":"5"}`)
	alice.want(404, "POST", "/v1/apps/shop/releases/rollback", `{"version":99}`)
	alice.want(400, "POST", "/v1/apps/shop/releases/rollback", `{"version":"x"}`)
	alice.says(`{"detail":"version cannot be below 0"}`, 400, "POST", "/v1/apps/shop/releases/rollback", `{"version":-1}`)
	var r7 api.Release
	alice.json(&r7, 200, "GET", "/v1/apps/shop/releases/v7", nil)
	if r7.Summary != "alice rolled back to v5" || r7.Build == nil {
		t.Errorf("release of a rollback = %+v", r7)
	}
	// A change builds on what is live, not on what was given up.
	c, _ = post(201, `{"values":{"F":"1"}}`)
	if c.Values["E"] != nil || c.Values["F"] != "1" {
		t.Errorf("values after a rollback = %v", c.Values)
	}
}

func TestFailedRolloutTakesNoNumber(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	before := alice.containers("shop")
	p.engine.SetChaos(fake.Chaos{Create: 1})
	resp, body := alice.do("POST", "/v1/apps/shop/config", `{"values":{"CANARY":"hunter2"}}`)
	if resp.StatusCode != 503 || !strings.Contains(body, "aborting, failed to create some containers") || resp.Header.Get("Deis-Release") != "" {
		t.Fatalf("config change that fails = %d %s", resp.StatusCode, body)
	}
	alice.want(503, "POST", "/v1/apps/shop/builds", build("def", "web"))
	p.engine.SetChaos(fake.Chaos{})
	if after := alice.containers("shop"); !slices.Equal(before, after) {
		t.Errorf("containers = %q, before %q", after, before)
	}
	var l api.List[api.Release]
	alice.json(&l, 200, "GET", "/v1/apps/shop/releases", nil)
	if l.Count != 2 {
		t.Errorf("%d releases, want 2", l.Count)
	}
	resp, _ = alice.do("POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	if got := resp.Header.Get("Deis-Release"); got != "3" {
		t.Errorf("next release = %q, want 3", got)
	}
}

func TestTwoConfigChangesAtOnce(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() { alice.want(201, "POST", "/v1/apps/shop/config", fmt.Sprintf(`{"values":{"K%d":"x"}}`, i)) })
	}
	work.Wait()
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if len(c.Values) != 8 {
		t.Errorf("values = %v, want all 8", c.Values)
	}
	// One that lasts keeps the next one out, after a while.
	p.s.configWait = 50 * time.Millisecond
	release, err := p.s.changes.acquire(t.Context(), appUUID(t, p, "shop"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if body := alice.want(409, "POST", "/v1/apps/shop/config", `{}`); !strings.HasPrefix(body, `{"error":"Config changes already in progress.\n`) {
		t.Errorf("answer = %s", body)
	}
}

func appUUID(t *testing.T, p *platform, id string) string {
	t.Helper()
	app, err := p.s.store.AppByID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return app.UUID
}

func TestBuildsAndDefaultScale(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	for name, c := range map[string]struct {
		body map[string]any
		want string
	}{
		"pulled":     {build("", "web"), "cmd.1 v2 up"},
		"dockerfile": {map[string]any{"image": "x", "sha": "abc", "dockerfile": "true"}, "cmd.1 v2 up"},
		"no-web":     {build("abc", "worker"), "cmd.1 v2 up"},
		"procfile":   {build("abc", "web", "worker"), "web.1 v2 up"},
	} {
		alice.app(name)
		resp, text := alice.do("POST", "/v1/apps/"+name+"/builds", c.body)
		if resp.StatusCode != 201 || resp.Header.Get("X-Deis-Release") != "2" {
			t.Fatalf("%s: %d %s", name, resp.StatusCode, text)
		}
		if got := alice.containers(name); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s runs %q, want %q", name, got, c.want)
		}
	}
	for body, status := range map[string]int{
		`{}`: 400, `{"image":"x","procfile":["web"]}`: 400, `{"image":"x","procfile":{"web":1}}`: 400,
		`{"image":"x","procfile":{"../../x":"y"}}`: 400, `{"image":"deis/builder"}`: 403,
	} {
		alice.want(status, "POST", "/v1/apps/pulled/builds", body)
	}
	var l api.List[api.Build]
	alice.json(&l, 200, "GET", "/v1/apps/pulled/builds/", nil)
	var b api.Build
	alice.json(&b, 200, "GET", "/v1/apps/pulled/builds/"+l.Results[0].UUID, nil)
	if l.Count != 1 || b.Image != "example/app:1" || b.Procfile["web"] != "run-web" {
		t.Errorf("builds = %+v, build = %+v", l, b)
	}
	alice.want(404, "GET", "/v1/apps/procfile/builds/"+b.UUID, nil)
}

func TestScaleAndRestart(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	alice.says(`{"detail":"No build associated with this release"}`, 400, "POST", "/v1/apps/shop/scale", `{"web":1}`)
	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web", "worker"))
	for body, want := range map[string]string{
		`{"web":"not_an_int"}`: `{"detail":"Invalid scaling format: invalid literal for int() with base 10: 'not_an_int'"}`,
		`{"web":-1}`:           `{"detail":"Must be greater than or equal to zero"}`,
		`{"web":2,"nope":1}`:   `{"detail":"Container type nope does not exist in application"}`,
	} {
		alice.says(want, 400, "POST", "/v1/apps/shop/scale", body)
	}
	alice.says("", 204, "POST", "/v1/apps/shop/scale", `{}`)
	alice.says("", 204, "POST", "/v1/apps/shop/scale/", `{"web":"3","worker":1.9,"cmd":0}`)
	var app api.App
	alice.json(&app, 200, "GET", "/v1/apps/shop", nil)
	if want := map[string]int{"web": 3, "worker": 1, "cmd": 0}; !reflect.DeepEqual(app.Structure, want) {
		t.Errorf("structure = %v, want %v", app.Structure, want)
	}
	running := func() []string { got := alice.containers("shop"); slices.Sort(got); return got }
	if got, want := running(), []string{"web.1 v2 up", "web.2 v2 up", "web.3 v2 up", "worker.1 v2 up"}; !slices.Equal(got, want) {
		t.Errorf("containers = %q, want %q", got, want)
	}
	var restarted []api.Container
	alice.json(&restarted, 200, "POST", "/v1/apps/shop/containers/web/2/restart", nil)
	if len(restarted) != 1 || restarted[0].Num != 2 || restarted[0].State != "up" {
		t.Errorf("restarted = %+v", restarted)
	}
	alice.json(&restarted, 200, "POST", "/v1/apps/shop/containers/restart/", nil)
	if len(restarted) != 4 {
		t.Errorf("restarted %d, want 4", len(restarted))
	}
	alice.says(`[]`, 200, "POST", "/v1/apps/shop/containers/nope/restart", nil)
	alice.want(404, "POST", "/v1/apps/shop/containers/web/x/restart", nil)
	alice.want(404, "GET", "/v1/apps/shop/containers/web/9", nil)
	alice.want(200, "GET", "/v1/apps/shop/containers/web/3", nil)
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":0}`)
	eventually(t, "web is scaled to nothing", func() bool { return slices.Equal(running(), []string{"worker.1 v2 up"}) })
	alice.want(201, "POST", "/v1/apps/shop/builds", build("def", "web", "worker"))
	eventually(t, "a build keeps the scale", func() bool { return slices.Equal(running(), []string{"worker.1 v3 up"}) })
}

func TestKeys(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	public := sshKey(t)
	alice.says(`{"public":["Incorrect padding"]}`, 400, "POST", "/v1/keys", `{"id":"a","public":"ssh-rsa foo_bar"}`)
	alice.want(400, "POST", "/v1/keys", `{"id":"a","public":"junk AAAA"}`)
	alice.want(400, "POST", "/v1/keys", `{"id":"a","public":"AAAA"}`)
	var key api.Key
	alice.json(&key, 201, "POST", "/v1/keys/", map[string]any{"id": "my laptop/home", "public": public + " alice@home\n"})
	if !regexpMatch(`^([0-9a-f]{2}:){15}[0-9a-f]{2}$`, key.Fingerprint) || key.Public != public+" alice@home\n" {
		t.Errorf("key = %+v", key)
	}
	bob.says(`{"public":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": "mine", "public": public + " other"})
	alice.says(`{"id":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": "my laptop/home", "public": sshKey(t)})
	alice.want(200, "GET", "/v1/keys/my%20laptop/home", nil)
	bob.want(404, "GET", "/v1/keys/my%20laptop/home", nil)

	var owner api.KeyHookAnswer
	p.builder().json(&owner, 200, "POST", "/v1/hooks/key", api.KeyHook{Key: public})
	if owner.Username != "alice" || owner.Fingerprint != key.Fingerprint {
		t.Errorf("owner of the key = %+v", owner)
	}
	p.builder().want(404, "POST", "/v1/hooks/key", api.KeyHook{Key: sshKey(t)})
	alice.want(204, "DELETE", "/v1/keys/my%20laptop/home", nil)
	p.builder().want(404, "POST", "/v1/hooks/key", api.KeyHook{Key: public})
}

func TestDomains(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	bob.app("blog")
	for name, want := range map[string]string{
		"*.foo.test": "Adding a wildcard subdomain is currently not supported.", "domain1": "Hostname does not look valid.",
		"3333.com": "Hostname does not look valid.", "a.1": "Hostname does not look valid.", "x--y.com": "Hostname does not look valid.",
		"this_is_an.invalid.domain": "Hostname does not look valid.", "deis.example.test": "deis.example.test is a reserved name.",
		"shop.EXAMPLE.test.": "shop.example.test is a reserved name.", "example.test": "example.test is a reserved name.",
		strings.Repeat("a.", 128): "Hostname must be 255 characters or less.",
	} {
		bob.says(`{"domain":["`+want+`"]}`, 400, "POST", "/v1/apps/blog/domains", map[string]any{"domain": name})
	}
	for _, name := range []string{"domain", "3com.com", "a.b.example.test", "x.10.0.0.1.xip.io"} {
		alice.want(201, "POST", "/v1/apps/shop/domains", map[string]any{"domain": name})
	}
	var d api.Domain
	alice.json(&d, 201, "POST", "/v1/apps/shop/domains", `{"domain":"WWW.Shop.com."}`)
	if d.Domain != "www.shop.com" || d.App != "shop" || d.Owner != "alice" {
		t.Errorf("domain = %+v", d)
	}
	bob.says(`{"domain":["This field must be unique."]}`, 400, "POST", "/v1/apps/blog/domains", `{"domain":"www.shop.com"}`)
	bob.want(404, "DELETE", "/v1/apps/blog/domains/www.shop.com", nil)
	alice.want(204, "DELETE", "/v1/apps/shop/domains/www.shop.com", nil)
	bob.want(201, "POST", "/v1/apps/blog/domains", `{"domain":"www.shop.com"}`)
}

func TestLogs(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	all, err := p.engine.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	p.engine.Write(all[0].ID, "hello from the app")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	lines := strings.Split(strings.TrimSpace(alice.want(200, "GET", "/v1/apps/shop/logs?log_lines=2", nil)), "\n")
	if len(lines) != 2 || !regexpMatch(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC shop\[web\.1\]: hello from the app$`, lines[0]) ||
		!strings.HasSuffix(lines[1], " shop[deis-controller]: domain www.shop.com added") {
		t.Errorf("logs = %q", lines)
	}
	all1 := alice.want(200, "GET", "/v1/apps/shop/logs/", nil)
	if !strings.Contains(all1, "[deis-controller]: alice deployed abc1234\n") {
		t.Errorf("logs = %s", all1)
	}
	alice.want(204, "GET", "/v1/apps/shop/logs?log_lines=0", nil)
	alice.want(204, "GET", "/v1/apps/shop/logs?log_lines=x", nil)
}

func TestRun(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	alice.says(`{"detail":"No build associated with this release to run this command"}`, 400, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
	alice.want(400, "POST", "/v1/apps/shop/run", `{}`)
	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web"))
	p.engine.SetPrograms(func(proc engine.Process) (fake.Program, error) {
		return fake.Program{Print: []fake.Line{{Text: proc.Command[3] + " " + proc.Env["DEIS_RELEASE"]}}, Ends: true, Code: 3}, nil
	})
	resp, body := alice.do("POST", "/v1/apps/shop/run", `{"command":"echo hi"}`)
	if body != `[3,"echo hi v2\n"]` || resp.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("run = %s %q", body, resp.Header.Get("Content-Type"))
	}
}

func TestHooks(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	p.user("bob")
	alice.app("shop")
	b := p.builder()
	who := func(user, repo string) map[string]any {
		return map[string]any{"receive_user": user, "receive_repo": repo}
	}
	var access api.AccessHookAnswer
	b.json(&access, 200, "POST", "/v1/hooks/access", who("alice", "shop"))
	if access.App != appUUID(t, p, "shop") {
		t.Errorf("access = %+v", access)
	}
	b.want(403, "POST", "/v1/hooks/access", who("bob", "shop"))
	b.want(404, "POST", "/v1/hooks/access", who("nobody", "shop"))
	b.want(404, "POST", "/v1/hooks/access", who("alice", "nothing"))
	b.want(400, "POST", "/v1/hooks/access", nil)

	push := who("alice", "shop")
	b.want(400, "POST", "/v1/hooks/push", push)
	push["sha"], push["fingerprint"], push["ssh_connection"], push["ssh_original_command"] = "abc", "aa:bb", "x", "y"
	b.want(201, "POST", "/v1/hooks/push", push)
	b.want(200, "POST", "/v1/hooks/config", who("alice", "shop"))

	hook := who("alice", "shop")
	hook["image"], hook["sha"], hook["procfile"] = ownImages+access.App+":git-abc1234567", "abc1234567", map[string]string{"web": "run"}
	hook["digest"], hook["log"] = "sha256:"+strings.Repeat("a", 64), "step 1\nstep 2\n"
	b.says(`{"release":{"version":2},"domains":["shop.example.test"]}`, 200, "POST", "/v1/hooks/builds", hook)
	var l api.List[api.Build]
	alice.json(&l, 200, "GET", "/v1/apps/shop/builds", nil)
	if l.Results[0].Image != "shop:git-abc12345" {
		t.Errorf("image shown = %s", l.Results[0].Image)
	}
	if log, err := p.s.store.BuildLog(t.Context(), l.Results[0].UUID); err != nil || log != "step 1\nstep 2\n" {
		t.Errorf("log = %q, %v", log, err)
	}

	stream := &client{p, b.header.Clone()}
	stream.header.Set("Accept", "application/x-ndjson")
	events := func() []api.BuildEvent {
		var all []api.BuildEvent
		for line := range strings.Lines(stream.want(200, "POST", "/v1/hooks/build", hook)) {
			var e api.BuildEvent
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			all = append(all, e)
		}
		return all
	}
	all := events()
	if last := all[len(all)-1]; len(all) < 2 || all[0].Message == "" || last.Answer == nil || last.Answer.Release.Version != 3 {
		t.Errorf("events = %+v", all)
	}
	p.engine.SetChaos(fake.Chaos{Create: 1})
	all = events()
	if last := all[len(all)-1]; last.Status != 503 || last.Error == "" || last.Answer != nil {
		t.Errorf("events of a failure = %+v", all)
	}
	var apps api.AppsHookAnswer
	b.json(&apps, 200, "GET", "/v1/hooks/apps", nil)
	if !slices.Equal(apps.Apps, []string{access.App}) {
		t.Errorf("apps = %v", apps.Apps)
	}
}

// TestHangUp: a client that goes away does not stop its rollout.
func TestHangUp(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	release := make(chan struct{})
	p.engine.SetProbe(func(engine.Instance, engine.Check) error {
		select {
		case <-release:
			return nil
		default:
			return paas.Errorf(paas.Unavailable, "not yet")
		}
	})
	impatient := &http.Client{Timeout: 100 * time.Millisecond}
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/apps/shop/builds", strings.NewReader(`{"image":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = alice.header.Clone()
	if resp, err := impatient.Do(req); err == nil {
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		t.Fatalf("answered early: %d %s", resp.StatusCode, text)
	}
	close(release)
	eventually(t, "the release is there", func() bool {
		resp, _ := alice.do("GET", "/v1/apps/shop/releases/v2", nil)
		return resp.StatusCode == 200
	})
}

func TestRestartOfTheController(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	alice.app("gone", "web")
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"CANARY":"correct-horse-battery"}}`)
	before := alice.containers("shop")
	doomed, err := p.s.store.AppByID(t.Context(), "gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.s.store.MarkDeleting(t.Context(), "alice", doomed); err != nil {
		t.Fatal(err)
	}
	generation := p.s.routes.generation
	p.stop()
	for _, name := range []string{"deis.db", "deis.db-wal"} {
		text, err := os.ReadFile(filepath.Join(p.dir, "db", name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, secret := range []string{"correct-horse-battery", "secret-alice", strings.TrimPrefix(alice.header.Get("Authorization"), "token ")} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds a secret in clear", name)
			}
		}
	}
	p.start()
	if p.s.routes.generation <= generation {
		t.Errorf("generation %d after %d", p.s.routes.generation, generation)
	}
	if after := alice.containers("shop"); !slices.Equal(before, after) {
		t.Errorf("containers = %q, before %q", after, before)
	}
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if c.Values["CANARY"] != "correct-horse-battery" {
		t.Errorf("values = %v", c.Values)
	}
	eventually(t, "the deletion is finished", func() bool {
		_, err := p.s.store.AppByUUID(t.Context(), doomed.UUID)
		return paas.CodeOf(err) == paas.NotFound && instances(t, p.engine) == 1
	})
}

func TestCancelKeepsOthersApps(t *testing.T) {
	p := newPlatform(t)
	root, alice, bob := p.user("root"), p.user("alice"), p.user("bob")
	alice.app("shop", "web")
	alice.want(201, "POST", "/v1/apps/shop/perms", `{"username":"bob"}`)
	bob.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	bob.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	bob.want(403, "DELETE", "/v1/auth/cancel", `{"username":"alice"}`)
	bob.says("", 204, "DELETE", "/v1/auth/cancel", nil)
	bob.want(401, "GET", "/v1/apps", nil)
	var d api.List[api.Domain]
	alice.json(&d, 200, "GET", "/v1/apps/shop/domains", nil)
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if d.Count != 1 || d.Results[0].Owner != "alice" || c.Values["A"] != "1" || len(alice.containers("shop")) != 1 {
		t.Errorf("after the cancellation: %+v %+v", d, c)
	}
	root.want(404, "DELETE", "/v1/auth/cancel", `{"username":"bob"}`)
	root.want(201, "POST", "/v1/admin/perms", `{"username":"alice"}`)
	alice.want(200, "GET", "/v1/admin/perms", nil)
	root.want(204, "DELETE", "/v1/admin/perms/alice", nil)
	alice.want(403, "GET", "/v1/admin/perms", nil)
}
