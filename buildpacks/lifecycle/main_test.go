package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buildpacks/lifecycle/launch"
	"github.com/buildpacks/lifecycle/platform/files"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// fixture is a builder with buildpacks of shell, an app and its cache.
type fixture struct {
	t testing.TB
	paths
	root    string
	request map[string]any
}

const baseLayer = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func newFixture(t testing.TB) *fixture {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	f := &fixture{t: t, root: root, paths: paths{
		request: at("request.json"), platform: at("platform"), app: at("workspace"), layers: at("layers"),
		output: at("output"), buildpacks: at("buildpacks"), order: at("order.toml"), buildConfig: at("build-config"),
		launcher: at("lifecycle/launcher"), temp: at("tmp"), caBundle: at("ca-certificates.crt"),
	}}
	for _, dir := range []string{f.app, f.layers, f.output, f.temp} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.write(f.launcher, "the launcher")
	f.write(filepath.Join(f.app, "hello.txt"), "hello")
	f.request = map[string]any{
		"env": map[string]string{},
		"runImage": map[string]any{
			"reference": "docker.io/deis/run@" + baseLayer, "name": "docker.io/deis/run:latest",
			"config": json.RawMessage(`{"os":"linux","architecture":"amd64",
				"config":{"Env":["PATH=/usr/bin:/bin"],"User":"1000:1000","Labels":{
					"io.buildpacks.base.distro.name":"debian","io.buildpacks.base.distro.version":"12"}},
				"rootfs":{"type":"layers","diff_ids":["` + baseLayer + `"]}}`),
		},
	}
	return f
}

func (f *fixture) write(path, text string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// writeBuildpack writes a buildpack whose programs are scripts.
func (f *fixture) writeBuildpack(dir, id, detect, build string) {
	f.t.Helper()
	f.write(filepath.Join(dir, "buildpack.toml"), fmt.Sprintf(`api = "0.10"
[buildpack]
id = %q
version = "1.0.0"
name = %q
homepage = "https://example.com/"
sbom-formats = ["application/vnd.cyclonedx+json"]
`, id, "The "+id))
	f.write(filepath.Join(dir, "bin/detect"), "#!/bin/sh\n"+detect)
	f.write(filepath.Join(dir, "bin/build"), "#!/bin/sh\nset -e\napp=$PWD\ncd \"$CNB_LAYERS_DIR\"\n"+build)
}

// add gives the builder a buildpack.
func (f *fixture) add(id, detect, build string) {
	f.t.Helper()
	f.writeBuildpack(filepath.Join(f.buildpacks, launch.EscapeID(id), "1.0.0"), id, detect, build)
}

// setOrder makes each argument a group of blank-separated ids of the builder's order.
func (f *fixture) setOrder(groups ...string) {
	f.t.Helper()
	var text strings.Builder
	for _, group := range groups {
		text.WriteString("[[order]]\n")
		for _, id := range strings.Fields(group) {
			fmt.Fprintf(&text, "[[order.group]]\nid = %q\nversion = \"1.0.0\"\n", id)
		}
	}
	f.write(f.order, text.String())
}

// tick is longer than one of the kernel's clock, by which files are told that changed since a build.
const tick = 20 * time.Millisecond

// run builds and returns exit status and output.
func (f *fixture) run() (int, string) {
	f.t.Helper()
	data, err := json.Marshal(f.request)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(f.paths.request, string(data))
	var out bytes.Buffer
	code := run(f.paths, &out)
	time.Sleep(tick)
	return code, out.String()
}

// build builds, which has to succeed, and reads the image.
func (f *fixture) build() *built {
	f.t.Helper()
	code, out := f.run()
	if code != 0 {
		f.t.Fatalf("exit status %d:\n%s", code, out)
	}
	b := &built{f: f, out: out}
	var index v1.IndexManifest
	f.readJSON(filepath.Join(f.output, "index.json"), &index)
	b.digest = index.Manifests[0].Digest.String()
	f.readJSON(b.blob(b.digest), &b.manifest)
	f.readJSON(b.blob(b.manifest.Config.Digest.String()), &b.config)
	f.readJSON(filepath.Join(f.output, "report.json"), &b.report)
	if err := json.Unmarshal([]byte(b.config.Config.Labels["io.buildpacks.lifecycle.metadata"]), &b.metadata); err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fixture) readJSON(path string, v any) {
	f.t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// haveAll makes the host have all layers of an image.
func (f *fixture) haveAll(b *built) {
	var have []string
	for _, diffID := range b.config.RootFS.DiffIDs {
		have = append(have, diffID.String())
	}
	f.request["have"] = have
}

// built is a finished build's image.
type built struct {
	f        *fixture
	out      string
	digest   string
	manifest v1.Manifest
	config   v1.ConfigFile
	metadata files.LayersMetadata
	report   report
}

func (b *built) blob(digest string) string {
	return filepath.Join(b.f.output, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
}

// layer is the diff id of a buildpack's layer.
func (b *built) layer(id, name string) string {
	return b.metadata.LayersMetadataFor(id).Layers[name].SHA
}

// tar reads a layer: path -> content or "-> target".
func (b *built) tar(diffID string) map[string]string {
	b.f.t.Helper()
	file, err := os.Open(b.blob(diffID))
	if err != nil {
		b.f.t.Fatal(err)
	}
	defer file.Close()
	entries := map[string]string{}
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		content, readErr := io.ReadAll(r)
		if err := errors.Join(err, readErr); err != nil {
			b.f.t.Fatal(err)
		}
		if header.Typeflag == tar.TypeSymlink {
			content = []byte("-> " + header.Linkname)
		}
		entries[header.Name] = string(content)
	}
}

// blobs lists the digests in the layout, without config and manifest.
func (b *built) layerBlobs() []string {
	b.f.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.f.output, "blobs/sha256"))
	if err != nil {
		b.f.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if digest := "sha256:" + e.Name(); digest != b.digest && digest != b.manifest.Config.Digest.String() {
			all = append(all, digest)
		}
	}
	return all
}

