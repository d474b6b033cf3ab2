package deis

import (
	"context"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

func (c *cli) userCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "users:list",
		Aliases: []string{"users"},
		Short:   "List the platform's users, as its administrator",
		Example: "deis users --limit=20",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listUsers(cmd.Context()) },
	}
	c.withList(list)
	return []*cobra.Command{list}
}

func (c *cli) listUsers(ctx context.Context) error {
	if _, err := c.loggedIn(); err != nil {
		return err
	}
	page, err := list[api.User](ctx, c, "/v1/users/")
	if err != nil {
		return err
	}
	return show(c, "Users", page, func(u api.User) []string { return []string{u.Username} })
}
