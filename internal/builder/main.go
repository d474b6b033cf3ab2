package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/builders"
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
	store, limits := containerdSettings(d), limitSettings(d)
	d.String(&cfg.Build.CAFile, "build-ca-file", "", "`path` of certificates (PEM) that builds trust too")
	if err := parse(d, args, &cfg.Root); err != nil {
		return err
	}
	cfg.Build.Limits = limits(cfg.Builds)
	cfg.Build.ContainerdAddress, cfg.Build.Namespace = store(cfg.Root)
	cfg.Build.CgroupParent = "/deis-" + daemon.PlatformID(cfg.Root) + "-build"
	return Run(ctx, cfg)
}

// BaseImages is the role that brings the base images into containerd's store. It ends when they are there.
func BaseImages(ctx context.Context, d *daemon.Daemon, args []string) error {
	var root string
	var fresh bool
	cfg := build.BaseConfig{Log: func(line string) { fmt.Println(line) }}
	d.String(&root, "root", "/var/lib/deis", "`directory` of the platform's state")
	store := containerdSettings(d)
	d.String(&cfg.Cache, "cache", "", "`directory` of the layers, which platforms may share (default ROOT/cache/base)")
	d.String(&cfg.Lifecycle, "lifecycle", "", "`directory` of the programs of buildpack builds (default lifecycle beside this program)")
	d.Switch(&fresh, "fresh", "make the layers anew, from the newest Debian packages")
	if err := parse(d, args, &root); err != nil {
		return err
	}
	if cfg.Cache == "" {
		cfg.Cache = filepath.Join(root, "cache", "base")
	}
	if fresh {
		if err := os.Remove(filepath.Join(cfg.Cache, "recipe")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	cfg.ContainerdAddress, cfg.Namespace = store(root)
	return builders.BaseImages(ctx, cfg)
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

// limitSettings declares the limits of a build; the function says them once the settings are known. 0 is no limit,
// and what is not set depends on the machine.
func limitSettings(d *daemon.Daemon) func(builds int) build.Limits {
	const unset = -1
	def := build.DefaultLimits(1)
	set := build.Limits{Memory: unset, CPU: unset}
	var processes int
	d.Bytes(&set.Memory, "build-memory", "", "memory of one build (default half of the machine's, shared by the builds at a time)")
	d.Float(&set.CPU, "build-cpu", "", "cores of all builds together (default three quarters of the machine's)")
	d.Bytes(&set.Disk, "build-disk", fmt.Sprintf("%dG", def.Disk>>30), "what one build may write")
	d.Int(&processes, "build-processes", int(def.Processes), 0, "processes and threads of one build")
	d.Duration(&set.Silence, "build-silence", def.Silence, "how long a build may show nothing")
	return func(builds int) build.Limits {
		def := build.DefaultLimits(builds)
		if set.Memory == unset {
			set.Memory = def.Memory
		}
		if set.CPU == unset {
			set.CPU = def.CPU
		}
		set.Processes = int64(processes)
		return set
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
