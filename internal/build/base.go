package build

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/buildpacks"
	"github.com/deis/deis/internal/build/imagestore"
)

// BaseConfig says which base images to bring where.
type BaseConfig struct {
	// ContainerdAddress is the path of the socket, Namespace the platform's.
	ContainerdAddress string
	Namespace         string
	// Cache is a directory for the layers, which platforms may share; about 800 MB.
	Cache string
	// Images are names of BaseImageNames; empty means all.
	Images []string
	// Log gets lines of progress, indented, without newline.
	Log func(line string)
}

// baseImages is what the script makes and how it becomes images. The layers'
// files are <layer>.tar in the cache.
var baseImages = map[string]struct {
	layers []string
	env    []string
}{
	"deis/run": {
		layers: []string{"run"},
		env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	},
	"deis/build": {
		layers: []string{"run", "build", "go", "gocache"},
		env: []string{
			"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"GOTOOLCHAIN=local",
		},
	},
}

// BaseImageNames are the base images as a Dockerfile's FROM names them.
var BaseImageNames = []string{"deis/run", "deis/build"}

// recipeLabel holds the hash of what an image was made from.
const recipeLabel = "deis.recipe"

// BaseImages brings the base images into containerd's store, unpacked. Their layers are made from
// Debian packages when the cache does not have them (a minute, as root, with a Debian mirror), and imported
// when the store has no image of the same recipe (seconds). It may run in several processes at once.
func BaseImages(ctx context.Context, cfg BaseConfig) error {
	if len(cfg.Images) == 0 {
		cfg.Images = BaseImageNames
	}
	if err := makeLayers(ctx, cfg); err != nil {
		return fmt.Errorf("make base images: %w", err)
	}
	recipe, err := os.ReadFile(filepath.Join(cfg.Cache, "recipe"))
	if err != nil {
		return fmt.Errorf("base images: %w", err)
	}
	store, err := imagestore.Open(cfg.ContainerdAddress, cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	im := importer{cfg: cfg, store: store, recipe: strings.TrimSpace(string(recipe)), layers: map[string]ocispec.Descriptor{}}
	for _, name := range cfg.Images {
		if err := im.image(ctx, name); err != nil {
			return fmt.Errorf("import base image %s: %w", name, err)
		}
	}
	return nil
}

// makeLayers runs the script. It does nothing where its recipe has not changed.
func makeLayers(ctx context.Context, cfg BaseConfig) error {
	dir, err := os.MkdirTemp("", "deis-base-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "make-rootfs")
	if err := os.WriteFile(script, buildpacks.MakeRootfs, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, script, cfg.Cache)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		cfg.Log(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

type importer struct {
	cfg    BaseConfig
	store  *imagestore.Store
	recipe string
	layers map[string]ocispec.Descriptor // imported in this run
}

func (im *importer) image(ctx context.Context, name string) error {
	spec, ok := baseImages[name]
	if !ok {
		return fmt.Errorf("no such base image; there are %s", strings.Join(BaseImageNames, ", "))
	}
	ref := "docker.io/" + name + ":latest"
	if have, err := im.store.Image(ctx, ref); err == nil && have.Labels[recipeLabel] == im.recipe && im.store.Unpacked(ctx, ref) {
		return nil
	}
	start := time.Now()
	ctx, done, err := im.store.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()

	config := ocispec.Image{
		Config: ocispec.ImageConfig{Env: spec.env, Labels: map[string]string{recipeLabel: im.recipe}},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	var layers []ocispec.Descriptor
	for _, name := range spec.layers {
		desc, err := im.layer(ctx, name)
		if err != nil {
			return err
		}
		layers = append(layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
	}
	if _, err := im.store.Put(ctx, ref, config, layers, map[string]string{recipeLabel: im.recipe}); err != nil {
		return err
	}
	im.cfg.Log(fmt.Sprintf("%sbase image %s is there (%.1fs)", indent, name, time.Since(start).Seconds()))
	return nil
}

// layer copies one layer into the store. Layers are not compressed, so their
// digests are also those of their content (OCI's diff IDs).
func (im *importer) layer(ctx context.Context, name string) (ocispec.Descriptor, error) {
	if desc, ok := im.layers[name]; ok {
		return desc, nil
	}
	f, err := os.Open(filepath.Join(im.cfg.Cache, name+".tar"))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	digester := digest.Canonical.Digester()
	size, err := io.Copy(digester.Hash(), f)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digester.Digest(), Size: size}
	im.layers[name] = desc
	return desc, im.store.Write(ctx, desc, f)
}
