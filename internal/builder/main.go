package builder

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/daemon"
)

// Main is the builder as a daemon: it declares the settings and runs until ctx ends.
func Main(ctx context.Context, d *daemon.Daemon, args []string) error {
	cfg := Config{Log: d.Log, Metrics: d.Metrics, Listen: d.Listen, Admin: d.ServeAdmin}
	d.String(&cfg.Root, "root", "/var/lib/deis", "`directory` of the platform's state")
	d.String(&cfg.SSHAddr, "ssh-addr", ":2222", "`address` of git over SSH")
	d.String(&cfg.ControllerURL, "controller-url", "", "`URL` of the controller")
	d.String(&cfg.HTTPAddr, "http-addr", ":80", "`address` of the router's HTTP, for the URLs shown")
	d.String(&cfg.BuildkitAddress, "buildkit-address", "", "`path` of BuildKit's socket (default ROOT/run/buildkitd.sock)")
	d.Enum(&cfg.Engine, "engine", "containerd", "containerd, or fake: builds are recorded, not built", "containerd", "fake")
	d.Bytes(&cfg.MaxPush, "max-push-size", "1G", "bound of one push")
	d.Int(&cfg.Builds, "builds", 2, 1, "how many builds run at a time")
	store := containerdSettings(d)
	if err := parse(d, args, &cfg.Root); err != nil {
		return err
	}
	cfg.Build.ContainerdAddress, cfg.Build.Namespace = store(cfg.Root)
	cfg.Build.CgroupParent = "/deis-" + daemon.PlatformID(cfg.Root) + "/build"
	return Run(ctx, cfg)
}

// BaseImages is the role that brings the base images into containerd's store. It ends when they are there.
func BaseImages(ctx context.Context, d *daemon.Daemon, args []string) error {
	var root string
	cfg := build.BaseConfig{Log: func(line string) { fmt.Println(line) }}
	d.String(&root, "root", "/var/lib/deis", "`directory` of the platform's state")
	store := containerdSettings(d)
	d.String(&cfg.Cache, "cache", "", "`directory` of the layers, which platforms may share (default ROOT/cache/base)")
	if err := parse(d, args, &root); err != nil {
		return err
	}
	if cfg.Cache == "" {
		cfg.Cache = filepath.Join(root, "cache", "base")
	}
	cfg.ContainerdAddress, cfg.Namespace = store(root)
	return build.BaseImages(ctx, cfg)
}

// containerdSettings declares where containerd is; the function says it once the
// settings are known.
func containerdSettings(d *daemon.Daemon) func(root string) (address, namespace string) {
	var address, namespace string
	d.String(&address, "containerd-address", "", "`path` of containerd's socket (default ROOT/run/containerd.sock)")
	d.String(&namespace, "containerd-namespace", "", "containerd's `namespace` of the platform (default deis-ID)")
	return func(root string) (string, string) {
		path := strings.TrimPrefix(cmp.Or(address, filepath.Join(root, "run", "containerd.sock")), "unix://")
		return path, cmp.Or(namespace, "deis-"+daemon.PlatformID(root))
	}
}

func parse(d *daemon.Daemon, args []string, root *string) (err error) {
	rest, err := d.Parse(args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("unknown argument %q", rest[0])
	}
	*root, err = filepath.Abs(*root)
	return err
}
