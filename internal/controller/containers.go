package controller

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
	"github.com/deis/deis/internal/store"
)

func apiContainer(app paas.App, i paas.Instance) api.Container {
	return api.Container{
		UUID: i.UUID, App: app.ID, Owner: app.Owner, Release: fmt.Sprintf("v%d", i.Version),
		Type: i.Type, Num: i.Num, State: string(i.State), Created: date(i.Created), Updated: date(i.Updated),
	}
}

// scale is contract 5.5.
func (c *call) scale() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	counts, err := paas.ParseScale(f.fields)
	if err != nil {
		return err
	}
	latest, err := c.s.store.LatestRelease(c.ctx, c.app.UUID)
	if err != nil {
		return err
	}
	if latest.Build == "" {
		return paas.Errorf(paas.Invalid, "No build associated with this release")
	}
	if len(counts) == 0 {
		return c.empty(http.StatusNoContent)
	}
	build, err := c.s.store.BuildByUUID(c.ctx, latest.Build)
	if err != nil {
		return err
	}
	if err := paas.CheckScale(build, counts); err != nil {
		return err
	}
	_, _, err = c.s.rollouts.Do(c.lasting(), rollout.Request{
		Kind: paas.RolloutScale, App: c.app, Owner: c.user.Username,
		Formation: counts, Summary: paas.ScaleSummary(c.user.Username, counts),
	})
	if err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (c *call) listContainers() error {
	return listed(c, func(p store.Page) (store.List[paas.Instance], error) {
		return c.s.store.Instances(c.ctx, c.app.UUID, c.r.PathValue("type"), p)
	}, func(i paas.Instance) api.Container { return apiContainer(c.app, i) })
}

// pathNum is the instance number in the path, 0 where there is none.
func (c *call) pathNum() (int, error) {
	text := c.r.PathValue("num")
	if text == "" {
		return 0, nil
	}
	num, err := strconv.Atoi(text)
	if err != nil || num < 1 {
		return 0, paas.Errorf(paas.NotFound, "Not found")
	}
	return num, nil
}

// matching lists the instances that the path names.
func (c *call) matching() ([]paas.Instance, error) {
	num, err := c.pathNum()
	if err != nil {
		return nil, err
	}
	l, err := c.s.store.Instances(c.ctx, c.app.UUID, c.r.PathValue("type"), store.All)
	if num == 0 {
		return l.Rows, err
	}
	return slices.DeleteFunc(l.Rows, func(i paas.Instance) bool { return i.Num != num }), err
}

func (c *call) getContainer() error {
	found, err := c.matching()
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	// While one generation follows another there are two; the newer comes last.
	return c.reply(http.StatusOK, apiContainer(c.app, found[len(found)-1]))
}

// restart is contract 5.6.
func (c *call) restart() error {
	num, err := c.pathNum()
	if err != nil {
		return err
	}
	r, _, err := c.s.rollouts.Do(c.lasting(), rollout.Request{
		Kind: paas.RolloutRestart, App: c.app, Owner: c.user.Username,
		RestartType: c.r.PathValue("type"), RestartNum: num,
	})
	if err != nil {
		return err
	}
	answer := []api.Container{}
	if r.ID != 0 {
		found, err := c.matching()
		if err != nil {
			return err
		}
		for _, i := range found {
			if i.Generation == r.ID {
				answer = append(answer, apiContainer(c.app, i))
			}
		}
	}
	return c.reply(http.StatusOK, answer)
}
