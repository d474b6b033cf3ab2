package buildkitd

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/hostnet"
)

// metadataService is where clouds keep credentials of the host.
var metadataService = netip.MustParsePrefix("169.254.169.254/32")

// Main is the role as a daemon: it declares the settings root,
// buildkit-address, containerd-address and build-cache, and serves until ctx ends.
func Main(ctx context.Context, d *daemon.Daemon, args []string) error {
	var root, address, containerdAddress, namespace string
	var maxCache int64
	d.String(&root, "root", "/var/lib/deis", "`directory` of all state of the platform")
	d.String(&address, "buildkit-address", "", "`path` of the socket to serve on (default ROOT/run/buildkitd.sock)")
	d.String(&containerdAddress, "containerd-address", "", "`path` of containerd's socket (default ROOT/run/containerd.sock)")
	d.String(&namespace, "containerd-namespace", "", "containerd's `namespace` of the platform (default deis-ID)")
	d.Bytes(&maxCache, "build-cache", "10G", "bound of the build cache")
	if _, err := d.Parse(args); err != nil {
		return err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	id := daemon.PlatformID(root)
	if namespace == "" {
		namespace = "deis-" + id
	}
	network, err := hostnet.Open(hostnet.Options{
		Name: "deis" + id + "b",
		Dir:  filepath.Join(root, "cni"),
		Deny: []netip.Prefix{metadataService},
	})
	if err != nil {
		return err
	}
	listener, err := d.Listen("buildkit", socketPath(address, filepath.Join(root, "run", "buildkitd.sock")))
	if err != nil {
		return err
	}
	s, err := Open(ctx, Config{
		Root:              filepath.Join(root, "buildkit"),
		Listener:          listener,
		ContainerdAddress: socketPath(containerdAddress, filepath.Join(root, "run", "containerd.sock")),
		Namespace:         namespace,
		CgroupParent:      "/deis-" + id + "/build",
		Network:           network,
		MaxCache:          maxCache,
		Log:               d.Log,
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Serve(ctx) })
	group.Go(func() error { return d.ServeAdmin(ctx, s.Health) })
	return group.Wait()
}

func socketPath(address, fallback string) string {
	if address == "" {
		return fallback
	}
	return strings.TrimPrefix(address, "unix://")
}
