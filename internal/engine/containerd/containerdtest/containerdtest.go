// Package containerdtest starts private containerds for tests and makes small
// images for them. It needs root and Debian's packages containerd, runc,
// containernetworking-plugins and busybox-static.
package containerdtest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// startTime bounds how long containerd may take to answer, and its shims to end, on a busy machine.
const startTime = time.Minute

// Daemon is a containerd of a test's own.
type Daemon struct {
	// Dir is a short path for whatever belongs to the test; it is removed with
	// all mounts in it at the end. Address is the socket.
	Dir, Address string

	t   testing.TB
	cmd *exec.Cmd
}

// Start starts a containerd, which ends with the test and all that runs on it.
func Start(t testing.TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, Address: filepath.Join(dir, "c.sock"), t: t}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = %q
[debug]
  level = "warn"
`, d.path("root"), d.path("state"), d.Address)
	if err := os.WriteFile(d.path("config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.destroy)
	d.Restart()
	return d
}

func (d *Daemon) path(name string) string { return filepath.Join(d.Dir, name) }

// Restart starts containerd again after Kill and waits until it answers.
func (d *Daemon) Restart() {
	d.t.Helper()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("containerd", "--config", d.path("config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	client := d.client(d.t)
	defer client.Close()
	for {
		if _, err := client.Version(ctx); err == nil {
			return
		}
		if ctx.Err() != nil {
			text, _ := os.ReadFile(d.path("log"))
			d.t.Fatalf("containerd does not answer: %s", text)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill ends containerd with SIGKILL. Containers go on.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// Reboot does to containers what a reboot does: all processes are killed and
// /run is empty. Containerd is down afterwards.
func (d *Daemon) Reboot() {
	d.t.Helper()
	d.Kill()
	d.killShims()
	d.unmount(d.Dir)
	if err := os.RemoveAll(d.path("state")); err != nil {
		d.t.Fatal(err)
	}
}

// Client returns a client for use with Context; it is closed with the test.
func (d *Daemon) Client() *ctd.Client {
	c := d.client(d.t)
	d.t.Cleanup(func() { c.Close() })
	return c
}

func (d *Daemon) client(t testing.TB) *ctd.Client {
	c, err := ctd.New(d.Address, ctd.WithDefaultRuntime("io.containerd.runc.v2"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// destroy ends everything.
func (d *Daemon) destroy() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	stopped := time.AfterFunc(5*time.Second, func() { d.cmd.Process.Kill() })
	d.cmd.Wait()
	stopped.Stop()
	d.killShims()
	d.unmount(d.Dir)
	if err := os.RemoveAll(d.Dir); err != nil {
		d.t.Errorf("remove containerd's directory: %v", err)
	}
}

// killShims kills the shims of this containerd and the containers below them.
func (d *Daemon) killShims() {
	for _, pid := range d.Shims() {
		for _, child := range children(pid) {
			syscall.Kill(child, syscall.SIGKILL)
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for deadline := time.Now().Add(startTime); len(d.Shims()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// Shims lists the processes of this containerd's shims: one a container.
func (d *Daemon) Shims() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && strings.Contains(string(args), "containerd-shim") && strings.Contains(string(args), d.Dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for f := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// unmount undoes all mounts below a directory, the latest first.
func (d *Daemon) unmount(dir string) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	lines := strings.Split(string(text), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
}

// Image describes a test image. Its root has busybox with all its commands, and Files.
type Image struct {
	Name   string
	Config ocispec.ImageConfig
	// Architecture is this machine's if empty.
	Architecture string
	// Files are paths without leading slash and their content.
	Files map[string]string
}

// Import puts an image into a namespace of the store, not unpacked, and returns its digest.
func (d *Daemon) Import(namespace string, img Image) digest.Digest {
	d.t.Helper()
	client := d.client(d.t)
	defer client.Close()
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	archive, err := Archive(img)
	if err != nil {
		d.t.Fatal(err)
	}
	got, err := client.Import(ctx, bytes.NewReader(archive))
	if err != nil {
		d.t.Fatal(err)
	}
	if len(got) != 1 {
		d.t.Fatalf("import of %s gave %d images", img.Name, len(got))
	}
	return got[0].Target.Digest
}

// Archive is an image as an OCI archive (image layout 1.0 in a tar file).
func Archive(img Image) ([]byte, error) {
	blobs, target, err := Blobs(img)
	if err != nil {
		return nil, err
	}
	target.Annotations = map[string]string{"io.containerd.image.name": img.Name}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{target}}
	index.SchemaVersion = 2
	files := map[string][]byte{
		ocispec.ImageLayoutFile: marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
		ocispec.ImageIndexFile:  marshal(index),
	}
	for id, blob := range blobs {
		files["blobs/sha256/"+id.Encoded()] = blob
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, data := range files {
		if err := writeFile(w, name, data, 0o644); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// Blobs is an image as the blobs of a registry, and the descriptor of its manifest.
func Blobs(img Image) (map[digest.Digest][]byte, ocispec.Descriptor, error) {
	layer, err := layer(img.Files)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	config := marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: cmp.Or(img.Architecture, runtime.GOARCH), OS: "linux"},
		Config:   img.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	doc := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	}
	doc.SchemaVersion = 2
	blobs := map[digest.Digest][]byte{}
	manifest := marshal(doc)
	for _, blob := range [][]byte{layer, config, manifest} {
		blobs[digest.FromBytes(blob)] = blob
	}
	return blobs, descriptor(ocispec.MediaTypeImageManifest, manifest), nil
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs always marshal
	}
	return b
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func writeFile(w *tar.Writer, name string, data []byte, mode int64) error {
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), Format: tar.FormatPAX})
	if err == nil {
		_, err = w.Write(data)
	}
	return err
}

func layer(files map[string]string) ([]byte, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := writeFile(w, "bin/busybox", busybox, 0o755); err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(list)) {
		if name == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	for name, text := range files {
		if err := writeFile(w, name, []byte(text), 0o755); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// ShimLog builds deis-shimlog for a test and returns its path.
func ShimLog(t testing.TB) string {
	t.Helper()
	path, err := BuildShimLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// BuildShimLog builds deis-shimlog into a directory and returns its path.
func BuildShimLog(dir string) (string, error) {
	path := filepath.Join(dir, "deis-shimlog")
	cmd := exec.Command("go", "build", "-o", path, "github.com/deis/deis/cmd/deis-shimlog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build deis-shimlog: %w: %s", err, out)
	}
	return path, nil
}
