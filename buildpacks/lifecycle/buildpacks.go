package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/buildpacks/lifecycle/api"
	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/launch"
	lifecyclelog "github.com/buildpacks/lifecycle/log"
	"github.com/buildpacks/lifecycle/platform"
	"github.com/buildpacks/lifecycle/platform/files"
)

const (
	descriptorFile = "buildpack.toml"
	// classicID is the builder's buildpack that runs classic (Heroku) buildpacks. It finds the
	// classic one at $CNB_BUILDPACK_DIR/target.
	classicID = "deis/classic"
)

// store is the buildpacks that the build may use: the builder's and the app's own.
type store struct {
	root    string
	builder *platform.DirStore
	custom  map[string]string // "id@version" -> directory
	classic int               // how many wrappers there are
}

func newStore(root string) *store {
	return &store{root: root, builder: platform.NewDirStore(root, ""), custom: map[string]string{}}
}

// LookupBp is of phase.DirStore. It fails for buildpacks whose API the lifecycle does not speak.
func (s *store) LookupBp(id, version string) (*buildpack.BpDescriptor, error) {
	var found *buildpack.BpDescriptor
	var err error
	if dir, ok := s.custom[id+"@"+version]; ok {
		found, err = buildpack.ReadBpDescriptor(filepath.Join(dir, descriptorFile))
	} else {
		found, err = s.builder.LookupBp(id, version)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the builder has no buildpack %s@%s", id, version)
	}
	if err != nil {
		return nil, fmt.Errorf("buildpack %s@%s: %w", id, version, err)
	}
	return found, s.VerifyBuildpackAPI(buildpack.KindBuildpack, id, found.API(), quiet)
}

// Lookup is of phase.DirStore.
func (s *store) Lookup(kind, id, version string) (buildpack.Descriptor, error) {
	if kind != buildpack.KindBuildpack {
		return s.LookupExt(id, version)
	}
	return s.LookupBp(id, version)
}

// LookupExt is of phase.DirStore.
func (s *store) LookupExt(id, _ string) (*buildpack.ExtDescriptor, error) {
	return nil, fmt.Errorf("%s is an image extension; these are not supported", id)
}

// VerifyBuildpackAPI is of phase.BuildpackAPIVerifier.
func (s *store) VerifyBuildpackAPI(_, name, requested string, _ lifecyclelog.Logger) error {
	version, err := api.NewVersion(requested)
	if err != nil || !api.Buildpack.IsSupported(version) {
		return fmt.Errorf("buildpack %s is written for Buildpack API %q; supported are %s", name, requested, api.Buildpack.Supported)
	}
	return nil
}

// readOrder is the groups to try: those of the request, else the builder's.
func (b *builder) readOrder() (buildpack.Order, error) {
	if len(b.request.Order) == 0 {
		order, _, err := files.Handler.ReadOrder(b.paths.order)
		return order, err
	}
	var order buildpack.Order
	for _, wanted := range b.request.Order {
		var group buildpack.Group
		for _, w := range wanted.Group {
			element, err := b.resolve(w)
			if err != nil {
				return nil, err
			}
			element.Optional = w.Optional
			group.Group = append(group.Group, element)
		}
		order = append(order, group)
	}
	return order, nil
}

func (b *builder) resolve(w orderElement) (buildpack.GroupElement, error) {
	if w.Dir != "" {
		found, err := b.store.add(w.Dir, b.temp)
		if w.ID != "" && err == nil { // the one that a package says it is
			found = buildpack.GroupElement{ID: w.ID, Version: w.Version}
			_, err = b.store.LookupBp(w.ID, w.Version)
		}
		return found, err
	}
	if w.Version != "" {
		return buildpack.GroupElement{ID: w.ID, Version: w.Version}, nil
	}
	version, err := b.store.onlyVersion(w.ID)
	return buildpack.GroupElement{ID: w.ID, Version: version}, err
}

// onlyVersion is the version of a buildpack of the builder that is asked for without one.
func (s *store) onlyVersion(id string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, launch.EscapeID(id)))
	switch {
	case errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0:
		return "", fmt.Errorf("the builder has no buildpack %s", id)
	case err != nil:
		return "", err
	case len(entries) == 1:
		return entries[0].Name(), nil
	}
	var versions []string
	for _, e := range entries {
		versions = append(versions, e.Name())
	}
	return "", fmt.Errorf("the builder has buildpack %s in several versions: say which of %s", id, strings.Join(versions, ", "))
}