func wantContains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func TestNothingFits(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", "echo looking; echo 'no go.mod'; exit 100", "exit 1")
	f.add("deis/node", "echo 'no package.json' >&2; exit 100", "exit 1")
	f.add("deis/procfile", "exit 100", "exit 1")
	f.setOrder("deis/go deis/procfile", "deis/node deis/procfile")
	code, out := f.run()
	want := "The deis/go: no go.mod\nThe deis/procfile: does not fit, and says not why\nThe deis/node: no package.json\n"
	if code != 20 || out != want {
		t.Errorf("exit status %d, output\n%swant 20 and\n%s", code, out, want)
	}
}

func TestDetectionErrs(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", "echo 'no go.mod'; exit 100", "exit 1")
	f.add("deis/node", "echo one; echo two; exit 3", "exit 1")
	f.setOrder("deis/go", "deis/node")
	code, out := f.run()
	want := "The deis/node: detection failed with exit status 3\none\ntwo\n"
	if code != 21 || out != want {
		t.Errorf("exit status %d, output\n%swant 21 and\n%s", code, out, want)
	}
}

func TestUnmetRequirement(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", `printf '[[requires]]\nname = "go"\n' >"$CNB_BUILD_PLAN_PATH"`, "exit 1")
	f.setOrder("deis/go")
	code, out := f.run()
	if want := "The deis/go: fits, but needs what no other buildpack provides\n"; code != 20 || out != want {
		t.Errorf("exit status %d, output %q", code, out)
	}
}

