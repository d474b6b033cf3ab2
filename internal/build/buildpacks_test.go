package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

// testBuilder is a builder of shell scripts on deis/run.
const testBuilder = "docker.io/deis/test-builder:latest"

// programs is where 'make build' leaves binaries.
func programs() string {
	if dir := os.Getenv("DEIS_TEST_BIN"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "bin")
}

// shellBuildpack keeps a layer of "dependencies" by lock file, and runs app.sh. It counts how often it did what.
const shellBuildpack = `#!/bin/sh
set -eu
layers=$1 platform=$2
deps=$layers/deps
lock=$(cat deps.lock 2>/dev/null || true)
if [ -f "$deps.toml" ] && grep -q "lock = \"$lock\"" "$deps.toml"; then
	echo "dependencies are kept"
else
	echo "installing dependencies"
	rm -rf "$deps"; mkdir -p "$deps/bin"
	head -c "${SIZE:-1000}" /dev/zero >"$deps/zeros"
	echo "$lock" >"$deps/lock"
fi
printf '[types]\nlaunch = true\ncache = true\n[metadata]\nlock = "%s"\n' "$lock" >"$deps.toml"
[ ! -f "$platform/env/GREETING" ] || echo "the greeting has $(wc -c <"$platform/env/GREETING") characters"
[ ! -f say-version ] || echo "version $SOURCE_VERSION"
[ ! -f fail ] || { echo "sorry"; exit 7; }
[ ! -f tamper ] || . ./tamper
ls -la / >/dev/null
cat >"$layers/launch.toml" <<END
[[processes]]
type = "web"
command = ["/bin/sh", "-c", "exec sh app.sh $(wc -c <app.sh)"]
default = true
[[processes]]
type = "worker"
command = ["sh"]
args = ["app.sh", "a b"]
END
printf '{"bomFormat":"CycloneDX","specVersion":"1.4","version":1,"components":[{"type":"library","name":"leftpad","version":"1"}]}' >"$layers/launch.sbom.cdx.json"
`

var builderOnce struct {
	sync.Once
	err error
}

// buildpackPlatform is the shared platform with the test builder.
func buildpackPlatform(t testing.TB) *platform {
	t.Helper()
	p := sharedPlatform(t)
	builderOnce.Do(func() {
		err := build.BaseImages(context.Background(), build.BaseConfig{
			ContainerdAddress: p.socket, Namespace: p.namespace, Cache: layersCache(), Images: []string{"deis/lifecycle"},
			Lifecycle: filepath.Join(programs(), "lifecycle"), Log: func(string) {},
		})
		builderOnce.err = errors.Join(err, p.makeBuilder(context.Background(), testBuilder))
	})
	if builderOnce.err != nil {
		t.Fatal(builderOnce.err)
	}
	return p
}

func (p *platform) makeBuilder(ctx context.Context, name string) error {
	buildpack := func(id, detect, build string) map[string]string {
		dir := "cnb/buildpacks/" + strings.ReplaceAll(id, "/", "_") + "/1.0.0/"
		return map[string]string{
			dir + "buildpack.toml": "api = \"0.11\"\n[buildpack]\nid = \"" + id + "\"\nversion = \"1.0.0\"\nname = \"" + id + "\"\nsbom-formats = [\"application/vnd.cyclonedx+json\"]\n",
			dir + "bin/detect":     "#!/bin/sh\n" + detect,
			dir + "bin/build":      build,
		}
	}
	files := map[string]string{
		"cnb/order.toml": "[[order]]\n[[order.group]]\nid = \"test/shell\"\nversion = \"1.0.0\"\n[[order]]\n[[order.group]]\nid = \"test/other\"\nversion = \"1.0.0\"\n",
	}
	maps.Copy(files, buildpack("test/shell", "[ ! -f broken ] || exit 3\n[ -f app.sh ] || { echo 'no app.sh'; exit 100; }\n", shellBuildpack))
	maps.Copy(files, buildpack("test/other", "[ -f other ] || { echo 'no file named other'; exit 100; }\n", "#!/bin/sh\n"))
	return p.putImage(ctx, name, "docker.io/deis/run:cnb", files, func(c *ocispec.ImageConfig) {
		c.Env = append(c.Env, "CNB_USER_ID=1000", "CNB_GROUP_ID=1000")
		c.Labels = map[string]string{
			"io.buildpacks.builder.metadata": `{"buildpacks":[{"id":"test/shell","version":"1.0.0"},{"id":"test/other","version":"1.0.0"}],"stack":{"runImage":{"image":"deis/run:cnb"}}}`,
			"io.buildpacks.buildpack.order":  `[{"group":[{"id":"test/shell","version":"1.0.0"}]},{"group":[{"id":"test/other","version":"1.0.0"}]}]`,
		}
	})
}

