package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestExamples pushes the examples without a Dockerfile as their READMEs say: the first time, with one file changed, and with
// nothing changed.
func TestExamples(t *testing.T) {
	u := shared.newUser(t, "examples")
	for _, e := range []example{
		{name: "golang", language: "Go", source: "main.go", kept: "Using cached modules", not: "go: downloading", component: "pkg:golang/github.com/go-chi/chi/v5"},
		{name: "nodejs", language: "Node.js", source: "server.js", kept: "Using the dependencies of the last build", not: "Installing dependencies", component: "pkg:npm/fastify"},
		{name: "python", language: "Python", source: "app.py", kept: "Reusing the packages of the last build", not: "Installing the packages", component: "pkg:pypi/greetings"},
		{name: "ruby", language: "Ruby", source: "app.rb", kept: "Reusing the gems of the last build", not: "Installing the gems", component: "greeting"},
		{name: "static", language: "Static site", source: "public/index.html", kept: "Using the server of the last build", not: "Compiling"},
		{name: "shell", language: "Start script", source: "start.sh", procfile: "worker", kept: "web -> ./start.sh"},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.test(t, u)
		})
	}
}

type example struct {
	name     string
	language string // as the build calls it
	source   string // the file that holds what the app answers
	procfile string // process types of the Procfile
	// kept is what the second push says of what it has from the first, not is what it does not do again.
	kept, not string
	// component is one of the bill of materials.
	component string
}

// greeting is the text that every example answers with, or makes its answer of.
var greeting = regexp.MustCompile(`(?i)(powered.by\W+)Deis`)

func (e example) test(t *testing.T, u *user) {
	app := "e2e-" + e.name
	dir := u.exampleApp(t, e.name, app)
	out, first := e.push(t, u, dir, "v2", "Powered by Deis")
	types := []string{"-----> Discovering process types", "       Default process types for " + e.language + " -> web"}
	if e.procfile != "" {
		types = []string{types[0], "       Procfile declares types -> " + e.procfile, types[1]}
	}
	for _, want := range []string{
		"-----> Building with buildpacks\n-----> " + e.language + " app detected\n",
		strings.Join(types, "\n") + "\n-----> Launching...\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the first push does not say\n%s", want)
		}
	}
	t.Logf("the first push took %v\n%s", first, out)

	path := filepath.Join(dir, e.source)
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, greeting.ReplaceAll(source, []byte("${1}a change")), 0o755); err != nil {
		t.Fatal(err)
	}
	out, second := e.push(t, u, dir, "v3", "Powered by a change")
	if !strings.Contains(out, e.kept) || e.not != "" && strings.Contains(out, e.not) {
		t.Errorf("the second push does not say %q, or says %q:\n%s", e.kept, e.not, out)
	}
	out, third := e.push(t, u, dir, "v4", "Powered by a change")
	if !strings.Contains(out, "these files were built before with the same config: using that") {
		t.Errorf("a push of nothing new:\n%s", out)
	}
	t.Logf("first push %v, one file changed %v, nothing changed %v", first, second, third)

	if e.component != "" {
		if sbom := u.must(t, dir, "deis", "builds:sbom"); !strings.Contains(sbom, e.component) {
			t.Errorf("the bill of materials does not list %s:\n%s", e.component, sbom)
		}
	}
	if e.procfile != "" {
		u.must(t, dir, "deis", "scale", e.procfile+"=1")
		if ps := u.must(t, dir, "deis", "ps"); !strings.Contains(ps, e.procfile+".1 up") {
			t.Errorf("ps:\n%s", ps)
		}
	}
	u.must(t, dir, "deis", "destroy", "--confirm="+app)
}

// push commits what there is and pushes it; it returns what the pusher saw, without git's prefix, and checks the new answer.
func (e example) push(t *testing.T, u *user, dir, version, answer string) (string, time.Duration) {
	t.Helper()
	u.must(t, dir, "git", "commit", "-q", "--allow-empty", "-a", "-m", version)
	began := time.Now()
	out := u.mustFetch(t, dir, "git", "push", "deis", "master")
	took := time.Since(began).Round(time.Millisecond)
	var said strings.Builder
	for line := range strings.Lines(out) {
		line, ours := strings.CutPrefix(line, "remote: ")
		if !ours {
			continue
		}
		line = strings.TrimRight(line, " \n")
		if line != "" && !strings.HasPrefix(line, "-----> ") && !strings.HasPrefix(line, "       ") {
			t.Errorf("a line that is neither heading nor indented: %q", line)
		}
		said.WriteString(line + "\n")
	}
	if want := "done, " + filepath.Base(dir) + ":" + version + " deployed to Deis\n"; !strings.Contains(said.String(), want) {
		t.Errorf("the push does not say %s:\n%s", want, said.String())
	}
	status, body, err := shared.get(t.Context(), shared.client(false), filepath.Base(dir)+".localhost", "/")
	if err != nil || status != 200 || !strings.Contains(body, answer) {
		t.Errorf("%s: got %d %q, %v; want %q", version, status, body, err, answer)
	}
	return said.String(), took
}

// exampleApp makes a repository with a copy of an example and creates the app.
func (u *user) exampleApp(t testing.TB, name, app string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), app)
	u.must(t, "", "cp", "-r", "../../examples/"+name, dir)
	u.must(t, dir, "git", "init", "-q", "-b", "master")
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "deis", "create", app)
	return dir
}
