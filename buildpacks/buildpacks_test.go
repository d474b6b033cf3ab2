package buildpacks_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBuildpacks runs the buildpacks of Go, Node.js, static sites, Procfiles and classic buildpacks in the root of the
// build image, as its user cnb. Node.js and modules come from their registries.
func TestBuildpacks(t *testing.T) {
	root := buildRoot(t)
	cache := os.Getenv("DEIS_TEST_BASE_CACHE")
	if cache == "" {
		cache = filepath.Join("..", ".deis", "cache", "base")
	}
	output(t, exec.Command("tar", "-x", "-C", root, "-f", filepath.Join(cache, "build.tar"), "./usr/share/nodejs"))
	for _, layer := range []string{"go.tar", "gocache.tar"} {
		output(t, exec.Command("tar", "-x", "-C", root, "-f", filepath.Join(cache, layer)))
	}
	for _, file := range []string{"/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"} {
		output(t, exec.Command("cp", "--dereference", "--remove-destination", file, filepath.Join(root, file)))
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *buildpackRun)
	}{
		{"procfile", testProcfile},
		{"classic", testClassic},
		{"static", testStatic},
		{"go/example", testGoExample},
		{"go/programs", testGoPrograms},
		{"go/workspace", testGoWorkspace},
		{"go/failures", testGoFailures},
		{"nodejs/example", testNodeExample},
		{"nodejs/build", testNodeBuild},
		{"nodejs/yarn", testNodeYarn},
		{"nodejs/pnpm", testNodePnpm},
		{"nodejs/versions", testNodeVersions},
		{"nodejs/ruby", testNodeForRuby},
		{"nodejs/python", testNodeForPython},
		{"nodejs/failures", testNodeFailures},
	} {
		t.Run(test.name, func(t *testing.T) {
			name, _, _ := strings.Cut(test.name, "/")
			b := newRun(t, root, name)
			b.env = []string{"NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt"}
			test.run(t, b)
		})
	}
}