// openStore is open until the test ends.
func (p *platform) openStore(t testing.TB) *imagestore.Store {
	t.Helper()
	store, err := imagestore.Open(p.socket, p.namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// putImage makes an image of another one and a layer with files; no base is none.
func (p *platform) putImage(ctx context.Context, name, base string, files map[string]string, edit func(*ocispec.ImageConfig)) error {
	store, err := imagestore.Open(p.socket, p.namespace)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, done, err := store.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	config, layers := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}, []ocispec.Descriptor(nil)
	if base != "" {
		img, err := store.Image(ctx, base)
		if err != nil {
			return err
		}
		config, layers = img.Config, img.Manifest.Layers
	}
	data := layerOf(files)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := store.Write(ctx, desc, bytes.NewReader(data)); err != nil {
		return err
	}
	config.RootFS.DiffIDs = append(slices.Clone(config.RootFS.DiffIDs), desc.Digest)
	edit(&config.Config)
	_, err = store.Put(ctx, name, config, append(slices.Clone(layers), desc), nil)
	return err
}

// layerOf is a tar of files and their directories.
func layerOf(files map[string]string) []byte {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, c := range name {
			if dir := name[:i]; c == '/' && !dirs[dir] {
				dirs[dir] = true
				_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
			}
		}
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))})
		_, _ = io.WriteString(w, files[name])
	}
	_ = w.Close()
	return data.Bytes()
}

// push builds a commit of files with the test builder.
func (p *platform) push(t testing.TB, r *repo, req build.Request, files map[string]string) (*build.Result, string, error) {
	t.Helper()
	var log strings.Builder
	req.Tree = r.open(r.commit(files))
	req.Log = func(line string) { log.WriteString(line + "\n") }
	config := map[string]string{"DEIS_BUILDER": "deis/test-builder"}
	maps.Copy(config, req.Config)
	req.Config = config
	res, err := p.builder.Build(t.Context(), req)
	return res, log.String(), err
}

func mustPush(t *testing.T, r *repo, req build.Request, files map[string]string) built {
	t.Helper()
	p := buildpackPlatform(t)
	res, log, err := p.push(t, r, req, files)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return p.inspect(t, res, log)
}

func TestBuildpacks(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{"app.sh": "echo served $*\n", "deps.lock": "1", "120000:up": "../../etc/passwd", "100755:tool": "#!/bin/sh\n"}
	first := mustPush(t, r, build.Request{App: "bp-first"}, files)
	if first.Strategy != paas.StrategyBuildpacks || fmt.Sprint(first.Procfile) != "map[web:exec sh app.sh 15 worker:sh app.sh 'a b']" {
		t.Errorf("got %s, %v", first.Strategy, first.Procfile)
	}
	commit := first.config.Config.Labels["org.opencontainers.image.revision"]
	if first.Image != build.ImageName("bp-first", commit) || !slices.Contains(first.config.Config.Env, "GIT_SHA="+commit) || first.config.Config.Labels["deis.app"] != "bp-first" {
		t.Errorf("image %s has labels %v, environment %v", first.Image, first.config.Config.Labels, first.config.Config.Env)
	}
	for command, want := range map[string]string{
		"cd /workspace; sh app.sh x":                           "served x",
		"cat /layers/test_shell/deps/lock":                     "1",
		"readlink /workspace/up":                               "../../etc/passwd",
		"stat -c '%a %u:%g' /workspace/tool /workspace/app.sh": "755 1000:1000\n644 1000:1000",
		"cd /workspace; env " + strings.Join(first.config.Config.Env, " ") + " /cnb/process/worker": "served a b",
	} {
		if got := first.sh(command); got != want {
			t.Errorf("%s: got %q, want %q", command, got, want)
		}
	}
	for _, want := range []string{"-----> Building with buildpacks\n", "-----> test/shell app detected\n", "       installing dependencies\n", "-----> Discovering process types\n       Default process types for test/shell -> web, worker\n"} {
		if !strings.Contains(first.log, want) || !strings.Contains(first.Log, want) {
			t.Errorf("no line %q in\n%s", want, first.log)
		}
	}
	if !strings.Contains(string(first.SBOM), `"leftpad"`) {
		t.Errorf("SBOM: %s", first.SBOM)
	}

	again := mustPush(t, r, build.Request{App: "bp-first"}, files)
	if again.Digest != first.Digest || !strings.Contains(again.log, "built before") || !maps.Equal(again.Procfile, first.Procfile) {
		t.Errorf("unchanged: digest %s then %s\n%s", first.Digest, again.Digest, again.log)
	}
	files["app.sh"] = "echo changed\n"
	changed := mustPush(t, r, build.Request{App: "bp-first"}, files)
	if got := changed.sh("sh /workspace/app.sh"); got != "changed" || !strings.Contains(changed.log, "dependencies are kept") {
		t.Errorf("got %q\n%s", got, changed.log)
	}
	files["deps.lock"] = "2"
	if b := mustPush(t, r, build.Request{App: "bp-first"}, files); !strings.Contains(b.log, "installing dependencies") || b.sh("cat /layers/test_shell/deps/lock") != "2" {
		t.Errorf("%s", b.log)
	}
	t.Logf("first %v, unchanged %v, one file changed %v\n%s", first.Duration, again.Duration, changed.Duration, first.log)
}

