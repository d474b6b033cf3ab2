package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/buildpacks/lifecycle/layers"
)

// TestPackAsTheLifecycle shows that layers have the digests that the lifecycle's own packing gives.
func TestPackAsTheLifecycle(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "layers/x/app")
	for _, sub := range []string{"empty", "a/b", "a-b", strings.Repeat("long", 30)} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for n, size := range []int{0, 1, 511, 512, 513, packBlock - 512, packBlock, 3*packBlock + 17} {
		name := filepath.Join(dir, "a", fmt.Sprintf("ü%d", n))
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(n)}, size), os.FileMode(0o600+n)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "a", "ü1")
	for _, err := range []error{
		os.Symlink("/etc/passwd", filepath.Join(dir, "a-b/link")),
		os.Symlink("nowhere", filepath.Join(dir, "broken")),
		os.Link(name, filepath.Join(dir, "hard")),
		os.Chmod(name, 0o755|os.ModeSetuid),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644),
		syscall.Mknod(filepath.Join(dir, "socket"), syscall.S_IFSOCK|0o644, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want, err := (&layers.Factory{ArtifactsDir: root, UID: 1234, GID: 4321, Logger: quiet}).DirLayer("x", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := packDir(filepath.Join(root, "ours.tar"), dir, 1234, 4321)
	if err != nil || got != want.Digest {
		t.Errorf("%s, the lifecycle %s: %v", got, want.Digest, err)
	}
	ours, err := os.ReadFile(filepath.Join(root, "ours.tar"))
	if theirs, _ := os.ReadFile(want.TarPath); err != nil || !bytes.Equal(ours, theirs) {
		t.Errorf("%d bytes, the lifecycle %d: %v", len(ours), len(theirs), err)
	}
}

// TestPackFullDisk shows that what cannot be written fails, and ends.
func TestPackFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 5*packBlock), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := packDir("/dev/full", dir, 0, 0); err == nil {
		t.Error("no error")
	}
}
