package builders_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/buildpacks"
	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

const namespace = "deis-test"

// layersCache is shared by test runs, because it takes minutes to make.
func layersCache() string {
	if dir := os.Getenv("DEIS_TEST_BASE_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "..", ".deis", "cache", "base")
}

// programs are what 'make build' made.
func programs() string {
	if dir := os.Getenv("DEIS_TEST_BIN"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "..", "bin")
}

// shared is one containerd for all tests.
var shared struct {
	socket string
	store  *imagestore.Store
}

func TestMain(m *testing.M) {
	stop, err := start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

// start starts a containerd that dies with this process, however that ends.
func start() (stop func(), err error) {
	dir, err := os.MkdirTemp("", "deis-bs-")
	if err != nil {
		return nil, err
	}
	shared.socket = filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "c.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n"+
		"[plugins.\"io.containerd.internal.v1.opt\"]\n  path = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), shared.socket, filepath.Join(dir, "opt"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("containerd", "--config", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread that started it ends
		started <- cmd.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	stop = func() {
		if shared.store != nil {
			_ = shared.store.Close()
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	for range 1200 {
		if c, err := new(net.Dialer).DialContext(context.Background(), "unix", shared.socket); err == nil {
			shared.store, err = imagestore.Open(shared.socket, namespace)
			return stop, errors.Join(c.Close(), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	return nil, errors.New("containerd does not start")
}

// baseImages makes all base images and returns what was said.
func baseImages(t *testing.T) []string {
	t.Helper()
	var lines []string
	err := builders.BaseImages(t.Context(), build.BaseConfig{
		ContainerdAddress: shared.socket, Namespace: namespace, Cache: layersCache(), Lifecycle: filepath.Join(programs(), "lifecycle"),
		Log: func(line string) { lines = append(lines, line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func client(t *testing.T) *builders.Client {
	return builders.New(shared.store, func(line string) { t.Errorf("pack says: %s", line) })
}

func image(t *testing.T, name string) imagestore.Image {
	t.Helper()
	img, err := shared.store.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestBaseImages(t *testing.T) {
	began := time.Now()
	lines := baseImages(t)
	t.Logf("first time, %v:\n%s", time.Since(began), strings.Join(lines, "\n"))
	began = time.Now()
	if lines := baseImages(t); len(lines) > 0 {
		t.Errorf("the second time it said %q", lines)
	}
	t.Logf("second time: %v", time.Since(began))

	for name, user := range map[string]string{"deis/run:latest": "", "deis/run:cnb": "1000:1000", "deis/build:latest": "", "deis/build:cnb": "1000:1000"} {
		if got := image(t, "docker.io/"+name).Config.Config.User; got != user {
			t.Errorf("%s runs as %q, want %q", name, got, user)
		}
	}
	run, latest := image(t, build.CNBRunImage), image(t, "docker.io/deis/run:latest")
	if !slices.Equal(run.Config.RootFS.DiffIDs, latest.Config.RootFS.DiffIDs) {
		t.Error("the images with and without the tag cnb have other layers")
	}
	if got := entries(t, image(t, build.LifecycleImage)); !slices.Equal(got, []string{"build -rwxr-xr-x", "launcher -rwxr-xr-x", "lifecycle -rwxr-xr-x"}) {
		t.Errorf("the lifecycle's image has %q", got)
	}
}

// TestDefaultBuilder: what pack reads of the builder is what builder.toml says.
func TestDefaultBuilder(t *testing.T) {
	baseImages(t)
	c := client(t)
	began := time.Now()
	b, err := c.Inspect(t.Context(), "deis/builder")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("inspected in %v: %+v", time.Since(began), b)
	if b.Name != build.DefaultBuilder || b.Lifecycle != "0.21.0" || !slices.Equal(b.RunImages, []string{build.CNBRunImage}) {
		t.Errorf("got %+v", b)
	}
	// Each directory with a buildpack.toml is in the builder and in its order.
	dirs, err := fs.Glob(os.DirFS("../../../buildpacks"), "*/buildpack.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range dirs {
		id := "deis/" + filepath.Dir(path)
		if !slices.ContainsFunc(b.Buildpacks, func(bp builders.Buildpack) bool { return bp.ID == id }) {
			t.Errorf("%s is not in the builder: is it in buildpacks.go and builder.toml?", id)
		}
		if _, err := fs.Stat(buildpacks.Files, path); err != nil {
			t.Error(err)
		}
	}
	img := image(t, build.DefaultBuilder)
	if img.Config.Config.User != "1000:1000" || img.Config.Config.WorkingDir != "/layers" {
		t.Errorf("config: %+v", img.Config.Config)
	}
	files := entries(t, img)
	for _, bp := range b.Buildpacks {
		dir := "cnb/buildpacks/" + strings.ReplaceAll(bp.ID, "/", "_") + "/" + bp.Version
		if !slices.Contains(files, dir+"/bin/detect -rwxr-xr-x") || !slices.Contains(files, dir+"/bin/build -rwxr-xr-x") {
			t.Errorf("%s has no programs detect and build", bp.ID)
		}
	}
	for _, want := range []string{
		"cnb/lifecycle/launcher -rwxr-xr-x", "cnb/lifecycle/lifecycle -rwxr-xr-x", "cnb/lifecycle/detector Lrwxrwxrwx", "cnb/order.toml -rw-r--r--",
		"cnb/run.toml -rw-r--r--", "workspace drwxr-xr-x", "layers drwxr-xr-x",
	} {
		if !slices.Contains(files, want) {
			t.Errorf("%s is not in the builder", want)
		}
	}

	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Digest != b.Digest {
		t.Errorf("list: %+v, %v", list, err)
	}
}

// operatorsBuilder is a directory with a builder.toml and one buildpack.
func operatorsBuilder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"builder.toml": `
[build]
image = "deis/build:cnb"
[[run.images]]
image = "deis/run:cnb"
[[buildpacks]]
uri = "mine"
[[order]]
group = [{ id = "example/mine", optional = true }]
`,
		"mine/buildpack.toml": "api = \"0.10\"\n[buildpack]\nid = \"example/mine\"\nversion = \"1.2.3\"\nname = \"Mine\"\n[[targets]]\nos = \"linux\"\n",
		"mine/bin/detect":     "#!/bin/sh\n",
		"mine/bin/build":      "#!/bin/sh\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCreate(t *testing.T) {
	baseImages(t)
	c, dir := client(t), operatorsBuilder(t)
	opts := builders.CreateOptions{
		Name: "example/builder:v1", Config: filepath.Join(dir, "builder.toml"), Dir: dir, Lifecycle: filepath.Join(programs(), "lifecycle"),
	}
	began := time.Now()
	if err := c.Create(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	t.Logf("created in %v", time.Since(began))
	first, err := c.Inspect(t.Context(), "example/builder:v1")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(first.Buildpacks, []builders.Buildpack{{ID: "example/mine", Version: "1.2.3", Name: "Mine"}}) ||
		len(first.Order) != 1 || !slices.Equal(first.Order[0], []builders.Member{{ID: "example/mine", Optional: true}}) {
		t.Errorf("got %+v", first)
	}
	if err := c.Create(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if second, err := c.Inspect(t.Context(), "example/builder:v1"); err != nil || second.Digest != first.Digest {
		t.Errorf("made again: %s, then %s, %v", first.Digest, second.Digest, err)
	}

	// A buildpack as an image is one that a builder can name.
	if err := c.Package(t.Context(), "example/mine:1.2.3", filepath.Join(dir, "mine")); err != nil {
		t.Fatal(err)
	}
	packaged := filepath.Join(dir, "packaged.toml")
	text, err := os.ReadFile(opts.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(packaged, []byte(strings.Replace(string(text), `uri = "mine"`, `uri = "docker://example/mine:1.2.3"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	opts.Name, opts.Config = "example/builder:v2", packaged
	if err := c.Create(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if second, err := c.Inspect(t.Context(), "example/builder:v2"); err != nil || !slices.Equal(second.Buildpacks, first.Buildpacks) {
		t.Errorf("with a packaged buildpack: %+v, %v", second, err)
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 3 {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func TestErrors(t *testing.T) {
	baseImages(t)
	c, dir := client(t), operatorsBuilder(t)
	config := filepath.Join(dir, "builder.toml")
	create := func(replace, with string) error {
		text, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(dir, "other.toml")
		if err := os.WriteFile(other, []byte(strings.Replace(string(text), replace, with, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return c.Create(t.Context(), builders.CreateOptions{Name: "example/bad", Config: other, Dir: dir, Lifecycle: filepath.Join(programs(), "lifecycle")})
	}
	for name, test := range map[string]struct {
		err  error
		code paas.Code
		says string
	}{
		"no such builder":     {second(c.Inspect(t.Context(), "example/none")), paas.NotFound, "example/none"},
		"no builder":          {second(c.Inspect(t.Context(), "deis/run:cnb")), paas.Invalid, "is no builder"},
		"no name":             {second(c.Inspect(t.Context(), "A B")), paas.Invalid, "is no image name"},
		"no config":           {c.Create(t.Context(), builders.CreateOptions{Name: "x", Config: filepath.Join(dir, "none")}), paas.Invalid, "cannot be read"},
		"unknown key":         {create("[build]", "[bild]"), paas.Invalid, "bild"},
		"no such build image": {create("deis/build:cnb", "deis/none"), paas.Invalid, "deis/none"},
		"not in the builder":  {create(`id = "example/mine"`, `id = "example/other"`), paas.Invalid, "example/other"},
		"no such buildpack":   {create(`uri = "mine"`, `uri = "./yours"`), paas.Invalid, "yours"},
		"not made here":       {second(c.Rebase(t.Context(), "docker.io/deis/run:cnb", "deis.internal/apps/x:y")), paas.Invalid, "was not made by buildpacks"},
	} {
		if paas.CodeOf(test.err) != test.code || !strings.Contains(test.err.Error(), test.says) || strings.Contains(test.err.Error(), "\x1b") {
			t.Errorf("%s: %v (%s)", name, test.err, paas.CodeOf(test.err))
		}
	}
	if _, err := shared.store.Image(t.Context(), "docker.io/example/bad:latest"); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a bad config made an image: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// writeLayer stores a layer with one file.
func writeLayer(ctx context.Context, t *testing.T, name, content string) ocispec.Descriptor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(content))
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	desc, err := shared.store.WriteLayer(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// TestRebase: only the layers of the base change, and what the labels say of them.
func TestRebase(t *testing.T) {
	c := client(t)
	ctx, done, err := shared.store.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	base := func(layers ...ocispec.Descriptor) {
		t.Helper()
		config := ocispec.Image{
			Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
			Config: ocispec.ImageConfig{User: "1000:1000", Env: []string{"PATH=/bin", "BASE=" + fmt.Sprint(len(layers))}, Labels: map[string]string{
				"io.buildpacks.base.distro.name": "debian", "io.buildpacks.base.distro.version": "12",
				"io.buildpacks.base.description": fmt.Sprint(len(layers), " layers"),
			}},
		}
		put(ctx, t, "docker.io/example/run:latest", config, layers)
	}
	old := writeLayer(ctx, t, "etc/base", "old")
	base(old)

	const app = paas.LocalImages + "0d9ad1a6-7ca1-4f3c-9d1c-111111111111:git-0123456789ab"
	run := image(t, "docker.io/example/run:latest")
	one, two := writeLayer(ctx, t, "layers/one", "1"), writeLayer(ctx, t, "workspace/two", "2")
	meta, err := json.Marshal(map[string]any{
		"app": []any{map[string]string{"sha": two.Digest.String()}},
		"runImage": map[string]string{
			"topLayer": old.Digest.String(), "reference": run.Name + "@" + run.Target.Digest.String(), "image": run.Name,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	config := ocispec.Image{
		Platform: run.Config.Platform,
		Config: ocispec.ImageConfig{
			User: "1000:1000", Entrypoint: []string{"/cnb/process/web"}, WorkingDir: "/workspace",
			Env: []string{"PATH=/cnb/process:/bin", "CNB_PLATFORM_API=0.13", "GIT_SHA=0123456789ab"},
			Labels: map[string]string{
				"io.buildpacks.lifecycle.metadata": string(meta), "io.buildpacks.build.metadata": `{"processes":[{"type":"web","command":["x"],"args":["y"],"direct":true}],` +
					`"buildpacks":[{"id":"example/mine","version":"1.2.3"}]}`,
				"io.buildpacks.base.distro.name": "debian", "io.buildpacks.base.distro.version": "12",
				"io.buildpacks.base.description": "1 layers", "deis.app": "shop", "org.opencontainers.image.revision": "0123456789ab",
			},
		},
	}
	put(ctx, t, app, config, []ocispec.Descriptor{old, one, two})

	b, err := c.Base(ctx, app)
	if err != nil || !b.Current || b.RunImage != run.Name || b.RunDigest != run.Target.Digest {
		t.Fatalf("before: %+v, %v", b, err)
	}
	// A base with two layers, to see that none is taken for another.
	new1, new2 := writeLayer(ctx, t, "etc/base", "new"), writeLayer(ctx, t, "etc/more", "new")
	base(new1, new2)
	if b, err = c.Base(ctx, app); err != nil || b.Current || b.RunDigest == run.Target.Digest {
		t.Fatalf("with a new base: %+v, %v", b, err)
	}
	to := strings.Replace(app, "git-", "rebase-", 1) + "-x"
	began := time.Now()
	got, err := c.Rebase(ctx, app, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rebased in %v", time.Since(began))

	rebased := image(t, to)
	if rebased.Target.Digest != got {
		t.Errorf("digest %s, image %s", got, rebased.Target.Digest)
	}
	if !slices.EqualFunc(rebased.Manifest.Layers, []ocispec.Descriptor{new1, new2, one, two}, func(a, b ocispec.Descriptor) bool {
		return a.Digest == b.Digest && a.Size == b.Size && a.MediaType == b.MediaType
	}) {
		t.Errorf("layers: %v", rebased.Manifest.Layers)
	}
	if want := []digest.Digest{new1.Digest, new2.Digest, one.Digest, two.Digest}; !slices.Equal(rebased.Config.RootFS.DiffIDs, want) {
		t.Errorf("diff IDs %v, want %v", rebased.Config.RootFS.DiffIDs, want)
	}
	conf := rebased.Config.Config
	if !slices.Equal(conf.Env, config.Config.Env) || conf.User != "1000:1000" || conf.WorkingDir != "/workspace" || !slices.Equal(conf.Entrypoint, config.Config.Entrypoint) {
		t.Errorf("config: %+v", conf)
	}
	for label, want := range map[string]string{
		"deis.app": "shop", "org.opencontainers.image.revision": "0123456789ab", "io.buildpacks.base.description": "2 layers",
		"io.buildpacks.build.metadata": config.Config.Labels["io.buildpacks.build.metadata"],
	} {
		if conf.Labels[label] != want {
			t.Errorf("label %s = %q, want %q", label, conf.Labels[label], want)
		}
	}
	about, err := c.InspectApp(ctx, to)
	if want := (builders.App{
		RunImage: run.Name, TopLayer: new2.Digest, Rebasable: true, Buildpacks: []builders.Buildpack{{ID: "example/mine", Version: "1.2.3"}},
		Processes: map[string][]string{"web": {"x", "y"}},
	}); err != nil || !reflect.DeepEqual(about, want) {
		t.Errorf("inspected: %+v, %v", about, err)
	}
	if b, err = c.Base(ctx, to); err != nil || !b.Current {
		t.Errorf("after: %+v, %v", b, err)
	}
	if b, err = c.Base(ctx, app); err != nil || b.Current {
		t.Errorf("the old image: %+v, %v", b, err)
	}
	if !shared.store.Unpacked(ctx, to) {
		t.Error("not unpacked")
	}
	if again, err := c.Rebase(ctx, app, to); err != nil || again != got {
		t.Errorf("again: %s, %v, want %s", again, err, got)
	}
}

func put(ctx context.Context, t *testing.T, name string, config ocispec.Image, layers []ocispec.Descriptor) {
	t.Helper()
	config.RootFS.Type = "layers"
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	if _, err := shared.store.Put(ctx, name, config, layers, nil); err != nil {
		t.Fatal(err)
	}
}

// entries lists the files in an image's layers above the base, each with its mode.
func entries(t *testing.T, img imagestore.Image) []string {
	t.Helper()
	var names []string
	for _, l := range img.Manifest.Layers {
		if l.Size > 64<<20 {
			continue // the base
		}
		blob, err := shared.store.Open(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(blob); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")+" "+h.FileInfo().Mode().String())
		}
		blob.Close()
	}
	return names
}
