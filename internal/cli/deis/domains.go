package deis

import (
	"context"
	"net/http"
	"net/url"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) domainCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "domains:list",
		Aliases: []string{"domains"},
		Short:   "List an app's own domains",
		Example: "deis domains --app=demo",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listDomains(cmd.Context()) },
	}
	add := &cobra.Command{
		Use:     "domains:add <domain>",
		Short:   "Serve an app under a domain",
		Long:    "The domain's DNS record must lead to the platform. For HTTPS see certs:add.",
		Example: "deis domains:add www.example.com",
		Args:    exactly(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.addDomain(cmd.Context(), args[0]) },
	}
	remove := &cobra.Command{
		Use:     "domains:remove <domain>",
		Short:   "Stop serving an app under a domain",
		Example: "deis domains:remove www.example.com",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.domainNames)),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.removeDomain(cmd.Context(), args[0]) },
	}
	c.withApp(list, add, remove)
	c.withList(list)
	return []*cobra.Command{list, add, remove}
}

func (c *cli) listDomains(ctx context.Context) error {
	_, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	page, err := list[api.Domain](ctx, c, appPath(app, "domains/"))
	if err != nil {
		return err
	}
	return c.printDomains(app, page)
}

func (c *cli) printDomains(app string, page api.List[api.Domain]) error {
	return show(c, app+" Domains", page, func(d api.Domain) []string { return []string{d.Domain} })
}

func (c *cli) addDomain(ctx context.Context, domain string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.progress("Adding "+domain+" to "+app, func() (string, error) {
		return "", s.api.Call(ctx, http.MethodPost, appPath(app, "domains/"), map[string]string{"domain": domain}, nil)
	})
	if fieldError(err, "domain", notUnique) {
		return fail(domain+" is taken, by this app or another.", "deis domains --app="+app, "deis domains:remove "+domain+" --app=<app>")
	}
	return err
}

func (c *cli) removeDomain(ctx context.Context, domain string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.progress("Removing "+domain+" from "+app, func() (string, error) {
		return "", s.api.Call(ctx, http.MethodDelete, appPath(app, "domains/"+url.PathEscape(domain)), nil, nil)
	})
	if paas.CodeOf(err) == paas.NotFound && !c.appIsMissing(ctx) {
		return fail(app+" has no domain "+domain+".", "deis domains --app="+app)
	}
	return err
}
