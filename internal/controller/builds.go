package controller

import (
	"context"
	"net/http"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
	"github.com/deis/deis/internal/store"
)

func apiBuild(app paas.App, b paas.Build) api.Build {
	return api.Build{
		UUID: b.UUID, App: app.ID, Owner: b.Owner, Image: b.ShownImage(app), SHA: b.SHA, Procfile: b.Procfile,
		Dockerfile: b.Dockerfile, Created: date(b.Created), Updated: date(b.Updated),
	}
}

func (c *call) listBuilds() error {
	return listed(c, func(p store.Page) (store.List[paas.Build], error) { return c.s.store.Builds(c.ctx, c.app.UUID, p) },
		func(b paas.Build) api.Build { return apiBuild(c.app, b) })
}

func (c *call) getBuild() error {
	b, err := c.s.store.BuildByUUID(c.ctx, c.r.PathValue("uuid"))
	if err != nil {
		return err
	}
	if b.App != c.app.UUID {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	return c.reply(http.StatusOK, apiBuild(c.app, b))
}

// buildOf reads a build from a request (contract 5.3).
func buildOf(f *form, app paas.App, owner string) (paas.Build, error) {
	b := paas.Build{
		App: app.UUID, Owner: owner,
		Image:      f.required("image", atMost(paas.MaxImage)),
		SHA:        f.optional("sha", atMost(paas.MaxSHA)),
		Procfile:   f.texts("procfile"),
		Dockerfile: f.optional("dockerfile"),
	}
	f.fault("procfile", paas.CheckProcfile(b.Procfile)...)
	// Only our builder says that an image is one of buildpacks: it is started in another way.
	b.Strategy = paas.StrategyImage
	if b.SHA != "" && b.Dockerfile != "" {
		b.Strategy = paas.StrategyDockerfile
	}
	if err := f.err(); err != nil {
		return b, err
	}
	return b, paas.CheckImage(b, app)
}

// deploy stores a build and brings it live.
func (s *server) deploy(ctx context.Context, app paas.App, b *paas.Build, progress func(string)) (paas.Release, error) {
	if err := s.store.CreateBuild(ctx, b); err != nil {
		return paas.Release{}, err
	}
	_, release, err := s.rollouts.Do(ctx, rollout.Request{
		Kind: paas.RolloutDeploy, App: app, Owner: b.Owner,
		Build: b.UUID, Summary: paas.DeploySummary(*b), Progress: progress,
	})
	return release, err
}

func (c *call) createBuild() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	b, err := buildOf(f, c.app, c.user.Username)
	if err != nil {
		return err
	}
	release, err := c.s.deploy(c.lasting(), c.app, &b, nil)
	if err != nil {
		return err
	}
	c.releaseHeaders(release)
	return c.reply(http.StatusCreated, apiBuild(c.app, b))
}
