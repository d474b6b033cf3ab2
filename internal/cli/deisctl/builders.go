package deisctl

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
)

func buildersCommand(s *settings) *cobra.Command {
	group := &cobra.Command{
		Use:   "builders",
		Short: "List, show, fetch and make builder images of buildpacks",
		Long: `Builders are the images that apps without a Dockerfile are built with. docker.io/deis/builder
is there from the start; an app chooses another by the config value DEIS_BUILDER.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use: "list", Short: "List the builder images on this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.runBuilder(cmd, nil, "builders", "list") },
	}
	inspect := &cobra.Command{
		Use: "inspect NAME", Short: "Show a builder's buildpacks, their order and its run image", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runBuilder(cmd, nil, "builders", "inspect", args[0])
		},
	}
	pull := &cobra.Command{
		Use: "pull NAME", Short: "Fetch a builder and its run image from their registry", Args: cobra.ExactArgs(1),
		Long: `Pull fetches a builder image of others, and the run image that it names. Pulled again,
both get newer; "deisctl rebase" then puts apps on the newer run image.`,
		Example: "  deisctl builders pull heroku/builder:24\n  deis config:set DEIS_BUILDER=heroku/builder:24",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runBuilder(cmd, nil, "builders", "pull", args[0])
		},
	}
	var config, dir string
	create := &cobra.Command{
		Use: "create NAME --config builder.toml", Short: "Make a builder image from buildpacks on this machine", Args: cobra.ExactArgs(1),
		Long: `Create makes a builder image as builder.toml says
(https://buildpacks.io/docs/reference/config/builder-config/). Its base is best build.image =
"deis/build:cnb" and run.images "deis/run:cnb"; buildpacks are directories, or images
made by "deisctl builders package" ("docker://NAME").`,
		Example: "  deisctl builders create example/builder --config builder.toml\n  deis config:set DEIS_BUILDER=example/builder",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runBuilder(cmd, nil, "builders", "create", args[0], "--config", config, "--dir", dir)
		},
	}
	create.Flags().StringVar(&config, "config", "", "file that describes the builder")
	create.Flags().StringVar(&dir, "dir", "", "where the paths in it begin (default: its own directory)")
	pack := &cobra.Command{
		Use: "package NAME --dir BUILDPACK", Short: "Make an image of a buildpack, which a builder.toml can name", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runBuilder(cmd, nil, "builders", "package", args[0], "--dir", dir)
		},
	}
	pack.Flags().StringVar(&dir, "dir", "", "the buildpack's directory")
	for cmd, flag := range map[*cobra.Command]string{create: "config", pack: "dir"} {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic(err) // the flag is declared above
		}
	}
	group.AddCommand(list, inspect, pull, create, pack)
	return group
}

func rebaseCommand(s *settings) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "rebase --all | APP",
		Short: "Put apps on the present base image, without building them again",
		Long: `Rebase gives apps that buildpacks built the run image of now, with its security fixes. Each
is an ordinary release: it goes live when it is healthy, and "deis rollback" takes it back. Apps on the
present base are left alone. One that fails runs on as before, and the others go on; the exit
code is then 1.`,
		Example: "  builder base-images --fresh    # newest Debian packages\n  deisctl rebase --all",
		Args: func(_ *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return &exitError{ExitUsage, "say which app to rebase, or --all"}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			url, err := s.controllerURL(cmd.Context())
			if err != nil {
				return err
			}
			if all {
				args = []string{"--all"}
			}
			return s.runBuilder(cmd, []string{"DEIS_CONTROLLER_URL=" + url}, append([]string{"rebase"}, args...)...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "rebase every app")
	return cmd
}

// controllerURL is the private address of the controller that runs.
func (s *settings) controllerURL(ctx context.Context) (string, error) {
	doc, err := s.askStatus(ctx)
	if err != nil && !errors.Is(err, errNotRunning) {
		return "", err
	}
	for _, part := range doc.Parts {
		if part.Name == "controller" {
			return "http://" + part.Address, nil
		}
	}
	return "", fmt.Errorf("the platform in %s does not run: deisctl start --detach", s.Root)
}

// runBuilder runs a role of the builder's program, which says itself what goes wrong.
func (s *settings) runBuilder(cmd *cobra.Command, env []string, args ...string) error {
	if s.Engine == "fake" {
		return errors.New("this platform (DEIS_ENGINE=fake) has no images")
	}
	p, err := newPlatform(s, nil)
	if err != nil {
		return err
	}
	role := exec.CommandContext(cmd.Context(), filepath.Join(p.bin, "builder"), args...)
	role.Env = slices.Concat(p.env, []string{"DEIS_ROOT=" + p.Root, "DEIS_CONTAINERD_ADDRESS=" + p.containerd()}, env)
	role.Stdout, role.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	role.Cancel = func() error { return role.Process.Signal(syscall.SIGTERM) }
	role.WaitDelay = grace
	err = role.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return &exitError{code: exit.ExitCode()}
	}
	return err
}
