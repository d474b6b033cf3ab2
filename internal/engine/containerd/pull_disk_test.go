package containerd

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/engine"
)

// TestPullLeavesRoom: an image for which there is no room but in the reserve is not pulled, and a pull ends
// when what is unpacked reaches the reserve; nothing of it is left.
func TestPullLeavesRoom(t *testing.T) {
	t.Parallel()
	b := newPullBench(t)
	reg := newRegistry(t, "", httptest.NewServer)
	manifest := reg.add("team/app", "v1", which("app"))
	process := cat(reg.host+"/team/app:v1", engine.Credentials{})
	mountSmall(t, filepath.Join(b.opts.Root, "containerd"), "64m")
	spare, known := b.spare()
	if most := int64(63 << 20); !known || spare > most || spare < most-1<<20 {
		t.Fatalf("%d bytes may be used of 64 MiB, want a little less than %d", spare, most)
	}

	b.fill(spare - 100_000)
	b.refused(appA, process, "does not fit on the platform's disk: it takes at least ")
	b.fill(0)

	_, err := b.Fetch(t.Context(), appA, process, func(line string) {
		if strings.HasPrefix(line, "Pulling ") {
			b.fill(spare + 1<<20)
			time.Sleep(10 * diskTick)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "unpacked it is larger than what is free") {
		t.Errorf("the disk became full during a pull: %v", err)
	}
	if _, err := b.Engine.client.ContentStore().Info(b.in(t.Context()), manifest.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("a pull that was ended has left the manifest, or %v", err)
	}
	if leases, err := b.Engine.client.LeasesService().List(b.in(t.Context())); err != nil || len(leases) != 0 {
		t.Errorf("leases that keep what was pulled: %v, %v", leases, err)
	}
	b.fill(0)
	b.pulled(appA, process, "app")
	b.clean()
}

// fill makes a file of so many bytes on the small disk.
func (b *pullBench) fill(size int64) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.opts.Root, "containerd", "fill"), make([]byte, size), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// mountSmall mounts a small file system until the test ends.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}
