package build

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/buildpacks/pack/pkg/project/types"
)

func TestParseSource(t *testing.T) {
	has := func(id string) bool { return id == "deis/go" }
	tests := []struct {
		in, shown string
		kind      sourceKind
		err       string
	}{
		{"https://github.com/heroku/heroku-buildpack-go", "https://github.com/heroku/heroku-buildpack-go", sourceGit, ""},
		{" https://github.com/heroku/heroku-buildpack-go.git#v1.2 ", "https://github.com/heroku/heroku-buildpack-go.git#v1.2", sourceGit, ""},
		{"https://u:hunter2@example.com/x.git#main:a/../b", "https://example.com/x.git#main:b", sourceGit, ""},
		{"git://example.com/x", "git://example.com/x", sourceGit, ""},
		{"git+https://example.com/x.tgz", "https://example.com/x.tgz", sourceGit, ""},
		{"HTTPS://example.com/x.TGZ?sig=hunter2", "https://example.com/x.TGZ", sourceArchive, ""},
		{"http://hunter2@example.com/x.tar.gz", "http://example.com/x.tar.gz", sourceArchive, ""},
		{"https://example.com/x.zip", "https://example.com/x.zip", sourceArchive, ""},
		{"docker://ghcr.io/a/b:c", "ghcr.io/a/b:c", sourceImage, ""},
		{"docker:/a/b", "docker.io/a/b:latest", sourceImage, ""},
		{"heroku/buildpack-x@sha256:" + strings.Repeat("0", 64), "docker.io/heroku/buildpack-x@sha256:" + strings.Repeat("0", 64), sourceImage, ""},
		{"deis/go", "deis/go", sourceBuilder, ""},
		{"deis/go@1.2", "deis/go@1.2", sourceBuilder, ""},
		{"urn:cnb:builder:x/y@3", "x/y@3", sourceBuilder, ""},
		{"./packs/a/", "packs/a", sourceTree, ""},
		{"../a", "", 0, `X: "../a" is not a directory below the app's`},
		{".", "", 0, `X: "." is not a directory below the app's`},
		{"urn:cnb:registry:a/b", "", 0, "X: the registry of buildpacks is not used here"},
		{"git@github.com:hunter2/x", "", 0, "X: git over SSH needs a key"},
		{"ssh://hunter2@host/x", "", 0, "X: git over SSH needs a key"},
		{"git+ssh://host/x", "", 0, "X: git over SSH needs a key"},
		{"file:///etc", "", 0, `X: "file://" is not fetched here`},
		{"https://hunter2@", "", 0, "X is not a URL"},
		{"https://host/", "", 0, "X is not a URL"},
		{"https://u:hunter2@ho st/x", "", 0, "X is not a URL"},
		{"https://host/x#--upload-pack=x", "", 0, `X: "--upload-pack=x" is no branch`},
		{"https://host/x#a b", "", 0, `X: "a b" is no branch`},
		{"https://host/x?token=hunter2", "", 0, "X: the URL of a git repository has no query"},
		{"NO SUCH", "", 0, "X is neither a URL nor the name of an image"},
	}
	for _, tt := range tests {
		s, err := parseSource("X", tt.in, has)
		if tt.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tt.err) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: got %v, want %s", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || s.kind != tt.kind || s.String() != tt.shown {
			t.Errorf("%s: got kind %d, %s, %v", tt.in, s.kind, s, err)
		}
		if (s.auth != "") != strings.Contains(tt.in, "hunter2@") {
			t.Errorf("%s: auth %q", tt.in, s.auth)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	f.Add("https://u:p@host/x.git#a:b")
	f.Fuzz(func(_ *testing.T, text string) {
		s, err := parseSource("X", text, func(string) bool { return false })
		if err == nil {
			_ = s.String()
		}
	})
}

