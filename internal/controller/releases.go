package controller

import (
	"context"
	"net/http"
	"regexp"
	"strconv"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
	"github.com/deis/deis/internal/store"
)

var versionPattern = regexp.MustCompile(`^v[0-9]{1,9}$`)

func apiRelease(app paas.App, r paas.Release) api.Release {
	out := api.Release{
		UUID: r.UUID, App: app.ID, Owner: r.Owner, Version: r.Version, Summary: r.Summary, Config: r.Config,
		Created: date(r.Created), Updated: date(r.Updated),
	}
	if r.Build != "" {
		out.Build = &r.Build
	}
	return out
}

func (c *call) listReleases() error {
	return listed(c, func(p store.Page) (store.List[paas.Release], error) { return c.s.store.Releases(c.ctx, c.app.UUID, p) },
		func(r paas.Release) api.Release { return apiRelease(c.app, r) })
}

func (c *call) getRelease() error {
	text := c.r.PathValue("version")
	if !versionPattern.MatchString(text) {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	version, err := strconv.Atoi(text[1:])
	if err != nil {
		return err
	}
	r, err := c.s.store.Release(c.ctx, c.app.UUID, version)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiRelease(c.app, r))
}

// rollback is contract 5.4: a new release with the build and config of an old
// one.
func (c *call) rollback() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	text := f.optional("version")
	if f.fields["version"] == nil { // null means what no version does
		text, f.faults = "", nil
	}
	unlock, err := c.s.changes.acquire(c.ctx, c.app.UUID, c.s.configWait)
	if err != nil {
		return err
	}
	defer unlock()
	// Once now, so that who asks for what is not there is told before he waits.
	latest, err := c.s.store.LatestRelease(c.ctx, c.app.UUID)
	if err != nil {
		return err
	}
	if _, err := c.rollbackTo(c.ctx, latest, text); err != nil {
		return err
	}
	_, release, err := c.s.rollouts.Do(c.lasting(), rollout.Request{
		Kind: paas.RolloutRollback, App: c.app, Owner: c.user.Username,
		Resolve: func(ctx context.Context, latest paas.Release, r *rollout.Request) error {
			old, err := c.rollbackTo(ctx, latest, text)
			r.Build, r.Config, r.Summary = old.Build, old.Config, paas.RollbackSummary(c.user.Username, old.Version)
			return err
		},
	})
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, map[string]int{"version": release.Version})
}

// rollbackTo is the release that a rollback means.
func (c *call) rollbackTo(ctx context.Context, latest paas.Release, text string) (paas.Release, error) {
	version, err := rollbackVersion(text, latest)
	if err != nil {
		return paas.Release{}, err
	}
	return c.s.store.Release(ctx, c.app.UUID, version)
}

// rollbackVersion is the one that is asked for, or that before the latest.
func rollbackVersion(text string, latest paas.Release) (int, error) {
	version := 0
	if text != "" {
		var err error
		if version, err = strconv.Atoi(text); err != nil {
			return 0, paas.FieldError("version", "A valid integer is required.")
		}
	}
	if version == 0 {
		version = latest.Version - 1
	}
	if version < 1 {
		return 0, paas.Errorf(paas.Invalid, "version cannot be below 0")
	}
	return version, nil
}
