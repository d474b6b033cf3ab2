package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/launch"
	"github.com/buildpacks/lifecycle/layers"
	"github.com/buildpacks/lifecycle/phase"
	"github.com/buildpacks/lifecycle/platform"
	"github.com/buildpacks/lifecycle/platform/files"
)

// preferredProcess is what the image starts by default, if there is such a process type.
const preferredProcess = "web"

// export writes the image and the SBOM to the output directory, and the state for the next build.
func (b *builder) export() error {
	if err := removeEntries(b.output, func(os.DirEntry) bool { return false }); err != nil {
		return fmt.Errorf("clear the output directory: %w", err)
	}
	// On the file system of the layout, so that finished layers need not be copied into it.
	scratch, err := os.MkdirTemp(b.output, "scratch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	config, err := b.request.runImage()
	if err != nil {
		return err
	}
	image, err := newImage(b.output, config, b.have)
	if err != nil {
		return err
	}
	if err := b.writeImage(image, scratch); err != nil {
		return err
	}
	if err := mergeSBOMs(filepath.Join(b.layers, "sbom"), filepath.Join(b.output, "sbom.cdx.json")); err != nil {
		return fmt.Errorf("SBOM: %w", err)
	}
	return b.keepState(image)
}

// writeImage has the lifecycle assemble the image.
func (b *builder) writeImage(image *image, scratch string) error {
	config := launch.GetMetadataFilePath(b.layers)
	if err := removeAll(filepath.Dir(config)); err != nil { // all of it becomes a layer
		return err
	}
	if err := files.Handler.WriteBuildMetadata(config, b.metadata); err != nil {
		return err
	}
	b.defaultProcess = b.metadata.BuildpackDefaultProcessType
	if _, ok := b.metadata.ToLaunchMD().FindProcessType(preferredProcess); ok {
		b.defaultProcess = preferredProcess
	}
	exporter := &phase.Exporter{
		Buildpacks: b.group.Group,
		LayerFactory: &layerFactory{
			Factory: &layers.Factory{ArtifactsDir: scratch, UID: os.Getuid(), GID: os.Getgid(), Logger: quiet},
			intact:  b.intactLayers(), made: map[string]layers.Layer{},
		},
		Logger: quiet, PlatformAPI: platformAPI,
	}
	_, err := exporter.Export(phase.ExportOptions{
		WorkingImage: image, AppDir: b.app, LayersDir: b.layers,
		OrigMetadata: files.LayersMetadata{Buildpacks: b.reusableMetadata()},
		LauncherConfig: phase.LauncherConfig{
			Path: b.launcher, SBOMDir: filepath.Dir(b.launcher),
			Metadata: files.LauncherMetadata{Version: lifecycleVersion},
		},
		DefaultProcessType: b.defaultProcess,
		RunImageRef:        b.request.RunImage.Reference,
		RunImageForExport:  files.RunImageForExport{Image: b.request.RunImage.Name},
	})
	return err
}

// reusableMetadata is that of the last image's layers that the host has.
func (b *builder) reusableMetadata() []buildpack.LayersMetadata {
	var all []buildpack.LayersMetadata
	for _, bp := range b.last.Buildpacks {
		had := map[string]buildpack.LayerMetadata{}
		for name, layer := range bp.Layers {
			if b.have[layer.SHA] {
				had[name] = layer
			}
		}
		bp.Layers = had
		all = append(all, bp)
	}
	return all
}

// intactLayers is the diff ids, by directory, of layers that need not be packed to know
// what they will be: the host has them, and no file of theirs has changed since.
func (b *builder) intactLayers() map[string]string {
	intact := map[string]string{}
	for _, bp := range b.reusableMetadata() {
		for name, layer := range bp.Layers {
			path := filepath.Join(b.layers, launch.EscapeID(bp.ID), name)
			if isDir(path) && b.last.unchanged(path) {
				intact[path] = layer.SHA
			}
		}
	}
	return intact
}

// keepState writes down what the layers directory holds now, and leaves there only
// what the next build can use.
func (b *builder) keepState(image *image) error {
	var inImage files.LayersMetadata
	if err := json.Unmarshal([]byte(image.config.Config.Labels[platform.LifecycleMetadataLabel]), &inImage); err != nil {
		return fmt.Errorf("metadata of the image: %w", err)
	}
	next := &state{}
	var kept []keptBuildpack
	for _, element := range b.group.Group {
		dir, err := buildpack.ReadLayersDir(b.layers, element, quiet)
		if err != nil {
			return err
		}
		bp := buildpack.LayersMetadata{ID: element.ID, Version: element.Version, Store: dir.Store, Layers: map[string]buildpack.LayerMetadata{}}
		content := map[string]bool{}
		for _, layer := range dir.FindLayers(func(l buildpack.Layer) bool { return buildpack.MadeLaunch(l) || buildpack.MadeCached(l) }) {
			metadata, err := layer.Read()
			if err != nil {
				return err
			}
			metadata.SHA = inImage.LayersMetadataFor(element.ID).Layers[layer.Name()].SHA
			bp.Layers[layer.Name()] = metadata
			content[layer.Name()] = metadata.Cache
		}
		next.Buildpacks = append(next.Buildpacks, bp)
		kept = append(kept, keptBuildpack{bp, content})
	}
	// Before the state is written: what it removes may be hard links to files that stay, which changes them.
	if err := sweep(b.layers, kept); err != nil {
		return fmt.Errorf("clear the layers directory: %w", err)
	}
	if err := next.write(b.layers); err != nil {
		return fmt.Errorf("state for the next build: %w", err)
	}
	return os.Remove(filepath.Join(b.layers, ownDir, unfinishedFile))
}

// report is what report.json holds.
type report struct {
	Processes  []reportedProcess   `json:"processes"`
	Buildpacks []reportedBuildpack `json:"buildpacks"`
	// Phases is seconds by phase.
	Phases map[string]float64 `json:"phases"`
}

type reportedProcess struct {
	Type    string   `json:"type"`
	Command []string `json:"command"`
	Args    []string `json:"args"`
	// Direct processes start without a shell.
	Direct  bool `json:"direct"`
	Default bool `json:"default"`
}

type reportedBuildpack struct {
	ID       string `json:"id"`
	Version  string `json:"version"`
	Homepage string `json:"homepage,omitempty"`
	// Name is for people.
	Name string `json:"name"`
}

func (b *builder) writeReport() error {
	r := report{Processes: []reportedProcess{}, Phases: b.took}
	for _, p := range b.metadata.Processes {
		r.Processes = append(r.Processes, reportedProcess{
			p.Type, append([]string{}, p.Command.Entries...), append([]string{}, p.Args...), p.Direct, p.Type == b.defaultProcess,
		})
	}
	for _, bp := range b.group.Group {
		name, err := b.name(bp)
		if err != nil {
			return err
		}
		r.Buildpacks = append(r.Buildpacks, reportedBuildpack{bp.ID, bp.Version, bp.Homepage, name})
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.output, "report.json"), append(data, '\n'), 0o644)
}
