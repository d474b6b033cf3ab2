package controller

import (
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

// authorize is the one place that decides who may call what. It fills in user
// and app.
func (c *call) authorize(p policy) error {
	switch p {
	case anyone:
		return nil
	case daemons:
		return c.authorizeDaemon()
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	switch p {
	case users:
		return nil
	case superusers:
		return allowed(c.user.Superuser)
	}
	var err error
	if c.app, err = c.s.store.AppByID(c.ctx, c.r.PathValue("app")); err != nil {
		return err
	}
	owner := c.user.Superuser || c.user.Username == c.app.Owner
	switch p {
	case members:
		ok, err := c.s.mayUse(c, c.user, c.app)
		if err != nil {
			return err
		}
		return allowed(ok)
	case owners:
		return allowed(owner)
	case ownersOrSelf:
		return allowed(owner || c.r.PathValue("username") == c.user.Username)
	}
	return errForbidden()
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

// mayUse reports whether a user is owner, collaborator or superuser.
func (s *server) mayUse(c *call, u paas.User, app paas.App) (bool, error) {
	if u.Superuser || u.Username == app.Owner {
		return true, nil
	}
	return s.store.Collaborates(c.ctx, u, app.UUID)
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
