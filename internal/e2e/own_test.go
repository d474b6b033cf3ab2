package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

// TestOwnDockerfile builds the router's image from this repository's Dockerfile, on the platform's own BuildKit.
// 'make test-self' builds all of them.
func TestOwnDockerfile(t *testing.T) { testOwnImage(t, "router") }

// testOwnImage builds a target of the Dockerfile and asks the program in the image for its version and its usage.
func testOwnImage(t *testing.T, target string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	image := "deis.internal/own/" + target + ":e2e"
	began := time.Now()
	solveOwn(ctx, t, target, image)
	img, err := shared.openStore(t).Image(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, l := range img.Manifest.Layers {
		size += l.Size
	}
	t.Logf("%s took %v and has %d MB, user %q", target, time.Since(began).Round(time.Millisecond), size>>20, img.Config.Config.User)
	if target != "builder" && (img.Config.Config.User != "1000:1000" || size > 40<<20) {
		t.Errorf("%s has %d bytes and user %q; want a small image, not root's", target, size, img.Config.Config.User)
	}
	if got, want := runImage(ctx, t, image, "--version"), target+" e2e"; !strings.HasPrefix(got, want) {
		t.Errorf("--version says %q, want %q", got, want)
	}
	if got := runImage(ctx, t, image, "--help"); !strings.Contains(got, "DEIS_ROOT") {
		t.Errorf("--help says\n%s", got)
	}
}

// solveOwn builds a target of this repository's Dockerfile.
func solveOwn(ctx context.Context, t *testing.T, target, image string) {
	t.Helper()
	bk, err := client.New(ctx, "unix://"+filepath.Join(shared.root, "run", "buildkitd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer bk.Close()
	files, err := fsutil.NewFS("../..")
	if err != nil {
		t.Fatal(err)
	}
	for try := 1; ; try++ {
		events, said := solveLog()
		_, err = bk.Solve(ctx, nil, client.SolveOpt{
			Frontend:      "dockerfile.v0",
			FrontendAttrs: map[string]string{"image-resolve-mode": "local", "target": target, "build-arg:VERSION": "e2e"},
			LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files}, SharedKey: "own",
			Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
				"name": image, "unpack": "true", "compression": "uncompressed",
			}}},
		}, events)
		log := <-said
		if err == nil {
			return
		}
		if try == 3 || !registryFailed.MatchString(log) {
			t.Fatalf("%s: %v\n%s", target, err, log)
		}
		t.Logf("try %d: %v", try, err)
	}
}

// runImage runs the program of an image in the store with one argument, and returns what it says.
func runImage(ctx context.Context, t *testing.T, image, arg string) string {
	t.Helper()
	socket, namespace := shared.containerd()
	name := strings.Split(filepath.Base(image), ":")[0]
	id := fmt.Sprintf("own-%s-%d", name, time.Now().UnixNano())
	out, err := exec.CommandContext(ctx, "ctr", "-a", socket, "-n", namespace, "run", "--rm", image, id, "/usr/local/bin/"+name, arg).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, arg, err, out)
	}
	return string(out)
}
