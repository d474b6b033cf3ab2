// Package buildkitd is BuildKit as a role of our own program: its controller,
// its containerd worker and its Dockerfile frontend behind a unix socket. It
// shares containerd's image store, so a finished build runs without a copy.
//
// The socket speaks BuildKit's gRPC API; a buildkitd of its own on the same
// containerd can take this role's place.
package buildkitd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/network/cniprovider"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	buildkitcontainerd "github.com/moby/buildkit/worker/containerd"
	bolt "go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/hostnet"
)

const (
	// MaxCache is the default of Config.MaxCache, in bytes.
	MaxCache = 10 << 30
	// networkPool is how many network namespaces wait for RUN steps; making one takes about 40 ms.
	networkPool = 2

	// containerd may restart under us: it is back within a second, and we with it. When it
	// does not come back we end, so that the supervisor sees it and starts over.
	containerdStart  = 20 * time.Second
	containerdLost   = 30 * time.Second
	containerdPing   = time.Second
	containerdRedial = 200 * time.Millisecond

	// stopGrace is how long builds under way may go on after the role was asked to end.
	stopGrace = 2 * time.Second
)

// Config says how to run the role. All fields but Network, MaxCache and Log are required.
type Config struct {
	// Root is the directory of the cache's records.
	Root string
	// Listener accepts clients; Open and Serve close it.
	Listener net.Listener
	// ContainerdAddress is the path of containerd's socket, Namespace the one that
	// images, snapshots and RUN steps live in.
	ContainerdAddress string
	Namespace         string
	// CgroupParent holds the cgroups of RUN steps. Whatever runs below it when the role
	// starts is what a killed predecessor left, and is removed.
	CgroupParent string
	// Network is that of RUN steps; nil gives them the host's.
	Network *hostnet.Network
	// MaxCache bounds the cache, in bytes: what is used least is dropped first. Images that are named
	// do not count and are never dropped. 0 means the constant MaxCache.
	MaxCache int64
	// Allow lists addresses of this host that BuildKit fetches from for builds nevertheless.
	Allow []netip.Prefix
	// CAFile holds certificates (PEM) that steps trust besides this host's; may be empty.
	CAFile string
	Log    *slog.Logger
}

// Server is an opened role.
type Server struct {
	cfg        Config
	lock       *os.File
	worker     *base.Worker
	containerd *containerd.Client
	controller *control.Controller
	git        *gitProxy
	// stopping is closed when Serve's context ends.
	stopping chan struct{}
	lost     atomic.Pointer[error]
}

// Open waits for containerd, cleans up after a predecessor that was killed, and
// opens the cache. Only one role may have a Root open.
func Open(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg.MaxCache == 0 {
		cfg.MaxCache = MaxCache
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	forwardLogs(cfg.Log)
	s := &Server{cfg: cfg, stopping: make(chan struct{})}
	defer func() {
		if err != nil {
			cfg.Listener.Close()
			s.close()
		}
	}()
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("buildkitd: %w", err)
	}
	if s.lock, err = lockDir(cfg.Root); err != nil {
		return nil, fmt.Errorf("buildkitd: %w", err)
	}
	if err := s.connect(ctx); err != nil {
		return nil, fmt.Errorf("buildkitd: %w", err)
	}
	if err := s.removeOrphans(ctx); err != nil {
		return nil, fmt.Errorf("buildkitd: remove what a killed build left: %w", err)
	}
	if cfg.Network != nil {
		if err := cfg.Network.Ensure(ctx); err != nil {
			return nil, fmt.Errorf("buildkitd: %w", err)
		}
	}
	if s.worker, err = s.newWorker(ctx); err != nil {
		return nil, fmt.Errorf("buildkitd: worker: %w", err)
	}
	if s.controller, err = s.newController(ctx); err != nil {
		return nil, fmt.Errorf("buildkitd: controller: %w", err)
	}
	return s, nil
}

func lockDir(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process uses %s", root)
	}
	return f, nil
}

