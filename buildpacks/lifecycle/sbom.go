package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/buildpacks/lifecycle/buildpack"
)

const (
	oldestCycloneDX = 4 // minor version of what is written at least: "1.4"
	newestCycloneDX = 6
)

// object is a JSON object, kept as it came.
type object = map[string]any

// mergeSBOMs writes one CycloneDX document of all those below dir/launch and dir/build, where
// the lifecycle puts what buildpacks wrote. Components that are only needed to build have the
// scope "excluded" (CycloneDX: not part of what runs). It writes nothing if there is nothing.
func mergeSBOMs(dir, path string) error {
	merged := &bom{components: map[string]string{}, refs: map[string]bool{}, dependencies: map[string][]any{}}
	for _, part := range []string{"launch", "build"} {
		err := filepath.WalkDir(filepath.Join(dir, part), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != buildpack.ExtensionCycloneDX {
				return err
			}
			data, err := readFile(path, maxSBOM)
			if err != nil {
				return err
			}
			return merged.add(data, part == "build")
		})
		if err != nil {
			return err
		}
	}
	if merged.documents == 0 {
		return nil
	}
	data, err := json.Marshal(merged.document())
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// bom is a CycloneDX document in the making.
type bom struct {
	documents    int
	minor        int // of the specification's version
	list         []any
	components   map[string]string // identity -> bom-ref
	refs         map[string]bool
	order        []string // refs with dependencies, in order
	dependencies map[string][]any
}

// add adds a document's components and their dependencies.
func (b *bom) add(data []byte, buildOnly bool) error {
	var document struct {
		Format       string   `json:"bomFormat"`
		Version      string   `json:"specVersion"`
		Components   []object `json:"components"`
		Dependencies []struct {
			Ref       string   `json:"ref"`
			DependsOn []string `json:"dependsOn"`
		} `json:"dependencies"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil || document.Format != "CycloneDX" {
		return fmt.Errorf("a buildpack's %s is not CycloneDX in JSON", buildpack.ExtensionCycloneDX)
	}
	minor, _ := strconv.Atoi(strings.TrimPrefix(document.Version, "1."))
	b.documents++
	b.minor = min(max(b.minor, minor, oldestCycloneDX), newestCycloneDX)

	renamed := map[string]string{} // the document's refs -> ours
	for _, component := range document.Components {
		b.addComponent(component, renamed, buildOnly)
	}
	for _, d := range document.Dependencies {
		ref, ok := renamed[d.Ref]
		if !ok {
			continue
		}
		if _, known := b.dependencies[ref]; !known {
			b.order = append(b.order, ref)
			b.dependencies[ref] = []any{}
		}
		for _, on := range d.DependsOn {
			if on, ok := renamed[on]; ok && !slices.Contains(b.dependencies[ref], any(on)) {
				b.dependencies[ref] = append(b.dependencies[ref], on)
			}
		}
	}
	return nil
}

// addComponent adds a component that is not there yet.
func (b *bom) addComponent(component object, renamed map[string]string, buildOnly bool) {
	ref, _ := component["bom-ref"].(string)
	id := identity(component)
	if known, ok := b.components[id]; ok {
		renamed[ref] = known
		return
	}
	b.components[id] = b.uniqueRefs(component, renamed)
	if buildOnly {
		component["scope"] = "excluded"
	}
	b.list = append(b.list, component)
}

// uniqueRefs gives a component and those in it references that no other one has, and returns its own.
func (b *bom) uniqueRefs(component object, renamed map[string]string) string {
	wanted, _ := component["bom-ref"].(string)
	ref := orElse(wanted, identity(component))
	for n := 2; b.refs[ref]; n++ {
		ref = fmt.Sprintf("%s#%d", orElse(wanted, identity(component)), n)
	}
	b.refs[ref] = true
	renamed[wanted] = ref
	component["bom-ref"] = ref
	inner, _ := component["components"].([]any)
	for _, c := range inner {
		if c, ok := c.(object); ok {
			b.uniqueRefs(c, renamed)
		}
	}
	return ref
}

// identity tells whether two components are the same: package URL, else type and name.
func identity(component object) string {
	if purl, _ := component["purl"].(string); purl != "" {
		return purl
	}
	var parts []string
	for _, key := range []string{"type", "group", "name", "version"} {
		part, _ := component[key].(string)
		parts = append(parts, part)
	}
	return strings.Join(parts, "|")
}

func (b *bom) document() object {
	dependencies := []any{}
	for _, ref := range b.order {
		dependencies = append(dependencies, object{"ref": ref, "dependsOn": b.dependencies[ref]})
	}
	if b.list == nil {
		b.list = []any{}
	}
	return object{
		"bomFormat": "CycloneDX", "specVersion": fmt.Sprintf("1.%d", b.minor), "version": 1,
		"components": b.list, "dependencies": dependencies,
	}
}
