package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// layered has one layer of each kind. It says what it finds, and makes what is missing;
// the file "touch" of the app names layers that it changes, "fail" makes it fail.
const layered = `
for layer in cache run both local; do
	found=nothing
	if [ -e $layer.toml ]; then
		found="metadata of $(sed -n 's/.*number = //p' $layer.toml)"
		grep -q types $layer.toml && found="$found with types"
	fi
	[ -e $layer/file ] && found="$found, content $(cat $layer/file)"
	echo "$layer: $found"
	if [ ! -e $layer.toml ] || grep -qs $layer "$app/touch"; then
		mkdir -p $layer; cat "$app/hello.txt" >$layer/file
		echo '{"bomFormat":"CycloneDX","specVersion":"1.4"}' >$layer.sbom.cdx.json
	fi
	case $layer in
	cache) types="cache = true" ;;
	run) types="launch = true" ;;
	both) types="launch = true\ncache = true" ;;
	local) types="build = true" ;;
	esac
	printf "[types]\n$types\n[metadata]\nnumber = 7\n" >$layer.toml
done
echo store: $(cat store.toml 2>/dev/null | tail -1)
printf '[metadata]\nkept = "yes"\n' >store.toml
[ ! -e "$app/fail" ]`

func newLayered(t *testing.T) *fixture {
	f := newFixture(t)
	f.add("x/y", "exit 0", layered)
	f.setOrder("x/y")
	return f
}

// found is what the buildpack says it found.
func found(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[1:], "\n")
}

