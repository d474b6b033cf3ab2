// Command controller serves the API and keeps the apps running; with remove-instances it ends them.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/deis/deis/internal/controller"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/paas"
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
	d.String(&cfg.LogDrain, "log-drain", "", "`URLs` of syslog servers that get the log lines of all apps: syslog://, tcp:// or tls://HOST:PORT")
	d.Int(&cfg.Disk.Releases, "keep-releases", 10, 1, "how many releases of an app keep their images, to go back to")
	d.Bytes(&cfg.Disk.Reserve, "disk-reserve", "0", "disk that must be free for a push (default a twentieth, at most 5G)")
	d.Bytes(&cfg.Disk.Platform, "disk-budget", "0", "bound of what images, logs and written files of all apps take (default none)")
	d.Bytes(&cfg.Disk.App, "app-disk-budget", "0", "bound of what images, logs and written files of one app take (default none)")
	d.String(&cfg.PublicAddrs, "public-addrs", ":80,:443,:2222", "`addresses` of router and builder, which instances reach on this host")
	d.String(&cfg.AppAllow, "app-allow", "", "further `addresses` of this host that instances reach: a.b.c.d, a.b.c.d/n or a.b.c.d:port, commas between")
	d.Int(&cfg.AppProcesses, "app-processes", paas.DefaultProcesses, 64, "how many processes and threads an instance may have")
	d.String(&cfg.InsecureRegistries, "insecure-registries", "", "`registries`, HOST or HOST:PORT with commas between, that images are pulled from without TLS if they have none")
	d.Enum(&cfg.RegistrationMode, "registration-mode", controller.RegistrationEnabled, "who may register: enabled, disabled or admin_only", controller.RegistrationModes...)
	d.Enum(&control, "test-control", "0", "1 offers POST /_test/ctl, with the fake engine only", "0", "1")
	if os.Getenv("DEIS_TEST") == "1" {
		d.String(&cfg.TestStopAt, "test-stop-at", "", "`file` that says at which KIND:STEP of a rollout the controller kills itself, for tests")
	}
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
