// Package controller is the platform's brain: the Deis v1 API over the store,
// the rollout manager, and the table that the routers follow.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
	"github.com/deis/deis/internal/store"
)

const (
	// headerTimeout bounds how long a client may take over its request's head.
	headerTimeout = 10 * time.Second
	// idleTimeout closes connections that nobody uses; longer than the router
	// keeps its own, so that it is never the one to be surprised.
	idleTimeout = 5 * time.Minute
	// shutdownGrace is how long answers may take once the daemon is to end.
	shutdownGrace = 2 * time.Second
)

// Config is what a controller needs.
type Config struct {
	// Listener serves the API.
	Listener net.Listener
	// Root is the platform's directory. The store is in db/ below it and the
	// key that the daemons share in builder.key, which it makes if there is none.
	Root string
	// Domain is the platform's: the API is deis.<Domain>, apps <app>.<Domain>.
	Domain string
	// GitURL is the base of git remotes, "ssh://git@host:port"; may be empty.
	GitURL string
	// Engine is EngineContainerd or EngineFake.
	Engine            string
	ContainerdAddress string
	// ContainerdNamespace is the platform's own; empty: deis-<platform id>.
	ContainerdNamespace string
	// PublicAddrs are the addresses (host:port, commas between) of this host that instances reach like everybody: those
	// of router and builder. AppAllow adds others: a.b.c.d, a.b.c.d/n, a.b.c.d:port.
	PublicAddrs, AppAllow string
	// AppProcesses bounds the processes of an instance, threads included; 0 is paas.DefaultProcesses.
	AppProcesses int
	// InsecureRegistries are those that need no TLS, HOST or HOST:PORT with commas between.
	InsecureRegistries string
	// StartTimeout and DrainLimit are those of rollout.Options.
	StartTimeout, DrainLimit time.Duration
	// RegistrationMode is one of RegistrationModes; "" is RegistrationEnabled.
	RegistrationMode string
	// LogDrain lists where the lines of all apps go (see package drain); may be empty.
	LogDrain string
	// TestStopAt is a file that says where a rollout is stopped: see stopAt. It is for tests.
	TestStopAt string
	// Disk bounds what apps take.
	Disk DiskLimits
	// TestControl offers POST /_test/ctl, with EngineFake only (see control).
	TestControl bool

	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Admin, if set, serves the private address until its context ends.
	Admin func(ctx context.Context, health func() error) error
}

// manager is what the API needs of rollouts.
type manager interface {
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	Do(ctx context.Context, req rollout.Request) (paas.Rollout, paas.Release, error)
	Destroy(ctx context.Context, app paas.App) error
}

var _ rollout.Store = (*store.Store)(nil)

// server is a controller at work.
type server struct {
	cfg        Config
	builderKey string
	store      *store.Store
	engine     engine.Engine
	rollouts   manager
	routes     *hub
	metrics    *metrics
	drains     *drains
	disk       diskUsage
	handler    http.Handler
	settings   atomic.Pointer[settings]

	// publishing makes reading an app's routes and publishing them one step.
	publishing sync.Mutex
	changes    appLocks
	oneOffs    oneOffs
	// configWait is how long a config change waits for another one.
	configWait time.Duration
	// undeleted wakes who finishes deletions.
	undeleted chan struct{}
	// stopping is closed when streams should end.
	stopping <-chan struct{}
	// attached counts the one-offs whose clients have taken connections over.
	attached sync.WaitGroup
}

