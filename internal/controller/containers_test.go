package controller

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine/fake"
)

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

// TestScaleRules is contract 5.5.
func TestScaleRules(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	const path = "/v1/apps/shop/scale"
	invalid := func(reason string) string { return `{"detail":"Invalid scaling format: ` + reason + `"}` }
	noBuild := `{"detail":"No build associated with this release"}`
	p.rows([]row{
		{alice, "POST", path, `{"web":1}`, 400, noBuild},
		{alice, "POST", path, `{}`, 400, noBuild},
		{alice, "POST", "/v1/apps/shop/builds", build("abc", "web", "worker"), 201, "*"},
		{alice, "POST", path, `{"web":"not_an_int"}`, 400, invalid("invalid literal for int() with base 10: 'not_an_int'")},
		{alice, "POST", path, `{"web":"1.5"}`, 400, invalid("invalid literal for int() with base 10: '1.5'")},
		{alice, "POST", path, `{"web":null}`, 400, invalid("int() argument must be a string or a number, not 'NoneType'")},
		{alice, "POST", path, `{"web":[1]}`, 400, "*"},
		{alice, "POST", path, `["web"]`, 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}`},
		{alice, "POST", path, `{"web":-1}`, 400, `{"detail":"Must be greater than or equal to zero"}`},
		{alice, "POST", path, `{"web":5,"nope":1}`, 400, `{"detail":"Container type nope does not exist in application"}`},
		{alice, "GET", path, nil, 405, `{"detail":"Method 'GET' not allowed."}`},
		{alice, "POST", path, nil, 204, ""},
		{alice, "POST", path, `{"web":"2","worker":1.9,"cmd":true}`, 204, ""},
	})
	structure := func(want string) {
		t.Helper()
		if body := alice.want(200, "GET", "/v1/apps/shop", nil); !strings.Contains(body, `"structure":`+want) {
			t.Errorf("app = %s, want structure %s", body, want)
		}
	}
	running := func(want ...string) {
		t.Helper()
		got := alice.containers("shop")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("containers = %q, want %q", got, want)
		}
	}
	structure(`{"cmd":1,"web":2,"worker":1}`)
	running("cmd.1 v2 up", "web.1 v2 up", "web.2 v2 up", "worker.1 v2 up")
	alice.want(204, "POST", path, `{"web":1,"cmd":0}`) // the youngest go
	structure(`{"cmd":0,"web":1,"worker":1}`)
	running("web.1 v2 up", "worker.1 v2 up")
	form := alice.with("Content-Type", "application/x-www-form-urlencoded")
	form.want(204, "POST", path, "web=3&worker=0")
	structure(`{"cmd":0,"web":3,"worker":0}`)
	running("web.1 v2 up", "web.2 v2 up", "web.3 v2 up")
	alice.want(201, "POST", "/v1/apps/shop/builds", build("def", "web", "worker"))
	structure(`{"cmd":0,"web":3,"worker":0}`) // what was scaled to nothing stays there
	// A type that the new build does not have goes with the old one.
	alice.want(204, "POST", path, `{"worker":2}`)
	alice.want(201, "POST", "/v1/apps/shop/builds", build("ghi", "web"))
	running("web.1 v4 up", "web.2 v4 up", "web.3 v4 up")
}

// TestScaleFails: 503 with the text of the original, and what ran goes on.
func TestScaleFails(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.engine.SetChaos(fake.Chaos{Create: 1})
	if body := alice.want(503, "POST", "/v1/apps/shop/scale", `{"web":3}`); !strings.HasPrefix(body, `{"detail":"aborting, failed to create some containers`) {
		t.Errorf("a scale that fails is answered %s", body)
	}
	p.engine.SetChaos(fake.Chaos{Destroy: 1})
	if body := alice.want(503, "POST", "/v1/apps/shop/scale", `{"web":0}`); body != `{"detail":"aborting, failed to destroy some containers"}` {
		t.Errorf("a scale that fails is answered %s", body)
	}
	p.engine.SetChaos(fake.Chaos{})
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":1}`)
	eventually(t, "one serves in the end", func() bool {
		return slices.Contains(alice.containers("shop"), "web.1 v2 up") || instances(t, p.engine) == 1
	})
}

// TestContainers is contract 5.5 and 5.6 about what the API shows of instances.
func TestContainers(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web", "worker")
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":2,"worker":1}`)
	const path = "/v1/apps/shop/containers"
	body := alice.want(200, "GET", path+"/web/2/", nil)
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC`
	if !regexpMatch(`^{"uuid":"`+uuidForm+`","app":"shop","owner":"alice","release":"v2","type":"web","num":2,"state":"up","created":"`+stamp+`","updated":"`+stamp+`"}$`, body) {
		t.Errorf("container = %s", body)
	}
	count := func(path string) int {
		t.Helper()
		var l api.List[api.Container]
		alice.json(&l, 200, "GET", path, nil)
		return l.Count
	}
	if a, b, c := count(path), count(path+"/web/"), count(path+"/nothing"); a != 3 || b != 2 || c != 0 {
		t.Errorf("%d containers, %d of web, %d of nothing", a, b, c)
	}
	restarted := func(path string) (names []string) {
		t.Helper()
		var all []api.Container
		alice.json(&all, 200, "POST", path, nil)
		for _, c := range all {
			names = append(names, fmt.Sprintf("%s.%d %s", c.Type, c.Num, c.State))
		}
		slices.Sort(names)
		return names
	}
	for path, want := range map[string][]string{
		path + "/restart":           {"web.1 up", "web.2 up", "worker.1 up"},
		path + "/restart/":          {"web.1 up", "web.2 up", "worker.1 up"},
		path + "/web/restart":       {"web.1 up", "web.2 up"},
		path + "/web/2/restart/":    {"web.2 up"},
		path + "/web/9/restart":     nil,
		path + "/nothing/restart":   nil,
		path + "/nothing/1/restart": nil,
	} {
		if got := restarted(path); !slices.Equal(got, want) {
			t.Errorf("POST %s = %q, want %q", path, got, want)
		}
	}
	p.rows([]row{
		{alice, "POST", path + "/web/9/restart", nil, 200, "[]"},
		{alice, "POST", path + "/web/x/restart", nil, 404, notFound},
		{alice, "POST", path + "/web/0/restart", nil, 404, notFound},
		{alice, "GET", path + "/web/9", nil, 404, notFound},
		{alice, "GET", path + "/web/x", nil, 404, notFound},
		{alice, "GET", path + "/web/99999999999999999999", nil, 404, notFound},
		{alice, "GET", path + "/web/restart", nil, 405, `{"detail":"Method 'GET' not allowed."}`},
		{alice, "POST", path, nil, 405, `{"detail":"Method 'POST' not allowed."}`},
		{alice, "DELETE", path + "/web/1", nil, 405, `{"detail":"Method 'DELETE' not allowed."}`},
	})
	if body := alice.want(200, "POST", path+"/web/1/restart", nil); !strings.HasPrefix(body, `[{"uuid":`) || !strings.Contains(body, `"release":"v2"`) {
		t.Errorf("restarted = %s", body)
	}
}
