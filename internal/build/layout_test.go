package build_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

// layout is one to tamper with; files makes it anew.
type layout struct {
	index    ocispec.Index
	manifest ocispec.Manifest
	config   ocispec.Image
	blobs    [][]byte
	// fix changes descriptors and files after the digests were computed.
	fixManifest func(*ocispec.Manifest)
	fixIndex    func(*ocispec.Index)
}

func newLayout(layers ...string) *layout {
	l := &layout{config: ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}}
	for _, content := range layers {
		l.layer(layerOf(map[string]string{"f": content}))
	}
	return l
}

func (l *layout) layer(data []byte) {
	l.name(digest.FromBytes(data), int64(len(data)))
	l.blobs = append(l.blobs, data)
}

func (l *layout) name(d digest.Digest, size int64) {
	l.manifest.Layers = append(l.manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size})
	l.config.RootFS.DiffIDs = append(l.config.RootFS.DiffIDs, d)
}

func (l *layout) files() build.MemFiles {
	files := build.MemFiles{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	put := func(mediaType string, doc any) ocispec.Descriptor {
		data, _ := json.Marshal(doc)
		d := digest.FromBytes(data)
		files["blobs/sha256/"+d.Encoded()] = data
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	l.manifest.Config = put(ocispec.MediaTypeImageConfig, l.config)
	if l.fixManifest != nil {
		l.fixManifest(&l.manifest)
	}
	l.index.Manifests = []ocispec.Descriptor{put(ocispec.MediaTypeImageManifest, l.manifest)}
	if l.fixIndex != nil {
		l.fixIndex(&l.index)
	}
	files["index.json"], _ = json.Marshal(l.index)
	for _, data := range l.blobs {
		files["blobs/sha256/"+digest.FromBytes(data).Encoded()] = data
	}
	return files
}

func TestImportLayout(t *testing.T) {
	p := sharedPlatform(t)
	store := p.openStore(t)
	leased, done, err := store.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	foreign := layerOf(map[string]string{"f": "of another app"})
	foreignDesc := ocispec.Descriptor{Digest: digest.FromBytes(foreign), Size: int64(len(foreign))}
	if err := store.Write(leased, foreignDesc, bytes.NewReader(foreign)); err != nil {
		t.Fatal(err)
	}
	blob := func(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }
	none := digest.FromString("none")

	tests := []struct {
		name   string
		layout func(l *layout)
		files  func(f build.MemFiles, l *layout)
		known  []digest.Digest
		limit  int64
		want   string // a part of the error's text; "lost" is errLost; empty is none
	}{
		{name: "good"},
		{name: "the store has the layer", layout: func(l *layout) { l.name(foreignDesc.Digest, foreignDesc.Size) }, known: []digest.Digest{foreignDesc.Digest}},
		{name: "the build has it too", layout: func(l *layout) { l.layer(foreign) }},
		{name: "names another app's layer", layout: func(l *layout) { l.name(foreignDesc.Digest, foreignDesc.Size) }, want: "lost"},
		{
			name: "claims to have it", layout: func(l *layout) { l.name(foreignDesc.Digest, foreignDesc.Size) },
			files: func(f build.MemFiles, _ *layout) {
				f[blob(foreignDesc.Digest)] = bytes.Repeat([]byte("x"), len(foreign))
			}, want: "has another content",
		},
		{name: "known but gone", layout: func(l *layout) { l.name(none, 1) }, known: []digest.Digest{none}, want: "lost"},
		{name: "no index", files: func(f build.MemFiles, _ *layout) { delete(f, "index.json") }, want: "there is no index.json"},
		{name: "large index", files: func(f build.MemFiles, _ *layout) { f["index.json"] = make([]byte, 1<<20) }, want: "index.json has 1048576 bytes; the limit is 65536"},
		{name: "broken index", files: func(f build.MemFiles, _ *layout) { f["index.json"] = []byte("{") }, want: "index.json: unexpected end"},
		{name: "two manifests", layout: func(l *layout) {
			l.fixIndex = func(i *ocispec.Index) { i.Manifests = append(i.Manifests, i.Manifests[0]) }
		}, want: "does not name one manifest"},
		{name: "an index in the index", layout: func(l *layout) {
			l.fixIndex = func(i *ocispec.Index) { i.Manifests[0].MediaType = ocispec.MediaTypeImageIndex }
		}, want: "does not name one manifest"},
		{name: "a path as digest", layout: func(l *layout) {
			l.fixIndex = func(i *ocispec.Index) { i.Manifests[0].Digest = "sha256:../../../etc/passwd" }
		}, want: `digest "sha256:../../../etc/passwd"`},
		{name: "no digest", layout: func(l *layout) { l.fixIndex = func(i *ocispec.Index) { i.Manifests[0].Digest = "" } }, want: `digest ""`},
		{name: "no manifest", files: func(f build.MemFiles, l *layout) { delete(f, blob(l.index.Manifests[0].Digest)) }, want: "there is no sha256:"},
		{name: "truncated manifest", files: func(f build.MemFiles, l *layout) {
			name := blob(l.index.Manifests[0].Digest)
			f[name] = f[name][:10]
		}, want: "has another content"},
		{name: "wrong size of the manifest", layout: func(l *layout) { l.fixIndex = func(i *ocispec.Index) { i.Manifests[0].Size++ } }, want: "has another content"},
		{name: "large configuration", files: func(f build.MemFiles, l *layout) { f[blob(l.manifest.Config.Digest)] = make([]byte, 5<<20) }, want: "the limit is 4194304"},
		{name: "other configuration", layout: func(l *layout) {
			l.fixManifest = func(m *ocispec.Manifest) { m.Config.MediaType = "application/x" }
		}, want: `the configuration is of type "application/x"`},
		{name: "other layers", layout: func(l *layout) {
			l.fixManifest = func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip }
		}, want: "is no plain tar"},
		{name: "other digests", layout: func(l *layout) {
			l.fixManifest = func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }
		}, want: "is no plain tar"},
		{name: "fewer layers", layout: func(l *layout) { l.fixManifest = func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] } }, want: "1 layers for 2"},
		{name: "no layers", layout: func(l *layout) { l.manifest.Layers, l.config.RootFS.DiffIDs = nil, nil }, want: "0 layers for 0"},
		{name: "many layers", layout: func(l *layout) {
			for range 130 {
				l.layer(foreign)
			}
		}, want: "132 layers for 132 in the configuration; the limit is 127"},
		{name: "truncated layer", files: func(f build.MemFiles, l *layout) {
			name := blob(l.manifest.Layers[1].Digest)
			f[name] = f[name][:100]
		}, want: "has another content"},
		{name: "changed layer", files: func(f build.MemFiles, l *layout) {
			name := blob(l.manifest.Layers[1].Digest)
			f[name] = bytes.Repeat([]byte("y"), len(f[name]))
		}, want: "has another content"},
		{name: "too much", limit: 3000, want: "the image is too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLayout("1 of "+tt.name, "2 of "+tt.name)
			if tt.layout != nil {
				tt.layout(l)
			}
			files := l.files()
			if tt.files != nil {
				tt.files(files, l)
			}
			known := map[digest.Digest]ocispec.Descriptor{}
			for _, d := range tt.known {
				known[d] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d}
			}
			config, layers, err := build.ImportLayout(leased, store, files, known, tt.limit)
			switch {
			case tt.want == "" && (err != nil || len(layers) != len(l.manifest.Layers) || !slices.Equal(config.RootFS.DiffIDs, l.config.RootFS.DiffIDs)):
				t.Errorf("got %v, %d layers", err, len(layers))
			case tt.want == "lost" && !errors.Is(err, build.ErrLost):
				t.Errorf("got %v", err)
			case tt.want != "" && tt.want != "lost" && (paas.CodeOf(err) != paas.Invalid || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if tt.want == "" {
				for _, d := range layers {
					if !store.Has(leased, d.Digest) {
						t.Errorf("layer %s is not in the store", d.Digest)
					}
				}
			}
		})
	}
}
