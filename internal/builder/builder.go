// Package builder turns a push into a release: it receives git over SSH, builds
// the commit, hands the build to the controller and shows the pusher how it
// goes, line by line (contract 9).
//
// Only pushes to refs/heads/master and refs/heads/main are deployed; others are
// stored. A client that hangs up loses the output, never the build: the push
// goes on to its end.
package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/gitserver"
	"github.com/deis/deis/internal/paas"
)

// Config is the builder's.
type Config struct {
	// Root is the platform's directory: repos/, ssh/ and builder.key are below it.
	Root string
	// Engine is "containerd", or "fake": then builds are recorded instead of built.
	Engine string
	// SSHAddr is where git is served.
	SSHAddr string
	// ControllerURL is the controller's private address.
	ControllerURL string
	// HTTPAddr is the router's: its port is part of the apps' URLs, unless it is 80.
	HTTPAddr string
	// BuildkitAddress is BuildKit's socket or URL; empty means run/buildkitd.sock below Root.
	BuildkitAddress string
	// Build is what builds are made with; Address is set by BuildkitAddress.
	Build build.Options
	// MaxPush bounds one push in bytes, Builds how many builds run at a time.
	MaxPush int64
	Builds  int

	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Listen and Admin are those of package daemon.
	Listen func(name, addr string) (net.Listener, error)
	Admin  func(ctx context.Context, health func() error) error
}

// imageBuilder is what builds; build.Builder is one.
type imageBuilder interface {
	Build(ctx context.Context, req build.Request) (*build.Result, error)
	Prune(ctx context.Context, current func(context.Context) (map[string]int64, error)) (freed int64, err error)
}

// Run receives pushes until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.ControllerURL == "" {
		return errors.New("DEIS_CONTROLLER_URL is not set")
	}
	images, closeImages, err := openImages(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(serve(ctx, cfg, images), closeImages())
}

func serve(ctx context.Context, cfg Config, images imageBuilder) error {
	key, err := readKey(cfg.Root)
	if err != nil {
		return err
	}
	client := &api.Client{URL: cfg.ControllerURL, BuilderKey: key, UserAgent: "deis-builder"}
	hostKeys, err := gitserver.HostKeys(filepath.Join(cfg.Root, "ssh"))
	if err != nil {
		return err
	}
	repositories, err := gitserver.OpenRepositories(filepath.Join(cfg.Root, "repos"))
	if err != nil {
		return err
	}
	p := newPlatform(cfg, &controller{client}, images, repositories)
	if err := p.metrics.register(cfg.Metrics, filepath.Join(cfg.Root, "repos")); err != nil {
		return err
	}
	listener, err := cfg.Listen("ssh", cfg.SSHAddr)
	if err != nil {
		return err
	}
	server := &gitserver.Server{Platform: p, HostKeys: hostKeys, Repositories: repositories, MaxPush: cfg.MaxPush, Log: cfg.Log}
	cfg.Log.Info("receiving pushes", "address", listener.Addr().String(), "engine", cfg.Engine)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx, listener) })
	group.Go(func() error { p.tidyUp(ctx); return nil })
	group.Go(func() error { return cfg.Admin(ctx, func() error { return p.controller.healthy(ctx) }) })
	return group.Wait()
}

// readKey reads the key that the daemons share.
func readKey(root string) (string, error) {
	key, err := os.ReadFile(filepath.Join(root, "builder.key"))
	if err != nil {
		return "", fmt.Errorf("read the daemons' key: %w", err)
	}
	return strings.TrimSpace(string(key)), nil
}

func openImages(ctx context.Context, cfg Config) (imageBuilder, func() error, error) {
	if cfg.Engine == "fake" {
		return recorder{}, func() error { return nil }, nil
	}
	address := cfg.BuildkitAddress
	if address == "" {
		address = filepath.Join(cfg.Root, "run", "buildkitd.sock")
	}
	key, err := readKey(cfg.Root)
	if err != nil {
		return nil, nil, err
	}
	opts := cfg.Build
	opts.Address, opts.Secret = address, []byte(key)
	b, err := build.New(ctx, opts)
	if err != nil {
		return nil, nil, err
	}
	return b, b.Close, nil
}

// recorder stands in for a build where nothing is ever run.
type recorder struct{}

func (recorder) Build(_ context.Context, req build.Request) (*build.Result, error) {
	start := time.Now()
	procfile, err := req.Tree.Procfile()
	if err != nil {
		return nil, err
	}
	r := &build.Result{Image: build.ImageName(req.App, req.Tree.Commit), Strategy: paas.StrategyBuildpacks, Procfile: procfile}
	if req.Tree.Has("Dockerfile") {
		r.Strategy = paas.StrategyDockerfile
	}
	if req.Chosen != nil {
		req.Chosen(r.Strategy)
	}
	const line = "       recorded, not built: this platform runs no containers"
	req.Log(line)
	r.Log, r.Duration = line+"\n", time.Since(start)
	return r, nil
}

func (recorder) Prune(context.Context, func(context.Context) (map[string]int64, error)) (int64, error) {
	return 0, nil
}

// publicURL is where a domain is served: the port is part of it unless it is HTTP's own.
func publicURL(domain, httpAddr string) string {
	_, port, err := net.SplitHostPort(httpAddr)
	if err != nil || port == "" || port == "0" || port == "80" || port == "http" {
		return "http://" + domain
	}
	return "http://" + net.JoinHostPort(domain, port)
}
