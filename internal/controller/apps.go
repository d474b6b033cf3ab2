package controller

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

const (
	// subdomain is the controller's own name below the platform's domain.
	subdomain = "deis"
	// nameTries is how often a generated name may be taken: with half of all
	// names in use, one of 64 is free but for 1 in 10^19.
	nameTries = 64
	// deleteRetry is the pause before a deletion that failed is tried again.
	deleteRetry = 10 * time.Second
)

func (s *server) apiApp(a paas.App) api.App {
	return api.App{
		UUID: a.UUID, ID: a.ID, Owner: a.Owner, URL: s.host(a.ID), Structure: a.Structure,
		Created: date(a.Created), Updated: date(a.Updated),
	}
}

// host is the name that the platform gives an app.
func (s *server) host(app string) string { return app + "." + s.cfg.Domain }

func (c *call) listApps() error {
	return listed(c, func(p store.Page) (store.List[paas.App], error) { return c.s.store.Apps(c.ctx, c.user, p) }, c.s.apiApp)
}

// createApp is contract 5.1. A structure in the body is ignored.
func (c *call) createApp() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	id := f.filled("id", c.checkAppID)
	if err := f.err(); err != nil {
		return err
	}
	app, err := c.newApp(id)
	if err != nil {
		return err
	}
	c.s.announce(app)
	if err := c.s.publishApp(c.lasting(), app); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, c.s.apiApp(app))
}

// newApp creates an app with this name, or with "" a generated one.
func (c *call) newApp(id string) (app paas.App, err error) {
	if id != "" {
		return c.s.store.CreateApp(c.ctx, c.user.Username, id)
	}
	for range nameTries {
		app, err = c.s.store.CreateApp(c.ctx, c.user.Username, paas.GenerateAppID())
		if e, ok := errors.AsType[*paas.Error](err); !ok || e.Fields["id"] == nil {
			break
		}
	}
	return app, err
}

func (c *call) getApp() error { return c.reply(http.StatusOK, c.s.apiApp(c.app)) }

// updateApp gives an app to another owner; nothing else can be changed.
func (c *call) updateApp() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	if !f.has("owner") {
		return c.empty(http.StatusOK)
	}
	owner := f.filled("owner")
	if err := f.err(); err != nil {
		return err
	}
	if err := c.permit(owners); err != nil {
		return err
	}
	if err := c.s.store.TransferApp(c.ctx, c.user.Username, c.app, owner); err != nil {
		return err
	}
	if err := c.s.publishApp(c.lasting(), c.app); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

// deleteApp marks first, so that a crash on the way changes nothing but the
// time at which the deletion ends.
func (c *call) deleteApp() error {
	if err := c.s.store.MarkDeleting(c.ctx, c.user.Username, c.app); err != nil {
		return err
	}
	if err := c.s.finishDelete(c.lasting(), c.app); err != nil {
		c.s.cfg.Log.Warn("a deletion will be tried again", "app", c.app.ID, "error", err.Error())
		select {
		case c.s.undeleted <- struct{}{}:
		default:
		}
	}
	return c.empty(http.StatusNoContent)
}

// finishDelete removes what a marked app has: routes, then instances, then what the engine
// keeps, then the rows. It may be repeated at any point.
func (s *server) finishDelete(ctx context.Context, app paas.App) error {
	s.withdraw(app)
	if err := s.oneOffs.endAll(ctx, app.UUID); err != nil {
		return err
	}
	if err := s.rollouts.Destroy(ctx, app); err != nil {
		return err
	}
	if err := s.engine.Forget(ctx, app.UUID); err != nil {
		return err
	}
	return s.store.DeleteApp(ctx, app)
}

// announce makes the routers know a new app without a look at the store, which may fail: of an app that they do not know no
// instance gets requests.
func (s *server) announce(app paas.App) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.routes.setApp(app.UUID, app.ID, []string{s.host(app.ID)}, nil)
}

// withdraw removes the routes of a marked app. Who publishes them meanwhile has read the store before, and is awaited.
func (s *server) withdraw(app paas.App) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.routes.dropApp(app.UUID)
}

// finishDeletes carries on the deletions that were interrupted or failed, until
// ctx ends.
func (s *server) finishDeletes(ctx context.Context) error {
	for {
		var again <-chan time.Time
		if err := s.finishMarked(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("a deletion will be tried again", "error", err.Error())
			again = time.After(deleteRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.undeleted:
		case <-again:
		}
	}
}

func (s *server) finishMarked(ctx context.Context) error {
	apps, err := s.store.DeletingApps(ctx)
	for _, app := range apps {
		err = errors.Join(err, s.finishDelete(ctx, app))
	}
	return err
}

// listPerms is contract 5.12.
func (c *call) listPerms() error {
	names, err := c.s.store.Collaborators(c.ctx, c.app.UUID)
	if err != nil {
		return err
	}
	if names == nil {
		names = []string{}
	}
	return c.reply(http.StatusOK, map[string][]string{"users": names})
}

func (c *call) grant() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	username := f.required("username")
	if err := f.err(); err != nil {
		return err
	}
	if err := c.s.store.Grant(c.ctx, c.user.Username, c.app, username); err != nil {
		return err
	}
	if err := c.s.publishApp(c.lasting(), c.app); err != nil {
		return err
	}
	return c.empty(http.StatusCreated)
}

func (c *call) revoke() error {
	if err := c.s.store.Revoke(c.ctx, c.user.Username, c.app, c.r.PathValue("username")); err != nil {
		return err
	}
	if err := c.s.publishApp(c.lasting(), c.app); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}