func TestImage(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", "exit 0", `
echo building
mkdir -p app/bin; echo program >app/bin/hello; ln -s /etc/passwd app/link
printf '[types]\nlaunch = true\n[metadata]\nkey = "k"\n' >app.toml
cat >launch.toml <<END
[[processes]]
type = "web"
command = ["hello"]
args = ["--port", "80"]
[[processes]]
type = "worker"
command = ["hello", "work"]
[[labels]]
key = "org.example"
value = "yes"
[[labels]]
key = "io.buildpacks.lifecycle.metadata"
value = "forged"
END`)
	f.add("deis/extra", "exit 0", "echo second")
	f.setOrder("deis/go deis/extra")
	b := f.build()

	if want := "-----> The deis/go app detected\nbuilding\n-----> Running buildpack The deis/extra\nsecond\n"; b.out != want {
		t.Errorf("output:\n%swant\n%s", b.out, want)
	}
	config := b.config.Config
	if config.Entrypoint[0] != "/cnb/process/web" || len(config.Cmd) > 0 || config.WorkingDir != f.app || config.User != "1000:1000" {
		t.Errorf("config: %+v", config)
	}
	wantContains(t, strings.Join(config.Env, "\n"), "PATH=/cnb/process:/cnb/lifecycle:/usr/bin:/bin",
		"CNB_LAYERS_DIR="+f.layers, "CNB_APP_DIR="+f.app, "CNB_PLATFORM_API=0.13")
	if config.Labels["org.example"] != "yes" {
		t.Errorf("labels: %v", config.Labels)
	}
	var buildMetadata files.BuildMetadata
	if err := json.Unmarshal([]byte(config.Labels["io.buildpacks.build.metadata"]), &buildMetadata); err != nil {
		t.Fatal(err)
	}
	if buildMetadata.Launcher.Version != lifecycleVersion || len(buildMetadata.Processes) != 2 || buildMetadata.Buildpacks[0].ID != "deis/go" {
		t.Errorf("build metadata: %+v", buildMetadata)
	}
	run := b.metadata.RunImage
	if run.TopLayer != baseLayer || run.Image != "docker.io/deis/run:latest" || !strings.HasSuffix(run.Reference, baseLayer) {
		t.Errorf("run image: %+v", run)
	}
	if created := b.config.Created.Format("2006-01-02T15:04:05Z07:00"); created != "1980-01-01T00:00:01Z" {
		t.Errorf("created %s", created)
	}
	checkLayout(t, b)

	tree := map[string]string{}
	for _, diffID := range b.layerBlobs() {
		maps.Copy(tree, b.tar(diffID))
	}
	for path, want := range map[string]string{
		"/cnb/lifecycle/launcher":           "the launcher",
		"/cnb/process/web":                  "-> /cnb/lifecycle/launcher",
		"/cnb/process/worker":               "-> /cnb/lifecycle/launcher",
		f.app + "/hello.txt":                "hello",
		f.layers + "/deis_go/app/bin/hello": "program\n",
		f.layers + "/deis_go/app/link":      "-> /etc/passwd",
	} {
		if got, ok := tree[path]; !ok || got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	wantContains(t, tree[f.layers+"/config/metadata.toml"], `type = "web"`)

	want := []reportedProcess{
		{"web", []string{"hello"}, []string{"--port", "80"}, true, true},
		{"worker", []string{"hello", "work"}, []string{}, true, false},
	}
	if got, _ := json.Marshal(b.report.Processes); !bytes.Equal(got, mustJSON(want)) {
		t.Errorf("processes: %s", got)
	}
	if len(b.report.Buildpacks) != 2 || b.report.Buildpacks[0] != (reportedBuildpack{"deis/go", "1.0.0", "https://example.com/", "The deis/go"}) {
		t.Errorf("buildpacks: %v", b.report.Buildpacks)
	}
	for _, phase := range []string{"detect", "restore", "build", "export"} {
		if b.report.Phases[phase] <= 0 {
			t.Errorf("phases: %v", b.report.Phases)
		}
	}
}

// checkLayout checks that the layout agrees with itself.
func checkLayout(t *testing.T, b *built) {
	t.Helper()
	if len(b.manifest.Layers) != len(b.config.RootFS.DiffIDs) || len(b.config.History) != len(b.manifest.Layers) {
		t.Fatalf("%d layers, %d diff ids, %d lines of history", len(b.manifest.Layers), len(b.config.RootFS.DiffIDs), len(b.config.History))
	}
	var digests []string
	for n, layer := range b.manifest.Layers {
		digests = append(digests, layer.Digest.String())
		if layer.Digest != b.config.RootFS.DiffIDs[n] || layer.MediaType != "application/vnd.oci.image.layer.v1.tar" {
			t.Errorf("layer %d: %+v", n, layer)
		}
	}
	for _, digest := range b.layerBlobs() {
		data, err := os.ReadFile(b.blob(digest))
		if err != nil {
			t.Fatal(err)
		}
		hash, size, err := v1.SHA256(bytes.NewReader(data))
		n := slices.Index(digests, digest)
		if err != nil || hash.String() != digest || n < 0 || b.manifest.Layers[n].Size != size {
			t.Errorf("blob %s (%d bytes) is %s, layer %d: %v", digest, size, hash, n, err)
		}
	}
	entries, err := os.ReadDir(b.f.output)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"blobs", "index.json", "oci-layout", "report.json", "sbom.cdx.json"}, e.Name()) {
			t.Errorf("%s is in the output", e.Name())
		}
	}
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

func TestReproducible(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", "exit 0", `
mkdir a; date +%N >/dev/null; echo a >a/file; printf '[types]\nlaunch = true\n[metadata]\nb = 1\na = "x"\n' >a.toml
printf '[[processes]]\ntype = "web"\ncommand = ["x"]\n' >launch.toml`)
	f.setOrder("deis/go")
	first := f.build()
	for _, dir := range []string{f.layers, f.app} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.write(filepath.Join(f.app, "hello.txt"), "hello")
	if second := f.build(); second.digest != first.digest {
		t.Errorf("digests %s and %s", first.digest, second.digest)
	}
}

func TestBuildpackFails(t *testing.T) {
	f := newFixture(t)
	f.add("deis/go", "exit 0", "echo 'main.go:3: syntax error'; exit 2")
	f.setOrder("deis/go")
	code, out := f.run()
	want := "-----> The deis/go app detected\nmain.go:3: syntax error\nThe buildpack The deis/go failed: exit status 2\n"
	if code != 51 || out != want {
		t.Errorf("exit status %d, output:\n%s", code, out)
	}
}

func TestUnknownRequest(t *testing.T) {
	f := newFixture(t)
	f.setOrder()
	f.request["env"] = "SECRET-canary"
	code, out := f.run()
	if code != 1 || strings.Contains(out, "canary") {
		t.Errorf("exit status %d, output %q", code, out)
	}
}

// TestVersion checks that the constant is the version in go.mod.
func TestVersion(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, string(data), "github.com/buildpacks/lifecycle v"+lifecycleVersion+"\n")
}
