package containerd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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

// image finds the image of a process in containerd's store, or pulls it. One
// that is pinned by a digest gets a name of the app's own: its tag may be built
// anew, but an ended instance must be replaceable as long as the app is there.
func (e *Engine) image(ctx context.Context, app string, p engine.Process) (*image, error) {
	pin := ""
	if p.Digest != "" {
		if _, err := digest.Parse(p.Digest); err != nil {
			return nil, paas.Errorf(paas.Invalid, "image %s: bad digest %q", p.Image, p.Digest)
		}
		pin = appImages(app) + "@" + p.Digest
		if img := e.images.get(pin); img != nil {
			return img, nil
		}
	}
	meta, err := e.findImage(ctx, p, pin)
	if err != nil {
		return nil, err
	}
	if pin != "" && meta.Name != pin {
		_, err := e.client.ImageService().Create(ctx, images.Image{Name: pin, Target: meta.Target})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, wrap(err, "pin image %s", p.Image)
		}
		meta.Name = pin
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
	if pin != "" {
		e.images.put(pin, img)
	}
	return img, nil
}

// findImage looks under the pin, under the reference, for the digest under any
// name, and at last in the registry.
func (e *Engine) findImage(ctx context.Context, p engine.Process, pin string) (images.Image, error) {
	full := p.Image
	if ref, err := reference.ParseDockerRef(p.Image); err == nil {
		full = ref.String()
	}
	for _, name := range []string{pin, p.Image, full} {
		if name == "" {
			continue
		}
		meta, err := e.client.ImageService().Get(ctx, name)
		if err == nil && (p.Digest == "" || meta.Target.Digest.String() == p.Digest) {
			return meta, nil
		}
		if unlessGone(err) != nil {
			return meta, wrap(err, "look for image %s", name)
		}
	}
	if p.Digest != "" {
		same, err := e.client.ImageService().List(ctx, "target.digest=="+p.Digest)
		if err != nil {
			return images.Image{}, wrap(err, "look for image %s", p.Digest)
		}
		if len(same) > 0 {
			return same[0], nil
		}
	}
	return e.pull(ctx, p)
}

func (e *Engine) pull(ctx context.Context, p engine.Process) (images.Image, error) {
	if strings.HasPrefix(p.Image, localPrefix) {
		return images.Image{}, paas.Errorf(paas.Unavailable, "image %s is not on this machine any more, please push again", p.Image)
	}
	ref, err := reference.ParseDockerRef(p.Image)
	if err != nil {
		return images.Image{}, &paas.Error{Code: paas.Invalid, Message: fmt.Sprintf("%q is no image reference", p.Image), Err: err}
	}
	if p.Digest != "" {
		if ref, err = reference.WithDigest(reference.TrimNamed(ref), digest.Digest(p.Digest)); err != nil {
			return images.Image{}, &paas.Error{Code: paas.Invalid, Message: fmt.Sprintf("%q is no image reference", p.Image), Err: err}
		}
	}
	got, err := e.client.Pull(ctx, ref.String(), ctd.WithPullUnpack, ctd.WithPullSnapshotter(snapshotter))
	if err != nil {
		if ctx.Err() != nil {
			return images.Image{}, errors.Join(ctx.Err(), err)
		}
		return images.Image{}, &paas.Error{
			Code: paas.Unavailable, Err: err,
			Message: fmt.Sprintf("image %s is not on this machine and cannot be pulled: %v", p.Image, err),
		}
	}
	return got.Metadata(), nil
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
	prefix := appImages(app)
	pattern := "^" + strings.ReplaceAll(prefix, ".", `\.`) + "[:@]"
	list, err := e.client.ImageService().List(ctx, "name~="+strconv.Quote(pattern))
	if err != nil {
		return wrap(err, "list images")
	}
	e.images.drop(prefix)
	for _, img := range list {
		if err := unlessGone(e.client.ImageService().Delete(ctx, img.Name)); err != nil {
			return wrap(err, "remove image %s", img.Name)
		}
	}
	return nil
}
