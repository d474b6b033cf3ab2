package controller

import (
	"net/http"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

// releasesHook lists what runs, for who puts it on another base image.
func (c *call) releasesHook() error {
	apps, err := c.hookApps()
	if err != nil {
		return err
	}
	answer := api.ReleasesHookAnswer{Releases: []api.HookRelease{}}
	for _, app := range apps {
		release, err := c.s.store.LatestRelease(c.ctx, app.UUID)
		if paas.CodeOf(err) == paas.NotFound || err == nil && release.Build == "" {
			continue // deleted meanwhile, or never deployed
		}
		if err != nil {
			return err
		}
		b, err := c.s.store.BuildByUUID(c.ctx, release.Build)
		if err != nil {
			return err
		}
		answer.Releases = append(answer.Releases, api.HookRelease{
			App: app.ID, UUID: app.UUID, Owner: app.Owner, Version: release.Version, Build: b.UUID,
			Image: b.Image, Digest: b.Digest, SHA: b.SHA, Procfile: b.Procfile, Strategy: string(b.Strategy),
		})
	}
	return c.reply(http.StatusOK, answer)
}

// hookApps is the app that is asked for, or all.
func (c *call) hookApps() ([]paas.App, error) {
	id := c.r.URL.Query().Get("app")
	if id == "" {
		return c.s.store.AllApps(c.ctx)
	}
	app, err := c.s.store.AppByID(c.ctx, id)
	return []paas.App{app}, err
}

// hookSummary is the summary of a posted build's release. A rebased build gets the SBOM of the one that it
// was made from: a base image has no part in it.
func (c *call) hookSummary(f *form, b *paas.Build) (string, error) {
	of := f.optional("rebase_of")
	if of == "" {
		return paas.DeploySummary(*b), nil
	}
	was, err := c.s.store.BuildByUUID(c.ctx, of)
	if err == nil && was.App != b.App {
		err = paas.Errorf(paas.NotFound, "Not found")
	}
	if err != nil {
		return "", err
	}
	sbom, err := c.s.store.BuildDocument(c.ctx, of, store.SBOM)
	if err != nil && paas.CodeOf(err) != paas.NotFound {
		return "", err
	}
	b.SBOM = sbom
	return paas.RebaseSummary(*b), nil
}
