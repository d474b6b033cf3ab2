package deis

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) releaseCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "releases:list",
		Aliases: []string{"releases"},
		Short:   "List an app's releases, the newest first",
		Example: "deis releases --limit=10",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listReleases(cmd.Context()) },
	}
	info := &cobra.Command{
		Use:     "releases:info <version>",
		Short:   "Show one release",
		Example: "deis releases:info v3",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.releaseNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			version, err := parseVersion(cmd, args[0])
			if err != nil {
				return err
			}
			return c.releaseInfo(cmd.Context(), version)
		},
	}
	rollback := &cobra.Command{
		Use:     "releases:rollback [<version>]",
		Aliases: []string{"rollback"},
		Short:   "Go back to the former release, or to an earlier one",
		Long:    "That makes a new release with the build and the config of the old one.",
		Example: "deis rollback v3",
		Args:    between(0, 1),

		ValidArgsFunction: first(c.completing(c.releaseNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			version := 0
			if len(args) == 1 {
				var err error
				if version, err = parseVersion(cmd, args[0]); err != nil {
					return err
				}
			}
			return c.rollback(cmd.Context(), version)
		},
	}
	c.withApp(list, info, rollback)
	c.withList(list)
	c.withJSON(info)
	return []*cobra.Command{list, info, rollback}
}

// parseVersion takes "v3" and "3".
func parseVersion(cmd *cobra.Command, text string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(text, "v"))
	if err != nil || n < 1 {
		return 0, usage(cmd, "%s is not a release; those are called v1, v2 and so on.", text)
	}
	return n, nil
}

func (c *cli) listReleases(ctx context.Context) error {
	_, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	page, err := list[api.Release](ctx, c, appPath(app, "releases/"))
	if err != nil {
		return err
	}
	err = show(c, app+" Releases", page, func(r api.Release) []string {
		return []string{fmt.Sprintf("v%d", r.Version), r.Created, r.Summary}
	})
	if err != nil || c.json {
		return err
	}
	return c.tellRollout(ctx, app)
}

func (c *cli) releaseInfo(ctx context.Context, version int) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	r := api.Release{}
	err = s.api.Call(ctx, http.MethodGet, appPath(app, fmt.Sprintf("releases/v%d/", version)), nil, &r)
	if err != nil {
		return c.releaseError(ctx, err, app, version)
	}
	if c.json {
		return c.printJSON(r)
	}
	build := ""
	if r.Build != nil {
		build = *r.Build
	}
	c.heading("%s Release v%d", app, r.Version)
	c.table([][]string{
		{"summary:", r.Summary},
		{"owner:", r.Owner},
		{"build:", build},
		{"config:", r.Config},
		{"created:", r.Created},
		{"updated:", r.Updated},
		{"uuid:", r.UUID},
	})
	return nil
}

func (c *cli) releaseError(ctx context.Context, err error, app string, version int) error {
	if paas.CodeOf(err) == paas.NotFound && !c.appIsMissing(ctx) {
		return fail(fmt.Sprintf("%s has no release v%d.", app, version), "deis releases --app="+app)
	}
	return err
}

// rollback goes to a version; 0 is the one before the latest.
func (c *cli) rollback(ctx context.Context, version int) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	doing, body := "Rolling back one release", map[string]int{}
	if version > 0 {
		doing, body["version"] = fmt.Sprintf("Rolling back to v%d", version), version
	}
	answer := struct {
		Version int `json:"version"`
	}{}
	err = c.progress(doing, func() (string, error) {
		err := s.api.Call(ctx, http.MethodPost, appPath(app, "releases/rollback/"), body, &answer)
		return fmt.Sprintf("done, v%d", answer.Version), err
	})
	return c.releaseError(ctx, err, app, version)
}
