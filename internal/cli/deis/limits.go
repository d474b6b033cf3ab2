package deis

import (
	"context"
	"regexp"
	"strconv"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

func (c *cli) limitCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "limits:list",
		Aliases: []string{"limits"},
		Short:   "List the limits of an app's processes",
		Example: "deis limits --app=demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, app, err := c.forApp(cmd.Context())
			if err != nil {
				return err
			}
			return c.printLimits(cmd.Context(), s, app)
		},
	}
	limit := limitKind{}
	set := &cobra.Command{
		Use:   "limits:set <type>=<limit>...",
		Short: "Limit the memory or the CPU of each process of a type",
		Long: `Memory is a number with B, K, M or G, as in 512M. CPU is a share from 0 to 1024: how much a
process gets when all want more than there is. Each call makes a new release.`,
		Example:           "deis limits:set web=512M worker=1G",
		Args:              atLeast(1),
		ValidArgsFunction: c.completing(c.processTypesWith("=")),
		RunE: func(cmd *cobra.Command, args []string) error {
			limits, err := c.parseLimits(cmd, args)
			if err != nil {
				return err
			}
			return c.changeLimits(cmd, limit, limits)
		},
	}
	unset := &cobra.Command{
		Use:               "limits:unset <type>...",
		Short:             "Lift a limit of the processes of a type",
		Example:           "deis limits:unset --cpu web",
		Args:              atLeast(1),
		ValidArgsFunction: c.completing(c.processTypesWith("")),
		RunE: func(cmd *cobra.Command, args []string) error {
			limits, err := removals(cmd, args)
			if err != nil {
				return err
			}
			return c.changeLimits(cmd, limit, limits)
		},
	}
	c.withApp(list, set, unset)
	c.withJSON(list, set, unset)
	limit.flags(set)
	limit.flags(unset)
	return []*cobra.Command{list, set, unset}
}

// limitKind says what is limited: memory unless CPU is asked for.
type limitKind struct{ memory, cpu bool }

func (k *limitKind) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&k.memory, "memory", "m", false, "limit memory, which is the default")
	cmd.Flags().BoolVarP(&k.cpu, "cpu", "c", false, "limit CPU shares")
}

var limitPair = regexp.MustCompile(`(?i)^([a-z][a-z0-9_-]*)=([0-9]+[bkmg]{1,2}|[0-9]{1,4})$`)

func (c *cli) parseLimits(cmd *cobra.Command, args []string) (map[string]any, error) {
	limits, err := c.pairs(cmd, args, limitPair, func(_ int, arg string) string {
		return arg + " doesn't fit format type=#unit or type=#\nExamples: web=2G worker=500M web=300"
	})
	for kind, limit := range limits {
		if shares, err := strconv.Atoi(limit.(string)); err == nil {
			limits[kind] = shares
		}
	}
	return limits, err
}

func (c *cli) changeLimits(cmd *cobra.Command, kind limitKind, limits map[string]any) error {
	change := api.Config{Memory: limits}
	switch {
	case kind.cpu && kind.memory:
		return usage(cmd, "One call changes either --memory or --cpu.")
	case kind.cpu:
		change = api.Config{CPU: limits}
	}
	ctx := cmd.Context()
	return c.changeConfig(ctx, "Applying limits", change, func(s *session, app string) error {
		return c.printLimits(ctx, s, app)
	})
}

func (c *cli) printLimits(ctx context.Context, s *session, app string) error {
	config, err := s.config(ctx, app)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"memory": notNil(config.Memory), "cpu": notNil(config.CPU)})
	}
	c.heading("%s Limits", app)
	for _, part := range []struct {
		title  string
		limits map[string]any
	}{{"Memory", config.Memory}, {"CPU", config.CPU}} {
		c.say("\n--- %s", part.title)
		if len(part.limits) == 0 {
			c.say("Unlimited")
		}
		c.table(mapRows(part.limits))
	}
	return nil
}
