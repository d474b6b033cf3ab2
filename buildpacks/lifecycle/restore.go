package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/launch"
	"github.com/buildpacks/lifecycle/phase"
)

// The program's own directory in the layers directory. Names of buildpacks' layer
// directories are ids, which have no leading dot.
const (
	ownDir    = ".deis"
	stateFile = "state.toml"
	// unfinishedFile is there from before the first buildpack runs until the state is written.
	unfinishedFile = "unfinished"
)

// state is what a build leaves in the layers directory for the next one.
type state struct {
	// Buildpacks are those of the build with their layers: those of the image, with diff ids, and cached ones.
	Buildpacks []buildpack.LayersMetadata `toml:"buildpacks"`
	// written is when. What changed later was changed by a build that did not end well, or by the one that runs.
	written time.Time
}

// layersOf is the layers of a buildpack.
func (s *state) layersOf(id string) buildpack.LayersMetadata {
	for _, b := range s.Buildpacks {
		if b.ID == id {
			return b
		}
	}
	return buildpack.LayersMetadata{}
}

// readState reads the last build's state. It is empty if there was none, or none that can be understood:
// a cache may be lost, but must not fail a build.
func readState(layers string) *state {
	path := filepath.Join(layers, ownDir, stateFile)
	s := &state{}
	data, err := readFile(path, maxState)
	if err != nil || toml.Unmarshal(data, s) != nil {
		return &state{}
	}
	info, err := os.Lstat(path)
	if err != nil || changed(info).After(time.Now()) { // the clock went back: times tell nothing
		return &state{}
	}
	s.written = changed(info)
	return s
}

// write makes s what the next build finds.
func (s *state) write(layers string) error {
	var data bytes.Buffer
	if err := toml.NewEncoder(&data).Encode(s); err != nil {
		return err
	}
	path := filepath.Join(layers, ownDir, stateFile)
	if err := os.RemoveAll(path + ".new"); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// restore leaves in the layers directory what the buildpacks of the group may use again, as the
// lifecycle's restore phase would (CNB buildpack interface, "Layer Types"), and nothing else:
//
//   - cached layers with their content,
//   - of layers only for launch their metadata, if the host has the layer,
//
// both without types, so that a buildpack has to say that it wants the layer.
func (b *builder) restore() error {
	own := filepath.Join(b.layers, ownDir)
	if info, err := os.Lstat(own); err == nil && !info.IsDir() {
		os.Remove(own)
	}
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	b.last = readState(b.layers)
	unfinished := filepath.Join(own, unfinishedFile)
	_, err := os.Lstat(unfinished)
	kept := b.reusable(err == nil)
	if err := sweep(b.layers, kept); err != nil {
		return fmt.Errorf("clear the layers directory: %w", err)
	}
	for _, bp := range kept {
		if err := bp.writeMetadata(b.layers); err != nil {
			return fmt.Errorf("metadata of layers of %s: %w", bp.ID, err)
		}
	}
	return os.WriteFile(unfinished, nil, 0o644)
}

// reusable is the layers of the last build that this one may use. After an unfinished build, layers
// that it changed may be half done. Layers that are only cached survive that all the same: their content is
// that of a tool (compiler, package manager) which has to cope with being killed, and after a
// mistake in the source people push again soon. But what the last good build noted of such a layer, as the
// version or lock file that it was made for, need not be so any more, and is dropped with a change.
func (b *builder) reusable(unfinished bool) []keptBuildpack {
	var all []keptBuildpack
	for _, element := range b.group.Group {
		bp := b.last.layersOf(element.ID)
		kept := keptBuildpack{LayersMetadata: bp, content: map[string]bool{}}
		kept.ID = element.ID
		kept.Layers = map[string]buildpack.LayerMetadata{}
		for name, layer := range bp.Layers {
			path := filepath.Join(b.layers, launch.EscapeID(bp.ID), name)
			content := layer.Cache && isDir(path)
			metadataOnly := !layer.Cache && layer.Launch && !layer.Build && b.have[layer.SHA]
			onlyCached := !layer.Launch && !layer.Build
			if !content && !metadataOnly {
				continue
			}
			if unfinished && !(b.last.unchanged(sboms(path)...) && (metadataOnly || onlyCached || b.last.unchanged(path))) {
				continue
			}
			if unfinished && onlyCached && layer.Data != nil && !b.last.unchanged(path) {
				layer.Data = nil
			}
			kept.Layers[name] = layer
			kept.content[name] = content
		}
		all = append(all, kept)
	}
	return all
}

// keptBuildpack is what stays of a buildpack in the layers directory: the layers, and
// of which the content.
type keptBuildpack struct {
	buildpack.LayersMetadata
	content map[string]bool
}

// keeps reports whether an entry of the buildpack's directory stays: content, SBOM files.
func (k keptBuildpack) keeps(entry fs.DirEntry) bool {
	if k.content[entry.Name()] {
		return entry.IsDir()
	}
	for _, extension := range phase.SBOMExtensions() {
		name, ok := strings.CutSuffix(entry.Name(), "."+extension)
		if _, kept := k.Layers[name]; ok && kept {
			return entry.Type().IsRegular()
		}
	}
	return false
}

// writeMetadata writes store.toml and <layer>.toml without types.
func (k keptBuildpack) writeMetadata(layers string) error {
	dir, err := buildpack.ReadLayersDir(layers, buildpack.GroupElement{ID: k.ID}, quiet)
	if err != nil {
		return err
	}
	for name, layer := range k.Layers {
		if err := dir.NewLayer(name, "", quiet).WriteMetadata(layer.LayerMetadataFile); err != nil {
			return err
		}
	}
	if k.Store == nil {
		return nil
	}
	if err := os.MkdirAll(dir.Path, 0o755); err != nil {
		return err
	}
	data, err := toml.Marshal(k.Store)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir.Path, "store.toml"), data, 0o644)
}

