package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

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

// TestBuildRules is contract 5.3.
func TestBuildRules(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	alice.app("other", "web")
	const path = "/v1/apps/shop/builds"
	denied := func(image string) string { return `{"detail":"Repository name ` + image + ` is not allowed"}` }
	theirs := paas.LocalImages + appUUID(t, p, "other") + ":git-0123456789ab"
	p.rows([]row{
		{alice, "POST", path, nil, 400, `{"image":["This field is required."]}`},
		{alice, "POST", path, `{"image":""}`, 400, `{"image":["This field may not be blank."]}`},
		{alice, "POST", path, `{"image":null}`, 400, `{"image":["This field may not be null."]}`},
		{alice, "POST", path, `{"image":"` + strings.Repeat("x", 257) + `"}`, 400, `{"image":["Ensure this field has no more than 256 characters."]}`},
		{alice, "POST", path, `{"image":"x","sha":"` + strings.Repeat("a", 41) + `"}`, 400, `{"sha":["Ensure this field has no more than 40 characters."]}`},
		{alice, "POST", path, `{"image":"x","procfile":null}`, 400, `{"procfile":["This field may not be null."]}`},
		{alice, "POST", path, `{"image":"x","procfile":["web"]}`, 400, `{"procfile":["Expected a dictionary of items but got list."]}`},
		{alice, "POST", path, `{"image":"x","procfile":"web: x"}`, 400, `{"procfile":["Expected a dictionary of items but got unicode."]}`},
		{alice, "POST", path, `{"image":"x","procfile":{"web":1}}`, 400, `{"procfile":["Expected a dictionary of strings."]}`},
		{alice, "POST", path, `{"image":"x","procfile":{"../x":"y"}}`, 400, `{"procfile":["Process types can only contain [A-Za-z0-9_-]"]}`},
		{alice, "POST", path, `{"image":"x","procfile":{"web":"a\u0000b"}}`, 400, `{"procfile":["Null characters are not allowed."]}`},
		{alice, "POST", path, `{"image":"deis/builder:v1"}`, 403, denied("deis/builder:v1")},
		{alice, "POST", path, `{"image":"registry.test/deis/store-admin"}`, 403, denied("registry.test/deis/store-admin")},
		// The images of other apps are theirs.
		{alice, "POST", path, `{"image":"` + theirs + `"}`, 403, denied(theirs)},
		{alice, "POST", path, `{"image":"` + strings.ToUpper(theirs) + `"}`, 403, denied(strings.ToUpper(theirs))},
		{alice, "GET", path + "/" + strings.Repeat("0", 36), nil, 404, notFound},
		{alice, "PUT", path, `{}`, 405, `{"detail":"Method 'PUT' not allowed."}`},
		{alice, "GET", path, nil, 200, `{"count":0,"next":null,"previous":null,"results":[]}`},
	})
	resp, body := alice.do("POST", path, `{"image":"autotest/example","uuid":"x","owner":"bob","digest":"sha256:x"}`)
	if resp.StatusCode != 201 || resp.Header.Get("Deis-Release") != "2" || resp.Header.Get("X-Deis-Release") != "2" ||
		!regexpMatch(`^{"uuid":"`+uuidForm+`","app":"shop","owner":"alice","image":"autotest/example","sha":"","procfile":{},"dockerfile":"","created":"`, body) {
		t.Errorf("build = %d %s", resp.StatusCode, body)
	}
	body = alice.want(201, "POST", path+"/", `{"image":"x","sha":"abc","procfile":"{\"web\": \"run\"}","dockerfile":"FROM x"}`)
	if !strings.Contains(body, `"image":"x","sha":"abc","procfile":{"web":"run"},"dockerfile":"FROM x"`) {
		t.Errorf("build = %s", body)
	}
	var l api.List[api.Build]
	alice.json(&l, 200, "GET", path, nil)
	if l.Count != 2 || l.Results[0].SHA != "abc" {
		t.Errorf("builds, newest first = %+v", l.Results)
	}
	alice.says(body, 200, "GET", path+"/"+l.Results[0].UUID, nil)
	var releases api.List[api.Release]
	alice.json(&releases, 200, "GET", "/v1/apps/shop/releases", nil)
	if got := []string{releases.Results[0].Summary, releases.Results[1].Summary}; !slices.Equal(got, []string{"alice deployed abc", "alice deployed autotest/example"}) {
		t.Errorf("summaries = %q", got)
	}
	// A build that fails stays in the list; its release does not.
	p.engine.SetChaos(fake.Chaos{Create: 1})
	alice.want(503, "POST", path, `{"image":"y"}`)
	alice.json(&l, 200, "GET", path, nil)
	alice.json(&releases, 200, "GET", "/v1/apps/shop/releases", nil)
	if l.Count != 3 || releases.Count != 3 {
		t.Errorf("after a failure: %d builds, %d releases", l.Count, releases.Count)
	}
}

