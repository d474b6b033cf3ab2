package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/paas"
)

// roleEnv makes this test binary a role of the builder's program.
const roleEnv = "DEIS_TEST_BUILDER_ROLE"

func runRole(role string) {
	switch role {
	case "builders":
		daemon.Command(role, os.Args[1:], Builders)
	case "rebase":
		daemon.Command(role, os.Args[1:], Rebase)
	}
}

// fakeBases knows images by their names: those on the present base, the others on an old one.
type fakeBases struct {
	present []string
	broken  string
	made    map[string]string // new name by old
}

func (f *fakeBases) NameOf(_ context.Context, d digest.Digest) (string, error) {
	if d == digest.FromString("gone") {
		return "", paas.Errorf(paas.NotFound, "there is no image %s", d)
	}
	return "name-of-" + d.String(), nil
}

func (f *fakeBases) Base(_ context.Context, name string) (builders.Base, error) {
	return builders.Base{RunImage: "docker.io/deis/run:cnb", RunDigest: digest.FromString("run"), Current: slices.Contains(f.present, name)}, nil
}

func (f *fakeBases) Rebase(_ context.Context, from, to string) (digest.Digest, error) {
	if from == f.broken {
		return "", errors.New("a layer is missing")
	}
	f.made[from] = to
	return digest.FromString(to), nil
}

func nameOf(text string) string { return "name-of-" + digest.FromString(text).String() }

func TestRebase(t *testing.T) {
	release := func(app, strategy, content string) api.HookRelease {
		return api.HookRelease{
			App: app, UUID: uuidOf(app), Owner: "owner-of-" + app, Version: 7, Build: "build-of-" + app, Image: paas.LocalImages + uuidOf(app) + ":git-0123456789ab",
			Digest: digest.FromString(content).String(), SHA: "0123456789abcdef0123", Procfile: map[string]string{"web": "run"}, Strategy: strategy,
		}
	}
	all := []api.HookRelease{
		release("old", "buildpacks", "old"), release("new", "buildpacks", "new"), release("docker", "dockerfile", "docker"),
		release("gone", "buildpacks", "gone"), release("broken", "buildpacks", "broken"), release("sick", "buildpacks", "sick"), release("last", "buildpacks", "last"),
	}
	var posted []api.BuildHook
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/hooks/releases":
			answer := api.ReleasesHookAnswer{Releases: all}
			if app := r.URL.Query().Get("app"); app == "nothing" {
				http.Error(w, `{"detail":"Not found"}`, http.StatusNotFound)
				return
			} else if app != "" {
				answer.Releases = slices.DeleteFunc(slices.Clone(all), func(r api.HookRelease) bool { return r.App != app })
			}
			_ = json.NewEncoder(w).Encode(answer)
		case "/v1/hooks/build":
			var hook api.BuildHook
			if err := json.NewDecoder(r.Body).Decode(&hook); err != nil {
				t.Error(err)
			}
			posted = append(posted, hook)
			if hook.ReceiveRepo == "sick" {
				stream(w, api.BuildEvent{Message: "web.1 starts"}, api.BuildEvent{Error: "web.1 does not answer", Status: 503})
				return
			}
			stream(w, api.BuildEvent{Message: "web.1 starts"}, success(hook.ReceiveRepo, 8))
		}
	}))
	defer server.Close()
	run := func(app string) (string, error) {
		var out strings.Builder
		images := &fakeBases{present: []string{nameOf("new")}, broken: nameOf("broken"), made: map[string]string{}}
		r := rebase{&controller{&api.Client{URL: server.URL}}, images, &out}
		err := r.apps(t.Context(), app)
		for from, to := range images.made {
			if !strings.HasSuffix(to, fmt.Sprintf(":rebase-0123456789ab-%.8s", digest.FromString("run").Encoded())) || !strings.HasPrefix(from, "name-of-") {
				t.Errorf("%s became %s", from, to)
			}
		}
		return out.String(), err
	}

	out, err := run("")
	if err == nil || err.Error() != "3 of 7 apps were not rebased; they run as before" {
		t.Errorf("all: %v", err)
	}
	for _, want := range []string{
		"-----> old: rebased on docker.io/deis/run:cnb@sha256:", "       web.1 starts\n       done, old:v8\n",
		"       new: on the present docker.io/deis/run:cnb already\n", "       docker: not made by buildpacks;",
		" !     gone: there is no image sha256:", " !     broken: a layer is missing\n", " !     sick: Failed to launch: web.1 does not answer\n",
		"       done, last:v8\n-----> 2 rebased, 1 on the present base already, 1 without buildpacks, 3 failed\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	if len(posted) != 3 {
		t.Fatalf("posted %+v", posted)
	}
	hook := posted[0]
	if hook.ReceiveUser != "owner-of-old" || hook.ReceiveRepo != "old" || hook.RebaseOf != "build-of-old" || hook.SHA != all[0].SHA || hook.Strategy != "buildpacks" ||
		hook.Procfile["web"] != "run" || hook.Digest != digest.FromString(hook.Image).String() || !strings.HasPrefix(hook.Image, paas.LocalImages+uuidOf("old")+":rebase-") {
		t.Errorf("posted %+v", hook)
	}

	if out, err := run("new"); err != nil || strings.Contains(out, "----->") {
		t.Errorf("one: %v\n%s", err, out)
	}
	if _, err := run("nothing"); paas.CodeOf(err) != paas.NotFound || !strings.Contains(err.Error(), "there is no app nothing") {
		t.Errorf("nothing: %v", err)
	}
	all = nil
	if _, err := run("empty"); err == nil || err.Error() != "empty was not deployed yet" {
		t.Errorf("empty: %v", err)
	}
}

// TestRoles: what the roles say to wrong calls, and with which exit code.
func TestRoles(t *testing.T) {
	root := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		call, says string
		code       int
	}{
		{"builders", " !     say one of\n !       list", 1},
		{"builders make me", " !     say one of", 1},
		{"builders inspect", " !     say one of", 1},
		{"builders create a b", "unknown argument \"b\"", 1},
		{"builders create a", "--config builder.toml", 1},
		{"builders create a --config none.toml", "none.toml", 1},
		{"builders inspect a --nonsense", "flag provided but not defined", 2},
		{"builders inspect A/B", " !     \"A/B\" is no image name\n", 1},
		{"rebase", " !     say which app to rebase, or --all\n", 1},
		{"rebase a --all", "say which app to rebase, or --all", 1},
		{"rebase a b", "say which app to rebase, or --all", 1},
		{"rebase a", "DEIS_CONTROLLER_URL is not set", 1},
		{"rebase --all --controller-url http://127.0.0.1:1", filepath.Join(root, "builder.key"), 1},
	} {
		words := strings.Fields(test.call)
		cmd := exec.CommandContext(t.Context(), self, words[1:]...)
		cmd.Env = []string{roleEnv + "=" + words[0], "DEIS_ROOT=" + root}
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != test.code || !strings.Contains(string(out), test.says) {
			t.Errorf("%s: %v\n%s", test.call, err, out)
		}
	}
}
