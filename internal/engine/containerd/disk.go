package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/deis/deis/internal/engine"
)

// imagesOf lists the names that belong to an app.
func (e *Engine) imagesOf(ctx context.Context, app string) ([]images.Image, error) {
	pattern := "^" + strings.ReplaceAll(appImages(app), ".", `\.`) + "[:@]"
	list, err := e.client.ImageService().List(ctx, "name~="+strconv.Quote(pattern))
	return list, wrap(err, "list images")
}

// Collect implements engine.Engine. The names go, and with the last one what nothing refers to any
// more.
func (e *Engine) Collect(ctx context.Context, app string, keep func(engine.Image) bool) error {
	if !validApp.MatchString(app) {
		return nil
	}
	ctx = e.in(ctx)
	list, err := e.imagesOf(ctx, app)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(img images.Image) bool {
		return keep(engine.Image{Name: img.Name, Digest: img.Target.Digest.String(), Updated: img.UpdatedAt})
	})
	for _, img := range list {
		now, err := e.client.ImageService().Get(ctx, img.Name)
		if err != nil || now.UpdatedAt.After(img.UpdatedAt) {
			if err = unlessGone(err); err != nil {
				return wrap(err, "look at image %s", img.Name)
			}
			continue // gone, or pushed again
		}
		e.images.drop(img.Name)
		if err := unlessGone(e.client.ImageService().Delete(ctx, img.Name)); err != nil {
			return wrap(err, "remove image %s", img.Name)
		}
		e.opts.Log.Info("removed an image that no kept release needs", "app", app, "image", img.Name)
	}
	if len(list) == 0 {
		return nil
	}
	return e.collectGarbage(ctx)
}

// collectGarbage has containerd remove what nothing refers to, which it does by itself after a hundred changes only. It does it
// at the end of any lease, when asked to.
func (e *Engine) collectGarbage(ctx context.Context) error {
	leased := e.client.LeasesService()
	lease, err := leased.Create(ctx, leases.WithRandomID(), leases.WithExpiration(cleanupTime))
	if err == nil {
		err = leased.Delete(ctx, lease, leases.SynchronousDelete)
	}
	return wrap(err, "collect garbage")
}

// layerSizes remembers the layers of images, which never change. It grows with
// the images that were ever looked at, by some hundred bytes each. The zero value is ready.
type layerSizes struct {
	mu     sync.Mutex
	images map[digest.Digest]map[digest.Digest]int64
}

func (l *layerSizes) of(ctx context.Context, e *Engine, img images.Image) (map[digest.Digest]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sizes := l.images[img.Target.Digest]; sizes != nil {
		return sizes, nil
	}
	manifest, err := images.Manifest(ctx, e.client.ContentStore(), img.Target, platforms.Default())
	if err != nil {
		return nil, err
	}
	sizes := map[digest.Digest]int64{}
	for _, layer := range manifest.Layers {
		sizes[layer.Digest] = layer.Size
	}
	if l.images == nil {
		l.images = map[digest.Digest]map[digest.Digest]int64{}
	}
	l.images[img.Target.Digest] = sizes
	return sizes, nil
}

// Usage implements engine.Engine. Sizes of images are those of the layers as they are
// stored; unpacked they take about as much again. What was written is up to some minutes old.
func (e *Engine) Usage(ctx context.Context) (engine.Usage, error) {
	ctx = e.in(ctx)
	list, err := e.client.ImageService().List(ctx)
	if err != nil {
		return engine.Usage{}, wrap(err, "list images")
	}
	type layer struct {
		size   int64
		app    string
		shared bool // by several apps, or by an image of none
	}
	layers := map[digest.Digest]*layer{}
	for _, img := range list {
		sizes, err := e.layerSizes.of(ctx, e, img)
		if errdefs.IsNotFound(err) {
			continue // incomplete, or removed meanwhile
		}
		if err != nil {
			return engine.Usage{}, wrap(err, "look at image %s", img.Name)
		}
		app := appOfImage(img.Name)
		for d, size := range sizes {
			if l := layers[d]; l == nil {
				layers[d] = &layer{size: size, app: app, shared: app == ""}
			} else if l.app != app {
				l.shared = true
			}
		}
	}
	usage := engine.Usage{Apps: map[string]engine.AppUsage{}}
	for _, l := range layers {
		usage.Images += l.size
		if !l.shared {
			a := usage.Apps[l.app]
			a.Images += l.size
			usage.Apps[l.app] = a
		}
	}
	if err := e.writtenUsage(ctx, usage.Apps); err != nil {
		return usage, err
	}
	return usage, e.logUsage(usage.Apps)
}

// appOfImage is "" for images that belong to no app.
func appOfImage(name string) string {
	rest, ok := strings.CutPrefix(name, appImages(""))
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, ":@"); i > 0 {
		return rest[:i]
	}
	return ""
}

// logUsage adds what the logs take.
func (e *Engine) logUsage(apps map[string]engine.AppUsage) error {
	err := filepath.WalkDir(e.logsDir(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return ignoreGone(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreGone(err)
		}
		app := filepath.Base(filepath.Dir(path))
		a := apps[app]
		a.Logs += info.Size()
		apps[app] = a
		return nil
	})
	if err != nil {
		return fmt.Errorf("size of the logs: %w", err)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
