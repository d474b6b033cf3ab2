package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	// Cache is a directory for the layers, which platforms may share; about 1 GB.
	Cache string
	// Lifecycle is the directory of the programs of buildpack builds: build, launcher and lifecycle. Empty
	// means "lifecycle" beside the running program.
	Lifecycle string
	// Images are names of BaseImageNames; empty means all.
	Images []string
	// Log gets lines of progress, indented, without newline.
	Log func(line string)
}

// LifecycleDir is Lifecycle or what it stands for when it is empty.
func (cfg BaseConfig) LifecycleDir() (string, error) {
	if cfg.Lifecycle != "" {
		return cfg.Lifecycle, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the lifecycle's programs: %w", err)
	}
	return filepath.Join(filepath.Dir(self), "lifecycle"), nil
}

// The user that buildpacks and what they build run as, in every image with the tag cnb.
const cnbUser = "1000:1000"

const (
	runPath   = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	buildPath = "PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// baseImages is what the script makes and how it becomes images. The layers' files are <layer>.tar in
// the cache.
//
// The images with the tag cnb have the layers of those named latest and what the platform specification
// of Cloud Native Buildpacks asks of run and build images. They are apart because it asks for a user who is
// not root, and a Dockerfile that begins with FROM deis/run expects to be root.
var baseImages = []struct {
	name, tag string
	layers    []string
	config    ocispec.ImageConfig
}{
	{"deis/run", "latest", runLayers, ocispec.ImageConfig{Env: []string{runPath}}},
	{"deis/run", "cnb", runLayers, ocispec.ImageConfig{Env: []string{runPath}, User: cnbUser, Labels: cnbLabels("run")}},
	{"deis/build", "latest", buildLayers, ocispec.ImageConfig{Env: []string{buildPath, "GOTOOLCHAIN=local"}}},
	{"deis/build", "cnb", buildLayers, ocispec.ImageConfig{
		Env:  []string{buildPath, "GOTOOLCHAIN=local", "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"},
		User: cnbUser, Labels: cnbLabels("build"),
	}},
}

var (
	runLayers   = []string{"run"}
	buildLayers = []string{"run", "build", "go", "gocache"}
)

// cnbLabels are those of a run or build image (platform specification, "Run Image" and "Build Image").
// The stack's id is for buildpacks and tools from before platform API 0.12.
func cnbLabels(kind string) map[string]string {
	return map[string]string{
		"io.buildpacks.base.distro.name":    "debian",
		"io.buildpacks.base.distro.version": "12",
		"io.buildpacks.base.description":    "Debian bookworm, the " + kind + " image of Deis",
		"io.buildpacks.stack.id":            "deis.bookworm",
	}
}

// The images that DefaultBuilder is made on, and that what it builds runs on.
const (
	CNBBuildImage = "docker.io/deis/build:cnb"
	CNBRunImage   = "docker.io/deis/run:cnb"
)

// BaseImageNames are the base images: the first two as a Dockerfile's FROM names them, each with a
// variant for buildpacks, and the programs that run buildpacks.
var BaseImageNames = []string{"deis/run", "deis/build", "deis/lifecycle"}

// RecipeLabel of an image's record holds the hash of what the image was made from.
const RecipeLabel = "deis.recipe"

// BaseImages brings the base images into containerd's store, deis/run unpacked. Their layers are made from
// Debian packages when the cache does not have them (minutes, as root, with a Debian mirror), and imported
// when the store has no image of the same recipe (seconds). It may run in several processes at once.
func BaseImages(ctx context.Context, cfg BaseConfig) error {
	if len(cfg.Images) == 0 {
		cfg.Images = BaseImageNames
	}
	for _, name := range cfg.Images {
		if !slices.Contains(BaseImageNames, name) {
			return fmt.Errorf("import base image %s: no such base image; there are %s", name, strings.Join(BaseImageNames, ", "))
		}
	}
	store, err := imagestore.Open(cfg.ContainerdAddress, cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	im := importer{cfg: cfg, store: store, layers: map[string]ocispec.Descriptor{}}
	if slices.ContainsFunc(cfg.Images, func(name string) bool { return name != "deis/lifecycle" }) {
		if err := im.rootfs(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(cfg.Images, "deis/lifecycle") {
		if err := im.lifecycle(ctx); err != nil {
			return fmt.Errorf("import base image deis/lifecycle: %w", err)
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
	layers map[string]ocispec.Descriptor // imported in this run, by file
}

// rootfs imports the images that are made of the script's layers.
func (im *importer) rootfs(ctx context.Context) error {
	if err := makeLayers(ctx, im.cfg); err != nil {
		return fmt.Errorf("make base images: %w", err)
	}
	for _, spec := range baseImages {
		if !slices.Contains(im.cfg.Images, spec.name) {
			continue
		}
		var files []string
		for _, layer := range spec.layers {
			files = append(files, filepath.Join(im.cfg.Cache, layer+".tar"))
		}
		recipe, err := recipe(spec.config, files)
		if err != nil {
			return fmt.Errorf("base images: %w", err)
		}
		if err := im.image(ctx, spec.name, spec.tag, recipe, spec.config, func() ([]string, error) { return files, nil }); err != nil {
			return fmt.Errorf("import base image %s:%s: %w", spec.name, spec.tag, err)
		}
	}
	return nil
}

// lifecyclePrograms are the files of deis/lifecycle: our program that runs a build, and the stock launcher
// and lifecycle.
var lifecyclePrograms = []string{"build", "launcher", "lifecycle"}

// recipe is a hash of what an image is made from. Files are told by their sizes and times, because reading a
// gigabyte takes longer than all else when nothing has changed.
func recipe(config ocispec.ImageConfig, files []string) (string, error) {
	hash := digest.Canonical.Digester()
	if err := json.NewEncoder(hash.Hash()).Encode(config); err != nil {
		return "", err
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(hash.Hash(), filepath.Base(file), info.Size(), info.ModTime().UnixNano())
	}
	return hash.Digest().Encoded(), nil
}

// lifecycle imports the programs.
func (im *importer) lifecycle(ctx context.Context) error {
	dir, err := im.cfg.LifecycleDir()
	if err != nil {
		return err
	}
	var programs []string
	for _, name := range lifecyclePrograms {
		programs = append(programs, filepath.Join(dir, name))
	}
	recipe, err := recipe(ocispec.ImageConfig{}, programs)
	if err != nil {
		return fmt.Errorf("the lifecycle's programs are missing, 'make build' makes them: %w", err)
	}
	file := ""
	defer func() { os.Remove(file) }()
	return im.image(ctx, "deis/lifecycle", "latest", recipe, ocispec.ImageConfig{}, func() ([]string, error) {
		file, err = packPrograms(programs)
		return []string{file}, err
	})
}

// packPrograms writes a layer with the programs in its root to a temporary file.
func packPrograms(programs []string) (file string, err error) {
	f, err := os.CreateTemp("", "deis-lifecycle-*.tar")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, path := range programs {
		if err := packProgram(w, path); err != nil {
			return f.Name(), err
		}
	}
	return f.Name(), w.Close()
}

func packProgram(w *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// One time for all, so that equal programs make equal layers.
	if err := w.WriteHeader(&tar.Header{Name: filepath.Base(path), Size: info.Size(), Mode: 0o755, ModTime: time.Unix(1, 0)}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// image imports an image unless one of the same recipe is there.
func (im *importer) image(ctx context.Context, name, tag, recipe string, conf ocispec.ImageConfig, files func() ([]string, error)) error {
	ref := "docker.io/" + name + ":" + tag
	runs := name == "deis/run" // the others are for builds only
	if have, err := im.store.Image(ctx, ref); err == nil && have.Labels[RecipeLabel] == recipe && (!runs || im.store.Unpacked(ctx, ref)) {
		return nil
	}
	start := time.Now()
	ctx, done, err := im.store.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	paths, err := files()
	if err != nil {
		return err
	}
	config := ocispec.Image{Config: conf, RootFS: ocispec.RootFS{Type: "layers"}}
	var layers []ocispec.Descriptor
	for _, path := range paths {
		desc, err := im.layer(ctx, path)
		if err != nil {
			return err
		}
		layers = append(layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
	}
	if _, err := im.store.Put(ctx, ref, config, layers, map[string]string{RecipeLabel: recipe}); err != nil {
		return err
	}
	if runs {
		if err := im.store.Unpack(ctx, ref); err != nil {
			return err
		}
	}
	im.cfg.Log(fmt.Sprintf("%sbase image %s is there (%.1fs)", indent, strings.TrimSuffix(name+":"+tag, ":latest"), time.Since(start).Seconds()))
	return nil
}

// layer copies one layer into the store.
func (im *importer) layer(ctx context.Context, path string) (ocispec.Descriptor, error) {
	if desc, ok := im.layers[path]; ok {
		return desc, nil
	}
	desc, err := im.store.WriteLayer(ctx, path)
	if err != nil {
		return desc, err
	}
	im.layers[path] = desc
	return desc, nil
}
