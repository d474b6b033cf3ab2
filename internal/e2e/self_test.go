//go:build self

// The tests of 'make test-self' take minutes: they compile the whole platform.

package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOwnImages builds the targets of the Dockerfile that TestOwnDockerfile leaves out.
func TestOwnImages(t *testing.T) {
	for _, target := range []string{"controller", "builder"} {
		t.Run(target, func(t *testing.T) { testOwnImage(t, target) })
	}
}

// TestOwnSource pushes this repository as a Go app: a controller without containers, which then takes a user and an app.
func TestOwnSource(t *testing.T) {
	u := shared.newUser(t, "self")
	dir := filepath.Join(t.TempDir(), "e2e-self")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cp := exec.CommandContext(t.Context(), "sh", "-c", `git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$0"`, dir)
	cp.Dir = "../.."
	if out, err := cp.CombinedOutput(); err != nil {
		t.Fatalf("copy the repository: %v\n%s", err, out)
	}
	u.must(t, dir, "git", "init", "-q", "-b", "master")
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "deis", "create", "e2e-self")
	u.must(t, dir, "deis", "config:set", "DEIS_BUILDER=deis/builder", "GO_INSTALL_PACKAGE_SPEC=./cmd/controller",
		"DEIS_ENGINE=fake", "DEIS_CONTROLLER_ADDR=:5000", "DEIS_ROOT=/tmp/deis")
	u.must(t, dir, "git", "commit", "-q", "-m", "first")
	out := u.must(t, dir, "git", "push", "deis", "master")
	for _, want := range []string{"-----> Go app detected", "Default process types for Go -> web", "done, e2e-self:v3"} {
		if !strings.Contains(out, want) {
			t.Errorf("the push does not say %q:\n%s", want, out)
		}
	}

	_, port, _ := net.SplitHostPort(shared.http)
	inner := &user{p: shared, home: t.TempDir()}
	inner.must(t, "", "deis", "register", "http://e2e-self.localhost:"+port, "--username", "inner", "--password", "secret", "--email", "inner@example.com")
	inner.must(t, "", "deis", "create", "inner-app", "--no-remote")
	if out := inner.must(t, "", "deis", "apps"); !strings.Contains(out, "inner-app") {
		t.Errorf("apps of the inner platform:\n%s", out)
	}

	// A change of one package.
	path := filepath.Join(dir, "cmd/controller/main.go")
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "cmd/controller/main.go", string(source)+"\n// a change\n")
	u.must(t, dir, "git", "commit", "-q", "-a", "-m", "second")
	u.must(t, dir, "git", "push", "-q", "deis", "master")
	push := lastPush(t)
	t.Logf("one file changed: build %v ms, rollout %v ms", push["build_ms"], push["rollout_ms"])
}