func testProcfile(t *testing.T, b *buildpackRun) {
	for _, test := range []struct {
		in   string
		want map[string]string
		err  string
	}{
		{in: "", want: map[string]string{}},
		{in: "# nothing\n\n", want: map[string]string{}},
		{in: "web: ./run\r\nworker: bin/work -v\r\n", want: map[string]string{"web": "./run", "worker": "bin/work -v"}},
		{in: "\uFEFFweb: x", want: map[string]string{"web": "x"}},
		{in: `web: "quoted \"$PORT\" \\"`, want: map[string]string{"web": `quoted "$PORT" \`}},
		{in: "web: >-\n  one\n  two\n", want: map[string]string{"web": "one two"}},
		{in: "web: |\n  one\n  two\n", want: map[string]string{"web": "one\ntwo"}},
		{in: "web: python -c 'print(1)' # 2", want: map[string]string{"web": "python -c 'print(1)' # 2"}},
		{in: "web: java -Dx=a: b\nworker: y", want: map[string]string{"web": "java -Dx=a: b", "worker": "y"}},
		{in: `web: "x" y`, want: map[string]string{"web": `"x" y`}},
		{in: "web: 1", want: map[string]string{"web": "1"}},
		{in: "web: x\n\nweb: y", err: `Procfile line 3: process type "web" is there twice`},
		{in: "web: x\nweb", err: "Procfile line 2: "},
		{in: "\nweb:\n  - x", err: `Procfile line 2: the command of "web" is not one text`},
		{in: "web:\n", err: `Procfile line 1: "web" has no command`},
		{in: "web: ~\n", err: `Procfile line 1: "web" has no command`},
		{in: "- web", err: `Procfile line 1: want lines like "web: command"`},
		{in: "just text", err: `Procfile line 1: want lines like`},
		{in: "-web: x", err: `Procfile line 1: "-web" is no process type`},
		{in: "a: &x y\nb: *x", err: `Procfile line 2: the command of "b" is not one text`},
		{in: "web: \"a\\0b\"", err: "Procfile line 1: a command holds a NUL character"},
		{in: "web: \xff", err: "Procfile: it is not UTF-8 text"},
	} {
		files := map[string]string{"Procfile": test.in}
		if test.err != "" {
			want(t, b.fail(files), " !     "+test.err)
			continue
		}
		b.build(files)
		got := map[string]string{}
		for _, p := range b.processes() {
			if len(p.command) != 3 || p.command[0] != "bash" || p.command[1] != "-c" || p.isDefault != (p.name == "web") {
				t.Errorf("%q: process %+v", test.in, p)
				continue
			}
			got[p.name] = p.command[2]
		}
		if !maps.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
	want(t, b.notDetected(nil), "no Procfile in the root\n")
}

func testClassic(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "SECRET="+canary)
	want(t, b.notDetected(nil), "no classic buildpack")
	for name, text := range map[string]string{
		"bin/detect": "#!/bin/sh\necho Fancy\nexit 1\n",
		"bin/compile": `#!/bin/bash
set -e
[ "$STACK" = heroku-22 ] && [ "$(cat "$3/SECRET")" = ` + canary + ` ] && [ "$HOME" != "$1" ]
echo "run $(cat "$2/count" 2>/dev/null || echo 0)"
echo 1 >"$2/count"
echo 'export FOO=bar' >"$(dirname "$0")/../export"
mkdir -p "$1/.profile.d" "$1/vendor/deep"
cat >"$1/.profile.d/fancy.sh" <<'SH'
echo noise
export PATH="$HOME/vendor/bin:$PATH" TEXT=$'a "b"\n\\c \e'
SH
touch "$1/vendor/deep/x.log" "$1/keep.txt"
echo 'clock: tick' >"$1/Procfile"
`,
		"bin/release": "#!/bin/sh\necho '---'\necho 'config_vars:'\necho '  LEVEL: \"5\"'\necho 'default_process_types:'\necho '  web: fancy --port $PORT'\n",
	} {
		path := b.path(filepath.Join("cnb/classic/bin", filepath.Base(name)))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	// As the platform gives it: a link to a directory that cannot be written.
	output(t, exec.Command("chown", "-R", "0:0", b.path("cnb")))
	if err := os.Symlink("/cnb/classic", b.path("cnb/buildpack/target")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(b.path("platform/env"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.path("platform/env/SECRET"), []byte(canary), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(b.path("platform/env/SECRET"))
	files := map[string]string{"a.txt": "", ".slugignore": "# logs\n*.txt\r\n**/*.log\n/../../etc\n"}
	want(t, b.build(files), "-----> Fancy app detected", "run 0", "Default process types -> web, clock")
	for _, gone := range []string{"a.txt", "keep.txt", "vendor/deep/x.log"} {
		if _, err := os.Stat(b.path("workspace/" + gone)); err == nil {
			t.Errorf("%s is not left out", gone)
		}
	}
	if got := b.web(); !slices.Equal(got, []string{"bash", "-c", "fancy --port $PORT"}) {
		t.Errorf("web is %q", got)
	}
	if level, err := os.ReadFile(b.path("layers/profile/env.launch/LEVEL.default")); err != nil || string(level) != "5" {
		t.Errorf("LEVEL is %q, %v", level, err)
	}
	answer := output(t, b.command([]string{"KEPT=1"}, "bash", "-c", "/layers/profile/exec.d/profile 3>&1 2>/dev/null"))
	want(t, answer, `HOME = "/workspace"`, `PATH = "/workspace/vendor/bin:/usr/local/sbin:`, `TEXT = "a \"b\"\u000A\\c \u001B"`)
	if strings.Contains(answer, "noise") || strings.Contains(answer, "KEPT") {
		t.Errorf("too much in %s", answer)
	}
	b.wantNoCanary()
	b.restore()
	want(t, b.build(files), "run 1")

	if err := os.WriteFile(b.path("cnb/classic/bin/compile"), []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	want(t, b.fail(files), "bin/compile failed (status 3)")
}

func testStatic(t *testing.T, b *buildpackRun) {
	page := map[string]string{"dist/index.html": "<p>hello</p>"}
	start := time.Now()
	want(t, b.build(page), "Serving dist/, where index.html is", "Compiling the server")
	cold := time.Since(start)
	before := b.launchTree("server")
	if body := b.ask("/", "static-server", "server"); body != "<p>hello</p>" {
		t.Errorf("answer %q", body)
	}
	b.restore()
	start = time.Now()
	want(t, b.build(page), "Using the server of the last build")
	t.Logf("cold %s, unchanged %s", cold.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	b.fresh()
	b.build(page)
	if after := b.launchTree("server"); !maps.Equal(before, after) {
		t.Errorf("two builds of the same differ: %v", differences(before, after))
	}

	files := map[string]string{
		"web/a.html":  "",
		"static.json": `{"root": "web/", "clean_urls": true, "error_page": "no\"pe.html", "routes": {"/**": "a.html"}, "headers": {}}`,
	}
	want(t, b.build(files), "Serving web, as static.json says", " !     Not honoured in static.json: headers")
	if got, want := b.web(), []string{
		"static-server", "-root", "web", "-error-page", `no"pe.html`, "-clean-urls", "-route", "/**=a.html",
	}; !slices.Equal(got, want) {
		t.Errorf("web is %q, want %q", got, want)
	}
	want(t, b.build(map[string]string{"Staticfile": "root: site # here\npushstate: enabled\n", "site/index.html": ""}), "Serving site, as Staticfile says")
	if got := b.web(); !slices.Equal(got[1:], []string{"-root", "site", "-route", "/**=index.html"}) {
		t.Errorf("web is %q", got)
	}
	b.build(map[string]string{"static.json": `{"root": "/"}`})
	if got := b.web(); !slices.Equal(got[1:], []string{"-root", "."}) {
		t.Errorf("web is %q", got)
	}
	want(t, b.fail(map[string]string{"static.json": "{"}), " !     static.json cannot be read")
	want(t, b.fail(map[string]string{"static.json": `{"root": "gone"}`}), " !     The directory to serve, gone, does not exist")
	want(t, b.notDetected(map[string]string{"a.html": ""}), "no static.json, no Staticfile, and no index.html in the root, public/, dist/ or _site/")
}

func testGoExample(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "SECRET="+canary)
	example := filepath.Join("..", "examples", "golang")
	start := time.Now()
	want(t, b.buildDir(example), "it satisfies go.mod (go 1.26)", "Compiling greeter")
	cold := time.Since(start)
	if body := b.ask("/", "listening on port", "programs"); body != "Powered by Deis\n" {
		t.Errorf("answer %q", body)
	}
	if links := output(t, exec.Command("find", b.path("layers/compiler"), "-type", "l")); strings.Count(links, "\n") < 100 {
		t.Error("the compiler's cache has lost its links to the compiled standard library")
	}
	before := b.launchTree("programs")
	b.wantComponents("programs.sbom.cdx.json", "pkg:golang/github.com/go-chi/chi/v5@v5.2.3")
	b.restore()
	start = time.Now()
	want(t, b.buildDir(example), "Using cached modules")
	unchanged := time.Since(start)
	b.restore()
	b.empty("workspace")
	output(t, exec.Command("cp", "-r", example+"/.", b.path("workspace")))
	output(t, exec.Command("sed", "-i", "s/OK/FINE/", b.path("workspace/main.go")))
	b.own()
	start = time.Now()
	if out, err := b.both(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Logf("cold %s, unchanged %s, one file changed %s", cold.Round(time.Millisecond),
		unchanged.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	if body := b.ask("/healthz", "listening on port", "programs"); body != "FINE\n" {
		t.Errorf("answer %q", body)
	}
	b.wantNoCanary()
	b.fresh()
	b.buildDir(example)
	if after := b.launchTree("programs"); !maps.Equal(before, after) {
		t.Errorf("two builds of the same differ: %v", differences(before, after))
	}
}

func testGoPrograms(t *testing.T, b *buildpackRun) {
	const program = "package main\n\nfunc main() { println(\"hello\") }\n"
	files := map[string]string{
		"go.mod":            "module example.com/shop/v2\n\ngo 1.26\n",
		"lib.go":            "package shop\n",
		"cmd/shop/main.go":  program,
		"cmd/clean/main.go": program,
		"tools/gen/main.go": program,
	}
	want(t, b.build(files), "Compiling clean shop")
	if got := b.web(); !slices.Equal(got, []string{"shop"}) {
		t.Errorf("web is %q", got)
	}
	programs := func(want ...string) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(b.launchTree("programs"))); !slices.Equal(got, want) {
			t.Errorf("programs are %q, want %q", got, want)
		}
	}
	programs("programs/bin/clean", "programs/bin/shop")

	// A program that is no longer made is not in the image either.
	b.restore()
	files["go.mod"] += "// +heroku install ./tools/... ./cmd/clean\n"
	want(t, b.build(files), "Compiling clean gen")
	programs("programs/bin/clean", "programs/bin/gen")
	if _, err := os.Stat(b.path("layers/launch.toml")); err == nil {
		t.Error("there is a web process")
	}
	b.env = append(b.env, "GO_INSTALL_PACKAGE_SPEC=./cmd/shop", "GO_LINKER_SYMBOL=main.version", "GO_LINKER_VALUE=42")
	files["cmd/shop/main.go"] = "package main\n\nvar version string\n\nfunc main() { println(version) }\n"
	b.build(files)
	if out := output(t, b.command(nil, "/layers/programs/bin/shop")); out != "42\n" {
		t.Errorf("the program says %q", out)
	}

	// With C, and with vendored modules.
	b.env = b.env[:len(b.env)-3]
	vendored := map[string]string{
		"go.mod":                     "module example.com/app\n\ngo 1.26\n\nrequire example.com/c v1.0.0\n",
		"main.go":                    "package main\n\nimport \"example.com/c\"\n\nfunc main() { println(c.Two()) }\n",
		"vendor/modules.txt":         "# example.com/c v1.0.0\n## explicit; go 1.26\nexample.com/c\n",
		"vendor/example.com/c/c.go":  "package c\n\n// int two(void) { return 2; }\nimport \"C\"\n\nfunc Two() int { return int(C.two()) }\n",
		"vendor/example.com/c/no.go": "//go:build !cgo\n\npackage c\n\nfunc Two() int { return 0 }\n",
	}
	want(t, b.build(vendored), "Using the modules in vendor/", "Compiling with cgo: example.com/c needs it")
	if out := output(t, b.command(nil, "/layers/programs/bin/app")); out != "2\n" {
		t.Errorf("the program says %q", out)
	}
}

func testGoFailures(t *testing.T, b *buildpackRun) {
	want(t, b.notDetected(map[string]string{"main.go": ""}), "no go.mod in the root, nor go.work\n")
	module := "module example.com/app\n\ngo 1.26\n"
	want(t, b.fail(map[string]string{"go.mod": module, "lib.go": "package lib\n"}), " !     There is no main package in .")
	want(t, b.fail(map[string]string{"go.mod": module, "main.go": "package main\n\nfunc main() { x }\n"}), "undefined: x", " !     Compilation failed")
	want(t, b.fail(map[string]string{"go.mod": "nonsense\n", "main.go": ""}), "go.mod:1", " !     ")
	b.env = append(b.env, "GOVERSION=1.99.99")
	want(t, b.fail(map[string]string{"go.mod": module, "main.go": ""}), " !     This version of Go is not to be had")

	// The newest patch release, of a proxy that has its name only.
	b.env = append(b.env, "GOVERSION=go1.22", "GOPROXY=file:///workspace/proxy")
	want(t, b.fail(map[string]string{
		"go.mod": module, "main.go": "",
		"proxy/golang.org/toolchain/@v/list": "v0.0.1-go1.22.2.linux-amd64\nv0.0.1-go1.22.13.linux-amd64\nv0.0.1-go1.23.0.linux-amd64\n",
	}), "download go1.22.13 ")
}

func testGoWorkspace(t *testing.T, b *buildpackRun) {
	const program = "package main\n\nimport \"example.com/greet\"\n\nfunc main() { println(greet.Text) }\n"
	files := map[string]string{
		"go.work":        "go 1.26\n\nuse (\n\t./services/api\n\t./greet\n)\n",
		"greet/go.mod":   "module example.com/greet\n\ngo 1.26\n",
		"greet/greet.go": "package greet\n\nconst Text = \"hello\"\n",

		"services/api/go.mod":  "module example.com/api\n\ngo 1.26\n",
		"services/api/main.go": program,
	}
	b.env = append(b.env, "GOVERSION=go1.26")
	want(t, b.build(files), "as GOVERSION or go.work's", "Compiling api")
	if out := output(t, b.command(nil, "/layers/programs/bin/api")); out != "hello\n" {
		t.Errorf("the program says %q", out)
	}
	files["greet/cmd/tool/main.go"] = program
	want(t, b.fail(files), " !     The modules of go.work have several programs (example.com/api example.com/greet/cmd/tool)", "GO_INSTALL_PACKAGE_SPEC")
	files["go.work"] += "// +heroku install ./greet/cmd/tool\n"
	want(t, b.build(files), "Compiling tool")
	if got := b.web(); !slices.Equal(got, []string{"tool"}) {
		t.Errorf("web is %q", got)
	}
}

func testNodeExample(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "SECRET="+canary)
	example := filepath.Join("..", "examples", "nodejs")
	start := time.Now()
	want(t, b.buildDir(example), "Using Node.js 24.", "engines.node in package.json is >=20", "Using npm 11.", "Installing dependencies from package-lock.json")
	cold := time.Since(start)
	if got := b.web(); !slices.Equal(got, []string{"node", "server.js"}) {
		t.Errorf("web is %q", got)
	}
	if body := b.ask("/", "listening on port", "runtime"); body != "Powered by Deis\n" {
		t.Errorf("answer %q", body)
	}
	before := b.launchTree("runtime", "modules")
	b.wantComponents("launch.sbom.cdx.json", "pkg:npm/fastify@5.", "pkg:npm/node@24.", "pkg:npm/%40fastify/error@")

	b.restore()
	start = time.Now()
	want(t, b.buildDir(example), "Using the dependencies of the last build")
	t.Logf("cold %s, unchanged %s", cold.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	for _, layer := range []string{"runtime", "modules"} {
		if _, err := os.Stat(b.path("layers/" + layer)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the unchanged layer %s has files, which replace those of the last image", layer)
		}
	}
	b.wantComponents("launch.sbom.cdx.json", "pkg:npm/fastify@5.")

	// The toolchain is still there, the modules are installed again.
	b.restore()
	b.empty("workspace")
	output(t, exec.Command("cp", "-r", example+"/.", b.path("workspace")))
	output(t, exec.Command("sed", "-i", `s/"lockfileVersion": 3,/"lockfileVersion":  3,/`, b.path("workspace/package-lock.json")))
	b.own()
	start = time.Now()
	out, err := b.both()
	if err != nil || strings.Contains(out, "Fetching") || !strings.Contains(out, "Installing dependencies") {
		t.Fatalf("lock changed: %v\n%s", err, out)
	}
	t.Logf("lock changed: %s", time.Since(start).Round(time.Millisecond))
	b.wantNoCanary()

	// Launch layers do not depend on what was there before.
	b.lose("runtime", "modules")
	b.buildDir(example)
	if after := b.launchTree("runtime", "modules"); !maps.Equal(before, after) {
		t.Errorf("two builds of the same differ: %v", differences(before, after))
	}
}

func testNodeBuild(t *testing.T, b *buildpackRun) {
	pack := `{"name": "app", "version": "1.0.0", "cacheDirectories": [".kept", "../out"],
		"scripts": {"heroku-prebuild": "echo first", "build": "is-ci; mkdir -p .kept && echo x >>.kept/x && wc -l <.kept/x >out.txt && echo mode $NODE_ENV", "start": "node a.js && true"},
		"dependencies": {"ms": "2.1.3", "unix-dgram": "2.0.6"}, "devDependencies": {"is-ci": "3.0.1"}}`
	files := map[string]string{"package.json": pack, "package-lock.json": b.npmLock(pack), ".nvmrc": "v24 # current\n"}
	first := b.build(files)
	want(t, first, ".nvmrc says 24", "Running the script \"heroku-prebuild\"", "Installing dependencies from package-lock.json",
		"Running the script \"build\"", "mode production", "Removing development dependencies")
	check := func(kept string) {
		t.Helper()
		if got, err := os.ReadFile(b.path("workspace/out.txt")); err != nil || strings.TrimSpace(string(got)) != kept {
			t.Errorf("the build saw %q, %v in the kept directory, want %s", got, err, kept)
		}
		if _, err := os.Stat(b.path("workspace/node_modules/ms/index.js")); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(b.path("workspace/node_modules/is-ci")); err == nil {
			t.Error("development dependencies are in the image")
		}
		if got := b.web(); !slices.Equal(got, []string{"npm", "start"}) {
			t.Errorf("web is %q", got)
		}
	}
	check("1")
	if _, err := os.Stat(b.path("workspace/node_modules/unix-dgram/build/Release/unix_dgram.node")); err != nil {
		t.Errorf("the native module is not compiled: %v", err)
	}
	b.wantComponents("launch.sbom.cdx.json", "pkg:npm/ms@2.1.3")
	if text, err := os.ReadFile(b.path("layers/launch.toml")); err != nil || !strings.Contains(string(text), "[[slices]]\npaths = [\"node_modules\"]") {
		t.Errorf("node_modules is no layer of its own: %v\n%s", err, text)
	}
	b.restore()
	start := time.Now()
	want(t, b.build(files), "Restoring .kept", "Restoring dependencies of the last build")
	t.Logf("with a build script, unchanged: %s", time.Since(start).Round(time.Millisecond))
	check("2")

	b.restore()
	b.env = append(b.env, "NPM_CONFIG_PRODUCTION=false")
	b.build(files)
	if _, err := os.Stat(b.path("workspace/node_modules/is-ci")); err != nil {
		t.Error("development dependencies are wanted, but gone")
	}
	b.restore()
	files["package.json"] = strings.Replace(pack, "is-ci;", "exit 4;", 1)
	want(t, b.fail(files), ` !     The script "build" of package.json failed`)
	files["package.json"] = strings.Replace(pack, "2.1.3", "2.1.2", 1)
	want(t, b.fail(files), "package-lock.json", " !     Dependencies cannot be installed", `run "npm install" and commit it`)
	delete(files, "package-lock.json")
	want(t, b.build(files), " !     There is no lock file")
}

func testNodeYarn(t *testing.T, b *buildpackRun) {
	files := map[string]string{
		"package.json": `{"name": "app", "version": "1.0.0", "license": "MIT", "dependencies": {"ms": "~2.1.3"}}`,
		"server.js":    "console.log(require('ms')('1s'))",
		"yarn.lock": `# yarn lockfile v1


ms@~2.1.3:
  version "2.1.3"
  resolved "https://registry.npmjs.org/ms/-/ms-2.1.3.tgz"
  integrity sha512-6FlzubTLZG3J2a/NVCAleEhjzq5oxgHyaCU9yYXvcLsvoVaHJq/s5xXI6/XXP6tz7R9xAOtHnSO/tXtF3WRTlA==
`,
	}
	want(t, b.build(files), "Using yarn 1.", "Installing dependencies from yarn.lock")
	if got := b.web(); !slices.Equal(got, []string{"node", "server.js"}) {
		t.Errorf("web is %q", got)
	}
	if out := output(t, b.command(nil, "/layers/runtime/bin/node", "server.js")); out != "1000\n" {
		t.Errorf("the app says %q", out)
	}
	b.restore()
	want(t, b.build(files), "Using the dependencies of the last build: yarn.lock is unchanged")
}

// testNodePnpm has an app, a workspace and an app without dependencies, with the same toolchain.
func testNodePnpm(t *testing.T, b *buildpackRun) {
	files := map[string]string{
		"package.json": `{"name": "app", "version": "1.0.0", "packageManager": "pnpm@10.30.0+sha512.abc", "dependencies": {"ms": "2.1.3"}}`,
		"server.js":    "console.log(require('ms')('1s'))",
		"pnpm-lock.yaml": `lockfileVersion: '9.0'

importers:

  .:
    dependencies:
      ms:
        specifier: 2.1.3
        version: 2.1.3

packages:

  ms@2.1.3:
    resolution: {integrity: sha512-6FlzubTLZG3J2a/NVCAleEhjzq5oxgHyaCU9yYXvcLsvoVaHJq/s5xXI6/XXP6tz7R9xAOtHnSO/tXtF3WRTlA==}

snapshots:

  ms@2.1.3: {}
`,
	}
	want(t, b.build(files), "Using pnpm 10.30.0", "Installing dependencies from pnpm-lock.yaml")
	before := b.launchTree("runtime", "modules")
	if out := output(t, b.command(nil, "/layers/runtime/bin/node", "server.js")); out != "1000\n" {
		t.Errorf("the app says %q", out)
	}
	b.restore()
	want(t, b.build(files), "Using the dependencies of the last build: pnpm-lock.yaml is unchanged")
	b.lose("runtime", "modules")
	b.build(files)
	if after := b.launchTree("runtime", "modules"); !maps.Equal(before, after) {
		t.Errorf("two builds of the same differ: %v", differences(before, after))
	}

	pack := `{"name": "app", "version": "1.0.0", "packageManager": "pnpm@10.30.0"}`
	workspace := map[string]string{
		"package.json":            pack,
		"pnpm-workspace.yaml":     "packages:\n  - packages/*\n",
		"packages/a/package.json": `{"name": "a", "version": "1.0.0", "dependencies": {"ms": "2.1.3"}}`,
		"pnpm-lock.yaml":          strings.Replace(files["pnpm-lock.yaml"], "  .:\n", "  .: {}\n\n  packages/a:\n", 1),
	}
	for range 2 {
		b.restore()
		want(t, b.build(workspace), "Installing dependencies from pnpm-lock.yaml")
		if _, err := os.Stat(b.path("workspace/packages/a/node_modules/ms/index.js")); err != nil {
			t.Error(err)
		}
		b.wantComponents("launch.sbom.cdx.json", "pkg:npm/ms@2.1.3")
	}
	b.restore()
	want(t, b.build(map[string]string{"package.json": pack, "server.js": ""}), "No dependencies")
	if text, err := os.ReadFile(b.path("layers/launch.sbom.cdx.json")); err != nil || strings.Contains(string(text), "pkg:npm/ms@") {
		t.Errorf("the SBOM lists what was removed, %v: %s", err, text)
	}
}

// testNodeVersions asks the buildpack's functions, which install nothing.
func testNodeVersions(t *testing.T, b *buildpackRun) {
	const script = `set -euo pipefail
layers=/layers arch=x64 CNB_BUILDPACK_DIR=/cnb/buildpack CNB_BP_PLAN_PATH=/dev/null
for file in common versions install; do . /cnb/buildpack/lib/$file.sh; done
read_package
choose_node
choose_npm
choose_manager
choose_manager_version
echo "npm $npm_version"
is_repeatable && echo "The installation is kept" || echo "The installation is repeated"`
	kept := `"engines": {"node": "24.x", "npm": "11.x"}, "dependencies": `
	for _, test := range []struct{ pack, lock, text, want string }{
		{`"engines": {"node": "18.x", "npm": ">=8"}`, "", "", "Using npm 10."},
		{`"engines": {"node": "18.x", "npm": "^9.0.0"}`, "", "", "Using npm 9."},
		{`"engines": {"pnpm": ">=8"}`, "pnpm-lock.yaml", "lockfileVersion: '6.0'\n", "Using pnpm 8."},
		{`"engines": {"pnpm": ">=8"}`, "pnpm-lock.yaml", "lockfileVersion: '9.0'\n", "Using pnpm 10."},
		{`"engines": {"pnpm": "9.x"}`, "pnpm-lock.yaml", "lockfileVersion: '9.0'\n", "Using pnpm 9."},
		{kept + `{"ms": "~2.1.3", "a": "~2"}`, "package-lock.json", "{}", "is kept"},
		{kept + `{"ms": "~/ms"}`, "package-lock.json", "{}", "is repeated"},
		{kept + `{"ms": "./ms"}`, "package-lock.json", "{}", "is repeated"},
		{kept + `{"ms": "file:ms"}`, "package-lock.json", "{}", "is repeated"},
		{kept + `{"@prisma/client": "6.0.0"}`, "package-lock.json", "{}", "is repeated"},
		{kept + `{"ms": "2.1.3"}`, ".pnpmfile.cjs", "", "is repeated"},
	} {
		files := map[string]string{"package.json": "{" + test.pack + "}"}
		if test.lock != "" {
			files[test.lock] = test.text
		}
		b.source(files)
		out := output(t, b.command(b.env, "bash", "-c", script))
		if !strings.Contains(out, test.want) {
			t.Errorf("%s with %s: want %q in:\n%s", test.pack, test.lock, test.want, out)
		}
	}
}

func testNodeForRuby(t *testing.T, b *buildpackRun) {
	rake := `abort "no key" unless ENV["SECRET_KEY_BASE"]
puts IO.popen(["node", "-p", "require('ms')('2s') + ' ' + process.env.NODE_ENV + ' ' + process.env.SKIP_YARN_INSTALL"], &:read)`
	files := b.railsApp(rake)
	files["package.json"] = `{"name": "app", "version": "1.0.0", "scripts": {"start": "watch"}, "devDependencies": {"ms": "2.1.3"}}`
	files["package-lock.json"] = b.npmLock(files["package.json"])
	node, ruby := b.buildFor("ruby", files)
	want(t, node, "Installing dependencies from package-lock.json")
	want(t, ruby, "2000 production 1", "web -> bundle exec rails server")
	b.restore()
	node, ruby = b.buildFor("ruby", files)
	want(t, node, "Restoring dependencies of the last build")
	want(t, ruby, "Reusing the gems of the last build", "2000 production 1")
}

func testNodeForPython(t *testing.T, b *buildpackRun) {
	files := map[string]string{
		"package.json":     `{"name": "app", "version": "1.0.0", "scripts": {"build": "echo made >made.txt"}}`,
		"requirements.txt": "",
		"app.py":           "",
	}
	_, python := b.buildFor("python", files)
	want(t, python, "web -> python app.py")
	if made, err := os.ReadFile(b.path("workspace/made.txt")); err != nil || string(made) != "made\n" {
		t.Errorf("the build script made %q, %v", made, err)
	}

	// A start script says more than the name of a file. That of Node.js stays where Python has no server, but beside Django.
	b.restore()
	files["package.json"] = strings.Replace(files["package.json"], `"build"`, `"start": "node a.js", "build"`, 1)
	b.buildFor("python", files)
	if got := b.web(); !slices.Equal(got, []string{"node", "a.js"}) {
		t.Errorf("web is %q", got)
	}
	b.restore()
	files["manage.py"] = ""
	b.buildFor("python", files)
	if text, err := os.ReadFile(b.path("layers/launch.toml")); err == nil {
		t.Errorf("there is a web process: %s", text)
	}
}

// buildFor builds with the buildpack of Node.js and then that of a language that needs it, and returns what they say.
func (b *buildpackRun) buildFor(language string, files map[string]string) (node, other string) {
	b.t.Helper()
	b.source(files)
	b.use(language)
	if out, err := b.phase("detect"); err != nil || out != "" { // its plan is that of the builds
		b.t.Fatalf("detect: %v\n%s", err, out)
	}
	b.use("nodejs")
	node, err := b.phase("build")
	if err != nil {
		b.t.Fatalf("build: %v\n%s", err, node)
	}
	b.use(language)
	env := b.env
	defer func() { b.env = env }()
	b.env = append(slices.Clone(env), b.buildEnv("toolchain")...)
	if other, err = b.phase("build"); err != nil {
		b.t.Fatalf("build: %v\n%s", err, other)
	}
	return node, other
}

// buildEnv is what a layer adds to the environment of the buildpacks that follow.
func (b *buildpackRun) buildEnv(layer string) []string {
	b.t.Helper()
	text, err := os.ReadFile(b.path("layers/" + layer + ".toml"))
	if err != nil || !strings.Contains(string(text), "build = true") {
		b.t.Fatalf("the layer %s is not for builds: %v\n%s", layer, err, text)
	}
	return append(b.layerEnv(layer, "env.build"), "PATH=/layers/"+layer+"/bin:/usr/local/bin:/usr/bin:/bin")
}

func testNodeFailures(t *testing.T, b *buildpackRun) {
	want(t, b.notDetected(map[string]string{"server.js": ""}), "no package.json in the root\n")
	for _, test := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"package.json": "{"}, "package.json cannot be read"},
		{map[string]string{"package.json": "[]"}, "package.json cannot be read"},
		{map[string]string{"package.json": `{"engines": {"node": "soon"}}`}, `"soon" is no range of versions of node-linux-`},
		{map[string]string{"package.json": `{"engines": {"node": "99.x"}}`}, `There is no version of node-linux-`},
		{map[string]string{"package.json": "{}", ".nvmrc": "lts/zinc"}, `The release line "lts/zinc" is not known`},
		{map[string]string{"package.json": `{"packageManager": "bun@1.0.0"}`}, "packageManager in package.json is bun"},
		{map[string]string{"package.json": "{}", "yarn.lock": "", "package-lock.json": ""}, "There is more than one lock file (package-lock.json yarn.lock)"},
	} {
		want(t, b.fail(test.files), " !     "+test.want)
	}
	b.env = append(b.env, "npm_config_registry=http://127.0.0.1:9")
	b.fresh()
	want(t, b.fail(map[string]string{"package.json": "{}"}), " !     The npm registry (http://127.0.0.1:9) does not say which versions of node-linux-")
}

// npmLock is the lock file for a package.json.
func (b *buildpackRun) npmLock(pack string) string {
	b.t.Helper()
	b.source(map[string]string{"package.json": pack})
	output(b.t, b.command(b.env, "npm", "install", "--package-lock-only", "--no-audit", "--cache", "/tmp/npm", "--loglevel", "error"))
	lock, err := os.ReadFile(b.path("workspace/package-lock.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(lock)
}

type process struct {
	name      string
	command   []string
	isDefault bool
}

var processTable = regexp.MustCompile(`(?m)^\[\[processes\]\]\ntype = "(.*)"\ncommand = (\[.*\])\ndefault = (true|false)$`)

// processes are those of launch.toml.
func (b *buildpackRun) processes() []process {
	b.t.Helper()
	text, err := os.ReadFile(b.path("layers/launch.toml"))
	if err != nil {
		b.t.Fatal(err)
	}
	var all []process
	for _, match := range processTable.FindAllSubmatch(text, -1) {
		p := process{name: string(match[1]), isDefault: string(match[3]) == "true"}
		if err := json.Unmarshal(match[2], &p.command); err != nil {
			b.t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// launchTree is the content of launch layers.
func (b *buildpackRun) launchTree(layers ...string) map[string]string {
	tree := b.tree()
	maps.DeleteFunc(tree, func(name, _ string) bool {
		layer, _, inside := strings.Cut(name, "/")
		return !inside || !slices.Contains(layers, layer)
	})
	if len(tree) == 0 {
		b.t.Errorf("nothing is in the layers %q", layers)
	}
	return tree
}

// lose removes layers, as when the last image is gone.
func (b *buildpackRun) lose(layers ...string) {
	b.t.Helper()
	for _, layer := range layers {
		if err := errors.Join(os.RemoveAll(b.path("layers/"+layer)), os.RemoveAll(b.path("layers/"+layer+".toml"))); err != nil {
			b.t.Fatal(err)
		}
	}
}

// wantComponents checks a list of components for the beginnings of package URLs.
func (b *buildpackRun) wantComponents(file string, purls ...string) {
	b.t.Helper()
	text, err := os.ReadFile(b.path("layers/" + file))
	if err != nil || !json.Valid(text) {
		b.t.Fatalf("%s: %v: %s", file, err, text)
	}
	for _, purl := range purls {
		want(b.t, string(text), fmt.Sprintf(`"purl":"%s`, purl))
	}
	want(b.t, string(text), `"bomFormat":"CycloneDX"`)
}

// ask starts the process web with the programs of a layer, sends one request once it says that it is ready, and ends it.
func (b *buildpackRun) ask(path, ready, layer string) string {
	b.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	_ = listener.Close()
	cmd := b.command([]string{"PORT=" + port, "PATH=/layers/" + layer + "/bin:/usr/bin:/bin:/usr/sbin"}, b.web()...)
	log := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	body, err := ask("http://127.0.0.1:" + port + path)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if end := cmd.Wait(); end != nil || err != nil {
		b.t.Errorf("%v; ended with %v; log:\n%s", err, end, log)
	}
	return body
}
