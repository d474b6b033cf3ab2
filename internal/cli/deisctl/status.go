package deisctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"text/tabwriter"
	"time"

	"github.com/deis/deis/internal/supervisor"
	"github.com/spf13/cobra"
)

func statusCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each part: state, version, address, uptime, memory",
		Long:  "Status shows each part. It exits with 3 when one is not running.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := s.askStatus(cmd.Context())
			if errors.Is(err, errNotRunning) {
				doc, err = s.statusLeft()
			}
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(doc)
			} else {
				err = printStatus(cmd.OutOrStdout(), doc)
			}
			if err != nil {
				return err
			}
			return degraded(doc)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// statusLeft is what can be said where no supervisor runs.
func (s *settings) statusLeft() (statusDoc, error) {
	doc := statusDoc{Root: s.Root, Parts: []supervisor.Status{}}
	left, err := supervisor.Left(s.run(""), stopOrder)
	doc.Parts = append(doc.Parts, left...)
	return doc, err
}

func degraded(doc statusDoc) error {
	if doc.Supervisor == 0 {
		return &exitError{code: ExitDegraded}
	}
	for _, p := range doc.Parts {
		if p.State != supervisor.Running {
			return &exitError{code: ExitDegraded}
		}
	}
	return nil
}

func printStatus(out io.Writer, doc statusDoc) error {
	if doc.Supervisor == 0 && len(doc.Parts) == 0 {
		fmt.Fprintf(out, "Deis in %s is stopped. Start it: deisctl start --detach\n", doc.Root)
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tPID\tVERSION\tADDRESS\tUPTIME\tMEMORY\tRESTARTS")
	for _, p := range doc.Parts {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%d MB\t%d\n", p.Name, p.State, p.PID, p.Version, p.Address,
			time.Duration(p.Uptime)*time.Second, p.Memory>>20, p.Restarts)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range doc.Parts {
		if p.Reason != "" {
			fmt.Fprintf(out, "%s: %s\n", p.Name, p.Reason)
		}
	}
	if doc.Supervisor == 0 {
		fmt.Fprintln(out, "No deisctl watches over these parts. Let one take them over: deisctl start --detach")
	}
	return nil
}

// webURL is the URL of a host on a listening address, without the port if it is
// the scheme's own.
func webURL(scheme, host, addr, ownPort string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == ownPort {
		return scheme + "://" + host
	}
	return scheme + "://" + host + ":" + port
}
