package deis

import (
	"context"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

func (c *cli) buildCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "builds:list",
		Aliases: []string{"builds"},
		Short:   "List an app's builds, the newest first",
		Example: "deis builds --limit=10",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listBuilds(cmd.Context()) },
	}
	c.withApp(list)
	c.withList(list)
	return []*cobra.Command{list}
}

func (c *cli) listBuilds(ctx context.Context) error {
	_, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	page, err := list[api.Build](ctx, c, appPath(app, "builds/"))
	if err != nil {
		return err
	}
	return show(c, app+" Builds", page, func(b api.Build) []string {
		return []string{b.UUID, b.Created, b.Image}
	})
}
