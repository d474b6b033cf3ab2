// Package imagestore puts images into containerd's store, in the form in which
// all of ours are kept there: OCI manifests whose layers are not compressed, unpacked, held by
// the labels that containerd's garbage collector follows.
package imagestore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/paas"
)

// maxDocument bounds a manifest or configuration that is read into memory, as registries do.
const maxDocument = 4 << 20

// Store is the images of one namespace of a containerd. Its methods may be
// called concurrently.
type Store struct{ client *containerd.Client }

// Open returns the store at a containerd's socket. It connects when it is used.
func Open(address, namespace string) (*Store, error) {
	client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return &Store{client: client}, nil
}

// Close ends the connection.
func (s *Store) Close() error { return s.client.Close() }

// Client is the connection. Its default namespace is the store's.
func (s *Store) Client() *containerd.Client { return s.client }

// Lease returns a context with which what is written is kept until done, or for
// a day where done is never called. What an image refers to by then stays.
func (s *Store) Lease(ctx context.Context) (_ context.Context, done func(), err error) {
	leased, end, err := s.client.WithLease(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return leased, func() { _ = end(context.WithoutCancel(leased)) }, nil // it expires by itself
}

// Image is what the store knows of one image of this machine's platform.
type Image struct {
	Name string
	// Target is the descriptor of what Name refers to, Manifest that of the manifest: the same
	// unless Name is an index of several platforms.
	Target, ManifestDesc ocispec.Descriptor
	Manifest             ocispec.Manifest
	Config               ocispec.Image
	Labels               map[string]string
}

// Image reads an image. The error has code paas.NotFound when there is none of that name.
func (s *Store) Image(ctx context.Context, name string) (Image, error) {
	record, err := s.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return Image{}, &paas.Error{Code: paas.NotFound, Message: fmt.Sprintf("there is no image %s", name), Err: err}
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	img := Image{Name: name, Target: record.Target, Labels: record.Labels}
	blobs := s.client.ContentStore()
	if img.Manifest, err = images.Manifest(ctx, blobs, record.Target, platforms.Default()); err != nil {
		return Image{}, fmt.Errorf("image %s: manifest: %w", name, err)
	}
	if img.ManifestDesc, err = manifestDesc(ctx, blobs, record.Target); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	if err := s.ReadJSON(ctx, img.Manifest.Config, &img.Config); err != nil {
		return Image{}, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	return img, nil
}

// manifestDesc finds the descriptor that images.Manifest reads.
func manifestDesc(ctx context.Context, blobs content.Provider, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		return target, nil
	}
	data, err := content.ReadBlob(ctx, blobs, target)
	if err != nil {
		return target, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return target, err
	}
	match := platforms.Default()
	list := slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return !images.IsManifestType(d.MediaType) || d.Platform != nil && !match.Match(*d.Platform)
	})
	if len(list) == 0 {
		return target, fmt.Errorf("no manifest for this machine's platform: %w", errdefs.ErrNotFound)
	}
	return slices.MinFunc(list, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case match.Less(*a.Platform, *b.Platform):
			return -1
		}
		return 1
	}), nil
}

// Unpacked reports whether an image's layers are in the snapshotter.
func (s *Store) Unpacked(ctx context.Context, name string) bool {
	img, err := s.client.GetImage(ctx, name)
	if err != nil {
		return false
	}
	ok, err := img.IsUnpacked(ctx, defaults.DefaultSnapshotter)
	return err == nil && ok
}

// Has reports whether a blob is there.
func (s *Store) Has(ctx context.Context, d digest.Digest) bool {
	_, err := s.client.ContentStore().Info(ctx, d)
	return err == nil
}

// Write stores a blob; its bytes must have the descriptor's size and digest. One that is there already
// is not read. It is kept only while a lease or an image holds it.
func (s *Store) Write(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	ref := "deis-" + desc.Digest.String()
	if err := content.WriteBlob(ctx, s.client.ContentStore(), ref, r, desc); err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, err)
	}
	return nil
}

// Open returns a blob's content.
func (s *Store) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := s.client.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(blob), blob}, nil
}

// ReadJSON decodes a blob that is a JSON document, of at most 4 MiB.
func (s *Store) ReadJSON(ctx context.Context, desc ocispec.Descriptor, into any) error {
	if desc.Size > maxDocument {
		return fmt.Errorf("%s is %d bytes; the limit is %d", desc.Digest, desc.Size, maxDocument)
	}
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// Put makes an image of a configuration and of layers that are in the store
// already, gives it a name, which it takes from whatever had it, and unpacks it. config.RootFS
// must name the layers' diff IDs. Labels are those of the name's record. Call it with a Lease.
func (s *Store) Put(ctx context.Context, name string, config ocispec.Image, layers []ocispec.Descriptor, labels map[string]string) (ocispec.Descriptor, error) {
	if config.Architecture == "" {
		config.Platform = ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	}
	refs := map[string]string{}
	for i, l := range layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	configDesc, err := s.document(ctx, ocispec.MediaTypeImageConfig, config, map[string]string{
		// The snapshots of the layers stay as long as the configuration does.
		"containerd.io/gc.ref.snapshot." + defaults.DefaultSnapshotter: chainID(config.RootFS.DiffIDs).String(),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	refs["containerd.io/gc.ref.content.config"] = configDesc.Digest.String()
	manifest, err := s.document(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    slices.Clone(layers),
	}, refs)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return manifest, s.name(ctx, images.Image{Name: name, Target: manifest, Labels: labels})
}

func (s *Store) name(ctx context.Context, img images.Image) error {
	_, err := s.client.ImageService().Update(ctx, img)
	if errdefs.IsNotFound(err) {
		_, err = s.client.ImageService().Create(ctx, img)
	}
	if err != nil && !errdefs.IsAlreadyExists(err) { // made by another process meanwhile
		return fmt.Errorf("name image %s: %w", img.Name, err)
	}
	if err := containerd.NewImage(s.client, img).Unpack(ctx, defaults.DefaultSnapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", img.Name, err)
	}
	return nil
}

// chainID is that of the OCI image specification: of a stack of layers.
func chainID(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return ""
	}
	chain := diffIDs[0]
	for _, d := range diffIDs[1:] {
		chain = digest.FromString(chain.String() + " " + d.String())
	}
	return chain
}

// document writes a JSON blob. The labels say what it refers to, for containerd's garbage collector.
func (s *Store) document(ctx context.Context, mediaType string, doc any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(doc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := s.Write(ctx, desc, bytes.NewReader(data)); err != nil {
		return ocispec.Descriptor{}, err
	}
	// A blob that another namespace had already came without labels.
	fields := make([]string, 0, len(labels))
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err = s.client.ContentStore().Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, fields...)
	return desc, err
}