// TestBuildRecords: log, SBOM and provenance are kept with a build and shown on their own.
func TestBuildRecords(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	alice.app("other")
	b := p.builder()
	bomText := `{"bomFormat":"CycloneDX","components":[{"name":"a<b>&c","size":12345678901234567890}],"specVersion":"1.5"}`
	hook := func(more string) string {
		return `{"receive_user":"alice","receive_repo":"shop","image":"shop","sha":"abc1234567","procfile":{"web":"run"}` + more + `}`
	}
	b.want(200, "POST", "/v1/hooks/build", hook(`,"log":"step 1\nstep 2\n","sbom":`+bomText+`,"provenance":{"_type":"x"}`))
	shown := `{"uuid":"` + uuidForm + `","app":"shop","owner":"alice","image":"shop","sha":"abc1234567","procfile":{"web":"run"},"dockerfile":"","created":"[^"]*","updated":"[^"]*"}`
	var l api.List[api.Build]
	alice.json(&l, 200, "GET", "/v1/apps/shop/builds", nil)
	path := "/v1/apps/shop/builds/" + l.Results[0].UUID
	if text := alice.want(200, "GET", path, nil); !regexpMatch("^"+shown+"$", text) {
		t.Errorf("build = %s", text)
	}
	resp, _ := alice.do("GET", path+"/log", nil)
	if kind := resp.Header.Get("Content-Type"); kind != "text/plain" {
		t.Errorf("the log is %s", kind)
	}
	b.want(200, "POST", "/v1/hooks/build", hook(""))
	alice.json(&l, 200, "GET", "/v1/apps/shop/builds", nil)
	bare := "/v1/apps/shop/builds/" + l.Results[0].UUID
	p.rows([]row{
		{alice, "GET", path + "/log", nil, 200, "step 1\nstep 2\n"},
		{alice, "GET", path + "/sbom/", nil, 200, bomText},
		{alice, "GET", path + "/provenance", nil, 200, `{"_type":"x"}`},
		{bob, "GET", path + "/sbom", nil, 403, forbidden},
		{alice, "GET", strings.Replace(path, "shop", "other", 1) + "/sbom", nil, 404, notFound},
		{alice, "GET", strings.Replace(path, "shop", "other", 1) + "/log", nil, 404, notFound},
		{alice, "GET", "/v1/apps/shop/builds/x/provenance", nil, 404, notFound},
		{alice, "GET", bare + "/log", nil, 404, `{"detail":"This build has no log. Only builds of git pushes have one."}`},
		{alice, "GET", bare + "/sbom", nil, 404, `{"detail":"This build has no SBOM. Only builds with buildpacks have one, and old builds lose it with their image."}`},
		{alice, "GET", bare + "/provenance", nil, 404, `{"detail":"This build has no provenance. Only builds of git pushes have one, and old builds lose it with their image."}`},
	})
	long := `{"a":"` + strings.Repeat("x", api.MaxBuildDocument) + `"}`
	p.rows([]row{
		{b, "POST", "/v1/hooks/build", hook(`,"sbom":["x"]`), 400, `{"sbom":["Expected a dictionary of items but got list."]}`},
		{b, "POST", "/v1/hooks/build", hook(`,"provenance":"{"`), 400, `{"provenance":["Expected a dictionary of items but got unicode."]}`},
		{b, "POST", "/v1/hooks/build", hook(`,"sbom":` + long), 400, `{"sbom":["Ensure this document has no more than 4194304 bytes."]}`},
	})
	// As large as may be, beside a log that JSON makes six times as long.
	largest := `{"a":"` + strings.Repeat("x", api.MaxBuildDocument-len(`{"a":""}`)) + `"}`
	log := strings.Repeat(`\u0001`, api.MaxBuildLog)
	b.want(200, "POST", "/v1/hooks/build", hook(`,"log":"`+log+`","sbom":`+largest+`,"provenance":`+largest))
	alice.json(&l, 200, "GET", "/v1/apps/shop/builds", nil)
	if text := alice.want(200, "GET", "/v1/apps/shop/builds/"+l.Results[0].UUID+"/provenance", nil); text != largest {
		t.Errorf("the largest document has %d bytes, want %d", len(text), len(largest))
	}
}

// TestClearCache: clearing makes the app's number another one, which the builder sees.
func TestClearCache(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	alice.app("other")
	shop, other := appUUID(t, p, "shop"), appUUID(t, p, "other")
	cache := func() int64 {
		var config api.ConfigHookAnswer
		p.builder().json(&config, 200, "POST", "/v1/hooks/config", map[string]any{"receive_user": "alice", "receive_repo": "shop"})
		var apps api.AppsHookAnswer
		p.builder().json(&apps, 200, "GET", "/v1/hooks/apps", nil)
		if n, ok := apps.Caches[shop]; !ok || n != config.Cache || len(apps.Caches) != 2 || apps.Caches[other] != 0 {
			t.Errorf("caches = %v, the app's own %d", apps.Caches, config.Cache)
		}
		return config.Cache
	}
	first := cache()
	p.rows([]row{
		{bob, "DELETE", "/v1/apps/shop/builds/cache", nil, 403, forbidden},
		{alice, "DELETE", "/v1/apps/nothing/builds/cache", nil, 404, notFound},
		{alice, "DELETE", "/v1/apps/shop/builds/cache/", nil, 204, ""},
	})
	second := cache()
	alice.want(204, "DELETE", "/v1/apps/shop/builds/cache", nil)
	if third := cache(); first == second || second == third || first == third {
		t.Errorf("numbers %d, %d, %d", first, second, third)
	}
	if log := alice.want(200, "GET", "/v1/apps/shop/logs", nil); strings.Count(log, "alice cleared the build cache") != 2 {
		t.Errorf("log:\n%s", log)
	}
	p.stop()
	p.start()
	if cache() == first {
		t.Error("the number is lost by a restart")
	}
}
