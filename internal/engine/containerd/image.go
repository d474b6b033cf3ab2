package containerd

import (
	"context"
	"fmt"
	"strings"
	"sync"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// localPrefix is that of images which were built here and are in no registry.
const localPrefix = "deis.internal/"

// image is what instances need of one.
type image struct {
	name    string
	meta    images.Image
	config  ocispec.ImageConfig
	chainID string
}

// imageCache holds pinned images, which never change. It grows with the
// releases that ran, by some hundred bytes each. The zero value is ready.
type imageCache struct {
	mu     sync.Mutex
	pinned map[string]*image // by pin name
}

func (c *imageCache) get(pin string) *image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pinned[pin]
}

func (c *imageCache) put(pin string, img *image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pinned == nil {
		c.pinned = map[string]*image{}
	}
	c.pinned[pin] = img
}

func (c *imageCache) drop(prefix string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pin := range c.pinned {
		if strings.HasPrefix(pin, prefix) {
			delete(c.pinned, pin)
		}
	}
}

func appImages(app string) string { return localPrefix + "apps/" + app }

// pinName is an image's name for an app, by which it is kept until the app or its releases go.
func pinName(app string, d digest.Digest) string { return appImages(app) + "@" + d.String() }

// Fetch implements engine.Engine.
func (e *Engine) Fetch(ctx context.Context, app string, p engine.Process, say func(string)) (d string, err error) {
	if err := checkApp(app); err != nil {
		return "", err
	}
	err = again(e.in(ctx), func(ctx context.Context) error {
		img, err := e.fetch(ctx, app, p, say)
		if err == nil {
			d = img.meta.Target.Digest.String()
		}
		return err
	})
	return d, err
}

// image is that of a process.
func (e *Engine) image(ctx context.Context, app string, p engine.Process) (*image, error) {
	return e.fetch(ctx, app, p, func(string) {})
}

// fetch finds the image of a process in containerd's store, or pulls it. It gives it a name of the
// app's own: its tag may move and go, but an ended instance must be replaceable as long as the app is there.
func (e *Engine) fetch(ctx context.Context, app string, p engine.Process, say func(string)) (*image, error) {
	ref, err := reference.ParseDockerRef(p.Image)
	if err != nil {
		return nil, &paas.Error{Code: paas.Invalid, Err: err, Message: fmt.Sprintf(
			"%q is no image reference. One is like redis, redis:7 or registry.example.com/team/app:v1, in lower case.", p.Image)}
	}
	wanted, err := wantedDigest(ref, p)
	if err != nil {
		return nil, err
	}
	if img := e.images.get(pinName(app, wanted)); img != nil {
		return img, nil
	}
	meta, err := e.findImage(ctx, app, p.Image, ref, wanted)
	if errdefs.IsNotFound(err) {
		meta, err = e.pullImage(ctx, app, ref, wanted, p.Registry, say)
	}
	if err != nil {
		return nil, err
	}
	if meta, err = e.pin(ctx, app, meta); err != nil {
		return nil, err
	}
	content, err := ctd.NewImage(e.client, meta).Spec(ctx)
	if err != nil {
		return nil, &paas.Error{
			Code: paas.Unavailable, Err: err,
			Message: fmt.Sprintf("image %s is incomplete or not made for this machine", p.Image),
		}
	}
	img := &image{
		name: meta.Name, meta: meta, config: content.Config,
		chainID: identity.ChainID(content.RootFS.DiffIDs).String(),
	}
	e.images.put(meta.Name, img)
	return img, nil
}

// wantedDigest is empty where a tag decides.
func wantedDigest(ref reference.Named, p engine.Process) (digest.Digest, error) {
	if p.Digest != "" {
		d, err := digest.Parse(p.Digest)
		if err != nil {
			return "", paas.Errorf(paas.Invalid, "image %s: bad digest %q", p.Image, p.Digest)
		}
		return d, nil
	}
	if pinned, ok := ref.(reference.Canonical); ok {
		return pinned.Digest(), nil
	}
	return "", nil
}

// pin gives an image the app's own name.
func (e *Engine) pin(ctx context.Context, app string, meta images.Image) (images.Image, error) {
	pin := pinName(app, meta.Target.Digest)
	if meta.Name == pin {
		return meta, nil
	}
	_, err := e.client.ImageService().Create(ctx, images.Image{Name: pin, Target: meta.Target})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return meta, wrap(err, "pin image %s", meta.Name)
	}
	meta.Name = pin
	return meta, nil
}

// findImage looks under the pin, under the reference and for the digest under any name, but for
// those of other apps: to know what they run is not to have it. The error is errdefs.ErrNotFound if it is not here.
func (e *Engine) findImage(ctx context.Context, app, name string, ref reference.Named, wanted digest.Digest) (images.Image, error) {
	names := []string{name, ref.String()}
	if wanted != "" {
		names = append(names, pinName(app, wanted))
	}
	for _, name := range names {
		meta, err := e.client.ImageService().Get(ctx, name)
		if err == nil && (wanted == "" || meta.Target.Digest == wanted) {
			return meta, nil
		}
		if unlessGone(err) != nil {
			return meta, wrap(err, "look for image %s", name)
		}
	}
	if wanted == "" {
		return images.Image{}, errdefs.ErrNotFound
	}
	same, err := e.client.ImageService().List(ctx, "target.digest=="+wanted.String())
	if err != nil {
		return images.Image{}, wrap(err, "look for image %s", wanted)
	}
	for _, meta := range same {
		if owner := appOfImage(meta.Name); owner == "" || owner == app {
			return meta, nil
		}
	}
	return images.Image{}, errdefs.ErrNotFound
}

// pullImage is pull, but for images that no registry has.
func (e *Engine) pullImage(ctx context.Context, app string, ref reference.Named, wanted digest.Digest,
	auth engine.Credentials, say func(string),
) (images.Image, error) {
	if reference.Domain(ref)+"/" == localPrefix {
		return images.Image{}, paas.Errorf(paas.Unavailable, "image %s is not on this machine any more, please push again", ref)
	}
	if wanted != "" {
		pinned, err := reference.WithDigest(reference.TrimNamed(ref), wanted)
		if err != nil {
			return images.Image{}, fmt.Errorf("image %s with digest %s: %w", ref, wanted, err)
		}
		ref = pinned
	}
	return e.pull(ctx, app, ref, auth, say)
}

// unpack makes the snapshots of an image whose builder has not, or which were
// collected.
func (e *Engine) unpack(ctx context.Context, img *image) error {
	err := ctd.NewImage(e.client, img.meta).Unpack(ctx, snapshotter)
	if errdefs.IsNotFound(err) {
		e.images.drop(img.name) // look for it anew next time
		return &paas.Error{Code: paas.Unavailable, Message: fmt.Sprintf("image %s is incomplete", img.name), Err: err}
	}
	return wrap(err, "unpack image %s", img.name)
}

func (e *Engine) forgetImages(ctx context.Context, app string) error {
	list, err := e.imagesOf(ctx, app)
	if err != nil {
		return err
	}
	e.images.drop(appImages(app))
	for _, img := range list {
		if err := unlessGone(e.client.ImageService().Delete(ctx, img.Name)); err != nil {
			return wrap(err, "remove image %s", img.Name)
		}
	}
	return nil
}
