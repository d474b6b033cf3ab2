// Package builders makes and reads builder images of Cloud Native Buildpacks with pack's library
// (https://buildpacks.io/docs/for-platform-operators/how-to/integrate-ci/pack/), in containerd's store instead
// of a Docker daemon or a registry; and it moves images of apps to another base.
package builders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	pubbuilder "github.com/buildpacks/pack/builder"
	"github.com/buildpacks/pack/buildpackage"
	pack "github.com/buildpacks/pack/pkg/client"
	"github.com/buildpacks/pack/pkg/dist"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

// builderLabel is how pack marks a builder.
const builderLabel = "io.buildpacks.builder.metadata"

// Client works on the images of one store. Its methods may be called concurrently.
type Client struct {
	images *imagestore.Store
	log    func(line string)
}

// New returns a client. log gets pack's warnings, a line each.
func New(images *imagestore.Store, log func(line string)) *Client {
	quiet()
	return &Client{images, log}
}

// CreateOptions of a builder image.
type CreateOptions struct {
	// Name is the image's, Config the path of its builder.toml
	// (https://buildpacks.io/docs/reference/config/builder-config/). The buildpacks are directories or archives on
	// this machine, relative to Dir, or images in the store ("docker://NAME").
	Name, Config, Dir string
	// Lifecycle is the directory with the programs launcher and lifecycle, for a Config that names no
	// lifecycle.
	Lifecycle string
	// Labels are those of the image's record in the store.
	Labels map[string]string
}

// Create makes a builder image. Equal inputs make equal images. Errors about what the config says are paas.Error.
func (c *Client) Create(ctx context.Context, opts CreateOptions) error {
	name, err := fullName(opts.Name)
	if err != nil {
		return err
	}
	config, warnings, err := pubbuilder.ReadConfig(opts.Config)
	if err != nil {
		return &paas.Error{Code: paas.Invalid, Message: "the builder's configuration cannot be read: " + err.Error(), Err: err}
	}
	for _, w := range warnings {
		c.log(w)
	}
	env, warnings, err := pubbuilder.ParseBuildConfigEnv(config.Build.Env, opts.Config)
	if err != nil {
		return &paas.Error{Code: paas.Invalid, Message: err.Error(), Err: err}
	}
	for _, w := range warnings {
		c.log(w)
	}
	scratch, err := os.MkdirTemp("", "deis-builder-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if config.Lifecycle == (pubbuilder.LifecycleConfig{}) {
		config.Lifecycle.URI = filepath.Join(scratch, "lifecycle.tar")
		if err := packLifecycle(opts.Lifecycle, config.Lifecycle.URI); err != nil {
			return fmt.Errorf("pack the lifecycle: %w", err)
		}
	}
	return c.with(ctx, scratch, opts.Labels, func(ctx context.Context, p *pack.Client) error {
		return explain("builder "+name, p.CreateBuilder(ctx, pack.CreateBuilderOptions{
			BuilderName: name, Config: config, RelativeBaseDir: opts.Dir, BuildConfigEnv: env, TempDirectory: scratch,
			Publish: true, // not to a Docker daemon
		}))
	})
}

// Package makes an image of a buildpack in a directory, which builders can name as "docker://NAME".
func (c *Client) Package(ctx context.Context, name, dir string) error {
	name, err := fullName(name)
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "deis-buildpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	return c.with(ctx, scratch, nil, func(ctx context.Context, p *pack.Client) error {
		return explain("buildpack "+dir, p.PackageBuildpack(ctx, pack.PackageBuildpackOptions{
			Name: name, Format: pack.FormatImage, Publish: true, RelativeBaseDir: dir,
			Config:  buildpackage.Config{Buildpack: dist.BuildpackURI{URI: dir}},
			Targets: []dist.Target{{OS: runtime.GOOS, Arch: runtime.GOARCH}},
		}))
	})
}

// Builder is what is known of a builder image.
type Builder struct {
	Name, Digest string
	Description  string
	RunImages    []string
	// Lifecycle is the version; empty where it is not known.
	Lifecycle  string
	Buildpacks []Buildpack
	// Order is the groups in which detection tries the buildpacks.
	Order [][]Member
}

// Buildpack is one in a builder.
type Buildpack struct{ ID, Version, Name, Homepage string }

// Member is a buildpack's place in a group.
type Member struct {
	ID, Version string
	Optional    bool
}

// Inspect reads a builder image. The error has code paas.NotFound when there is no such image, paas.Invalid when it is no builder.
func (c *Client) Inspect(ctx context.Context, name string) (Builder, error) {
	name, err := fullName(name)
	if err != nil {
		return Builder{}, err
	}
	img, err := c.images.Image(ctx, name)
	if err != nil {
		return Builder{}, err
	}
	if img.Config.Config.Labels[builderLabel] == "" {
		return Builder{}, paas.Errorf(paas.Invalid, "image %s is no builder: it has no label %s", name, builderLabel)
	}
	b := Builder{Name: name, Digest: img.Target.Digest.String()}
	return b, c.with(ctx, "", nil, func(_ context.Context, p *pack.Client) error {
		info, err := p.InspectBuilder(name, false)
		if err != nil || info == nil {
			return explain("builder "+name, err)
		}
		b.fill(info)
		return nil
	})
}

