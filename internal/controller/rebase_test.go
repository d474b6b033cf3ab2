package controller

import (
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

// TestReleasesHook: what a rebase asks for, and how its build becomes a release.
func TestReleasesHook(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	bob.app("blog")
	alice.app("empty")
	b := p.builder()
	deploy := func(user, app string, more map[string]any) {
		t.Helper()
		hook := map[string]any{
			"receive_user": user, "receive_repo": app, "image": paas.LocalImages + appUUID(t, p, app) + ":git-abc123456789", "sha": "abc123456789",
			"procfile": map[string]string{"web": "run"}, "digest": "sha256:" + strings.Repeat("a", 64), "strategy": "buildpacks",
		}
		for key, value := range more {
			hook[key] = value
		}
		b.want(200, "POST", "/v1/hooks/build", hook)
	}
	deploy("alice", "shop", map[string]any{"sbom": map[string]any{"bomFormat": "CycloneDX"}})
	deploy("bob", "blog", map[string]any{"strategy": "dockerfile", "dockerfile": "true"})

	var all, shop api.ReleasesHookAnswer
	b.json(&all, 200, "GET", "/v1/hooks/releases", nil)
	b.json(&shop, 200, "GET", "/v1/hooks/releases?app=shop", nil)
	if len(all.Releases) != 2 || all.Releases[1].App != "blog" || all.Releases[1].Strategy != "dockerfile" || len(shop.Releases) != 1 {
		t.Fatalf("got %+v and %+v", all, shop)
	}
	r := shop.Releases[0]
	if r.Owner != "alice" || r.UUID != appUUID(t, p, "shop") || r.Version != 2 || r.Strategy != "buildpacks" || r.Procfile["web"] != "run" ||
		r.Digest != "sha256:"+strings.Repeat("a", 64) || r.SHA != "abc123456789" || !strings.HasPrefix(r.Image, paas.LocalImages) {
		t.Errorf("got %+v", r)
	}
	b.want(404, "GET", "/v1/hooks/releases?app=nothing", nil)
	p.anonymous().want(401, "GET", "/v1/hooks/releases", nil)
	alice.want(403, "GET", "/v1/hooks/releases", nil)

	deploy("alice", "shop", map[string]any{"rebase_of": r.Build, "digest": "sha256:" + strings.Repeat("b", 64)})
	var release api.Release
	alice.json(&release, 200, "GET", "/v1/apps/shop/releases/v3", nil)
	if release.Summary != "alice rebased abc1234" {
		t.Errorf("summary = %q", release.Summary)
	}
	alice.says(`{"bomFormat":"CycloneDX"}`, 200, "GET", "/v1/apps/shop/builds/"+*release.Build+"/sbom", nil)
	for _, of := range []string{all.Releases[1].Build, "nothing"} {
		b.want(404, "POST", "/v1/hooks/build", map[string]any{"receive_user": "alice", "receive_repo": "shop", "image": "x", "rebase_of": of})
	}
}
