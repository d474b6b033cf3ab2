package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/daemon"
)

// TestRebase: ten apps under constant load are put on a patched run image. No request fails, only base layers change, and an
// app can go back.
func TestRebase(t *testing.T) {
	const count = 10
	u := shared.newUser(t, "rebase")
	store := shared.openStore(t)
	var dirs []string
	var pushes errgroup.Group
	pushes.SetLimit(2) // as many builds run at a time
	for n := range count {
		dir := u.newBuildpackApp(t, fmt.Sprintf("e2e-base-%d", n))
		dirs = append(dirs, dir)
		pushes.Go(func() error {
			_, err := u.run(t.Context(), dir, "git", "push", "-q", "deis", "master")
			return err
		})
	}
	if err := pushes.Wait(); err != nil {
		t.Fatal(err)
	}
	before := make([]imagestore.Image, count)
	for n, dir := range dirs {
		before[n] = u.appImage(t, store, dir, "git-")
	}
	inspectApp(t, store, before[0].Name)

	var loads []*load
	for n := range count {
		loads = append(loads, shared.startLoad(t, fmt.Sprintf("e2e-base-%d.localhost", n), "/", 20))
	}
	base := patchRunImage(t, store)
	began := time.Now()
	out, err := shared.run(t.Context(), "deisctl", "rebase", "--all")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rebase of %d apps took %v\n%s", count, time.Since(began), out)
	time.Sleep(300 * time.Millisecond)
	for n, l := range loads {
		l.stop(t, "release=v2", "release=v3")
		if want := fmt.Sprintf("       done, e2e-base-%d:v3\n", n); !strings.Contains(out, want) {
			t.Errorf("rebase does not say %q", want)
		}
	}
	for n, dir := range dirs {
		wantRebased(t, before[n], u.appImage(t, store, dir, "rebase-"), base)
	}
	if out := u.must(t, dirs[0], "deis", "run", "cat", "/etc/deis-patch"); !strings.Contains(out, "patched") {
		t.Errorf("a run in the rebased image: %s", out)
	}
	if out, err := shared.run(t.Context(), "deisctl", "rebase", "e2e-base-0"); err != nil || !strings.Contains(out, "already") {
		t.Errorf("a second rebase: %v\n%s", err, out)
	}
	u.must(t, dirs[0], "deis", "rollback", "v2")
	if out, err := u.run(t.Context(), dirs[0], "deis", "run", "cat", "/etc/deis-patch"); err == nil {
		t.Errorf("a run after the rollback: %s", out)
	}
	for _, dir := range dirs {
		u.must(t, dir, "deis", "destroy", "--confirm="+filepath.Base(dir))
	}
}

// newBuildpackApp is newApp for buildpacks: the tests' program as an executable that starts the app.
func (u *user) newBuildpackApp(t testing.TB, app string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), app)
	if err := copyTestApp(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "app"), filepath.Join(dir, "web")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "Dockerfile")); err != nil {
		t.Fatal(err)
	}
	u.must(t, dir, "git", "init", "-q", "-b", "master")
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "git", "commit", "-q", "-m", "first")
	u.must(t, dir, "deis", "create", app)
	return dir
}

func (p *platform) containerd() (socket, namespace string) {
	return filepath.Join(p.root, "run", "containerd.sock"), "deis-" + daemon.PlatformID(p.root)
}

func (p *platform) openStore(t testing.TB) *imagestore.Store {
	t.Helper()
	store, err := imagestore.Open(p.containerd())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

var uuidLine = regexp.MustCompile(`(?m)^uuid: +(\S+)$`)

// appImage is the image of an app whose tag begins with a word.
func (u *user) appImage(t testing.TB, store *imagestore.Store, dir, tag string) imagestore.Image {
	t.Helper()
	uuid := uuidLine.FindStringSubmatch(u.must(t, dir, "deis", "info"))
	if uuid == nil {
		t.Fatal("deis info shows no UUID")
	}
	names, err := store.Names(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "deis.internal/apps/"+uuid[1]+":"+tag) {
			return mustImage(t, store, name)
		}
	}
	t.Fatalf("%s has no image %s: %v", filepath.Base(dir), tag, names)
	return imagestore.Image{}
}