// TestBuildpacksReproducible: with the cache cleared, and for another app, the same files make the same layers.
func TestBuildpacksReproducible(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{"app.sh": "echo 1\n"}
	config := map[string]string{"GREETING": "x"}
	first := mustPush(t, r, build.Request{App: "bp-same", Config: config}, files)
	cleared := mustPush(t, r, build.Request{App: "bp-same", Config: config, Cache: 1}, files)
	if first.Digest != cleared.Digest || !strings.Contains(cleared.log, "installing dependencies") {
		t.Errorf("%s then %s\n%s", first.Digest, cleared.Digest, cleared.log)
	}
	other := mustPush(t, r, build.Request{App: "bp-same2", Config: config}, files)
	if !slices.Equal(other.config.RootFS.DiffIDs, first.config.RootFS.DiffIDs) {
		t.Errorf("layers %v, those of another app %v", first.config.RootFS.DiffIDs, other.config.RootFS.DiffIDs)
	}
}

// TestConfigStaysSecret: config reaches buildpacks, and nothing that is kept.
func TestConfigStaysSecret(t *testing.T) {
	p, r := buildpackPlatform(t), newRepo(t)
	const canary = "canary-6b1f0c9a2d"
	files := map[string]string{"app.sh": "echo 1\n"}
	plain := mustPush(t, r, build.Request{App: "bp-secret"}, files)
	b := mustPush(t, r, build.Request{App: "bp-secret", Config: map[string]string{"GREETING": canary}}, files)
	if !strings.Contains(b.log, "the greeting has 17 characters") {
		t.Errorf("the buildpack saw no config:\n%s", b.log)
	}
	if plain.Digest != b.Digest {
		t.Errorf("config changed the image")
	}
	if strings.Contains(b.log+b.Log+string(b.SBOM)+string(b.Provenance), canary) {
		t.Error("the log holds the value")
	}
	for _, file := range []string{"buildkitd.log", "containerd.log", "buildkit/cache.db", "buildkit/history.db", "buildkit/containerd-overlayfs/metadata_v2.db"} {
		data, err := os.ReadFile(filepath.Join(p.dir, file))
		if err != nil && !(errors.Is(err, os.ErrNotExist) && strings.HasSuffix(file, ".log")) {
			t.Error(err)
		}
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s holds the value", file)
		}
	}
	store := p.client(t).ContentStore()
	blobs := 0
	err := store.Walk(t.Context(), func(info content.Info) error {
		data, err := content.ReadBlob(t.Context(), store, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
		if blobs++; bytes.Contains(data, []byte(canary)) {
			t.Errorf("blob %s holds the value", info.Digest)
		}
		return err
	})
	if err != nil || blobs < 5 {
		t.Errorf("%d blobs, %v", blobs, err)
	}
}

