package builders

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/deis/deis/buildpacks"
	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/imagestore"
)

// recipeFormat changes when equal inputs shall make another builder than before.
const recipeFormat = "1"

// BaseImages brings what builds need into containerd's store: the images of build.BaseImages, and the
// builder with this repository's buildpacks. Where nothing changed it only looks. It may run in several processes at once.
func BaseImages(ctx context.Context, cfg build.BaseConfig) error {
	if err := build.BaseImages(ctx, cfg); err != nil {
		return err
	}
	if len(cfg.Images) > 0 {
		return nil
	}
	images, err := imagestore.Open(cfg.ContainerdAddress, cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = images.Close() }()
	if err := defaultBuilder(ctx, images, cfg); err != nil {
		return fmt.Errorf("make %s: %w", build.DefaultBuilder, err)
	}
	return nil
}

func defaultBuilder(ctx context.Context, images *imagestore.Store, cfg build.BaseConfig) error {
	recipe, err := builderRecipe(ctx, images)
	if err != nil {
		return err
	}
	if have, err := images.Image(ctx, build.DefaultBuilder); err == nil && have.Labels[build.RecipeLabel] == recipe {
		return nil
	}
	start := time.Now()
	lifecycle, err := cfg.LifecycleDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "deis-buildpacks-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unpackBuildpacks(dir); err != nil {
		return fmt.Errorf("unpack the buildpacks: %w", err)
	}
	c := New(images, func(line string) { cfg.Log("       " + line) })
	err = c.Create(ctx, CreateOptions{
		Name: build.DefaultBuilder, Config: filepath.Join(dir, "builder.toml"), Dir: dir, Lifecycle: lifecycle,
		Labels: map[string]string{build.RecipeLabel: recipe},
	})
	if err != nil {
		return err
	}
	cfg.Log(fmt.Sprintf("       builder deis/builder is there (%.1fs)", time.Since(start).Seconds()))
	return nil
}

// builderRecipe is a hash of all that the builder is made from.
func builderRecipe(ctx context.Context, images *imagestore.Store) (string, error) {
	hash := digest.Canonical.Digester()
	fmt.Fprintln(hash.Hash(), recipeFormat)
	for _, name := range []string{build.CNBBuildImage, build.CNBRunImage, build.LifecycleImage} {
		img, err := images.Image(ctx, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(hash.Hash(), name, img.Target.Digest)
	}
	err := fs.WalkDir(buildpacks.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(buildpacks.Files, path)
		fmt.Fprintln(hash.Hash(), path, digest.FromBytes(data))
		return err
	})
	return hash.Digest().Encoded(), err
}

// unpackBuildpacks writes the repository's buildpacks to a directory. Programs are what begins with "#!": an
// embedded file has no mode.
func unpackBuildpacks(dir string) error {
	return fs.WalkDir(buildpacks.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		to := filepath.Join(dir, filepath.FromSlash(path))
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return mkdir(to)
		}
		data, err := fs.ReadFile(buildpacks.Files, path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(data[:min(2, len(data))]), "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(to, data, mode); err != nil {
			return err
		}
		return os.Chmod(to, mode) // whatever the umask is: user cnb reads and runs them
	})
}

func mkdir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}
