// Command build makes the image of an app by Cloud Native Buildpacks. It is the one
// program of a build inside BuildKit: it runs the phases of the CNB lifecycle (detect,
// restore, build, export; Platform API 0.13) one after the other, as the unprivileged
// user that the buildpacks run as.
//
// Inputs: the request (see request), the app's files, the builder's buildpacks.
// Outputs: an OCI image layout, report.json and sbom.cdx.json in the output directory;
// lines for the pusher on standard output, headings beginning with "-----> ".
//
// The layers directory is a cache of the app. Layers stay in place from build to build;
// nothing is packed into or unpacked from a cache archive.
//
// The exit status is the lifecycle's: 20 no buildpack fits, 21 a buildpack erred while
// detecting, 22 another error there, 42 restoring failed, 51 a buildpack failed, 52 another
// error while building, 62 exporting failed. It is 1 if the request is not understood.
//
// Arguments are ignored. The host passes one that changes with the request, because BuildKit
// does not look into secrets to see whether a step has to run again.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/apex/log"
	"github.com/apex/log/handlers/discard"
	"github.com/buildpacks/lifecycle/api"
	"github.com/buildpacks/lifecycle/buildpack"
	lifecyclelog "github.com/buildpacks/lifecycle/log"
	"github.com/buildpacks/lifecycle/phase"
	"github.com/buildpacks/lifecycle/platform"
	"github.com/buildpacks/lifecycle/platform/files"
)

// lifecycleVersion is that of the lifecycle module, and of the launcher beside this program.
const lifecycleVersion = "0.21.0"

// platformAPI is the newest that needs no registry: from 0.14 on run images are looked up.
var platformAPI = api.MustParse("0.13")

// paths are where the program finds and leaves things.
type paths struct {
	request     string // JSON, see request
	platform    string // gets env/NAME, read by buildpacks
	app         string // the app's files; part of the image under the same path
	layers      string // the app's cache; part of the image under the same path
	output      string
	buildpacks  string // the builder's, as <id>/<version>/
	order       string // the builder's order.toml
	buildConfig string // the builder's environment for buildpacks
	launcher    string // a program, see launch.LauncherPath
	temp        string
	caBundle    string // certificates that the builder image trusts
}

var inBuildKit = paths{
	request:     "/deis/request.json",
	platform:    "/deis/platform",
	app:         "/workspace",
	layers:      "/layers",
	output:      "/deis/output",
	buildpacks:  "/cnb/buildpacks",
	order:       "/cnb/order.toml",
	buildConfig: "/cnb/build-config",
	launcher:    "/deis/lifecycle/launcher",
	temp:        "/tmp",
	caBundle:    "/etc/ssl/certs/ca-certificates.crt",
}

func main() {
	syscall.Umask(0o022) // modes of files are part of the image's digest
	os.Exit(run(inBuildKit, os.Stdout))
}

// run builds and returns the exit status. It says on out what went wrong.
func run(p paths, out io.Writer) int {
	b := &builder{paths: p, out: out, took: map[string]float64{}}
	for _, step := range []struct {
		name string
		code int
		run  func() error
	}{
		{"prepare", platform.CodeForFailed, b.prepare},
		{"detect", exitCode(platform.DetectError), b.detect},
		{"restore", exitCode(platform.RestoreError), b.restore},
		{"build", exitCode(platform.BuildError), b.build},
		{"export", exitCode(platform.ExportError), b.export},
	} {
		start := time.Now()
		if err := step.run(); err != nil {
			fmt.Fprintln(out, err)
			if stated := new(statusError); errors.As(err, &stated) {
				return stated.code
			}
			return step.code
		}
		b.took[step.name] = time.Since(start).Seconds()
	}
	if err := b.writeReport(); err != nil {
		fmt.Fprintln(out, err)
		return exitCode(platform.ExportError)
	}
	return 0
}

// builder is one build. Each phase fills in what the next ones need.
type builder struct {
	paths
	out  io.Writer
	took map[string]float64 // phase -> seconds

	// prepare
	request  *request
	have     map[string]bool // diff ids
	store    *store
	order    buildpack.Order
	analyzed files.Analyzed

	// detect
	group buildpack.Group
	plan  files.Plan

	// restore
	last *state

	// build
	metadata *files.BuildMetadata

	// export
	defaultProcess string
}

// prepare reads the request and lays out what buildpacks will look at.
func (b *builder) prepare() (err error) {
	if b.request, err = readRequest(b.paths.request); err != nil {
		return err
	}
	b.have = map[string]bool{}
	for _, diffID := range b.request.Have {
		b.have[diffID] = true
	}
	if b.analyzed, err = b.request.analyzed(); err != nil {
		return err
	}
	if err := writePlatformEnv(b.platform, b.request.Env); err != nil {
		return err
	}
	if err := trustCertificates(b.request.CA, b.caBundle, b.temp); err != nil {
		return err
	}
	b.store = newStore(b.buildpacks)
	b.order, err = b.readOrder()
	return err
}

// statusError is an error with an exit status of its own.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func exitCode(kind platform.LifecycleExitError) int {
	return platform.NewExiter(platformAPI.String()).CodeFor(kind)
}

// quiet drops all that the lifecycle would log: it is noise to people who push, and what
// matters comes back as errors.
var quiet = &lifecyclelog.DefaultLogger{Logger: &log.Logger{Handler: discard.Default, Level: log.FatalLevel}}

// configFiles hands the lifecycle in memory what it reads from files otherwise.
type configFiles struct {
	phase.ConfigHandler // absent: detection reads only the two below
	analyzed            files.Analyzed
	order               buildpack.Order
}

func (c configFiles) ReadAnalyzed(string, lifecyclelog.Logger) (files.Analyzed, error) {
	return c.analyzed, nil
}

func (c configFiles) ReadOrder(string) (buildpack.Order, buildpack.Order, error) {
	return c.order, nil, nil
}
