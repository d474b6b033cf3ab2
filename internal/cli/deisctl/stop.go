package deisctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/deis/deis/internal/supervisor"
	"github.com/spf13/cobra"
)

func stopCommand(s *settings) *cobra.Command {
	var apps bool
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the platform; the apps go on running",
		Long: `Stop ends the daemons in order. The apps' instances go on running, though no
request reaches them, and are taken up again by the next start. With --apps
they are stopped too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.stop(cmd.Context(), apps, cmd.OutOrStdout())
		},
	}
	s.bind(cmd.Flags())
	cmd.Flags().BoolVar(&apps, "apps", false, "stop the apps' instances too")
	return cmd
}

// stop asks the supervisor to stop, or does it itself where none runs.
func (s *settings) stop(ctx context.Context, apps bool, out io.Writer) error {
	fmt.Fprintf(out, "-----> Stopping Deis in %s\n", s.Root)
	err := s.askStop(ctx, apps, out)
	if errors.Is(err, errNotRunning) {
		return s.stopLeft(ctx, apps, out)
	}
	return err
}

func (s *settings) stopLeft(ctx context.Context, apps bool, out io.Writer) error {
	left, err := supervisor.Left(s.run(""), stopOrder)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		fmt.Fprintln(out, "       nothing runs")
		if apps && s.Engine == "containerd" {
			fmt.Fprintln(out, "       instances that still run are stopped by: deisctl start, deisctl stop --apps")
		}
		return nil
	}
	p, err := newPlatform(s, nil)
	if err != nil {
		return err
	}
	var failed error
	err = supervisor.StopLeft(s.run(""), stopOrder, grace, func(name string) {
		fmt.Fprintf(out, "       %s stopped\n", name)
		if apps && name == "controller" && s.Engine == "containerd" {
			failed = p.removeInstances(ctx, out)
		}
	})
	return errors.Join(err, failed)
}