// clientOptions make calls wait for containerd while it restarts, and find it
// soon after; gRPC's default fails them at once and looks again after up to ten seconds.
func clientOptions(namespace string) []containerd.Opt {
	quick := backoff.Config{BaseDelay: containerdRedial, Multiplier: 1, MaxDelay: containerdRedial}
	return []containerd.Opt{
		containerd.WithDefaultNamespace(namespace),
		containerd.WithExtraDialOpts([]grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: containerdStart}),
		}),
		containerd.WithCallOpts([]grpc.CallOption{grpc.WaitForReady(true)}),
	}
}

func (s *Server) connect(ctx context.Context) (err error) {
	if s.containerd, err = containerd.New(s.cfg.ContainerdAddress, clientOptions(s.cfg.Namespace)...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, containerdStart)
	defer cancel()
	if _, err := s.containerd.IsServing(ctx); err != nil {
		return fmt.Errorf("containerd at %s: %w", s.cfg.ContainerdAddress, err)
	}
	return nil
}

func (s *Server) newWorker(ctx context.Context) (*base.Worker, error) {
	network := netproviders.Opt{Mode: "host", CNI: cniprovider.Opt{Root: s.cfg.Root}}
	if n := s.cfg.Network; n != nil {
		network.Mode = "cni"
		network.CNI.ConfigPath = n.ConfList
		network.CNI.BinaryDir = n.PluginDir
		network.CNI.PoolSize = networkPool
	}
	opt, err := buildkitcontainerd.NewWorkerOpt(buildkitcontainerd.WorkerOptions{
		Root:            s.cfg.Root,
		Address:         s.cfg.ContainerdAddress,
		SnapshotterName: defaults.DefaultSnapshotter,
		Namespace:       s.cfg.Namespace,
		CgroupParent:    s.cfg.CgroupParent,
		NetworkOpt:      network,
	}, clientOptions(s.cfg.Namespace)...)
	if err != nil {
		return nil, err
	}
	opt.GCPolicy = gcPolicy(s.cfg.MaxCache)
	opt.BuildkitVersion = client.BuildkitVersion{Package: version.Package, Version: version.Version, Revision: version.Revision}
	if n := s.cfg.Network; n != nil {
		// The executor has the same map.
		opt.NetworkProviders[pb.NetMode_UNSET] = isolated{opt.NetworkProviders[pb.NetMode_UNSET], n}
	}
	if s.cfg.CAFile != "" {
		bundle := filepath.Join(s.cfg.Root, "ca-certificates.pem")
		if err := writeBundle(bundle, s.cfg.CAFile); err != nil {
			return nil, err
		}
		opt.Executor = trusting{opt.Executor, bundle}
	}
	opt.ImageStore = sourceImages{opt.ImageStore}
	fetch := newFetcher(s.cfg.Allow)
	if s.git, err = openGitProxy(fetch); err != nil {
		return nil, fmt.Errorf("proxy of git: %w", err)
	}
	if err := wrapGit(filepath.Join(s.cfg.Root, "bin"), s.git.url()); err != nil {
		return nil, fmt.Errorf("git: %w", err)
	}
	opt.Labels[build.HeaderFileLabel] = "true"
	opt.RegistryHosts = registries(fetch)
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	return w, guardSources(w, fetch, s.cfg.Allow)
}

// gcPolicy keeps the cache below max. MaxUsedSpace is the cap; ReservedSpace, a
// floor, and KeepDuration, which protects records with all their ancestors,
// are not used. First goes what is cheap to make again.
func gcPolicy(max int64) []client.PruneInfo {
	return []client.PruneInfo{
		{
			Filter:       []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"},
			MaxUsedSpace: max / 2,
		},
		{MaxUsedSpace: max},
		{MaxUsedSpace: max, All: true},
	}
}

