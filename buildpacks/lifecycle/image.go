package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/buildpacks/imgutil"
	"github.com/buildpacks/lifecycle/platform"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is the app's image, written as an OCI image layout (image-spec 1.1). Layers are not
// compressed: their digest is their diff id.
//
// The blobs of the run image's layers and of layers that the host has are left out. Of the
// former only diff ids are known, so that the manifest's descriptors of what is left out have the diff
// id for a digest and may have size 0; the host puts in its own.
type image struct {
	imgutil.Image // absent: of its methods the exporter calls only those below

	dir    string
	have   map[string]bool
	config *v1.ConfigFile
	layers []v1.Descriptor
}

// platformLabels say what the lifecycle did. Buildpacks may set labels, but not these.
var platformLabels = []string{
	platform.LifecycleMetadataLabel, platform.BuildMetadataLabel, platform.ProjectMetadataLabel,
}

func newImage(dir string, config *v1.ConfigFile, have map[string]bool) (*image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return nil, err
	}
	i := &image{dir: dir, have: have, config: config}
	config.History = imgutil.NormalizedHistory(config.History, len(config.RootFS.DiffIDs))
	for _, label := range platformLabels {
		delete(config.Config.Labels, label)
	}
	for _, diffID := range config.RootFS.DiffIDs {
		i.layers = append(i.layers, layerDescriptor(diffID, 0))
	}
	return i, nil
}

func layerDescriptor(diffID v1.Hash, size int64) v1.Descriptor {
	return v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: diffID, Size: size}
}

// TopLayer is the diff id of the topmost layer.
func (i *image) TopLayer() (string, error) {
	return i.layers[len(i.layers)-1].Digest.String(), nil
}

// AddLayerWithDiffIDAndHistory moves the tar at path into the layout, unless the host has such a layer.
func (i *image) AddLayerWithDiffIDAndHistory(path, diffID string, history v1.History) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := i.addLayer(diffID, info.Size(), history); err != nil || i.have[diffID] {
		return err
	}
	return os.Rename(path, i.blob(diffID))
}

// ReuseLayerWithHistory adds a layer that the host has.
func (i *image) ReuseLayerWithHistory(diffID string, history v1.History) error {
	if !i.have[diffID] {
		return imgutil.ErrLayerNotFound{DiffID: diffID}
	}
	return i.addLayer(diffID, 0, history)
}

func (i *image) addLayer(diffID string, size int64, history v1.History) error {
	hash, err := v1.NewHash(diffID)
	if err != nil {
		return err
	}
	i.layers = append(i.layers, layerDescriptor(hash, size))
	i.config.RootFS.DiffIDs = append(i.config.RootFS.DiffIDs, hash)
	i.config.History = append(i.config.History, history)
	return nil
}

func (i *image) blob(digest string) string {
	return filepath.Join(i.dir, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
}

// SetLabel sets a label. What the lifecycle set stays.
func (i *image) SetLabel(key, value string) error {
	if i.config.Config.Labels == nil {
		i.config.Config.Labels = map[string]string{}
	}
	if _, set := i.config.Config.Labels[key]; set && slices.Contains(platformLabels, key) {
		return nil
	}
	i.config.Config.Labels[key] = value
	return nil
}

// Env is a variable's value, empty if it is not set.
func (i *image) Env(name string) (string, error) {
	for _, variable := range i.config.Config.Env {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value, nil
		}
	}
	return "", nil
}

// SetEnv sets a variable.
func (i *image) SetEnv(name, value string) error {
	for n, variable := range i.config.Config.Env {
		if strings.HasPrefix(variable, name+"=") {
			i.config.Config.Env[n] = name + "=" + value
			return nil
		}
	}
	i.config.Config.Env = append(i.config.Config.Env, name+"="+value)
	return nil
}

// SetWorkingDir sets where processes start.
func (i *image) SetWorkingDir(dir string) error {
	i.config.Config.WorkingDir = dir
	return nil
}

// SetEntrypoint sets the program that is run.
func (i *image) SetEntrypoint(argv ...string) error {
	i.config.Config.Entrypoint = argv
	return nil
}

// SetCmd sets the program's default arguments.
func (i *image) SetCmd(argv ...string) error {
	i.config.Config.Cmd = argv
	return nil
}

// Name is of imgutil.Image. The host names images.
func (i *image) Name() string { return "" }

// Identifier is of imgutil.Image.
func (i *image) Identifier() (imgutil.Identifier, error) { return identifier{}, nil }

type identifier struct{}

func (identifier) String() string { return "" }

// ManifestSize is of imgutil.Image; 0 is unknown.
func (i *image) ManifestSize() (int64, error) { return 0, nil }

// SaveAs completes the layout. All times are the lifecycle's constant one, so that equal
// builds have equal digests.
func (i *image) SaveAs(string, ...string) error {
	created := v1.Time{Time: imgutil.NormalizedDateTime}
	i.config.Created, i.config.Container = created, ""
	for n := range i.config.History {
		i.config.History[n].Created = created
	}
	config, err := i.writeBlob(types.OCIConfigJSON, i.config)
	if err != nil {
		return err
	}
	manifest, err := i.writeBlob(types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: i.layers,
	})
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(i.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		os.WriteFile(filepath.Join(i.dir, "index.json"), index, 0o644))
}

func (i *image) writeBlob(mediaType types.MediaType, content any) (v1.Descriptor, error) {
	data, err := json.Marshal(content)
	if err != nil {
		return v1.Descriptor{}, err
	}
	sum := sha256.Sum256(data)
	digest := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))},
		os.WriteFile(i.blob(digest.String()), data, 0o644)
}
