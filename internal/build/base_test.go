package build_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBaseImages also builds the examples, which is what deis/build is for.
func TestBaseImages(t *testing.T) {
	p := sharedPlatform(t)
	var lines []string
	log := func(line string) { lines = append(lines, line) }
	names := []string{"deis/run", "deis/build"}
	if err := p.baseImages(t.Context(), log, names...); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines, "\n"); strings.Contains(got, "deis/run is there") || !strings.Contains(got, "       base image deis/build is there") {
		t.Errorf("got:\n%s", got)
	}
	lines = nil
	if err := p.baseImages(t.Context(), log, names...); err != nil || len(lines) > 0 {
		t.Errorf("second time: %v, %q", err, lines)
	}
	if err := p.baseImages(t.Context(), log, "deis/other"); err == nil {
		t.Error("imported deis/other")
	}

	// Both images share the first layer.
	layers := map[string][]string{}
	for _, name := range names {
		img, err := p.client(t).GetImage(t.Context(), "docker.io/"+name+":latest")
		if err != nil {
			t.Fatal(err)
		}
		ids, err := img.RootFS(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			layers[name] = append(layers[name], id.String())
		}
	}
	if run, b := layers["deis/run"], layers["deis/build"]; len(run) != 1 || len(b) != 4 || b[0] != run[0] {
		t.Errorf("layers: %v", layers)
	}

	b := mustBuild(t, newRepo(t), "app-base", map[string]string{"Dockerfile": `FROM deis/build
RUN printf 'int main(void){return 42;}' >x.c && cc -o x x.c && ! ./x && git --version && python3 -c 'import ssl' && make --version && go version
CMD ["true"]
`})
	if got := b.sh("test -s /etc/ssl/certs/ca-certificates.crt && apt-get --version | head -1 && curl --version | cut -d' ' -f1 | head -1"); !strings.HasPrefix(got, "apt ") || !strings.HasSuffix(got, "curl") {
		t.Errorf("got %q", got)
	}
}

func TestExamples(t *testing.T) {
	p := sharedPlatform(t)
	if err := p.baseImages(t.Context(), func(string) {}, "deis/run", "deis/build"); err != nil {
		t.Fatal(err)
	}
	hello := mustBuild(t, newRepo(t), "app-hello", example(t, "hello"))
	if got := hello.sh("cd /app && perl -c server.pl"); got != "server.pl syntax OK" || len(hello.Procfile) != 0 {
		t.Errorf("hello: %s, %v", got, hello.Procfile)
	}
	goApp := mustBuild(t, newRepo(t), "app-go", example(t, "go"))
	if got := goApp.sh("app nothing 2>&1 || true"); got != "usage: app web|worker" || fmt.Sprint(goApp.Procfile) != "map[web:exec app web worker:exec app worker]" {
		t.Errorf("go: %s, %v", got, goApp.Procfile)
	}
	if _, ok := goApp.config.Config.ExposedPorts["5000/tcp"]; !ok {
		t.Errorf("go exposes %v", goApp.config.Config.ExposedPorts)
	}
	t.Logf("hello %v, go %v", hello.Duration, goApp.Duration)
}

// example returns the files of an example.
func example(t *testing.T, name string) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..", "examples", name)
	files := map[string]string{}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(root, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}
