package deis

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) psCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "ps:list",
		Aliases: []string{"ps"},
		Short:   "List an app's processes",
		Example: "deis ps --app=demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, app, err := c.forApp(cmd.Context())
			if err != nil {
				return err
			}
			return c.listProcesses(cmd.Context(), app)
		},
	}
	scale := &cobra.Command{
		Use:     "ps:scale <type>=<number>...",
		Aliases: []string{"scale"},
		Short:   "Set how many processes of a type run",
		Example: "deis scale web=3 worker=1",
		Args:    atLeast(1),

		ValidArgsFunction: c.completing(c.processTypesWith("=")),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.scale(cmd, args) },
	}
	restart := &cobra.Command{
		Use:     "ps:restart [<type>[.<number>]]",
		Aliases: []string{"restart"},
		Short:   "Restart all processes, those of a type, or one",
		Example: "deis restart web.1",
		Args:    between(0, 1),

		ValidArgsFunction: first(c.completing(c.processNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.restart(cmd, strings.Join(args, ""))
		},
	}
	c.withApp(list, scale, restart)
	c.withList(list)
	c.withJSON(scale, restart)
	return []*cobra.Command{list, scale, restart}
}

func (c *cli) listProcesses(ctx context.Context, app string) error {
	page, err := list[api.Container](ctx, c, appPath(app, "containers/"))
	if err != nil {
		return err
	}
	if c.json {
		return show(c, "", page, nil)
	}
	if err := c.printProcesses(ctx, app, page); err != nil {
		return err
	}
	return c.tellRollout(ctx, app)
}

// process is what a container and an instance of a list have in common.
type process struct {
	kind           string
	num            int
	release, state string
}

// troubles says of processes why they do not run and how often they had to be started again. Controllers that
// do not tell have none.
func (c *cli) troubles(ctx context.Context, app string) (map[process]string, error) {
	page, err := list[api.Instance](ctx, c, appPath(app, "instances/"))
	if err != nil && paas.CodeOf(err) != paas.NotFound {
		return nil, err
	}
	texts := map[process]string{}
	for _, i := range page.Results {
		text := ""
		if i.Reason != "" {
			text = ": " + i.Reason
		}
		switch {
		case i.Restarts == 1:
			text += ", started again once"
		case i.Restarts > 1:
			text += fmt.Sprintf(", started again %d times", i.Restarts)
		}
		texts[process{i.Type, i.Num, i.Release, i.State}] = text
	}
	return texts, nil
}

// printProcesses prints them by type and number, with their troubles.
func (c *cli) printProcesses(ctx context.Context, app string, page api.List[api.Container]) error {
	troubles, err := c.troubles(ctx, app)
	if err != nil {
		return err
	}
	all := slices.SortedFunc(slices.Values(page.Results), func(a, b api.Container) int {
		return cmp.Or(strings.Compare(a.Type, b.Type), cmp.Compare(a.Num, b.Num))
	})
	c.heading("%s Processes%s", app, shownOf(len(page.Results), page.Count))
	previous := ""
	for _, p := range all {
		if p.Type != previous {
			c.say("--- %s:", p.Type)
			previous = p.Type
		}
		trouble := troubles[process{p.Type, p.Num, p.Release, p.State}]
		c.say("%s.%d %s (%s)%s", p.Type, p.Num, p.State, p.Release, trouble)
	}
	return nil
}

// scalePair takes all process types that a Procfile may have; the original's
// were letters only.
var scalePair = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_-]*)=0*([0-9]{1,9})$`)

func (c *cli) scale(cmd *cobra.Command, args []string) error {
	formation, err := c.pairs(cmd, args, scalePair, func(_ int, arg string) string {
		return fmt.Sprintf("'%s' does not match the pattern 'type=num', ex: web=2", arg)
	})
	if err != nil {
		return err
	}
	for kind, number := range formation {
		formation[kind] = json.Number(number.(string))
	}
	ctx := cmd.Context()
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.timed("Scaling processes... "+drink(), func() error {
		return s.api.Call(ctx, http.MethodPost, appPath(app, "scale/"), formation, nil)
	})
	if err != nil {
		return err
	}
	return c.listProcesses(ctx, app)
}

func (c *cli) restart(cmd *cobra.Command, which string) error {
	path := "containers/"
	if which != "" {
		kind, number, one := strings.Cut(which, ".")
		path += url.PathEscape(kind) + "/"
		if one {
			n, err := strconv.Atoi(number)
			if err != nil || n < 1 || kind == "" {
				return usage(cmd, "%s is not of the form <type> or <type>.<number>.", which)
			}
			path += fmt.Sprint(n) + "/"
		}
	}
	ctx := cmd.Context()
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	restarted := []api.Container{}
	err = c.timed("Restarting processes... "+drink(), func() error {
		return s.api.Call(ctx, http.MethodPost, appPath(app, path+"restart/"), nil, &restarted)
	})
	if err != nil {
		return err
	}
	if len(restarted) == 0 && which != "" {
		return fail("No process "+which+" runs in "+app+".", "deis ps --app="+app)
	}
	return c.listProcesses(ctx, app)
}