// Run serves the API and keeps the apps as the store says until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.TestControl && cfg.Engine != EngineFake {
		return errTestControl
	}
	if err := errors.Join(os.MkdirAll(cfg.Root, 0o755), daemon.MakeKey(cfg.Root)); err != nil {
		return fmt.Errorf("make the daemons' key: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(cfg.Root, "builder.key"))
	if err != nil {
		return fmt.Errorf("read the daemons' key: %w", err)
	}
	if strings.TrimSpace(string(key)) == "" {
		return errors.New("builder.key is empty")
	}
	st, err := store.Open(ctx, filepath.Join(cfg.Root, "db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	eng, closeEngine, err := openEngine(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeEngine()) }()
	s := newServer(cfg, strings.TrimSpace(string(key)), st, eng)
	return s.run(ctx)
}

func newServer(cfg Config, builderKey string, st *store.Store, eng engine.Engine) *server {
	s := &server{
		cfg: cfg, builderKey: builderKey, store: st, engine: eng,
		routes:     newHub(cfg.Domain, cfg.Listener.Addr().String(), cfg.Log),
		configWait: configWait,
		undeleted:  make(chan struct{}, 1),
	}
	s.settings.Store(cfg.defaults())
	s.metrics = newMetrics(cfg.Metrics, s.routes)
	st.Observe(s.metrics.stored)
	s.rollouts = rollout.New(rollout.Options{
		Store: st, Engine: eng, Router: s.routes, Log: cfg.Log, Metrics: cfg.Metrics,
		StartTimeout: cfg.StartTimeout, DrainLimit: cfg.DrainLimit, SkipWaits: cfg.Engine == EngineFake,
		Step: stopAt(cfg.TestStopAt),
	})
	s.handler = s.newHandler()
	if f, ok := eng.(*fake.Engine); ok && cfg.TestControl {
		s.handler = newControl(s, f).before(s.handler)
	}
	return s
}

// run works until ctx ends.
func (s *server) run(ctx context.Context) error {
	if err := s.loadRoutes(ctx); err != nil {
		return fmt.Errorf("load the routes: %w", err)
	}
	var err error
	if s.drains, err = newDrains(s); err != nil {
		return err
	}
	if s.cfg.Metrics != nil {
		if err := errors.Join(s.registerDisk(s.cfg.Metrics), s.cfg.Metrics.Register(expiries{s})); err != nil {
			return err
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	s.stopping = ctx.Done()
	work.Go(func() error { return s.rollouts.Run(ctx) })
	work.Go(func() error { return s.drains.run(ctx) })
	work.Go(func() error { return s.collectImages(ctx) })
	work.Go(func() error {
		select {
		case <-s.rollouts.Ready():
			s.routes.open()
			return s.finishDeletes(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	work.Go(func() error {
		srv := &http.Server{
			Handler: s.handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
			ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		}
		err := daemon.ServeHTTP(ctx, srv, upperReasons(srv, s.cfg.Listener), shutdownGrace)
		s.awaitAttached()
		return err
	})
	if s.cfg.Admin != nil {
		work.Go(func() error { return s.cfg.Admin(ctx, s.health) })
	}
	err = work.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// health is nil when requests can be answered in full.
func (s *server) health() error {
	ctx, cancel := context.WithTimeout(context.Background(), headerTimeout)
	defer cancel()
	if err := s.store.Ping(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	select {
	case <-s.rollouts.Ready():
		return nil
	default:
		return errors.New("the instances are not known yet")
	}
}

// RemoveInstances stops and removes every instance of the platform.
func RemoveInstances(ctx context.Context, cfg Config) (err error) {
	eng, closeEngine, err := openEngine(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeEngine()) }()
	instances, err := eng.Instances(ctx, "")
	if err != nil {
		return fmt.Errorf("list the instances: %w", err)
	}
	sets := map[engine.SetKey]bool{}
	var work errgroup.Group
	work.SetLimit(16) // each waits mostly for processes to end
	for _, inst := range instances {
		if sets[inst.SetKey] {
			continue
		}
		sets[inst.SetKey] = true
		work.Go(func() error { return eng.Remove(ctx, inst.SetKey) })
	}
	if err := work.Wait(); err != nil {
		return fmt.Errorf("remove instances: %w", err)
	}
	cfg.Log.Info("removed all instances", "instances", len(instances))
	if host, ok := eng.(interface{ Leave(context.Context) error }); ok {
		return host.Leave(ctx)
	}
	return nil
}
