package controller

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
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
