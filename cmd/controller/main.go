// Command controller serves the API and keeps the apps running; with remove-instances it ends them.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/deis/deis/internal/controller"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/rollout"
)

func main() { daemon.Main("controller", os.Args[1:], run) }

func run(ctx context.Context, d *daemon.Daemon, args []string) error {
	cfg := controller.Config{Log: d.Log, Metrics: d.Metrics, Admin: d.ServeAdmin}
	var addr, control string
	d.String(&cfg.Root, "root", "/var/lib/deis", "`directory` of the platform's state")
	d.String(&cfg.Domain, "domain", "localhost", "the platform's domain")
	d.String(&addr, "controller-addr", "127.0.0.1:8020", "`address` of the API")
	d.String(&cfg.GitURL, "ssh-url", "", "base `URL` of git remotes, ssh://git@host:port")
	d.Enum(&cfg.Engine, "engine", "containerd", "what runs the instances: containerd or fake", controller.EngineContainerd, controller.EngineFake)
	d.String(&cfg.ContainerdAddress, "containerd-address", "", "containerd's `socket`; run/containerd.sock below the root if empty")
	d.String(&cfg.ContainerdNamespace, "containerd-namespace", "", "containerd's `namespace`, that of BuildKit too (default deis-ID)")
	d.Duration(&cfg.StartTimeout, "start-timeout", rollout.DefaultStartTimeout, "how long a new instance may take to serve without progress")
	d.Duration(&cfg.DrainLimit, "drain-limit", rollout.DefaultDrainLimit, "how long old instances are kept for requests under way")
	d.Enum(&cfg.RegistrationMode, "registration-mode", controller.RegistrationEnabled, "who may register: enabled, disabled or admin_only", controller.RegistrationModes...)
	d.Enum(&control, "test-control", "0", "1 offers POST /_test/ctl, with the fake engine only", "0", "1")
	rest, err := d.Parse(args)
	cfg.TestControl = control == "1"
	switch {
	case err != nil:
		return err
	case len(rest) == 1 && rest[0] == "remove-instances":
		return controller.RemoveInstances(ctx, cfg)
	case len(rest) > 0:
		return fmt.Errorf("unknown argument %q", rest[0])
	}
	if cfg.Listener, err = d.Listen("api", addr); err != nil {
		return err
	}
	return controller.Run(ctx, cfg)
}
