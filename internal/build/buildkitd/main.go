package buildkitd

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/hostnet"
)

// Main is the role as a daemon: it declares its settings and serves until ctx ends.
func Main(ctx context.Context, d *daemon.Daemon, args []string) error {
	var root, address, containerdAddress, namespace, allow, caFile string
	var maxCache int64
	d.String(&root, "root", "/var/lib/deis", "`directory` of all state of the platform")
	d.String(&address, "buildkit-address", "", "`path` of the socket to serve on (default ROOT/run/buildkitd.sock)")
	d.String(&containerdAddress, "containerd-address", "", "`path` of containerd's socket (default ROOT/run/containerd.sock)")
	d.String(&namespace, "containerd-namespace", "", "containerd's `namespace` of the platform (default deis-ID)")
	d.Bytes(&maxCache, "build-cache", "10G", "bound of the build cache")
	d.String(&allow, "build-allow", "", "`addresses` of this host (comma between; a.b.c.d or a.b.c.d/n) that builds may reach")
	d.String(&caFile, "build-ca-file", "", "`path` of certificates (PEM) that builds trust too")
	if _, err := d.Parse(args); err != nil {
		return err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	allowed, err := parsePrefixes(allow)
	if err != nil {
		return fmt.Errorf("DEIS_BUILD_ALLOW: %w", err)
	}
	id := daemon.PlatformID(root)
	if namespace == "" {
		namespace = "deis-" + id
	}
	network, err := hostnet.Open(hostnet.Options{
		Name:   "deis" + id + "b",
		Dir:    filepath.Join(root, "cni"),
		Deny:   hostnet.Metadata,
		Closed: true,
		Allow:  allowed,
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
		CgroupParent:      "/deis-" + id + "-build",
		Network:           network,
		MaxCache:          maxCache,
		Allow:             allowed,
		CAFile:            caFile,
		Log:               d.Log,
	})
	if err != nil {
		return err
	}
	if err := s.register(d.Metrics); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Serve(ctx) })
	group.Go(func() error { return d.ServeAdmin(ctx, s.Health) })
	return group.Wait()
}

func parsePrefixes(text string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if !strings.Contains(item, "/") {
			item += "/32"
		}
		p, err := netip.ParsePrefix(item)
		if err != nil || !p.Addr().Is4() {
			return nil, fmt.Errorf("%q is no IPv4 address or prefix", item)
		}
		all = append(all, p)
	}
	return all, nil
}

func socketPath(address, fallback string) string {
	if address == "" {
		return fallback
	}
	return strings.TrimPrefix(address, "unix://")
}