func TestBuildpackRefusals(t *testing.T) {
	app := map[string]string{"app.sh": "echo 1\n"}
	with := func(more map[string]string) map[string]string {
		files := maps.Clone(app)
		maps.Copy(files, more)
		return files
	}
	tests := []struct {
		name          string
		config, files map[string]string
		want          string // beginning of the error
		log           string
	}{
		{"nothing fits", nil, map[string]string{"Procfile": "web: x\n"}, "no buildpack fits these files", "no app.sh"},
		{"and the other", nil, map[string]string{"Procfile": "web: x\n"}, "no buildpack fits these files", "no file named other"},
		{"detect fails", nil, with(map[string]string{"broken": ""}), "a buildpack failed while it looked at the files", ""},
		{"build fails", nil, with(map[string]string{"fail": ""}), "a buildpack failed", "       sorry\n"},
		{"no processes", nil, map[string]string{"other": ""}, "the buildpacks found nothing to run", ""},
		{"Procfile", nil, with(map[string]string{"Procfile": "web:\n  - x\n"}), "Procfile line 1: the command of \"web\" is not one text", ""},
		{"no files", nil, map[string]string{}, "there are no files to build", ""},
		{"no builder", map[string]string{"DEIS_BUILDER": "deis/nothing"}, app, "the builder image deis/nothing is not on this machine", ""},
		{"no image's name", map[string]string{"DEIS_BUILDER": "NO SUCH"}, app, "\"NO SUCH\" is not the name of an image", ""},
		{"no builder at all", map[string]string{"DEIS_BUILDER": "deis/run"}, app, "the image deis/run is no builder of Cloud Native Buildpacks", ""},
		{"outside", map[string]string{"DEIS_APP_DIR": "../x"}, app, "DEIS_APP_DIR is \"../x\", which is outside of the repository", ""},
		{"no directory", map[string]string{"DEIS_APP_DIR": "x"}, app, "DEIS_APP_DIR is \"x\", but this commit has no such directory", ""},
		{"a file", map[string]string{"DEIS_APP_DIR": "app.sh"}, app, "DEIS_APP_DIR is \"app.sh\", but this commit has no such directory", ""},
		{"project.toml", nil, with(map[string]string{"project.toml": "[_]\nschema-version = \"0.2\"\n[io.buildpacks\n"}), "project.toml: toml: line 4 ", ""},
		{"project.toml of the future", nil, with(map[string]string{"project.toml": "[_]\nschema-version = \"9.9\"\n"}), "project.toml: unknown project descriptor schema version 9.9", ""},
		{"unknown buildpack", nil, with(map[string]string{"project.toml": "[_]\nschema-version = \"0.2\"\n[[io.buildpacks.group]]\nid = \"x/y\"\n"}), "project.toml names the buildpack x/y, which the builder deis/test-builder does not have\nIt has test/shell@1.0.0, test/other@1.0.0", ""},
		{"all excluded", nil, with(map[string]string{"project.toml": "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\nexclude = [\"*\"]\n"}), "there are no files to build", ""},
		{"malformed URL", map[string]string{"BUILDPACK_URL": "https://"}, app, "BUILDPACK_URL is not a URL", ""},
		{"no such host", map[string]string{"BUILDPACK_URL": "https://user:hunter2@nothing.invalid/x.git#v1"}, app, "cannot fetch the buildpack https://nothing.invalid/x.git#v1: ", "-----> Fetching custom buildpack\n       https://nothing.invalid/x.git#v1\n"},
		{"no such image", map[string]string{"BUILDPACK_URL": "docker://nothing.invalid/x"}, app, "cannot fetch the buildpack nothing.invalid/x:latest: the image is not on this machine, and its registry cannot be reached", ""},
		{"no package", map[string]string{"BUILDPACK_URL": "docker://deis/run"}, app, "the image docker.io/deis/run:latest is no package of a buildpack", ""},
	}
	p := buildpackPlatform(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, log, err := p.push(t, newRepo(t), build.Request{App: "bp-refused", Config: tt.config}, tt.files)
			e, ok := errors.AsType[*paas.Error](err)
			if !ok || e.Code != paas.Invalid || !strings.HasPrefix(e.Message, tt.want) {
				t.Errorf("got:  %v\nwant: %q\n%s", err, tt.want, log)
			}
			if !strings.Contains(log, tt.log) {
				t.Errorf("no %q in:\n%s", tt.log, log)
			}
			if strings.Contains(fmt.Sprintf("%s %+v %v", log, err, errors.Unwrap(err)), "hunter2") {
				t.Errorf("the password is in:\n%v\n%s", err, log)
			}
		})
	}
}

