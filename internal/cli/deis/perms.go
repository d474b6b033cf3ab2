package deis

import (
	"context"
	"net/http"
	"net/url"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) permCommands() []*cobra.Command {
	admin := false
	list := &cobra.Command{
		Use:     "perms:list",
		Aliases: []string{"perms", "sharing", "sharing:list"},
		Short:   "List an app's collaborators, or the administrators",
		Example: "deis perms --app=demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if admin {
				return c.listAdmins(cmd.Context())
			}
			return c.listPerms(cmd.Context())
		},
	}
	create := &cobra.Command{
		Use:     "perms:create <user>",
		Aliases: []string{"sharing:add"},
		Short:   "Let a user work on an app",
		Example: "deis perms:create bob --app=demo",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changePerm(cmd.Context(), args[0], admin, true)
		},
	}
	remove := &cobra.Command{
		Use:     "perms:delete <user>",
		Aliases: []string{"sharing:remove"},
		Short:   "End a user's work on an app",
		Example: "deis perms:delete bob --app=demo",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.collaboratorNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changePerm(cmd.Context(), args[0], admin, false)
		},
	}
	c.withApp(list, create, remove)
	for _, cmd := range []*cobra.Command{list, create, remove} {
		cmd.Flags().BoolVar(&admin, "admin", false, "the platform's administrators instead of an app's collaborators")
	}
	c.withList(list)
	return []*cobra.Command{list, create, remove}
}

// userName is a user in the lists of permissions.
type userName struct {
	Username string `json:"username"`
}

func (u userName) row() []string { return []string{u.Username} }

func (c *cli) listAdmins(ctx context.Context) error {
	if _, err := c.loggedIn(); err != nil {
		return err
	}
	page, err := list[userName](ctx, c, "/v1/admin/perms/")
	if err != nil {
		return err
	}
	return show(c, "Administrators", page, userName.row)
}

func (c *cli) listPerms(ctx context.Context) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	users, err := s.collaborators(ctx, app)
	if err != nil {
		return err
	}
	page := api.List[userName]{Count: len(users), Results: []userName{}}
	for _, name := range users {
		page.Results = append(page.Results, userName{name})
	}
	return show(c, app+"'s Users", page, userName.row)
}

func (s *session) collaborators(ctx context.Context, app string) ([]string, error) {
	answer := struct {
		Users []string `json:"users"`
	}{}
	err := s.api.Call(ctx, http.MethodGet, appPath(app, "perms/"), nil, &answer)
	return answer.Users, err
}

// noSuchUser is the failure of a command about a user who does not exist.
func noSuchUser(name string) error {
	return fail("There is no user "+name+".", "deis users   as an administrator, to see who there is")
}

// changePerm grants or revokes a permission on an app or the platform.
func (c *cli) changePerm(ctx context.Context, user string, admin, grant bool) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	path, doing := "/v1/admin/perms/", " system administrators"
	if !admin {
		app, err := c.findApp(ctx, s)
		if err != nil {
			return err
		}
		path, doing = appPath(app, "perms/"), " "+app+" collaborators"
	}
	method, body := http.MethodPost, any(userName{user})
	if grant {
		doing = "Adding " + user + " to" + doing
	} else {
		method, body, path = http.MethodDelete, nil, path+url.PathEscape(user)
		doing = "Removing " + user + " from" + doing
	}
	err = c.progress(doing, func() (string, error) {
		return "", s.api.Call(ctx, method, path, body, nil)
	})
	if paas.CodeOf(err) == paas.NotFound && (admin || !c.appIsMissing(ctx)) {
		return noSuchUser(user)
	}
	return err
}