func (s *Server) newController(ctx context.Context) (*control.Controller, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(owned{s.worker}); err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(s.cfg.Root, "cache.db"))
	if err != nil {
		return nil, err
	}
	historyDB, err := boltutil.SafeOpen(filepath.Join(s.cfg.Root, "history.db"), 0o600, &bolt.Options{})
	if err != nil {
		return nil, errors.Join(err, cache.Close())
	}
	none := int64(0)
	return control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
		},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline": inlinecache.ResolveCacheExporterFunc(),
		},
		CacheManager:   solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		MeterProvider:  noop.NewMeterProvider(),
		HistoryDB:      historyDB,
		CacheStore:     cache,
		LeaseManager:   s.worker.LeaseManager(),
		ContentStore:   s.worker.ContentStore(),
		HistoryConfig:  &config.HistoryConfig{MaxEntries: &none}, // the controller of the platform keeps the builds
		GarbageCollect: s.worker.GarbageCollect,
		GracefulStop:   s.stopping,
	})
}

// Serve answers clients until ctx ends, then gives builds under way a moment
// and returns nil. It returns an error when containerd stays away for longer
// than a restart takes. A Server serves once.
func (s *Server) Serve(ctx context.Context) error {
	after := &collector{server: s}
	defer func() {
		after.wait()
		s.close() // gives up the namespaces in reserve, the network's last members
		s.removeNetwork()
	}()
	srv := grpc.NewServer(
		grpc.ChainUnaryInterceptor(after.afterBuild, grpcerrors.UnaryServerInterceptor),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	healthv1.RegisterHealthServer(srv, health.NewServer())
	s.controller.Register(srv)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return srv.Serve(s.cfg.Listener) })
	group.Go(func() error { return s.watchContainerd(ctx) })
	if s.cfg.Network != nil {
		group.Go(func() error { s.cfg.Network.Keep(ctx, s.cfg.Log); return nil })
	}
	group.Go(func() error {
		<-ctx.Done()
		close(s.stopping)
		hurry := time.AfterFunc(stopGrace, srv.Stop)
		defer hurry.Stop()
		srv.GracefulStop()
		return nil
	})
	s.cfg.Log.Info("BuildKit serves", "version", version.Version, "address", s.cfg.Listener.Addr().String(),
		"containerd", s.cfg.ContainerdAddress, "namespace", s.cfg.Namespace, "max_cache", s.cfg.MaxCache)
	return group.Wait()
}

// removeNetwork takes the network of RUN steps from the host: nothing can use it
// while the role is down. The next one makes the same again.
func (s *Server) removeNetwork() {
	if s.cfg.Network == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if err := s.cfg.Network.Remove(ctx); err != nil {
		s.cfg.Log.Warn("the builds' network was not removed", "error", err.Error())
	}
}

// watchContainerd returns an error when containerd has not answered for containerdLost.
func (s *Server) watchContainerd(ctx context.Context) error {
	tick := time.NewTicker(containerdPing)
	defer tick.Stop()
	answered := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ping, cancel := context.WithTimeout(ctx, containerdPing)
		_, err := s.containerd.Version(ping)
		cancel()
		if err == nil {
			answered = time.Now()
			s.lost.Store(nil)
			continue
		}
		err = fmt.Errorf("containerd at %s does not answer: %w", s.cfg.ContainerdAddress, err)
		s.lost.Store(&err)
		if time.Since(answered) > containerdLost && ctx.Err() == nil {
			return err
		}
	}
}

// Health is nil while containerd answers.
func (s *Server) Health() error {
	if err := s.lost.Load(); err != nil {
		return *err
	}
	return nil
}

// close is safe on a half-opened Server. The databases are crash-safe, so
// nobody needs to act on its errors.
func (s *Server) close() {
	var errs []error
	if s.git != nil {
		errs = append(errs, s.git.Close())
	}
	if s.controller != nil {
		errs = append(errs, s.controller.Close())
	}
	if s.containerd != nil {
		errs = append(errs, s.containerd.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		s.cfg.Log.Warn("closing", "error", err.Error())
	}
}