func (b *Builder) fill(info *pack.BuilderInfo) {
	b.Description = info.Description
	if v := info.Lifecycle.Info.Version; v != nil {
		b.Lifecycle = v.String()
	}
	for _, r := range info.RunImages {
		b.RunImages = append(b.RunImages, r.Image)
	}
	for _, bp := range info.Buildpacks {
		b.Buildpacks = append(b.Buildpacks, Buildpack{bp.ID, bp.Version, bp.Name, bp.Homepage})
	}
	for _, group := range info.Order {
		var members []Member
		for _, m := range group.GroupDetectionOrder {
			members = append(members, Member{m.ID, m.Version, m.Optional})
		}
		b.Order = append(b.Order, members)
	}
}

// List returns the builders in the store, by name.
func (c *Client) List(ctx context.Context) ([]Builder, error) {
	names, err := c.images.Names(ctx)
	if err != nil {
		return nil, err
	}
	var list []Builder
	for _, name := range names {
		if strings.HasPrefix(name, paas.LocalImages) {
			continue // apps' images are many, and no builders
		}
		b, err := c.Inspect(ctx, name)
		switch paas.CodeOf(err) {
		case "":
			list = append(list, b)
		case paas.Invalid, paas.NotFound: // another image, or gone meanwhile
		default:
			c.log(fmt.Sprintf("image %s is left out: %v", name, err))
		}
	}
	return list, nil
}

// App is what an image of an app says of itself in the labels of the platform specification.
type App struct {
	// RunImage is the name of the image that it stands on, TopLayer the diff ID of that image's last layer.
	RunImage   string
	TopLayer   digest.Digest
	Rebasable  bool
	Buildpacks []Buildpack
	// Processes are the commands with their arguments by process type.
	Processes map[string][]string
}

// InspectApp reads the image of an app. The error has code paas.Invalid for one that was not made
// by buildpacks.
func (c *Client) InspectApp(ctx context.Context, name string) (app App, err error) {
	if _, err := c.images.Image(ctx, name); err != nil {
		return app, err
	}
	err = c.with(ctx, "", nil, func(_ context.Context, p *pack.Client) error {
		info, err := p.InspectImage(name, false)
		if err != nil {
			return explain("image "+name, err)
		}
		if info == nil || info.Base.TopLayer == "" || info.Stack.RunImage.Image == "" {
			return paas.Errorf(paas.Invalid, "image %s was not made by buildpacks: its labels name no run image", name)
		}
		app = appOf(info)
		app.RunImage, err = fullName(info.Stack.RunImage.Image)
		return err
	})
	return app, err
}

func appOf(info *pack.ImageInfo) App {
	app := App{TopLayer: digest.Digest(info.Base.TopLayer), Rebasable: info.Rebasable, Processes: map[string][]string{}}
	for _, b := range info.Buildpacks {
		app.Buildpacks = append(app.Buildpacks, Buildpack{ID: b.ID, Version: b.Version, Homepage: b.Homepage})
	}
	all := info.Processes.OtherProcesses
	if info.Processes.DefaultProcess != nil {
		all = append(all, *info.Processes.DefaultProcess)
	}
	for _, p := range all {
		app.Processes[p.Type] = slices.Concat(p.Command.Entries, p.Args)
	}
	return app
}

// Base says what an app's image stands on.
type Base struct {
	// RunImage is the name that the image was built with, RunDigest that of the image which has the name now.
	RunImage  string
	RunDigest digest.Digest
	// Current says that the image has the layers of that.
	Current bool
}

// Base compares an app's image with its run image as that is now. Errors are those of InspectApp.
func (c *Client) Base(ctx context.Context, name string) (Base, error) {
	app, err := c.InspectApp(ctx, name)
	if err != nil {
		return Base{}, err
	}
	img, err := c.images.Image(ctx, name)
	if err != nil {
		return Base{}, err
	}
	run, err := c.images.Image(ctx, app.RunImage)
	if err != nil {
		return Base{}, err
	}
	layers := img.Config.RootFS.DiffIDs
	return Base{
		RunImage: app.RunImage, RunDigest: run.Target.Digest,
		Current: slices.Equal(layers[:slices.Index(layers, app.TopLayer)+1], run.Config.RootFS.DiffIDs),
	}, nil
}

// Rebase puts an app's image on its run image as that is now, under another name, and returns the
// new image's digest. What the app's buildpacks made, and the configuration, stay as they are.
func (c *Client) Rebase(ctx context.Context, from, to string) (digest.Digest, error) {
	if _, err := c.InspectApp(ctx, from); err != nil {
		return "", err
	}
	err := c.with(ctx, "", nil, func(ctx context.Context, p *pack.Client) error {
		return explain("rebase of "+from, p.Rebase(ctx, pack.RebaseOptions{RepoName: to, PreviousImage: from, Publish: true}))
	})
	if err != nil {
		return "", err
	}
	rebased, err := c.images.Image(ctx, to)
	if err != nil {
		return "", err
	}
	return rebased.Target.Digest, c.images.Unpack(ctx, to)
}

// fullName is a name as the store has it: docker.io/deis/builder:latest for deis/builder.
func fullName(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", &paas.Error{Code: paas.Invalid, Message: fmt.Sprintf("%q is no image name", name), Err: err}
	}
	return ref.String(), nil
}

// explain makes pack's errors, which are about what people wrote, errors for people.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*paas.Error](err); ok && known.Code != paas.NotFound {
		return err
	}
	return &paas.Error{Code: paas.Invalid, Message: what + ": " + err.Error(), Err: err}
}
