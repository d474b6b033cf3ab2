package deis

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) rolloutCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "rollouts:list",
		Aliases: []string{"rollouts"},
		Short:   "List what was brought live or failed, the newest first",
		Example: "deis rollouts --limit=10",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listRollouts(cmd.Context()) },
	}
	info := &cobra.Command{
		Use:     "rollouts:info <id>",
		Short:   "Show one rollout, and why it failed",
		Example: "deis rollouts:info 1420070400",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.rolloutNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id < 1 {
				return usage(cmd, "%s is not a rollout; those have numbers.", args[0])
			}
			return c.rolloutInfo(cmd.Context(), id)
		},
	}
	c.withApp(list, info)
	c.withList(list)
	c.withJSON(info)
	return []*cobra.Command{list, info}
}

func (c *cli) rolloutNames(ctx context.Context, _ *session, app string) ([]string, error) {
	return namesIn(ctx, c, appPath(app, "rollouts/"), func(r api.Rollout) string { return fmt.Sprint(r.ID) })
}

func (c *cli) listRollouts(ctx context.Context) error {
	_, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	page, err := list[api.Rollout](ctx, c, appPath(app, "rollouts/"))
	if err != nil {
		return err
	}
	return show(c, app+" Rollouts", page, func(r api.Rollout) []string {
		text := r.Summary
		if r.State == string(paas.RolloutFailed) {
			text = shortReason(r)
		} else if r.Finished == nil {
			text = r.Step
		}
		return []string{fmt.Sprint(r.ID), r.Created, r.Kind, fmt.Sprintf("v%d", r.Version), r.State, text}
	})
}

func (c *cli) rolloutInfo(ctx context.Context, id int64) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	r := api.Rollout{}
	err = s.api.Call(ctx, http.MethodGet, appPath(app, fmt.Sprintf("rollouts/%d/", id)), nil, &r)
	if paas.CodeOf(err) == paas.NotFound && !c.appIsMissing(ctx) {
		return fail(fmt.Sprintf("%s has no rollout %d.", app, id), "deis rollouts --app="+app)
	}
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(r)
	}
	c.heading("%s Rollout %d", app, r.ID)
	rows := [][]string{
		{"kind:", r.Kind},
		{"release:", fmt.Sprintf("v%d", r.Version)},
		{"state:", r.State},
		{"step:", r.Step},
		{"owner:", r.Owner},
		{"summary:", r.Summary},
		{"created:", r.Created},
	}
	if r.Finished != nil {
		rows = append(rows, []string{"finished:", *r.Finished})
	}
	if r.Reason != "" {
		rows = append(rows, []string{"reason:", r.Reason})
	}
	c.table(rows)
	return nil
}

// shortReason is the line of a reason that says which instance failed and how. The first
// line is a heading where more follow.
func shortReason(r api.Rollout) string {
	head, rest, _ := strings.Cut(r.Reason, "\n")
	if rest == "" {
		return head
	}
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// tellRollout says what is under way for an app, or that the last change has failed. A
// controller that has no rollouts has nothing to tell.
func (c *cli) tellRollout(ctx context.Context, app string) error {
	page := api.List[api.Rollout]{}
	err := c.session.api.Call(ctx, http.MethodGet, appPath(app, "rollouts/?page_size=1"), nil, &page)
	if paas.CodeOf(err) == paas.NotFound || err == nil && len(page.Results) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	switch r := page.Results[0]; {
	case r.Finished == nil:
		c.say("\n%s by %s is under way for %s: %s", what(r), r.Owner, since(r.Created), orElse(r.Step, r.State))
	case r.State == string(paas.RolloutFailed):
		c.say("\n%s by %s failed %s ago: %s", what(r), r.Owner, since(*r.Finished), shortReason(r))
		c.say("`deis rollouts:info %d` says more.", r.ID)
	}
	return nil
}

// what names a rollout in a sentence: "v5 (deploy)", "scale".
func what(r api.Rollout) string {
	if paas.RolloutKind(r.Kind).MakesRelease() {
		return fmt.Sprintf("v%d (%s)", r.Version, r.Kind)
	}
	return r.Kind
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// since is the time that has gone by, as people say it.
func since(date string) string {
	t, err := time.Parse(api.TimeLayout, date)
	if err != nil {
		return "some time"
	}
	switch d := max(time.Since(t), 0); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}