func wantFound(t *testing.T, out string, want ...string) {
	t.Helper()
	if got := strings.Split(found(out), "\n")[:5]; !slices.Equal(got, want) {
		t.Errorf("the buildpack found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLayersFromBuildToBuild(t *testing.T) {
	f := newLayered(t)
	first := f.build()
	wantFound(t, first.out, "cache: nothing", "run: nothing", "both: nothing", "local: nothing", "store:")
	checkLayout(t, first)

	f.haveAll(first)
	second := f.build()
	wantFound(t, second.out, "cache: metadata of 7, content hello", "run: metadata of 7",
		"both: metadata of 7, content hello", "local: nothing", `store: kept = "yes"`)
	if second.digest == "" || !slices.Equal(second.config.RootFS.DiffIDs, first.config.RootFS.DiffIDs) {
		t.Error("the image has other layers")
	}
	if blobs := second.layerBlobs(); len(blobs) != 0 {
		t.Errorf("layers that the host has are there: %v", blobs)
	}
	checkLayout(t, second)

	f.haveAll(second)
	f.write(filepath.Join(f.app, "hello.txt"), "bye")
	f.write(filepath.Join(f.app, "touch"), "both")
	third := f.build()
	if third.layer("x/y", "run") != first.layer("x/y", "run") || third.layer("x/y", "both") == first.layer("x/y", "both") {
		t.Errorf("layers run %s, both %s", third.layer("x/y", "run"), third.layer("x/y", "both"))
	}
	if got := third.tar(third.layer("x/y", "both"))[f.layers+"/x_y/both/file"]; got != "bye" {
		t.Errorf("the changed layer has %q", got)
	}
	if blobs := third.layerBlobs(); len(blobs) != 2 { // this one and the app
		t.Errorf("layers in the layout: %v", blobs)
	}
}

// TestIntactLayerIsNotPacked shows that a cached layer for launch that nobody touched is not read:
// the diff id that the state has for it, a false one, goes to the image.
func TestIntactLayerIsNotPacked(t *testing.T) {
	f := newLayered(t)
	first := f.build()
	f.haveAll(first)
	const other = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	f.request["have"] = append(f.request["have"].([]string), other)
	s := readState(f.layers)
	layer := s.Buildpacks[0].Layers["both"]
	layer.SHA = other
	s.Buildpacks[0].Layers["both"] = layer
	if err := s.write(f.layers); err != nil {
		t.Fatal(err)
	}
	if got := f.build().layer("x/y", "both"); got != other {
		t.Fatalf("the layer was packed: %s", got)
	}
	changed := filepath.Join(f.layers, "x_y/both/file")
	for _, change := range []func() error{
		func() error { return os.Chmod(changed, 0o600) },
		func() error { return os.Chmod(changed, 0o644) },
		func() error { return os.Chtimes(changed, time.Unix(0, 0), time.Unix(0, 0)) },
		func() error { return os.WriteFile(changed, []byte("HELLO"), 0o644) },
		func() error { return os.Symlink("file", changed+"2") },
		func() error { return os.Remove(changed + "2") },
	} {
		if !readState(f.layers).unchanged(filepath.Dir(changed)) {
			t.Fatal("the layer counts as changed")
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if readState(f.layers).unchanged(filepath.Dir(changed)) {
			t.Error("a change is not noticed")
		}
		b := f.build()
		f.request["have"] = append(f.request["have"].([]string), b.layer("x/y", "both"))
		if b.layer("x/y", "both") == other {
			t.Error("a changed layer was not packed")
		}
	}
}

func TestHostLostLayers(t *testing.T) {
	f := newLayered(t)
	first := f.build()
	second := f.build() // the host has nothing
	wantFound(t, second.out, "cache: metadata of 7, content hello", "run: nothing",
		"both: metadata of 7, content hello", "local: nothing", `store: kept = "yes"`)
	if second.digest != first.digest || len(second.layerBlobs()) != len(first.layerBlobs()) {
		t.Errorf("%d layers in the layout, digest %s; before %d, %s", len(second.layerBlobs()), second.digest, len(first.layerBlobs()), first.digest)
	}
}

func TestAfterFailedBuild(t *testing.T) {
	f := newLayered(t)
	f.haveAll(f.build())
	fail := filepath.Join(f.app, "fail")
	f.write(fail, "")
	f.write(filepath.Join(f.app, "hello.txt"), "half done")
	f.write(filepath.Join(f.app, "touch"), "cache run")
	if code, out := f.run(); code != 51 {
		t.Fatalf("exit status %d:\n%s", code, out)
	}
	// The failed build changed cache and run, not both. The SBOM of cache changed too.
	os.Remove(filepath.Join(f.app, "touch"))
	code, out := f.run()
	if code != 51 {
		t.Fatalf("exit status %d:\n%s", code, out)
	}
	wantFound(t, out, "cache: nothing", "run: nothing", "both: metadata of 7, content hello", "local: nothing", `store: kept = "yes"`)

	os.Remove(fail)
	f.haveAll(f.build())
	// What is only cached survives, as long as its SBOM does, but not what the good build noted of it.
	f.write(fail, "")
	if code, out := f.run(); code != 51 {
		t.Fatalf("exit status %d:\n%s", code, out)
	}
	f.write(filepath.Join(f.layers, "x_y/cache/file"), "changed by the failed build")
	f.write(filepath.Join(f.layers, "x_y/both/file"), "changed by the failed build")
	_, out = f.run()
	wantFound(t, out, "cache: metadata of , content changed by the failed build", "run: metadata of 7", "both: nothing", "local: nothing", `store: kept = "yes"`)
}

// TestCacheLinkedToLaunch: to leave out a layer for launch whose files are links into a cached one does not change that one.
func TestCacheLinkedToLaunch(t *testing.T) {
	f := newFixture(t)
	f.add("x/y", "exit 0", `
echo "key $(sed -n 's/.*key = //p' cache.toml 2>/dev/null)"
[ -e cache/file ] || { mkdir cache; echo 1 >cache/file; }
mkdir run; ln cache/file run/file
printf '[types]\ncache = true\n[metadata]\nkey = 7\n' >cache.toml
printf '[types]\nlaunch = true\n' >run.toml
[ ! -e "$app/fail" ]`)
	f.setOrder("x/y")
	f.build()
	f.write(filepath.Join(f.layers, ownDir, unfinishedFile), "") // as if the next build had ended before it did anything
	wantContains(t, f.build().out, "key 7\n")
}

func TestPartlyLostCache(t *testing.T) {
	f := newLayered(t)
	f.haveAll(f.build())
	if err := os.RemoveAll(filepath.Join(f.layers, "x_y/cache")); err != nil {
		t.Fatal(err)
	}
	wantFound(t, f.build().out, "cache: nothing", "run: metadata of 7", "both: metadata of 7, content hello", "local: nothing", `store: kept = "yes"`)

	f.write(filepath.Join(f.layers, ownDir, stateFile), "not = toml = at all")
	wantFound(t, f.build().out, "cache: nothing", "run: nothing", "both: nothing", "local: nothing", "store:")
}

func TestClockWentBack(t *testing.T) {
	f := newLayered(t)
	f.build()
	s := readState(f.layers)
	if s.written.IsZero() || time.Since(s.written) > time.Minute {
		t.Fatalf("written %v", s.written)
	}
	s.written = s.written.Add(-time.Hour) // as if all else came later
	if s.unchanged(filepath.Join(f.layers, "x_y/both")) {
		t.Error("a layer younger than the state counts as unchanged")
	}
}

// TestOtherBuildpackGoes shows that only the group's layers stay, and that nothing is left that no build can use.
func TestOtherBuildpackGoes(t *testing.T) {
	f := newLayered(t)
	f.build()
	entries, err := os.ReadDir(filepath.Join(f.layers, "x_y"))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"both", "both.sbom.cdx.json", "cache", "cache.sbom.cdx.json", "run.sbom.cdx.json"}; !slices.Equal(left, want) {
		t.Errorf("left in the cache: %v", left)
	}
	f.add("other", "exit 0", "ls ..; ls -A ../.deis")
	f.setOrder("other")
	// As Go's module cache: directories without the right to write.
	if err := os.Chmod(filepath.Join(f.layers, "x_y/both"), 0o555); err != nil {
		t.Fatal(err)
	}
	if b := f.build(); found(b.out) != "other\nstate.toml\nunfinished" {
		t.Errorf("the buildpack found %s", found(b.out))
	}
	if exists(filepath.Join(f.layers, ownDir, unfinishedFile)) {
		t.Error("the build counts as unfinished")
	}
}

// TestHostileLayersDirectory has what a buildpack might leave to trip the next build or the export.
func TestHostileLayersDirectory(t *testing.T) {
	f := newLayered(t)
	outside := filepath.Join(f.root, "outside")
	f.write(filepath.Join(outside, "precious"), "still there")
	f.build()
	own := filepath.Join(f.layers, ownDir)
	for _, make := range []func() error{
		func() error { return os.RemoveAll(own) },
		func() error { return os.Symlink(outside, own) },
		func() error { return os.RemoveAll(filepath.Join(f.layers, "x_y")) },
		func() error { return os.Symlink(outside, filepath.Join(f.layers, "x_y")) },
		func() error { return os.Symlink(outside, filepath.Join(f.layers, "config")) },
		func() error { return syscall.Mkfifo(filepath.Join(f.layers, "pipe"), 0o644) },
		func() error { return os.RemoveAll(filepath.Join(f.output, "blobs")) },
		func() error { return os.Symlink(outside, filepath.Join(f.output, "blobs")) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
	}
	b := f.build()
	checkLayout(t, b)
	wantFound(t, b.out, "cache: nothing", "run: nothing", "both: nothing", "local: nothing", "store:")
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("outside has %v: %v", left, err)
	}
}

func TestHostileState(t *testing.T) {
	f := newLayered(t)
	f.build()
	path := filepath.Join(f.layers, ownDir, stateFile)
	os.Remove(path)
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan *state, 1)
	go func() { done <- readState(f.layers) }()
	select {
	case s := <-done:
		if len(s.Buildpacks) != 0 {
			t.Errorf("state %v", s)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("waits for a named pipe")
	}
}
