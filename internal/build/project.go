package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/buildpacks/pack/pkg/project"
	"github.com/buildpacks/pack/pkg/project/types"
	ignore "github.com/sabhiram/go-gitignore"
)

const (
	maxProject = 256 << 10
	// production is the execution environment of the apps here (CNB platform API 0.15, "exec-env").
	production = "production"
)

// projectFile is what a commit's project.toml asks of its build (CNB project descriptor, schemas 0.1 to 0.3).
// All is empty where there is none.
type projectFile struct {
	builder string
	env     map[string]string
	// group replaces the builder's order; pre and post go around each of its groups.
	group, pre, post []types.Buildpack
	// keep says whether a file goes into the build; nil is all.
	keep func(path string) bool
}

// readProject reads project.toml in the root of a tree. The errors are for the pusher; note gets
// warnings, without newline.
func readProject(t *Tree, note func(line string)) (projectFile, error) {
	data, err := t.ReadFile("project.toml", maxProject)
	if errors.Is(err, fs.ErrNotExist) {
		return projectFile{}, nil
	}
	if err != nil {
		return projectFile{}, err
	}
	d, err := parseProject(data, note)
	if err != nil {
		text := strings.TrimPrefix(strings.TrimPrefix(printable(err.Error()), "project.toml: "), "parsing schema version: ")
		return projectFile{}, userErrorf("project.toml: %s", clip(text, 4*maxName))
	}
	p := projectFile{
		builder: d.Build.Builder, env: map[string]string{},
		group: d.Build.Buildpacks, pre: d.Build.Pre.Buildpacks, post: d.Build.Post.Buildpacks,
	}
	for _, v := range d.Build.Env {
		if len(v.ExecEnv) > 0 && !slices.Contains(v.ExecEnv, production) && !slices.Contains(v.ExecEnv, "*") {
			continue
		}
		// Each is a file below /platform/env.
		if v.Name == "" || v.Name == "." || v.Name == ".." || strings.ContainsAny(v.Name, "/=\x00") || strings.ContainsRune(v.Value, 0) {
			return projectFile{}, userErrorf("project.toml: %q is no name of an environment variable", clip(printable(v.Name), maxName))
		}
		p.env[v.Name] = v.Value
	}
	switch {
	case len(d.Build.Exclude) > 0:
		excluded := ignore.CompileIgnoreLines(d.Build.Exclude...)
		p.keep = func(path string) bool { return !excluded.MatchesPath(path) }
	case len(d.Build.Include) > 0:
		p.keep = ignore.CompileIgnoreLines(d.Build.Include...).MatchesPath
	}
	return p, nil
}

// parseProject has pack's library read the text, which it does from a file only.
func parseProject(data []byte, note func(line string)) (types.Descriptor, error) {
	dir, err := os.MkdirTemp("", "deis-project-")
	if err != nil {
		return types.Descriptor{}, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "project.toml")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return types.Descriptor{}, err
	}
	return project.ReadProjectDescriptor(name, warnings{note})
}

// warnings is a logger of pack's library that passes on warnings only.
type warnings struct{ note func(line string) }

func (warnings) Debug(string)          {}
func (warnings) Debugf(string, ...any) {}
func (warnings) Info(string)           {}
func (warnings) Infof(string, ...any)  {}
func (warnings) Writer() io.Writer     { return io.Discard }
func (warnings) IsVerbose() bool       { return false }

func (w warnings) Error(text string)              { w.Warn(text) }
func (w warnings) Errorf(format string, a ...any) { w.Warn(fmt.Sprintf(format, a...)) }
func (w warnings) Warnf(format string, a ...any)  { w.Warn(fmt.Sprintf(format, a...)) }
func (w warnings) Warn(text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			w.note("project.toml: " + clip(printable(line), maxName))
		}
	}
}