// add makes the buildpack in a directory known: a Cloud Native one, a package's tree
// (cnb/buildpacks/<id>/<version>) or a classic one, for which a wrapper is made below temp.
func (s *store) add(dir, temp string) (buildpack.GroupElement, error) {
	packaged, err := filepath.Glob(filepath.Join(dir, "cnb/buildpacks/*/*", descriptorFile))
	if err != nil {
		return buildpack.GroupElement{}, err
	}
	switch {
	case s.isClassic(dir):
		wrapper, err := s.wrapClassic(dir, temp)
		if err != nil {
			return buildpack.GroupElement{}, fmt.Errorf("classic buildpack: %w", err)
		}
		return s.addDescriptor(filepath.Join(wrapper, descriptorFile))
	case exists(filepath.Join(dir, descriptorFile)):
		return s.addDescriptor(filepath.Join(dir, descriptorFile))
	case len(packaged) > 0:
		return s.addPackage(packaged)
	}
	return buildpack.GroupElement{}, errors.New("the custom buildpack has neither buildpack.toml (Cloud Native) nor bin/compile (Heroku)")
}

// isClassic reports whether a directory holds a classic buildpack that cannot run as a Cloud Native one. Heroku's have a
// buildpack.toml too, for Heroku's own list of buildpacks or in the form of years ago.
func (s *store) isClassic(dir string) bool {
	if !exists(filepath.Join(dir, "bin/compile")) {
		return false
	}
	d, err := buildpack.ReadBpDescriptor(filepath.Join(dir, descriptorFile))
	return err != nil || d.Buildpack.ID == "" || !exists(filepath.Join(dir, "bin/build")) ||
		s.VerifyBuildpackAPI(buildpack.KindBuildpack, d.Buildpack.ID, d.API(), quiet) != nil
}

func (s *store) addDescriptor(path string) (buildpack.GroupElement, error) {
	d, err := buildpack.ReadBpDescriptor(path)
	if err != nil {
		return buildpack.GroupElement{}, fmt.Errorf("custom buildpack: %w", err)
	}
	if d.Buildpack.ID == "" {
		return buildpack.GroupElement{}, fmt.Errorf("custom buildpack: %s has no buildpack.id", descriptorFile)
	}
	s.custom[d.Buildpack.ID+"@"+d.Buildpack.Version] = filepath.Dir(path)
	return buildpack.GroupElement{ID: d.Buildpack.ID, Version: d.Buildpack.Version}, nil
}

// addPackage adds all buildpacks of a package and returns the one that no other one of it refers to.
func (s *store) addPackage(descriptors []string) (buildpack.GroupElement, error) {
	var all []buildpack.GroupElement
	used := map[string]bool{}
	for _, path := range descriptors {
		element, err := s.addDescriptor(path)
		if err != nil {
			return element, err
		}
		all = append(all, element)
		d, err := buildpack.ReadBpDescriptor(path)
		if err != nil {
			return element, err
		}
		for _, group := range d.Order {
			for _, e := range group.Group {
				used[e.ID+"@"+e.Version] = true
			}
		}
	}
	for _, element := range all {
		if !used[element.String()] {
			return element, nil
		}
	}
	return buildpack.GroupElement{}, errors.New("custom buildpack: the buildpacks of the package all refer to each other")
}

// wrapClassic makes a Cloud Native buildpack of a classic one: the builder's shim with a link "target" to it.
func (s *store) wrapClassic(target, temp string) (string, error) {
	version, err := s.onlyVersion(classicID)
	if err != nil {
		return "", err
	}
	shim := filepath.Join(s.root, launch.EscapeID(classicID), version)
	d, err := buildpack.ReadBpDescriptor(filepath.Join(shim, descriptorFile))
	if err != nil {
		return "", err
	}
	id := classicID
	if s.classic++; s.classic > 1 {
		id = fmt.Sprintf("%s-%d", classicID, s.classic) // each has its own layers
	}
	wrapper, err := os.MkdirTemp(temp, "classic-")
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(shim)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Name() == descriptorFile {
			continue
		}
		if err := os.Symlink(filepath.Join(shim, e.Name()), filepath.Join(wrapper, e.Name())); err != nil {
			return "", err
		}
	}
	if err := os.Symlink(target, filepath.Join(wrapper, "target")); err != nil {
		return "", err
	}
	return wrapper, writeDescriptor(filepath.Join(wrapper, descriptorFile), id, d)
}

// writeDescriptor writes the parts of d that a wrapper needs, with another id.
func writeDescriptor(path, id string, d *buildpack.BpDescriptor) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	info := d.Buildpack
	err = toml.NewEncoder(f).Encode(map[string]any{
		"api": d.WithAPI,
		"buildpack": map[string]any{
			"id": id, "version": info.Version, "name": info.Name, "homepage": info.Homepage,
			"clear-env": info.ClearEnv, "sbom-formats": info.SBOM,
		},
	})
	return errors.Join(err, f.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