func TestLocalPath(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "/a/b/": "a/b", "./a": "a", "a/../b": "b", ".": ".", "/": ".", "..": "", "a/../../b": "", "/../etc": ""} {
		got, ok := localPath(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s: got %q, %v", in, got, ok)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for want, in := range map[string][]string{
		"exec app web":                {"/bin/bash", "-c", "exec app web"},
		"sh -x -c 'exec app'":         {"sh", "-x", "-c", "exec app"},
		"node server.js --port=$PORT": {"node", "server.js", "--port=$PORT"},
		`app 'it'\''s' '' 'a;b'`:      {"app", "it's", "", "a;b"},
	} {
		if got := commandLine(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// TestPlatformEnv: what steers a build is not for buildpacks, and config goes before project.toml.
func TestPlatformEnv(t *testing.T) {
	env := platformEnv(map[string]string{"A": "config", "BUILDPACK_URL": "x", "DEIS_BUILDER": "x", "DEIS_APP_DIR": "x", "DEIS_BUILD_MEMORY": "1G"},
		projectFile{env: map[string]string{"A": "project", "B": "project"}}, "0123456789")
	if len(env) != 3 || env["A"] != "config" || env["B"] != "project" || env["SOURCE_VERSION"] != "0123456789" {
		t.Errorf("got %v", env)
	}
}

// TestKey: the cache key of a build follows its request, but for what the store happens to have and which commit has the files.
func TestKey(t *testing.T) {
	key := func(r buildRequest, secret string) string {
		k, err := r.key([]byte(secret))
		if err != nil || len(k) != 64 {
			t.Fatalf("%q, %v", k, err)
		}
		return k
	}
	r := buildRequest{Env: map[string]string{"A": "1", "B": "2"}}
	base := key(r, "secret")
	r.Have = append(r.Have, "sha256:1")
	if key(r, "secret") != base {
		t.Error("the key follows what the store has")
	}
	r.Env["SOURCE_VERSION"] = "0123456789"
	if key(r, "secret") != base || r.Env["SOURCE_VERSION"] == "" {
		t.Error("the key follows the commit, or takes it away")
	}
	if key(r, "other") == base {
		t.Error("the key does not follow the secret")
	}
	r.Env = map[string]string{"A": "1", "B": "3"}
	if key(r, "secret") == base {
		t.Error("the key does not follow the config")
	}
}

// TestProcfileCounts: with the buildpacks of project.toml's list, too.
func TestProcfileCounts(t *testing.T) {
	of := func(has, listed []string) string {
		t.Helper()
		j := buildpacksJob{job: &job{}}
		for _, id := range has {
			j.builder.metadata.Buildpacks = append(j.builder.metadata.Buildpacks, groupElement{ID: id, Version: "1"})
		}
		for _, id := range listed {
			j.plan.project.group = append(j.plan.project.group, types.Buildpack{ID: id})
		}
		order, err := j.order(t.Context(), nil)
		if err != nil || len(order) != 1 {
			t.Fatalf("%v, %v", order, err)
		}
		return fmt.Sprint(order[0].Group)
	}
	for _, tt := range []struct {
		has, listed []string
		want        string
	}{
		{[]string{"a/x", "a/procfile"}, []string{"a/x"}, "[{a/x 1 false } {a/procfile 1 true }]"},
		{[]string{"a/x", "a/procfile", "b/procfile"}, []string{"b/procfile", "a/x"}, "[{b/procfile 1 false } {a/x 1 false }]"},
		{[]string{"a/x"}, []string{"a/x"}, "[{a/x 1 false }]"},
	} {
		if got := of(tt.has, tt.listed); got != tt.want {
			t.Errorf("%v of %v: got %s, want %s", tt.listed, tt.has, got, tt.want)
		}
	}
}

func TestProgressOfBuildpacks(t *testing.T) {
	s := newScript()
	s.start(programStep)
	s.log(programStep, "-----> Go app detected\ninstalling\n-----x\n !     old version\n")
	s.wait(12 * time.Second)
	s.end(programStep, "exit code: 51", false)
	s.end(programStep+"2", "", true)
	want := "-----> Go app detected\n       installing\n       -----x\n !     old version\n       still running [buildpacks] (10s)\n       [buildpacks]2 (cached)"
	if got := strings.Join(s.lines, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	s = newScript()
	s.end(programStep, "", true)
	if got := strings.Join(s.lines, "\n"); !strings.Contains(got, "built before") {
		t.Errorf("got %s", got)
	}
}
