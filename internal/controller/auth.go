package controller

import (
	"context"
	"crypto/subtle"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

// errForbidden is the text of contract 2.3.
func errForbidden() error {
	return paas.Errorf(paas.Forbidden, "You do not have permission to perform this action.")
}

// errNoCredentials is the text of contract 2.3.
func errNoCredentials() error {
	return paas.Errorf(paas.Unauthorized, "Authentication credentials were not provided.")
}

// authenticate finds out whose token the request carries.
func (c *call) authenticate() error {
	token, err := requestToken(c.r.Header.Get("Authorization"))
	if err != nil {
		return err
	}
	c.user, err = c.s.store.UserByToken(c.ctx, token)
	return err
}

// requestToken reads "token <hex>". Other schemes count as no credentials.
func requestToken(header string) (string, error) {
	words := strings.Fields(header)
	switch {
	case len(words) == 0 || !strings.EqualFold(words[0], "token"):
		return "", errNoCredentials()
	case len(words) == 1:
		return "", paas.Errorf(paas.Unauthorized, "Invalid token header. No credentials provided.")
	case len(words) > 2:
		return "", paas.Errorf(paas.Unauthorized, "Invalid token header. Token string should not contain spaces.")
	}
	return words[1], nil
}

// gate is the part of a policy that needs no app: it holds for every method of
// a path, also for those that the path does not have.
func (p policy) gate() policy {
	switch p {
	case members, owners, ownersOrSelf:
		return users
	}
	return p
}

// identify finds out who calls, and refuses who may call nothing here.
func (c *call) identify(gate policy) error {
	switch gate {
	case anyone:
		return nil
	case daemons:
		return c.authorizeDaemon()
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	return c.permit(gate)
}

// authorize lets those through whom the policy lets call. It fills in the app
// of the path.
func (c *call) authorize(p policy) (err error) {
	if p == p.gate() {
		return nil // identify has seen to it
	}
	if c.app, err = c.s.store.AppByID(c.ctx, c.r.PathValue("app")); err != nil {
		return err
	}
	return c.permit(p)
}

// permit refuses the caller unless the policy lets him do this.
func (c *call) permit(p policy) error {
	if p == ownersOrSelf && c.r.PathValue("username") == c.user.Username {
		return nil
	}
	ok, err := c.s.permits(c.ctx, p, c.user, c.app)
	if err != nil {
		return err
	}
	return allowed(ok)
}

// permits is the one place that decides what a user may do (contract 3.8), for
// the API, for git and for certificates. app is zero where the policy needs none.
func (s *server) permits(ctx context.Context, p policy, u paas.User, app paas.App) (bool, error) {
	switch {
	case !u.Active:
		return false, nil
	case p == users || u.Superuser:
		return true, nil
	case p == members && u.Username != app.Owner:
		return s.store.Collaborates(ctx, u, app.UUID)
	case p == members || p == owners || p == ownersOrSelf:
		return u.Username == app.Owner, nil
	}
	return false, nil
}

func allowed(ok bool) error {
	if !ok {
		return errForbidden()
	}
	return nil
}

// authorizeDaemon checks the builder key. A user's token does not help, but
// changes the answer from 401 to 403 (contract 6).
func (c *call) authorizeDaemon() error {
	given := c.r.Header.Get(api.HeaderBuilderAuth)
	if subtle.ConstantTimeCompare([]byte(given), []byte(c.s.builderKey)) == 1 {
		return nil
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	return errForbidden()
}

// target returns the user whom a body's username names, the caller without
// one. Only superusers may name somebody.
func (c *call) target(f *form) (paas.User, error) {
	name := f.optional("username")
	if err := f.err(); err != nil {
		return paas.User{}, err
	}
	switch {
	case name == "":
		return c.user, nil
	case !c.user.Superuser:
		return paas.User{}, errForbidden()
	}
	return c.s.store.UserByName(c.ctx, name)
}