// sweep removes all from the layers directory that is neither kept nor ours.
func sweep(layers string, kept []keptBuildpack) error {
	stays := map[string]keptBuildpack{}
	for _, k := range kept {
		stays[launch.EscapeID(k.ID)] = k
	}
	err := removeEntries(layers, func(entry fs.DirEntry) bool {
		_, kept := stays[entry.Name()]
		return entry.IsDir() && (kept || entry.Name() == ownDir)
	})
	for dir, k := range stays {
		if dir = filepath.Join(layers, dir); isDir(dir) {
			err = errors.Join(err, removeEntries(dir, k.keeps))
		}
	}
	return err
}

// removeEntries removes the entries of a directory that do not stay.
func removeEntries(dir string, stays func(fs.DirEntry) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if stays(entry) {
			continue
		}
		if err := removeAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeAll is os.RemoveAll also for trees with directories that are not writable, as Go's module cache has.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return err
	})
	return os.RemoveAll(path)
}

// unchanged reports whether files, and all that is in directories, are as the last build left
// them. The kernel sets change times, programs cannot; to remove something changes its directory. What
// changed in the very tick of the kernel's clock in which the state was written came before it: a build sweeps
// just before, and none begins in the tick in which another ended.
func (s *state) unchanged(paths ...string) bool {
	if s.written.IsZero() {
		return false
	}
	for _, path := range paths {
		err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && changed(info).After(s.written) {
				err = errors.New("changed")
			}
			return err
		})
		if err != nil {
			return false
		}
	}
	return true
}

// sboms lists the SBOM files of a layer.
func sboms(layer string) []string {
	var found []string
	for _, extension := range phase.SBOMExtensions() {
		if path := layer + "." + extension; exists(path) {
			found = append(found, path)
		}
	}
	return found
}

// changed is the time of the last change of a file's content or attributes.
func changed(info fs.FileInfo) time.Time {
	stat, _ := info.Sys().(*syscall.Stat_t)
	return time.Unix(stat.Ctim.Unix())
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}
