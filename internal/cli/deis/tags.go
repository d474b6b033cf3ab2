package deis

import (
	"context"
	"regexp"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

func (c *cli) tagCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "tags:list",
		Aliases: []string{"tags"},
		Short:   "List the tags of the machines that an app may run on",
		Example: "deis tags --app=demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, app, err := c.forApp(cmd.Context())
			if err != nil {
				return err
			}
			return c.printTags(cmd.Context(), s, app)
		},
	}
	set := &cobra.Command{
		Use:     "tags:set <key>=<value>...",
		Short:   "Run an app only on machines with these tags",
		Example: "deis tags:set rack=1 environ=production",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tags, err := c.pairs(cmd, args, tagPair, func(_ int, arg string) string {
				return arg + " is invalid, Must be in format key=value\nExamples: rack=1 environ=production"
			})
			if err != nil {
				return err
			}
			return c.changeTags(cmd.Context(), tags)
		},
	}
	unset := &cobra.Command{
		Use:               "tags:unset <key>...",
		Short:             "Run an app on machines without these tags too",
		Example:           "deis tags:unset rack",
		Args:              atLeast(1),
		ValidArgsFunction: c.completing(c.tagNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			tags, err := removals(cmd, args)
			if err != nil {
				return err
			}
			return c.changeTags(cmd.Context(), tags)
		},
	}
	c.withApp(list, set, unset)
	c.withJSON(list, set, unset)
	return []*cobra.Command{list, set, unset}
}

var tagPair = regexp.MustCompile(`^([^=]+)=([^=]+)$`)

func (c *cli) changeTags(ctx context.Context, tags map[string]any) error {
	return c.changeConfig(ctx, "Applying tags", api.Config{Tags: tags}, func(s *session, app string) error {
		return c.printTags(ctx, s, app)
	})
}

func (c *cli) printTags(ctx context.Context, s *session, app string) error {
	config, err := s.config(ctx, app)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(notNil(config.Tags))
	}
	c.heading("%s Tags", app)
	c.table(mapRows(config.Tags))
	return nil
}
