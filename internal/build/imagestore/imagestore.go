// Package imagestore puts images into containerd's store, in the form in which
// all of ours are kept there: OCI manifests whose layers are not compressed, unpacked, held by
// the labels that containerd's garbage collector follows.
package imagestore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/deis/deis/internal/paas"
)

// maxDocument bounds a manifest or configuration that is read into memory, as registries do.
const maxDocument = 4 << 20

// connectWait bounds a connection to containerd, redial is the pause after one that failed.
const (
	connectWait = 10 * time.Second
	redial      = 100 * time.Millisecond
)

// Store is the images of one namespace of a containerd. Its methods may be
// called concurrently.
type Store struct{ client *containerd.Client }

// Open returns the store at a containerd's socket. It connects when it is used.
func Open(address, namespace string) (*Store, error) {
	// By itself gRPC looks for a containerd that was restarted after up to ten seconds only.
	quick := backoff.Config{BaseDelay: redial, Multiplier: 1.5, MaxDelay: 5 * redial}
	client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace), containerd.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: connectWait}),
	}))
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
// a day where done is never called. What an image refers to by then stays. A context that has a
// lease already comes back as it is, and its done does nothing.
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
	for {
		record, err := s.client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return Image{}, &paas.Error{Code: paas.NotFound, Message: fmt.Sprintf("there is no image %s", name), Err: err}
		}
		if err != nil {
			return Image{}, fmt.Errorf("image %s: %w", name, err)
		}
		img, err := s.read(ctx, record)
		if err == nil || !errdefs.IsNotFound(err) {
			return img, err
		}
		// The name may have been given to another image, and this one collected, while it was read.
		if now, changed := s.client.ImageService().Get(ctx, name); changed == nil && now.Target.Digest == record.Target.Digest {
			return Image{}, err
		}
	}
}

func (s *Store) read(ctx context.Context, record images.Image) (_ Image, err error) {
	img := Image{Name: record.Name, Target: record.Target, Labels: record.Labels}
	blobs := s.client.ContentStore()
	if img.Manifest, err = images.Manifest(ctx, blobs, record.Target, platforms.Default()); err != nil {
		return Image{}, fmt.Errorf("image %s: manifest: %w", record.Name, err)
	}
	if img.ManifestDesc, err = manifestDesc(ctx, blobs, record.Target); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", record.Name, err)
	}
	if err := s.ReadJSON(ctx, img.Manifest.Config, &img.Config); err != nil {
		return Image{}, fmt.Errorf("image %s: configuration: %w", record.Name, err)
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
	// A name of its own: what a failed write leaves would be gone on with by the next one of this digest.
	ref := "deis-" + desc.Digest.String() + "-" + rand.Text()
	if err := content.WriteBlob(ctx, s.client.ContentStore(), ref, r, desc); err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, err)
	}
	return nil
}

// WriteLayer stores a layer that is a tar file, as it is. Layers of ours are not compressed, so
// their digests are also those of their content (OCI's diff IDs).
func (s *Store) WriteLayer(ctx context.Context, path string) (ocispec.Descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	digester := digest.Canonical.Digester()
	size, err := io.Copy(digester.Hash(), f)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", path, err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digester.Digest(), Size: size}
	return desc, s.Write(ctx, desc, f)
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

// Read returns a blob that is a document, of at most 4 MiB.
func (s *Store) Read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s is %d bytes; the limit is %d", desc.Digest, desc.Size, maxDocument)
	}
	return content.ReadBlob(ctx, s.client.ContentStore(), desc)
}

// ReadJSON decodes a blob that is a JSON document, of at most 4 MiB.
func (s *Store) ReadJSON(ctx context.Context, desc ocispec.Descriptor, into any) error {
	data, err := s.Read(ctx, desc)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// Put makes an image of a configuration and of layers that are in the store
// already, and gives it a name, which it takes from whatever had it. config.RootFS
// must name the layers' diff IDs. Labels are those of the name's record. The layers must be held by
// a Lease, or by an image that stays.
func (s *Store) Put(ctx context.Context, name string, config ocispec.Image, layers []ocispec.Descriptor, labels map[string]string) (ocispec.Descriptor, error) {
	if config.Architecture == "" {
		config.Platform = ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.PutConfig(ctx, name, raw, layers, labels)
}

// PutConfig is Put for a configuration that is JSON already and is kept byte for byte.
func (s *Store) PutConfig(ctx context.Context, name string, config []byte, layers []ocispec.Descriptor, labels map[string]string) (ocispec.Descriptor, error) {
	var parsed ocispec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	if len(parsed.RootFS.DiffIDs) != len(layers) {
		return ocispec.Descriptor{}, fmt.Errorf("image %s: the configuration names %d layers, there are %d", name, len(parsed.RootFS.DiffIDs), len(layers))
	}
	refs := map[string]string{}
	for i, l := range layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image %s: %w", name, err)
	}
	defer done()
	configDesc, err := s.document(ctx, ocispec.MediaTypeImageConfig, config, map[string]string{
		// The snapshots of the layers stay as long as the configuration does.
		"containerd.io/gc.ref.snapshot." + defaults.DefaultSnapshotter: chainID(parsed.RootFS.DiffIDs).String(),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	refs["containerd.io/gc.ref.content.config"] = configDesc.Digest.String()
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    slices.Clone(layers),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := s.document(ctx, ocispec.MediaTypeImageManifest, raw, refs)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return manifest, s.name(ctx, images.Image{Name: name, Target: manifest, Labels: labels})
}

// Remove takes away a name. Who else has the image keeps it. No such name is no error.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.client.ImageService().Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// Names lists all images, in order.
func (s *Store) Names(ctx context.Context) ([]string, error) {
	return s.names(ctx)
}

// NameOf returns a name of the image whose manifest has a digest. The error has code
// paas.NotFound when there is none.
func (s *Store) NameOf(ctx context.Context, d digest.Digest) (string, error) {
	names, err := s.names(ctx, "target.digest=="+d.String())
	if err == nil && len(names) == 0 {
		err = paas.Errorf(paas.NotFound, "there is no image %s", d)
	}
	if err != nil {
		return "", err
	}
	return names[0], nil
}

func (s *Store) names(ctx context.Context, filters ...string) ([]string, error) {
	list, err := s.client.ImageService().List(ctx, filters...)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names := make([]string, 0, len(list))
	for _, img := range list {
		names = append(names, img.Name)
	}
	slices.Sort(names)
	return names, nil
}

func (s *Store) name(ctx context.Context, img images.Image) error {
	for {
		_, err := s.client.ImageService().Update(ctx, img)
		if errdefs.IsNotFound(err) {
			_, err = s.client.ImageService().Create(ctx, img)
		}
		if errdefs.IsAlreadyExists(err) {
			continue // made by another process meanwhile
		}
		if err != nil {
			return fmt.Errorf("name image %s: %w", img.Name, err)
		}
		return nil
	}
}

// Unpack makes an image ready to run at once. Images that only builds use need it not: BuildKit unpacks them
// anew, under names of its own.
func (s *Store) Unpack(ctx context.Context, name string) error {
	img, err := s.client.GetImage(ctx, name)
	if err == nil {
		err = img.Unpack(ctx, defaults.DefaultSnapshotter)
	}
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", name, err)
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
func (s *Store) document(ctx context.Context, mediaType string, data []byte, labels map[string]string) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := s.Write(ctx, desc, bytes.NewReader(data)); err != nil {
		return ocispec.Descriptor{}, err
	}
	// A blob that another namespace had already came without labels.
	fields := make([]string, 0, len(labels))
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := s.client.ContentStore().Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, fields...)
	return desc, err
}
