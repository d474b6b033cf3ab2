package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/log"
	"github.com/buildpacks/lifecycle/phase"
	"github.com/buildpacks/lifecycle/platform"
)

// build runs the buildpacks of the group one after the other.
func (b *builder) build() error {
	executor := &announcer{builder: b}
	lifecycle := &phase.Builder{
		AppDir: b.app, BuildConfigDir: b.buildConfig, LayersDir: b.layers, PlatformDir: b.platform,
		BuildExecutor: executor, DirStore: b.store, Group: b.group, Plan: b.plan,
		Logger: quiet, Out: b.out, Err: b.out,
		PlatformAPI: platformAPI, AnalyzeMD: b.analyzed,
	}
	metadata, err := lifecycle.Build()
	if err != nil {
		failure := new(buildpack.Error)
		if errors.As(err, &failure) && failure.Type == buildpack.ErrTypeBuildpack {
			return &statusError{
				exitCode(platform.FailedBuildWithErrors),
				fmt.Sprintf("The buildpack %s failed: %v", executor.running, err),
			}
		}
		return fmt.Errorf("buildpack %s: %w", executor.running, err)
	}
	b.metadata = metadata
	return endOthers()
}

const procfileID = "deis/procfile"

// mainBuildpack is the one that an app is called by: the first. But that of Node.js only helps where our builder has it before
// that of another language.
func (b *builder) mainBuildpack() buildpack.GroupElement {
	group := b.group.Group
	if group[0].ID == "deis/nodejs" && len(group) > 1 && (group[1].ID == "deis/ruby" || group[1].ID == "deis/python") {
		return group[1]
	}
	return group[0]
}

// announcer says which buildpack runs.
type announcer struct {
	buildpack.DefaultBuildExecutor
	builder *builder
	running string
}

func (a *announcer) Build(d buildpack.BpDescriptor, in buildpack.BuildInputs, logger log.Logger) (buildpack.BuildOutputs, error) {
	first := a.running == ""
	var err error
	if a.running, err = a.builder.name(buildpack.GroupElement{ID: d.Buildpack.ID, Version: d.Buildpack.Version}); err != nil {
		return buildpack.BuildOutputs{}, err
	}
	if err := a.announce(d.Buildpack.ID, first); err != nil {
		return buildpack.BuildOutputs{}, err
	}
	return a.DefaultBuildExecutor.Build(d, in, logger)
}

func (a *announcer) announce(id string, first bool) error {
	main := a.builder.mainBuildpack()
	switch {
	case strings.HasPrefix(id, classicID): // says it itself
		return nil
	case !first && id == procfileID: // the host lists the process types
		return nil
	case first:
		language, err := a.builder.name(main)
		if err != nil {
			return err
		}
		heading(a.builder.out, language+" app detected")
		if id == main.ID {
			return nil
		}
	}
	heading(a.builder.out, "Running buildpack "+a.running)
	return nil
}

// heading prints a line in the form of Heroku's and Deis' builds.
func heading(out io.Writer, text string) { fmt.Fprintln(out, "-----> "+text) }

// endOthers ends what buildpacks left running, so that nothing changes files while they
// are exported. All other processes of the container are theirs, if this is its first.
func endOthers() error {
	if os.Getpid() != 1 {
		return nil
	}
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end the buildpacks' processes: %w", err)
	}
	for {
		// Orphans are the first process's to wait for.
		if _, err := syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.ECHILD) {
			return nil
		}
	}
}
