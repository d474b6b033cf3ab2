package controller

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

func apiCert(cert paas.Certificate) api.Cert {
	return api.Cert{
		ID: cert.ID, Owner: cert.Owner, CommonName: cert.CommonName, Expires: date(cert.Expires),
		Created: date(cert.Created), Updated: date(cert.Updated),
	}
}

func (c *call) listCerts() error {
	return listed(c, func(p store.Page) (store.List[paas.Certificate], error) {
		return c.s.store.Certificates(c.ctx, c.user.Username, p)
	}, apiCert)
}

// addCert is contract 5.10. Who may not use the app of a host may not upload a
// certificate for it; the platform's own hosts are the superusers'.
func (c *call) addCert() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	chain, key, name := f.required("certificate"), f.required("key"), f.filled("common_name")
	if err := f.err(); err != nil {
		return err
	}
	cert, err := paas.NewCertificate(chain, key, name, c.s.cfg.Domain)
	if err != nil {
		return err
	}
	cert.Owner = c.user.Username
	app, err := c.s.appOfHost(c.ctx, cert.CommonName)
	if err != nil {
		return err
	}
	if err := c.mayCertify(cert.CommonName, app); err != nil {
		return err
	}
	if err := c.s.store.CreateCertificate(c.ctx, &cert, app.UUID); err != nil {
		return err
	}
	if err := c.s.publishName(c.lasting(), cert.CommonName); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apiCert(cert))
}

// appOfHost returns the app that answers for a host; zero where none does.
func (s *server) appOfHost(ctx context.Context, host string) (paas.App, error) {
	app, err := s.store.AppByDomain(ctx, host)
	if id, ok := strings.CutSuffix(host, "."+s.cfg.Domain); ok && paas.CodeOf(err) == paas.NotFound {
		app, err = s.store.AppByID(ctx, id)
	}
	if paas.CodeOf(err) == paas.NotFound {
		return paas.App{}, nil
	}
	return app, err
}

// mayCertify says whether the caller may upload a certificate for a host.
func (c *call) mayCertify(host string, app paas.App) error {
	if slices.Contains(c.s.ownHosts(), host) {
		return allowed(c.user.Superuser)
	}
	if app.UUID == "" {
		return nil
	}
	ok, err := c.s.permits(c.ctx, members, c.user, app)
	if err != nil {
		return err
	}
	return allowed(ok)
}

func (c *call) getCert() error {
	cert, err := c.s.store.Certificate(c.ctx, c.user.Username, strings.ToLower(c.r.PathValue("name")))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiCert(cert))
}

func (c *call) removeCert() error {
	name := strings.ToLower(c.r.PathValue("name"))
	if err := c.s.store.DeleteCertificate(c.ctx, c.user.Username, name); err != nil {
		return err
	}
	if err := c.s.publishName(c.lasting(), name); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}
