package rollout

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// tags is a registry: images move to another digest.
type tags struct {
	mu     sync.Mutex
	digest string
	asked  []engine.Process
}

func (r *tags) fetch(p engine.Process, say func(string)) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, p)
	if p.Digest != "" {
		return p.Digest, nil
	}
	say("Pulling " + p.Image)
	return r.digest, nil
}

// A build that names a tag runs, for good, the image that the tag had at its first deploy.
func TestTagIsPinned(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		registry := &tags{digest: "sha256:old"}
		w.engine.SetFetch(registry.fetch)
		for _, name := range []string{"b1", "b2"} {
			w.addBuild(name, map[string]string{"web": "serve"})
			w.store.set(func() {
				b := w.store.builds[name]
				b.Image, b.Digest = "redis:7", ""
				w.store.builds[name] = b
			})
		}
		w.addConfig("c2", paas.Config{Values: map[string]string{
			paas.ConfigRegistryUsername: "ann", paas.ConfigRegistryPassword: "s3cret", "GREETING": "hello",
		}})
		w.start()
		var said []string
		w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "b1", Config: "c2", Progress: func(line string) { said = append(said, line) }})
		if !slices.Contains(said, "Pulling redis:7") {
			t.Errorf("said %q", said)
		}
		registry.digest = "sha256:new"
		w.mustDo(Request{Kind: paas.RolloutRestart})
		w.mustDo(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 2}})
		w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "b2", Config: "c2"})
		w.mustDo(Request{Kind: paas.RolloutRollback, Build: "b1", Config: "c2"})
		for name, want := range map[string]string{"b1": "sha256:old", "b2": "sha256:new"} {
			if got := w.store.builds[name].Digest; got != want {
				t.Errorf("build %s has digest %q, want %q", name, got, want)
			}
		}
		var digests []string
		for _, p := range registry.asked {
			digests = append(digests, p.Digest)
			user, password := p.Registry.For("docker.io")
			if user != "ann" || password != "s3cret" {
				t.Errorf("credentials %q, %q", user, password)
			}
			if p.Env["GREETING"] != "hello" || p.Env[paas.ConfigRegistryPassword] != "" || p.Env[paas.ConfigRegistryUsername] != "" {
				t.Errorf("an instance gets %v", p.Env)
			}
		}
		if want := []string{"", "sha256:old", "sha256:old", "", "sha256:old"}; !slices.Equal(digests, want) {
			t.Errorf("fetched %q, want %q", digests, want)
		}
	})
}

// An image that cannot be had fails the deploy with words for the user, and nothing changes.
func TestFetchFails(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code paas.Code
		text string
	}{
		"user":     {paas.Errorf(paas.Unavailable, "registry.example.com does not know ann with s3cret"), paas.Unavailable, "registry.example.com does not know ann with [DEIS_REGISTRY_PASSWORD]"},
		"name":     {paas.Errorf(paas.Invalid, "no image reference"), paas.Invalid, "no image reference"},
		"internal": {errors.New("detail"), paas.Unavailable, "an internal error"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.addBuild("b1", map[string]string{"web": "serve"})
				w.addConfig("c2", paas.Config{Values: map[string]string{
					paas.ConfigRegistryUsername: "example", paas.ConfigRegistryPassword: "s3cret",
				}})
				w.start()
				w.engine.SetFetch(func(engine.Process, func(string)) (string, error) { return "", c.err })
				_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "b1", Config: "c2"})
				if paas.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %v, want %s %q", err, c.code, c.text)
				}
				if reason := w.store.rollout().Reason; !strings.Contains(reason, c.text) || strings.Contains(reason, "s3cret") {
					t.Errorf("reason %q", reason)
				}
				if n := len(w.list()); n != 0 {
					t.Errorf("%d instances", n)
				}
				// Scaling down and nothing to start need no image.
				w.mustDo(Request{Kind: paas.RolloutConfig, Config: "c2"})
			})
		})
	}
}