func mustImage(t testing.TB, store *imagestore.Store, name string) imagestore.Image {
	t.Helper()
	img, err := store.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// patchRunImage gives the run image one layer more until the test ends, and returns what it is then.
func patchRunImage(t *testing.T, store *imagestore.Store) imagestore.Image {
	t.Helper()
	was := mustImage(t, store, build.CNBRunImage)
	put := func(ctx context.Context, config ocispec.Image, layers []ocispec.Descriptor) error {
		_, err := store.Put(ctx, build.CNBRunImage, config, layers, was.Labels)
		return err
	}
	ctx, done, err := store.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	patch := oneFile("etc/deis-patch", "patched\n")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(patch), Size: int64(len(patch))}
	if err := store.Write(ctx, desc, bytes.NewReader(patch)); err != nil {
		t.Fatal(err)
	}
	config := was.Config
	config.RootFS.DiffIDs = append(slices.Clone(config.RootFS.DiffIDs), desc.Digest)
	if err := put(ctx, config, append(slices.Clone(was.Manifest.Layers), desc)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := put(context.WithoutCancel(t.Context()), was.Config, was.Manifest.Layers); err != nil {
			t.Error(err)
		}
	})
	return mustImage(t, store, build.CNBRunImage)
}

// oneFile is a layer with one file.
func oneFile(name, content string) []byte {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	_, _ = w.Write([]byte(content))
	_ = w.Close()
	return data.Bytes()
}

// wantRebased fails the test unless two images differ in their base only.
func wantRebased(t *testing.T, before, after, base imagestore.Image) {
	t.Helper()
	was, is, below := before.Config.RootFS.DiffIDs, after.Config.RootFS.DiffIDs, base.Config.RootFS.DiffIDs
	own := was[len(below)-1:] // the base had one layer less
	if !slices.Equal(is, slices.Concat(below, own)) {
		t.Errorf("%s: layers\n%v\nbecame\n%v\nand not\n%v and %v", after.Name, was, is, below, own)
	}
	labels := func(c ocispec.ImageConfig) ocispec.ImageConfig {
		c.Labels = nil // they name the base
		return c
	}
	if !reflect.DeepEqual(labels(before.Config.Config), labels(after.Config.Config)) {
		t.Errorf("%s: configuration\n%+v\nbecame\n%+v", after.Name, before.Config.Config, after.Config.Config)
	}
}

// inspectApp reads the image of an app as other tools do: ctr finds it whole and unpacked, its labels are JSON, and pack's
// library says what it is made of.
func inspectApp(t *testing.T, store *imagestore.Store, name string) {
	t.Helper()
	socket, namespace := shared.containerd()
	out, err := exec.CommandContext(t.Context(), "ctr", "-a", socket, "-n", namespace, "images", "check", "name=="+name).CombinedOutput()
	if fields := strings.Join(strings.Fields(string(out)), " "); err != nil || !strings.Contains(fields, images.MediaTypeDockerSchema2Manifest) && !strings.Contains(fields, ocispec.MediaTypeImageManifest) ||
		!strings.Contains(fields, " complete (") || !strings.HasSuffix(fields, " true") {
		t.Errorf("ctr images check: %v\n%s", err, out)
	}
	labels := mustImage(t, store, name).Config.Config.Labels
	for _, label := range []string{"io.buildpacks.lifecycle.metadata", "io.buildpacks.build.metadata", "io.buildpacks.project.metadata"} {
		if !json.Valid([]byte(labels[label])) {
			t.Errorf("label %s is %q", label, labels[label])
		}
	}
	app, err := builders.New(store, func(line string) { t.Error(line) }).InspectApp(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if len(app.Buildpacks) != 1 || app.Buildpacks[0].ID != "deis/fallback" || app.RunImage != build.CNBRunImage || !app.Rebasable ||
		!slices.Equal(app.Processes["web"], []string{"/workspace/web"}) {
		t.Errorf("pack inspects %+v", app)
	}
}
