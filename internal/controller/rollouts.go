package controller

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

func apiRollout(app paas.App, r paas.Rollout) api.Rollout {
	out := api.Rollout{
		ID: r.ID, App: app.ID, Owner: r.Owner, Kind: string(r.Kind), State: string(r.State), Step: r.Step,
		Version: r.Version, Summary: r.Summary, Config: r.Config, Formation: r.Formation, Reason: r.Reason,
		Created: date(r.Created),
	}
	if r.Build != "" {
		out.Build = &r.Build
	}
	if !r.Finished.IsZero() {
		finished := date(r.Finished)
		out.Finished = &finished
	}
	return out
}

// listRollouts lists what was tried, newest first; what is under way has no end.
func (c *call) listRollouts() error {
	return listed(c, func(p store.Page) (store.List[paas.Rollout], error) { return c.s.store.Rollouts(c.ctx, c.app.UUID, p) },
		func(r paas.Rollout) api.Rollout { return apiRollout(c.app, r) })
}

func (c *call) getRollout() error {
	id, err := strconv.ParseInt(c.r.PathValue("rollout"), 10, 64)
	if err != nil {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	r, err := c.s.store.Rollout(c.ctx, c.app.UUID, id)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiRollout(c.app, r))
}

// listInstances lists what listContainers does, with reasons.
func (c *call) listInstances() error {
	return listed(c, func(p store.Page) (store.List[paas.Instance], error) {
		return c.s.store.Instances(c.ctx, c.app.UUID, "", p)
	}, func(i paas.Instance) api.Instance {
		return api.Instance{
			App: c.app.ID, Release: fmt.Sprintf("v%d", i.Version), Type: i.Type, Num: i.Num, Rollout: i.Generation,
			State: string(i.State), Reason: i.Reason, Restarts: i.Restarts, Created: date(i.Created), Updated: date(i.Updated),
		}
	})
}