func TestAppDir(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{"services/a/app.sh": "echo a\n", "services/b/app.sh": "echo b\n", "services/c/Dockerfile": hello, "services/c/run": "c", "app.sh": "echo root\n"}
	for dir, want := range map[string]string{"services/a": "a", "/services/b/": "b", "./": "root"} {
		b := mustPush(t, r, build.Request{App: "bp-dir", Config: map[string]string{"DEIS_APP_DIR": dir}}, files)
		if got := b.sh("sh /workspace/app.sh"); got != want {
			t.Errorf("%s: got %q", dir, got)
		}
	}
	dockerfile := build.Request{App: "bp-dir", Config: map[string]string{"DEIS_APP_DIR": "services/c", "DEIS_BUILDER": ""}}
	if b := mustPush(t, r, dockerfile, files); b.Strategy != paas.StrategyDockerfile || b.sh("cat /app/run; ls /app") != "cDockerfile\nrun" {
		t.Errorf("got %s", b.Strategy)
	}
}

// TestDockerfileWins: over the name of a buildpack, which the push says; but who names a builder wants buildpacks.
func TestDockerfileWins(t *testing.T) {
	r, files := newRepo(t), map[string]string{"Dockerfile": hello, "app.sh": "echo both\n"}
	b := mustPush(t, r, build.Request{App: "bp-both"}, files)
	if got := b.sh("sh /workspace/app.sh"); b.Strategy != paas.StrategyBuildpacks || got != "both" || strings.Contains(b.log, "not used") {
		t.Errorf("got %s, %q\n%s", b.Strategy, got, b.log)
	}
	b = mustPush(t, r, build.Request{App: "bp-both", Config: map[string]string{"BUILDPACK_URL": "test/shell", "DEIS_BUILDER": ""}}, files)
	if b.Strategy != paas.StrategyDockerfile || !strings.Contains(b.log, "       BUILDPACK_URL is not used, because there is a Dockerfile; ") {
		t.Errorf("got %s\n%s", b.Strategy, b.log)
	}
}

// TestSourceVersion: the scripts of a build are told the commit, and another commit with the same files is not built for that.
func TestSourceVersion(t *testing.T) {
	p, r := buildpackPlatform(t), newRepo(t)
	commit := r.commit(map[string]string{"app.sh": "echo 1\n", "say-version": ""})
	for _, want := range []string{"       version " + commit + "\n", "built before"} {
		var log strings.Builder
		_, err := p.builder.Build(t.Context(), build.Request{
			App: "bp-version", Tree: r.open(commit), Config: map[string]string{"DEIS_BUILDER": "deis/test-builder"}, Log: func(line string) { log.WriteString(line + "\n") },
		})
		if err != nil || !strings.Contains(log.String(), want) {
			t.Errorf("%v, no %q in\n%s", err, want, log.String())
		}
		commit = r.git("", "commit-tree", "-m", "other", commit+"^{tree}")
	}
}

func TestProjectFile(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{
		"app.sh": "echo 1\n", "other": "", "docs/a.md": "", "docs/sub/b.md": "", "src/x": "", "big.bin": "",
		"project.toml": "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\nexclude = [\"docs/\", \"*.bin\"]\nunknown = 1\n[[io.buildpacks.group]]\nid = \"test/shell\"\n" +
			"[[io.buildpacks.group]]\nid = \"test/inline\"\n[io.buildpacks.group.script]\napi = \"0.11\"\ninline = \"echo inline; echo $INLINE >inline\"\n" +
			"[[io.buildpacks.build.env]]\nname = \"GREETING\"\nvalue = \"12345\"\n[[io.buildpacks.build.env]]\nname = \"INLINE\"\nvalue = \"project\"\n",
	}
	b := mustPush(t, r, build.Request{App: "bp-project", Config: map[string]string{"INLINE": "config"}}, files)
	if got := b.sh("cd /workspace; find . -type f | sort | tr '\\n' ' '; cat inline"); got != "./app.sh ./inline ./other ./project.toml ./src/x config" {
		t.Errorf("got %s", got)
	}
	for _, want := range []string{"the greeting has 5 characters", "project.toml: - io.buildpacks.unknown"} {
		if !strings.Contains(b.log, want) {
			t.Errorf("no %q in\n%s", want, b.log)
		}
	}
	files["project.toml"] = "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\nbuilder = \"deis/nothing\"\ninclude = [\"app.sh\", \"docs/sub/\"]\n"
	b = mustPush(t, r, build.Request{App: "bp-project"}, files) // config wins
	if got := b.sh("cd /workspace; find . -type f | sort | tr '\\n' ' '"); got != "./app.sh ./docs/sub/b.md " {
		t.Errorf("got %s", got)
	}
}

