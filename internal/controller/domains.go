package controller

import (
	"net/http"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

func (c *call) listDomains() error {
	return listed(c, func(p store.Page) (store.List[paas.Domain], error) { return c.s.store.Domains(c.ctx, c.app.UUID, p) },
		func(d paas.Domain) api.Domain { return apiDomain(c.app, d) })
}

func apiDomain(app paas.App, d paas.Domain) api.Domain {
	return api.Domain{App: app.ID, Owner: d.Owner, Domain: d.Name, Created: date(d.Created), Updated: date(d.Updated)}
}

// addDomain is contract 5.9.
func (c *call) addDomain() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	d := paas.Domain{App: c.app.UUID, Owner: c.user.Username}
	f.required("domain", func(name string) (faults []string) {
		d.Name = strings.TrimSuffix(name, ".")
		_, faults = paas.NormalizeDomain(name, c.s.cfg.Domain)
		return faults
	})
	if err := f.err(); err != nil {
		return err
	}
	if err := c.s.store.CreateDomain(c.ctx, &d); err != nil {
		return err
	}
	if err := c.s.publishApp(c.lasting(), c.app); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apiDomain(c.app, d))
}

func (c *call) removeDomain() error {
	if err := c.s.store.DeleteDomain(c.ctx, c.user.Username, c.app.UUID, c.r.PathValue("domain")); err != nil {
		return err
	}
	if err := c.s.publishApp(c.lasting(), c.app); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}
