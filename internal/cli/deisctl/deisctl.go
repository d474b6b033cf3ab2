// Package deisctl is the operators' command line: it starts and stops a whole
// platform on one machine and shows how its parts are.
package deisctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/deis/deis/internal/daemon"
	"github.com/spf13/cobra"
)

// Exit codes.
const (
	ExitOK    = 0
	ExitError = 1
	ExitUsage = 2
	// ExitDegraded: status found a part that is not running.
	ExitDegraded = 3
)

// exitError carries an exit code other than ExitError. Nothing is printed for
// an empty message.
type exitError struct {
	code int
	msg  string
}

func (e *exitError) Error() string { return e.msg }

// Main runs one command and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s := settingsFromEnv(os.Getenv)
	root := &cobra.Command{
		Use:               "deisctl",
		Short:             "Run a Deis platform on this machine",
		Version:           daemon.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error { return s.complete() },
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{ExitUsage, err.Error()} })
	root.PersistentFlags().StringVar(&s.Root, "root", s.Root, "directory of all state; DEIS_ROOT")
	root.AddCommand(startCommand(s), stopCommand(s), restartCommand(s), statusCommand(s), logsCommand(s), buildersCommand(s), rebaseCommand(s))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	exit := &exitError{code: ExitError, msg: err.Error()}
	errors.As(err, &exit)
	if exit.msg != "" {
		fmt.Fprintln(stderr, complaint+strings.ReplaceAll(exit.msg, "\n", "\n"+complaint))
	}
	return exit.code
}
