package controller

import (
	"context"
	"net/http"
	"strconv"
	"strings"

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

// build is the one that the path names. Those of other apps are not found.
func (c *call) build() (paas.Build, error) {
	b, err := c.s.store.BuildByUUID(c.ctx, c.r.PathValue("uuid"))
	if err == nil && b.App != c.app.UUID {
		err = paas.Errorf(paas.NotFound, "Not found")
	}
	return b, err
}

func (c *call) getBuild() error {
	b, err := c.build()
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiBuild(c.app, b))
}

// buildLog answers what the pusher saw.
func (c *call) buildLog() error {
	b, err := c.build()
	if err != nil {
		return err
	}
	log, err := c.s.store.BuildLog(c.ctx, b.UUID)
	if err != nil {
		return err
	}
	if log == "" {
		return paas.Errorf(paas.NotFound, "This build has no log. Only builds of git pushes have one.")
	}
	return c.text("text/plain", []byte(log))
}

func (c *call) buildSBOM() error {
	return c.buildDocument(store.SBOM, "This build has no SBOM. Only builds with buildpacks have one, and old builds lose it with their image.")
}

func (c *call) buildProvenance() error {
	return c.buildDocument(store.Provenance, "This build has no provenance. Only builds of git pushes have one, and old builds lose it with their image.")
}

// buildDocument answers a document as it was posted; missing says why there may be none.
func (c *call) buildDocument(kind store.Document, missing string) error {
	b, err := c.build()
	if err != nil {
		return err
	}
	text, err := c.s.store.BuildDocument(c.ctx, b.UUID, kind)
	if paas.CodeOf(err) == paas.NotFound {
		return paas.Errorf(paas.NotFound, "%s", missing)
	}
	if err != nil {
		return err
	}
	return c.text(kindJSON, text)
}

// text answers what is kept as it is.
func (c *call) text(kind string, text []byte) error {
	c.w.Header().Set("Content-Type", kind)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	c.w.WriteHeader(http.StatusOK)
	_, _ = c.w.Write(text) // a client that is gone cannot be told
	return nil
}

// clearCache makes the next build start with an empty cache. The old one goes when the builder tidies up.
func (c *call) clearCache() error {
	if err := c.s.store.ClearCache(c.ctx, c.user.Username, c.app); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
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
func (s *server) deploy(ctx context.Context, app paas.App, b *paas.Build, summary string, progress func(string)) (paas.Release, error) {
	if err := s.store.CreateBuild(ctx, b); err != nil {
		return paas.Release{}, err
	}
	_, release, err := s.rollouts.Do(ctx, rollout.Request{
		Kind: paas.RolloutDeploy, App: app, Owner: b.Owner,
		Build: b.UUID, Summary: summary, Progress: progress,
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
	if !strings.HasPrefix(b.Image, paas.LocalImages) { // it is pulled
		if err := c.s.checkDisk(c.ctx, c.app); err != nil {
			return err
		}
	}
	release, err := c.s.deploy(c.lasting(), c.app, &b, paas.DeploySummary(b), nil)
	if err != nil {
		return err
	}
	c.releaseHeaders(release)
	return c.reply(http.StatusCreated, apiBuild(c.app, b))
}
