package controller

import (
	"reflect"
	"slices"
	"testing"

	"github.com/deis/deis/internal/api"
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
