package builders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/buildpacks/imgutil"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build/imagestore"
)

// image is an imgutil.Image in containerd's store. imgutil's core changes a copy in memory, here
// are the ways in and out: new layers go to the store as they are added, not compressed, and Save names
// the result. The context is that of the call that pack was given, with a lease, because imgutil's
// methods take none.
type image struct {
	*imgutil.CNBImageCore
	ctx    context.Context
	store  *imagestore.Store
	name   string
	found  bool
	digest digest.Digest     // of the manifest opened or saved last
	labels map[string]string // of the name's record
}

var _ imgutil.Image = (*image)(nil)

// openImage returns an image for pack to read or to build on. The error has code paas.NotFound when it is not there.
func openImage(ctx context.Context, store *imagestore.Store, name string) (*image, error) {
	base, err := openStored(ctx, store, name)
	if err != nil {
		return nil, err
	}
	img, err := newImage(ctx, store, name, imgutil.ImageOptions{BaseImage: base})
	if err != nil {
		return nil, err
	}
	img.found, img.digest = true, base.desc.Digest
	return img, nil
}

func newImage(ctx context.Context, store *imagestore.Store, name string, opts imgutil.ImageOptions) (*image, error) {
	opts.MediaTypes = imgutil.DefaultTypes // each layer keeps its own
	core, err := imgutil.NewCNBImage(opts)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return &image{CNBImageCore: core, ctx: ctx, store: store, name: name}, nil
}

func (i *image) Name() string       { return i.name }
func (i *image) Rename(name string) { i.name = name }
func (i *image) Found() bool        { return i.found }
func (i *image) Valid() bool        { return i.found }

// Kind has to be one of imgutil's own: the nearest is an image that is read by parts.
func (i *image) Kind() string { return "remote" }

// Identifier implements imgutil.Image: the name and the digest.
func (i *image) Identifier() (imgutil.Identifier, error) {
	return identifier(i.name + "@" + i.digest.String()), nil
}

type identifier string

func (id identifier) String() string { return string(id) }

// Delete implements imgutil.Image.
func (i *image) Delete() error { return i.store.Remove(i.ctx, i.name) }

// Save implements imgutil.Image.
func (i *image) Save(more ...string) error { return i.SaveAs(i.name, more...) }

// SaveAs implements imgutil.Image. Times are fixed, so that equal contents have equal digests.
func (i *image) SaveAs(name string, more ...string) error {
	if err := i.SetCreatedAtAndHistory(); err != nil {
		return err
	}
	config, err := i.RawConfigFile()
	if err != nil {
		return err
	}
	layers, err := i.descriptors()
	if err != nil {
		return err
	}
	for _, n := range append([]string{name}, more...) {
		n, err := fullName(n)
		if err != nil {
			return err
		}
		desc, err := i.store.PutConfig(i.ctx, n, config, layers, i.labels)
		if err != nil {
			return err
		}
		i.found, i.digest = true, desc.Digest
	}
	return nil
}

// SaveFile implements imgutil.Image.
func (i *image) SaveFile() (string, error) {
	return "", errors.New("images are kept in containerd's store only")
}

func (i *image) descriptors() ([]ocispec.Descriptor, error) {
	layers, err := i.Layers()
	if err != nil {
		return nil, err
	}
	descs := make([]ocispec.Descriptor, 0, len(layers))
	for _, l := range layers {
		own, ok := l.(*layer)
		if !ok {
			return nil, fmt.Errorf("image %s: a layer of type %T is not from the store", i.name, l)
		}
		descs = append(descs, own.desc)
	}
	return descs, nil
}

// AddLayer implements imgutil.Image. What is added is a tar file.
func (i *image) AddLayer(path string) error {
	return i.AddLayerWithDiffIDAndHistory(path, "", v1.History{})
}

// AddLayerWithDiffID implements imgutil.Image.
func (i *image) AddLayerWithDiffID(path, diffID string) error {
	return i.AddLayerWithDiffIDAndHistory(path, diffID, v1.History{})
}

// AddLayerWithDiffIDAndHistory implements imgutil.Image. The diff ID is what the file's content says.
func (i *image) AddLayerWithDiffIDAndHistory(path, _ string, history v1.History) error {
	desc, err := i.store.WriteLayer(i.ctx, path)
	if err != nil {
		return err
	}
	return i.AddLayerWithHistory(&layer{i.ctx, i.store, desc, desc.Digest}, history)
}

