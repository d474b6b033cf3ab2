package controller

import (
	"fmt"
	"net/http"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

func date(t time.Time) string { return t.UTC().Format(api.TimeLayout) }

// userDate is the other form of dates (contract 2.5).
func userDate(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

func apiUser(u paas.User) api.User {
	return api.User{
		Username: u.Username, Email: u.Email, FirstName: u.FirstName, LastName: u.LastName,
		IsSuperuser: u.Superuser, IsStaff: u.Staff, IsActive: u.Active,
		Groups: []string{}, UserPermissions: []string{},
		LastLogin: userDate(u.LastLogin), DateJoined: userDate(u.Joined),
	}
}

func (c *call) healthz() error {
	if err := c.s.store.Ping(c.ctx); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(c.w, "OK")
	return nil
}

// root tells clients that this is a controller, and where its git is.
func (c *call) root() error { return c.reply(http.StatusOK, struct{}{}) }

// register is contract 3.1.
func (c *call) register() error {
	if err := c.mayRegister(); err != nil {
		return err
	}
	f, err := c.form()
	if err != nil {
		return err
	}
	u := paas.User{
		Username:  f.required("username", paas.CheckUsername),
		Email:     f.optional("email", paas.CheckEmail),
		FirstName: f.optional("first_name", atMost(paas.MaxName)),
		LastName:  f.optional("last_name", atMost(paas.MaxName)),
	}
	password := f.required("password")
	if err := f.err(); err != nil {
		return err
	}
	if u, err = c.s.store.CreateUser(c.ctx, u, password); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apiUser(u))
}

// login is contract 3.2.
func (c *call) login() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	username, password := f.required("username"), f.required("password")
	if err := f.err(); err != nil {
		return err
	}
	token, err := c.s.store.Login(c.ctx, username, password)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, map[string]string{"token": token})
}

// setPassword is contract 3.3.
func (c *call) setPassword() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	user, err := c.targetOrSelf(f)
	if err != nil {
		return err
	}
	password, next := f.optional("password"), f.required("new_password")
	if !c.user.Superuser {
		password = f.required("password")
	}
	if err := f.err(); err != nil {
		return err
	}
	if f.has("password") {
		ok, err := c.s.store.CheckPassword(c.ctx, user.Username, password)
		if err != nil {
			return err
		}
		if !ok {
			return paas.Errorf(paas.Invalid, "Current password does not match")
		}
	}
	if err := c.s.store.SetPassword(c.ctx, c.user.Username, user.Username, next); err != nil {
		return err
	}
	return c.reply(http.StatusOK, map[string]string{"status": "password set"})
}

// targetOrSelf is the user whom a request names, or else the caller. Naming
// oneself is no privilege here, in contrast to tokens.
func (c *call) targetOrSelf(f *form) (paas.User, error) {
	if f.has("username") && f.fields["username"] != c.user.Username {
		return c.target(f)
	}
	return c.user, nil
}

// newToken is contract 3.4.
func (c *call) newToken() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	if f.has("all") {
		if !c.user.Superuser {
			return errForbidden()
		}
		if err := c.s.store.NewTokens(c.ctx, c.user.Username); err != nil {
			return err
		}
		return c.reply(http.StatusOK, "")
	}
	user, err := c.target(f)
	if err != nil {
		return err
	}
	token, err := c.s.store.NewToken(c.ctx, c.user.Username, user.Username)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, map[string]string{"token": token})
}

// cancel is contract 3.5.
func (c *call) cancel() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	user, err := c.targetOrSelf(f)
	if err != nil {
		return err
	}
	if err := c.s.store.DeleteUser(c.ctx, c.user.Username, user.Username); err != nil {
		return err
	}
	// His certificates are served no more.
	if err := c.s.loadRoutes(c.lasting()); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// listUsers is contract 3.6.
func (c *call) listUsers() error {
	return listed(c, func(p store.Page) (store.List[paas.User], error) { return c.s.store.Users(c.ctx, p) }, apiUser)
}

// admin is a row of contract 3.7.
type admin struct {
	Username    string `json:"username"`
	IsSuperuser bool   `json:"is_superuser"`
}

func (c *call) listAdmins() error {
	return listed(c, func(p store.Page) (store.List[paas.User], error) { return c.s.store.Superusers(c.ctx, p) },
		func(u paas.User) admin { return admin{u.Username, u.Superuser} })
}

func (c *call) addAdmin() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	username := f.required("username")
	if err := f.err(); err != nil {
		return err
	}
	if err := c.setAdmin(username, true); err != nil {
		return err
	}
	return c.empty(http.StatusCreated)
}

func (c *call) removeAdmin() error {
	if err := c.setAdmin(c.r.PathValue("username"), false); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// setAdmin also changes whose certificates may be served.
func (c *call) setAdmin(username string, super bool) error {
	if err := c.s.store.SetSuperuser(c.ctx, c.user.Username, username, super); err != nil {
		return err
	}
	return c.s.loadRoutes(c.lasting())
}
