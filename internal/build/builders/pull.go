package builders

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

// madeHere are names that no registry has.
var madeHere = []string{build.DefaultBuilder, build.CNBBuildImage, build.CNBRunImage, build.LifecycleImage}

// Pull fetches a builder from its registry, and the run image that it names: builds take run images from the store only, because apps
// run on them and are rebased on them. Images that are here already get newer. Registries are asked without credentials, on loopback addresses over HTTP.
func (c *Client) Pull(ctx context.Context, name string) (Builder, error) {
	name, err := fullName(name)
	if err != nil {
		return Builder{}, err
	}
	_, missing := c.images.Image(ctx, name)
	if err := c.fetch(ctx, name); err != nil {
		return Builder{}, err
	}
	b, err := c.Inspect(ctx, name)
	if err == nil && len(b.RunImages) == 0 {
		err = paas.Errorf(paas.Invalid, "the builder %s names no run image", name)
	}
	if paas.CodeOf(err) == paas.Invalid && paas.CodeOf(missing) == paas.NotFound { // else it may be in use, for example as a run image
		err = errors.Join(err, c.images.Remove(context.WithoutCancel(ctx), name))
	}
	if err != nil {
		return Builder{}, err
	}
	run, err := fullName(b.RunImages[0])
	if err != nil || run == build.CNBRunImage { // that one is made here
		return b, err
	}
	if err := c.fetch(ctx, run); err != nil {
		return Builder{}, err
	}
	_, err = c.images.Image(ctx, run)
	return b, err
}

// fetch brings an image of this machine's platform into the store, under its name.
func (c *Client) fetch(ctx context.Context, name string) error {
	if slices.Contains(madeHere, name) || strings.HasPrefix(name, paas.LocalImages) {
		return paas.Errorf(paas.Invalid, "the image %s is made on this machine, and in no registry", name)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchLocalhost), docker.WithAuthorizer(docker.NewDockerAuthorizer()))}) // tokens for anybody
	_, err := c.images.Client().Pull(ctx, name, containerd.WithResolver(resolver))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, refused := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); refused || errdefs.IsNotFound(err) {
		return &paas.Error{Code: paas.Invalid, Err: err, Message: fmt.Sprintf("the image %s does not exist in its registry, is private, or is not for this machine: %v", name, err)}
	}
	if err != nil {
		return fmt.Errorf("fetch image %s: %w", name, err)
	}
	return nil
}
