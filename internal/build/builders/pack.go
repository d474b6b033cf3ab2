package builders

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/buildpacks/imgutil"
	"github.com/buildpacks/lifecycle/api"
	"github.com/buildpacks/pack/pkg/blob"
	pack "github.com/buildpacks/pack/pkg/client"
	"github.com/buildpacks/pack/pkg/dist"
	packimage "github.com/buildpacks/pack/pkg/image"
	"github.com/heroku/color"

	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

// quiet sets what pack keeps in variables of its packages: no colours, and its own version, which it
// writes into builders.
var quiet = sync.OnceFunc(func() {
	color.Disable(true)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/buildpacks/pack" {
				pack.Version = strings.TrimPrefix(dep.Version, "v")
			}
		}
	}
})

// with gives do pack's client on the store, and a lease that holds what is written until it is named.
// Downloads go to the directory scratch. Images that are made get records with the labels.
func (c *Client) with(ctx context.Context, scratch string, labels map[string]string, do func(context.Context, *pack.Client) error) error {
	ctx, done, err := c.images.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	log := logger{c.log}
	store := &storeImages{ctx, c.images, labels}
	p, err := pack.NewClient(
		pack.WithLogger(log),
		pack.WithFetcher(store),
		pack.WithImageFactory(store),
		pack.WithDownloader(blob.NewDownloader(log, filepath.Join(scratch, "downloads"))),
		// Nothing of what we ask of pack uses a Docker daemon or image indexes.
		pack.WithDockerClient(struct{ pack.DockerClient }{}),
		pack.WithIndexFactory(struct{ pack.IndexFactory }{}),
	)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	return do(ctx, p)
}

// storeImages is pack's ImageFetcher and ImageFactory on the store. Inspections of pack come without
// their caller's context, so it keeps it.
type storeImages struct {
	ctx    context.Context
	store  *imagestore.Store
	labels map[string]string
}

// Fetch implements pack.ImageFetcher.
func (s *storeImages) Fetch(_ context.Context, name string, _ packimage.FetchOptions) (imgutil.Image, error) {
	full, err := fullName(strings.TrimPrefix(strings.TrimPrefix(name, "docker:"), "//"))
	if err != nil {
		return nil, err
	}
	img, err := openImage(s.ctx, s.store, full)
	if paas.CodeOf(err) == paas.NotFound {
		return nil, &missing{err}
	}
	if err != nil {
		return nil, err
	}
	img.labels = s.labels
	return img, nil
}

// FetchForPlatform implements pack.ImageFetcher: the store reads indexes for this machine.
func (s *storeImages) FetchForPlatform(ctx context.Context, name string, options packimage.FetchOptions) (imgutil.Image, error) {
	return s.Fetch(ctx, name, options)
}

// CheckReadAccess implements pack.ImageFetcher.
func (s *storeImages) CheckReadAccess(name string, options packimage.FetchOptions) bool {
	_, err := s.Fetch(s.ctx, name, options)
	return err == nil
}

// NewImage implements pack.ImageFactory.
func (s *storeImages) NewImage(name string, _ bool, target dist.Target) (imgutil.Image, error) {
	img, err := newImage(s.ctx, s.store, name, imgutil.ImageOptions{
		Platform: imgutil.Platform{OS: target.OS, Architecture: target.Arch, Variant: target.ArchVariant},
	})
	if err != nil {
		return nil, err
	}
	img.labels = s.labels
	return img, nil
}

// missing is an error that pack knows by its cause, in the way of github.com/pkg/errors.
type missing struct{ err error }

func (m *missing) Error() string { return m.err.Error() }
func (m *missing) Unwrap() error { return m.err }
func (m *missing) Cause() error  { return packimage.ErrNotFound }

// logger is pack's, of which people see warnings and errors only.
type logger struct{ line func(string) }

func (l logger) Debug(string)                  {}
func (l logger) Debugf(string, ...interface{}) {}
func (l logger) Info(string)                   {}
func (l logger) Infof(string, ...interface{})  {}
func (l logger) Warn(msg string)               { l.line("warning: " + strings.TrimSpace(msg)) }
func (l logger) Warnf(f string, v ...any)      { l.Warn(fmt.Sprintf(f, v...)) }
func (l logger) Error(msg string)              { l.line(strings.TrimSpace(msg)) }
func (l logger) Errorf(f string, v ...any)     { l.Error(fmt.Sprintf(f, v...)) }
func (l logger) Writer() io.Writer             { return io.Discard }
func (l logger) IsVerbose() bool               { return false }

// lifecycleVersion is that of the stock programs: buildpacks/lifecycle/go.mod.
const lifecycleVersion = "0.21.0"

// packLifecycle writes the archive of a lifecycle as pack reads it: a description, and the programs in a
// directory, where all phases but the launcher are one program under several names.
func packLifecycle(dir, to string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	about := describeLifecycle()
	if err := w.WriteHeader(entry("lifecycle.toml", 0o644, int64(len(about)))); err != nil {
		return err
	}
	if _, err := w.Write(about); err != nil {
		return err
	}
	for _, name := range []string{"lifecycle", "launcher"} {
		if err := packProgram(w, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, phase := range []string{"analyzer", "builder", "creator", "detector", "exporter", "extender", "rebaser", "restorer"} {
		link := entry("lifecycle/"+phase, 0o777, 0)
		link.Typeflag, link.Linkname = tar.TypeSymlink, "lifecycle"
		if err := w.WriteHeader(link); err != nil {
			return err
		}
	}
	return w.Close()
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
	if err := w.WriteHeader(entry("lifecycle/"+filepath.Base(path), 0o755, info.Size())); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// entry has a time that is the same for all, so that equal programs make equal images.
func entry(name string, mode, size int64) *tar.Header {
	return &tar.Header{Name: name, Mode: mode, Size: size, ModTime: time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)}
}

// describeLifecycle is lifecycle.toml (distribution specification, "Lifecycle Descriptor").
func describeLifecycle() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "[lifecycle]\nversion = %q\n", lifecycleVersion)
	for _, list := range []struct {
		name string
		apis api.APIs
	}{{"buildpack", api.Buildpack}, {"platform", api.Platform}} {
		fmt.Fprintf(&b, "\n[apis.%s]\ndeprecated = %s\nsupported = %s\n", list.name, list.apis.Deprecated, list.apis.Supported)
	}
	return b.Bytes()
}