// TestBuilderOfRegistry: a builder of others builds when it was pulled, and says before who can do that.
func TestBuilderOfRegistry(t *testing.T) {
	p, r := buildpackPlatform(t), newRepo(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	builder, run := host+"/their/builder:1", host+"/their/run:1"
	err := p.putImage(t.Context(), builder, testBuilder, map[string]string{"their/file": ""}, func(c *ocispec.ImageConfig) {
		c.Labels = maps.Clone(c.Labels)
		const metadata = "io.buildpacks.builder.metadata"
		c.Labels[metadata] = strings.Replace(c.Labels[metadata], "deis/run:cnb", run, 1)
		c.Labels["io.buildpacks.buildpack.layers"], c.Labels["io.buildpacks.stack.id"] = "{}", "their.stack"
	})
	if err != nil {
		t.Fatal(err)
	}
	files, config := map[string]string{"app.sh": "echo theirs\n"}, map[string]string{"DEIS_BUILDER": builder}
	if _, _, err := p.push(t, r, build.Request{App: "bp-theirs", Config: config}, files); err == nil || !strings.Contains(err.Error(), "deisctl builders pull "+builder) {
		t.Errorf("without the run image: %v", err)
	}
	client := p.client(t)
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
	for name, of := range map[string]string{builder: builder, run: "docker.io/deis/run:cnb"} {
		img, err := client.ImageService().Get(t.Context(), of)
		if err == nil {
			err = client.Push(t.Context(), name, img.Target, containerd.WithResolver(resolver))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := client.ImageService().Delete(t.Context(), builder, images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	store := p.openStore(t)
	if _, err := builders.New(store, func(string) {}).Pull(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	b := mustPush(t, r, build.Request{App: "bp-theirs", Config: config}, files)
	if got := b.sh("sh /workspace/app.sh"); got != "theirs" || !strings.Contains(string(b.Provenance), run) {
		t.Errorf("got %q\n%s", got, b.Provenance)
	}
}

// TestLostLayer: a cached result names layers that the store has no more.
func TestLostLayer(t *testing.T) {
	p, r := buildpackPlatform(t), newRepo(t)
	files := map[string]string{"app.sh": "echo lost 1\n", "deps.lock": "lost"}
	req := build.Request{App: "bp-lost"}
	first := mustPush(t, r, req, files)
	files["app.sh"] = "echo lost 2\n"
	second := mustPush(t, r, req, files) // leaves out what the first image has
	client := p.client(t)
	for _, name := range []string{first.Image, second.Image} {
		if err := client.ImageService().Delete(t.Context(), name, images.SynchronousDelete()); err != nil {
			t.Fatal(err)
		}
	}
	if lost := slices.DeleteFunc(slices.Clone(second.config.RootFS.DiffIDs), func(id digest.Digest) bool {
		_, err := client.ContentStore().Info(t.Context(), id)
		return !errdefs.IsNotFound(err)
	}); len(lost) < 2 {
		t.Fatalf("only %v are lost", lost)
	}
	again := mustPush(t, r, req, files)
	if again.Digest != second.Digest || again.sh("cat /layers/test_shell/deps/lock; sh /workspace/app.sh") != "lost\nlost 2" || !strings.Contains(again.log, "parts of the last image are gone") {
		t.Errorf("%s, then %s\n%s", second.Digest, again.Digest, again.log)
	}
}

func TestRealWorldShapes(t *testing.T) {
	files := map[string]string{"app.sh": "echo 1\n", "Procfile": "web: sh app.sh\r\n", "200.bin": strings.Repeat("0123456789abcdef", 200<<20/16)}
	blob := "x"
	for i := range 20_000 {
		files[fmt.Sprintf("d%d/e%d/f%d", i%50, i%400, i)] = blob
	}
	start := time.Now()
	r := newRepo(t)
	req := build.Request{App: "bp-shapes"}
	first := mustPush(t, r, req, files)
	committed := time.Now()
	if got := first.sh("find /workspace -name 'f*' | wc -l; stat -c %s /workspace/200.bin"); got != "20000\n209715200" {
		t.Errorf("got %s", got)
	}
	again := mustPush(t, r, req, files)
	files["app.sh"] = "echo 2\n"
	changed := mustPush(t, r, req, files)
	t.Logf("with commit %v; first %v, unchanged %v, one file changed %v", committed.Sub(start), first.Duration, again.Duration, changed.Duration)
}
