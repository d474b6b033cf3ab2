package deis

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

// maxPEM bounds a certificate's or key's file, in bytes: a chain of ten
// certificates takes about 30 KB.
const maxPEM = 1 << 20

func (c *cli) certCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "certs:list",
		Aliases: []string{"certs"},
		Short:   "List your certificates",
		Example: "deis certs",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listCerts(cmd.Context()) },
	}
	c.withList(list)
	name, sans := "", []string{}
	add := &cobra.Command{
		Use:   "certs:add <certificate> <key>",
		Short: "Add a certificate for HTTPS",
		Long: `Both are PEM files; the certificate's may hold the chain, its own certificate first. It is
served for the domain that it is made for. A certificate for several names is added once for each
name that you list.`,
		Example: "deis certs:add www.crt www.key --subject-alt-names=www.example.com,example.com",
		Args:    exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := sans
			if name != "" || len(sans) == 0 {
				names = append([]string{name}, sans...)
			}
			return c.addCert(cmd.Context(), args[0], args[1], names)
		},
	}
	add.Flags().StringVar(&name, "common-name", "", "the `domain`; default: that of the certificate")
	add.Flags().StringSliceVar(&sans, "subject-alt-names", nil, "further `domains`, with commas")
	remove := &cobra.Command{
		Use:     "certs:remove <domain>",
		Short:   "Remove a certificate",
		Example: "deis certs:remove www.example.com",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.certNames)),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.removeCert(cmd.Context(), args[0]) },
	}
	return []*cobra.Command{list, add, remove}
}

func (c *cli) listCerts(ctx context.Context) error {
	if _, err := c.loggedIn(); err != nil {
		return err
	}
	page, err := list[api.Cert](ctx, c, "/v1/certs/")
	if err != nil {
		return err
	}
	if c.json {
		return show(c, "", page, nil)
	}
	if len(page.Results) == 0 {
		c.say("No certs")
		return nil
	}
	rows := [][]string{{"Common Name", "Expires"}, {"-----------", "-------"}}
	for _, cert := range page.Results {
		rows = append(rows, []string{cert.CommonName, cert.Expires})
	}
	c.table(rows)
	c.complainOfMore(len(page.Results), page.Count)
	return nil
}

func (c *cli) addCert(ctx context.Context, certFile, keyFile string, names []string) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	cert, err := readFile(certFile, maxPEM)
	if err != nil {
		return err
	}
	key, err := readFile(keyFile, maxPEM)
	if err != nil {
		return err
	}
	for _, name := range names {
		body := api.Cert{Certificate: string(cert), Key: string(key), CommonName: strings.TrimSpace(name)}
		answer := api.Cert{}
		err := c.progress("Adding SSL endpoint", func() (string, error) {
			err := s.api.Call(ctx, http.MethodPost, "/v1/certs/", body, &answer)
			return "done, " + answer.CommonName, err
		})
		if fieldError(err, "common_name", notUnique) {
			return fail("There is a certificate for "+cmp.Or(body.CommonName, "that name")+" already.",
				"deis certs", "deis certs:remove <domain>   and add the new one")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) removeCert(ctx context.Context, name string) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	err = c.progress("Removing "+name, func() (string, error) {
		return "", s.api.Call(ctx, http.MethodDelete, "/v1/certs/"+url.PathEscape(name), nil, nil)
	})
	if paas.CodeOf(err) == paas.NotFound {
		return fail("You have no certificate for "+name+".", "deis certs")
	}
	return err
}
