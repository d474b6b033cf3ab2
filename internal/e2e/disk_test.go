package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSmallDisk deploys again and again on a platform whose root is a small file system of its own: ext4 on a loop
// device. Each image has a new layer that cannot be compressed, so that all of them together are
// several times the file system. No deploy may fail, no release that is kept may lack its image, older ones
// must say that it is gone. Then as many deploys fail, after which a good one must succeed.
//
// DEIS_DISK_MB is the size of the file system (400), DEIS_DISK_DEPLOYS how often an app is deployed
// (25), DEIS_DISK_LAYER the size of the new layer in bytes (10 MB), DEIS_DISK_KEEP how many releases keep their images (4),
// DEIS_DISK_CACHE the bound of the build cache (60M).
func TestSmallDisk(t *testing.T) {
	number := func(name, def string) int {
		n, err := strconv.Atoi(envOr(name, def))
		if err != nil || n < 1 {
			t.Fatalf("%s is no number from 1", name)
		}
		return n
	}
	size, deploys := number("DEIS_DISK_MB", "400"), number("DEIS_DISK_DEPLOYS", "25")
	layer, keep := number("DEIS_DISK_LAYER", "10000000"), number("DEIS_DISK_KEEP", "4")
	root, err := os.MkdirTemp("", "deis-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	mountLoop(t, root, size)
	p, err := newPlatformAt(root, "containerd")
	if err != nil {
		t.Fatal(err)
	}
	p.env = append(p.env, "DEIS_DRAIN_LIMIT=1s", fmt.Sprintf("DEIS_KEEP_RELEASES=%d", keep), "DEIS_BUILD_CACHE="+envOr("DEIS_DISK_CACHE", "60M"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.logs())
		}
		if err := p.stopAll(); err != nil {
			t.Error(err)
		}
	})
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	u := p.newUser(t, "disk")
	dir := u.newApp(t, "e2e-disk")
	writeFile(t, dir, "Dockerfile", fmt.Sprintf("FROM scratch\nCOPY app /app\nCOPY message /message\nRUN [\"/app\", \"blob\", \"%d\"]\nEXPOSE 5000\nCMD [\"/app\"]\n", layer))
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "git", "commit", "-q", "-m", "blob")

	watch := watchDisk(t, p.root)
	began := time.Now()
	for n := range deploys {
		u.push(t, dir, fmt.Sprintf("round-%d", n))
	}
	took := time.Since(began)
	most := watch()
	t.Logf("%d deploys of %d MB, %.1f s each, on %d MB (%d MB usable): at most %d %% of it in use (%d MB)", deploys, layer/1_000_000,
		took.Seconds()/float64(deploys), size, most.size>>20, most.used*100/most.size, most.used>>20)
	t.Logf("all layers once are %d MB", deploys*layer>>20)

	// Releases 1 (the app's own) to deploys+1; the last of them runs.
	last := deploys + 1
	// The oldest first: a rollback is a release too, after which the oldest may go.
	for _, back := range []int{keep - 1, 1} {
		u.must(t, dir, "deis", "rollback", fmt.Sprintf("v%d", last-back))
		status, body, err := p.get(t.Context(), p.client(false), "e2e-disk.localhost", "/")
		if want := fmt.Sprintf("message=round-%d ", deploys-1-back); err != nil || status != 200 || !strings.Contains(body, want) {
			t.Errorf("rollback to v%d: %d %q %v, want %q", last-back, status, body, err, want)
		}
	}
	for _, gone := range []int{2, last - keep - 4} {
		out, err := u.run(t.Context(), dir, "deis", "rollback", fmt.Sprintf("v%d", gone))
		if err == nil || !strings.Contains(out, "is not on this machine any more") {
			t.Errorf("rollback to v%d, whose image was removed: %v\n%s", gone, err, out)
		}
	}
	// As many deploys that fail do not fill it either: the one with the repair is taken.
	dockerfile := readFile(t, filepath.Join(dir, "Dockerfile"))
	writeFile(t, dir, "Dockerfile", dockerfile+"CMD [\"/none\"]\n")
	for n := range deploys {
		writeFile(t, dir, "message", fmt.Sprintf("broken-%d", n))
		u.must(t, dir, "git", "commit", "-q", "-a", "-m", "broken")
		if out, err := u.run(t.Context(), dir, "git", "push", "-q", "deis", "master"); err == nil || !strings.Contains(out, "/none") {
			t.Fatalf("a deploy of a program that is not there: %v\n%s", err, out)
		}
	}
	writeFile(t, dir, "Dockerfile", dockerfile)
	u.push(t, dir, "repaired")
	status, body, err := p.get(t.Context(), p.client(false), "e2e-disk.localhost", "/")
	if err != nil || status != 200 || !strings.Contains(body, "message=repaired ") {
		t.Errorf("after all: %d %q %v", status, body, err)
	}
}

// stopAll ends the platform and its apps, and keeps its root.
func (p *platform) stopAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	_, err := p.run(ctx, "deisctl", "stop", "--apps")
	return err
}

// mountLoop makes a file system of so many megabytes and mounts it, until the test ends.
func mountLoop(t *testing.T, dir string, size int) {
	t.Helper()
	file := filepath.Join(os.TempDir(), filepath.Base(dir)+".img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := unmountBelow(dir)
		for range 50 { // what ends now may have it open
			if e := unix.Unmount(dir, 0); !errors.Is(e, unix.EBUSY) {
				err = errors.Join(err, e)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := errors.Join(err, os.Remove(file), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := os.Truncate(file, int64(size)<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, bytes.TrimSpace(out))
		}
	}
}

// diskUse is what a file system has, in bytes.
type diskUse struct{ size, used int64 }

// watchDisk looks at a file system all the time until the returned function is called, which says how
// full it was at most.
func watchDisk(t *testing.T, dir string) func() diskUse {
	var most diskUse
	var work sync.WaitGroup
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	work.Go(func() {
		for ctx.Err() == nil {
			var st unix.Statfs_t
			if unix.Statfs(dir, &st) == nil {
				now := diskUse{size: int64(st.Blocks) * st.Bsize, used: int64(st.Blocks-st.Bavail) * st.Bsize}
				if now.used > most.used {
					most = now
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	end := func() diskUse {
		stop()
		work.Wait()
		return most
	}
	t.Cleanup(func() { end() })
	return end
}