// AddOrReuseLayerWithHistory implements imgutil.Image.
func (i *image) AddOrReuseLayerWithHistory(path, diffID string, history v1.History) error {
	return i.AddLayerWithDiffIDAndHistory(path, diffID, history)
}

// stored is an image in the store as go-containerregistry reads it.
type stored struct {
	manifest, config []byte
	parsed           *v1.Manifest
	file             *v1.ConfigFile
	desc             ocispec.Descriptor
	layers           []v1.Layer
}

var _ v1.Image = (*stored)(nil)

func openStored(ctx context.Context, store *imagestore.Store, name string) (*stored, error) {
	known, err := store.Image(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &stored{desc: known.ManifestDesc}
	if s.manifest, err = store.Read(ctx, known.ManifestDesc); err != nil {
		return nil, fmt.Errorf("image %s: manifest: %w", name, err)
	}
	if s.config, err = store.Read(ctx, known.Manifest.Config); err != nil {
		return nil, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	if s.parsed, err = v1.ParseManifest(bytes.NewReader(s.manifest)); err != nil {
		return nil, fmt.Errorf("image %s: manifest: %w", name, err)
	}
	if s.file, err = v1.ParseConfigFile(bytes.NewReader(s.config)); err != nil {
		return nil, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	if len(s.file.RootFS.DiffIDs) != len(known.Manifest.Layers) {
		return nil, fmt.Errorf("image %s: %d layers, but %d in its configuration", name, len(known.Manifest.Layers), len(s.file.RootFS.DiffIDs))
	}
	// A rebase matches layers by the history: it must have one entry for each.
	s.file.History = imgutil.NormalizedHistory(s.file.History, len(known.Manifest.Layers))
	for n, desc := range known.Manifest.Layers {
		s.layers = append(s.layers, &layer{ctx, store, desc, digest.Digest(s.file.RootFS.DiffIDs[n].String())})
	}
	return s, nil
}

func (s *stored) Layers() ([]v1.Layer, error)         { return s.layers, nil }
func (s *stored) MediaType() (types.MediaType, error) { return types.MediaType(s.desc.MediaType), nil }
func (s *stored) Size() (int64, error)                { return s.desc.Size, nil }
func (s *stored) Digest() (v1.Hash, error)            { return v1.NewHash(s.desc.Digest.String()) }
func (s *stored) ConfigName() (v1.Hash, error)        { return s.parsed.Config.Digest, nil }
func (s *stored) ConfigFile() (*v1.ConfigFile, error) { return s.file.DeepCopy(), nil }
func (s *stored) RawConfigFile() ([]byte, error)      { return s.config, nil }
func (s *stored) Manifest() (*v1.Manifest, error)     { return s.parsed.DeepCopy(), nil }
func (s *stored) RawManifest() ([]byte, error)        { return s.manifest, nil }
func (s *stored) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == s.parsed.Config.Digest {
		return partial.ConfigLayer(s)
	}
	return s.find(h, v1.Layer.Digest)
}
func (s *stored) LayerByDiffID(h v1.Hash) (v1.Layer, error) { return s.find(h, v1.Layer.DiffID) }

func (s *stored) find(h v1.Hash, by func(v1.Layer) (v1.Hash, error)) (v1.Layer, error) {
	for _, l := range s.layers {
		if got, err := by(l); err == nil && got == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("layer %s is not in the image", h)
}

// layer is a blob in the store. Ours are not compressed; those of images from elsewhere may be.
type layer struct {
	ctx    context.Context
	store  *imagestore.Store
	desc   ocispec.Descriptor
	diffID digest.Digest
}

var _ v1.Layer = (*layer)(nil)

func (l *layer) Digest() (v1.Hash, error)            { return v1.NewHash(l.desc.Digest.String()) }
func (l *layer) DiffID() (v1.Hash, error)            { return v1.NewHash(l.diffID.String()) }
func (l *layer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.MediaType(l.desc.MediaType), nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return l.store.Open(l.ctx, l.desc) }
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	blob, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	plain, err := compression.DecompressStream(blob)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", l.desc.Digest, err), blob.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{plain, closers{plain, blob}}, nil
}

type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, closer := range c {
		errs = append(errs, closer.Close())
	}
	return errors.Join(errs...)
}
