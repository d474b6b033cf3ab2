package deis

import (
	"context"
	"fmt"
	"net/http"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

func (c *cli) drainsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "drains:list",
		Aliases: []string{"drains"},
		Short:   "List the syslog servers that get an app's log lines",
		Long: `What became of the lines is counted from the last start of the platform's controller. An app's
drains are in its config: deis config:set DEIS_LOG_DRAIN=tls://logs.example.com:6514`,
		Example: "deis drains --app=demo",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listDrains(cmd.Context()) },
	}
	c.withApp(cmd)
	c.withJSON(cmd)
	return cmd
}

func (c *cli) listDrains(ctx context.Context) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	answer := api.Drains{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(app, "drains"), nil, &answer); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(answer.Drains)
	}
	c.heading("%s Drains", app)
	rows := [][]string{}
	for _, d := range answer.Drains {
		state := fmt.Sprintf("%d sent, %d dropped", d.Sent, d.Dropped)
		if d.Error != "" {
			state += "; " + d.Error
		}
		rows = append(rows, []string{d.URL, state})
	}
	c.table(rows)
	return nil
}
