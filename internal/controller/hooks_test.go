package controller

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

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
	hook["image"], hook["sha"], hook["procfile"] = paas.LocalImages+access.App+":git-abc1234567", "abc1234567", map[string]string{"web": "run"}
	hook["digest"], hook["log"] = "sha256:"+strings.Repeat("a", 64), "step 1\nstep 2\n"
	b.says(`{"release":{"version":2},"domains":["shop.example.test"]}`, 200, "POST", "/v1/hooks/builds", hook)
	var l api.List[api.Build]
	alice.json(&l, 200, "GET", "/v1/apps/shop/builds", nil)
	if l.Results[0].Image != "shop" {
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

// TestBuilderForms: what builders send (contract 6): the one of v1 a commit of
// eight digits, the bare app name, "true" or "" for a dockerfile.
func TestBuilderForms(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	b := p.builder()
	const sha = "ecdff91c"
	for name, c := range map[string]struct{ fields, runs string }{
		"buildpack":  {`"sha":"` + sha + `","procfile":{"web":"run","worker":"work"},"dockerfile":""`, "web.1 v2 up"},
		"dockerfile": {`"sha":"` + sha + `","procfile":{},"dockerfile":"true"`, "cmd.1 v2 up"},
		"both":       {`"sha":"` + sha + `","procfile":{"web":"run"},"dockerfile":"true"`, "web.1 v2 up"},
		"neither":    {`"sha":"` + sha + `","procfile":{},"dockerfile":""`, "cmd.1 v2 up"},
		"text":       {`"sha":"` + sha + `","procfile":"{\"web\": \"run\"}"`, "web.1 v2 up"},
		"image":      {`"nothing":1`, "cmd.1 v2 up"},
	} {
		alice.app(name)
		body := `{"receive_user":"alice","receive_repo":"` + name + `","image":"` + name + `",` + c.fields + `}`
		resp, text := b.do("POST", "/v1/hooks/builds", body)
		if want := `{"release":{"version":2},"domains":["` + name + `.example.test"]}`; resp.StatusCode != 200 || text != want || resp.Header.Get("X-Deis-Release") != "" {
			t.Errorf("%s: %d %s %v", name, resp.StatusCode, text, resp.Header)
		}
		if got := alice.containers(name); !slices.Equal(got, []string{c.runs}) {
			t.Errorf("%s runs %q, want %q", name, got, c.runs)
		}
		var l api.List[api.Build]
		alice.json(&l, 200, "GET", "/v1/apps/"+name+"/builds", nil)
		if l.Results[0].Image != name || l.Results[0].Owner != "alice" {
			t.Errorf("%s: build = %+v", name, l.Results[0])
		}
	}
}

// TestHookRules is contract 6.
func TestHookRules(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	p.user("bob")
	alice.app("shop")
	b := p.builder()
	const required = `["This field is required."]`
	var all []row
	for _, path := range []string{"/v1/hooks/push", "/v1/hooks/config", "/v1/hooks/build", "/v1/hooks/builds/"} {
		all = append(all,
			row{b, "POST", path, nil, 400, `{"receive_repo":` + required + `,"receive_user":` + required + `}`},
			row{b, "POST", path, `{"receive_user":"alice"}`, 400, `{"receive_repo":` + required + `}`},
			row{b, "POST", path, `{"receive_user":"bob","receive_repo":"shop"}`, 403, forbidden},
			row{b, "POST", path, `{"receive_user":"nobody","receive_repo":"shop"}`, 404, notFound},
			row{b, "POST", path, `{"receive_user":"alice","receive_repo":"nothing"}`, 404, notFound},
			row{p.anonymous(), "POST", path, nil, 401, noCredentials},
			row{p.anonymous().with(api.HeaderBuilderAuth, "wrong"), "POST", path, nil, 401, noCredentials},
			row{alice.with(api.HeaderBuilderAuth, "wrong"), "POST", path, nil, 403, forbidden},
			row{alice, "POST", path, nil, 403, forbidden},
			row{b, "GET", path, nil, 405, `{"detail":"Method 'GET' not allowed."}`},
		)
	}
	all = append(all,
		row{b, "POST", "/v1/hooks/push", `{"receive_user":"alice","receive_repo":"shop","sha":"` + strings.Repeat("a", 41) + `"}`, 400, `{"fingerprint":` + required +
			`,"sha":["Ensure this field has no more than 40 characters."],"ssh_connection":` + required + `,"ssh_original_command":` + required + `}`},
		row{b, "POST", "/v1/hooks/build", `{"receive_user":"alice","receive_repo":"shop"}`, 400, `{"image":` + required + `}`},
		row{
			b, "POST", "/v1/hooks/build", `{"receive_user":"alice","receive_repo":"shop","image":"x","digest":"md5:x","strategy":"magic"}`, 400,
			`{"digest":["A digest is sha256: and 64 hex digits."],"strategy":["Unknown strategy."]}`,
		},
		row{b, "POST", "/v1/hooks/access", nil, 400, `{"receive_repo":` + required + `,"receive_user":` + required + `}`},
		row{b, "POST", "/v1/hooks/key", nil, 400, `{"key":` + required + `}`},
		row{b, "POST", "/v1/hooks/key", `{"key":"x"}`, 400, "*"},
	)
	p.rows(all)
	push := b.want(201, "POST", "/v1/hooks/push", `{"receive_user":"alice","receive_repo":"shop","sha":"abc","fingerprint":"aa:bb","ssh_connection":"1 2 3 4","ssh_original_command":"git-receive-pack 'shop.git'"}`)
	for _, want := range []string{
		`"receive_user":"alice"`, `"receive_repo":"shop"`, `"sha":"abc"`, `"fingerprint":"aa:bb"`, `"ssh_connection":"1 2 3 4"`,
		`"ssh_original_command":"git-receive-pack 'shop.git'"`, `"uuid":"`, `"owner":"alice"`, `"app":"shop"`, `"created":"`, `"updated":"`,
	} {
		if !strings.Contains(push, want) {
			t.Errorf("push = %s, without %s", push, want)
		}
	}
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"},"memory":{"web":"1G"}}`)
	config := alice.want(200, "GET", "/v1/apps/shop/config", nil)
	b.says(strings.TrimSuffix(config, "}")+`,"cache":0}`, 200, "POST", "/v1/hooks/config", `{"receive_user":"root","receive_repo":"shop"}`)
}

// TestPushedImageIsShownAsTheApp: no user sees the engine's references.
func TestPushedImageIsShownAsTheApp(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	uuid := appUUID(t, p, "shop")
	image := paas.LocalImages + uuid + ":git-abc123456789"
	p.builder().want(200, "POST", "/v1/hooks/build", map[string]any{
		"receive_user": "alice", "receive_repo": "shop", "image": image, "sha": "abc1234567890", "procfile": map[string]string{"web": "run"},
	})
	for path, want := range map[string]string{
		"/v1/apps/shop/builds":   `"image":"shop"`,
		"/v1/apps/shop/releases": `"summary":"alice deployed abc1234"`,
		"/v1/apps/shop/logs":     "alice deployed abc1234\n",
	} {
		body := alice.want(200, "GET", path, nil)
		if strings.Contains(body, paas.LocalImages) || !strings.Contains(body, want) {
			t.Errorf("%s = %s", path, body)
		}
	}
	builds, err := p.s.store.Builds(t.Context(), uuid, store.All)
	if err != nil || builds.Rows[0].Image != image {
		t.Errorf("the engine is told %+v, %v", builds, err)
	}
}
