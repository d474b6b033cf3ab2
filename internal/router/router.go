// Package router is the HTTP and HTTPS proxy in front of apps and controller.
//
// Its parts know little of each other, so that the data path can be replaced
// alone: the table in memory (table.go, target.go, certs.go), how it follows the
// controller (sync.go) and is kept on disk (saved.go), TLS (tls.go,
// selfsigned.go), and the data path (proxy.go, headers.go, upstream.go).
package router

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/routerconf"
)

const (
	// headTimeout bounds a request's head and a TLS handshake, in all: a client
	// that sends a byte now and then gets no further (slowloris).
	headTimeout = 20 * time.Second
	// maxHead bounds a request's head, in bytes.
	maxHead = 64 << 10
	// shutdownGrace is how long requests under way may take to finish. Upgraded
	// connections do not count: they would never finish by themselves.
	shutdownGrace = 10 * time.Second
)

// Config of a router.
type Config struct {
	// Root is the platform's directory. The router keeps its table and its
	// certificate in router/ below it and reads the key from builder.key.
	Root string
	// Domain is the platform's, for the certificate until a table names it.
	Domain string
	// ControllerURL is where the table comes from; not used with TableFile.
	ControllerURL string
	// TableFile is a routerconf.Table to serve without a controller.
	TableFile string
	// TrustedProxies is a comma list of CIDRs whose X-Forwarded-* are believed.
	TrustedProxies string
	// HTTPAddr and HTTPSAddr are host:port.
	HTTPAddr, HTTPSAddr string
	// Listen opens the listeners "http" and "https" (daemon.Listen).
	Listen func(name, addr string) (net.Listener, error)
	// AccessLog gets one JSON line for each request; nil: no log.
	AccessLog io.Writer
	Log       *slog.Logger
	Metrics   prometheus.Registerer
	// Admin, if set, serves the health until its context ends (daemon.ServeAdmin).
	Admin func(ctx context.Context, health func() error) error
}

// Run serves until ctx ends, then finishes the requests under way.
func Run(ctx context.Context, cfg Config) error {
	r, err := newRouter(cfg)
	if err != nil {
		return err
	}
	plain, err := cfg.Listen("http", cfg.HTTPAddr)
	if err != nil {
		return err
	}
	secure, err := cfg.Listen("https", cfg.HTTPSAddr)
	if err != nil {
		return errors.Join(err, plain.Close())
	}
	return r.run(ctx, plain, secure)
}

type router struct {
	cfg      Config
	table    *table
	ownCA    *ownCA
	saver    *saver    // nil with TableFile
	follower *follower // nil with TableFile
	access   *accessLog
	proxy    *proxy
}

func newRouter(cfg Config) (*router, error) {
	trusted, err := parsePrefixes(cfg.TrustedProxies)
	if err != nil {
		return nil, fmt.Errorf("DEIS_TRUSTED_PROXIES: %w", err)
	}
	dir := filepath.Join(cfg.Root, "router")
	r := &router{cfg: cfg, table: newTable(newUpstream, cfg.Log)}
	if err := r.openTable(dir); err != nil {
		return nil, err
	}
	r.ownCA = &ownCA{dir: dir, now: time.Now}
	domain := r.table.platformDomain()
	if domain == "" {
		domain = cfg.Domain
	}
	if err := r.ownCA.ensure(domain); err != nil {
		if r.ownCA.current() == nil {
			return nil, err
		}
		cfg.Log.Error("the platform's certificate was not kept", "error", err)
	}
	if cfg.AccessLog != nil {
		r.access = newAccessLog()
	}
	m := newMetrics()
	r.proxy = newProxy(r.table, r.ownCA, trusted, m, r.access, cfg.Log)
	for _, c := range []prometheus.Collector{m.retries, m.wait, &collector{r.table, m, r.access, r.follower}} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// openTable loads what there is: the table of the setting, or the one saved last
// and a follower that makes it current.
func (r *router) openTable(dir string) error {
	if r.cfg.TableFile != "" {
		t, err := readTable(r.cfg.TableFile)
		if err != nil {
			return fmt.Errorf("DEIS_TABLE: %w", err)
		}
		return r.table.apply(routerconf.Change{Generation: t.Generation, Snapshot: t})
	}
	if r.cfg.ControllerURL == "" {
		return errors.New("neither DEIS_CONTROLLER_URL nor DEIS_TABLE is set")
	}
	key, err := os.ReadFile(filepath.Join(r.cfg.Root, "builder.key"))
	if err != nil {
		return fmt.Errorf("read the daemons' key: %w", err)
	}
	r.follower = newFollower(r.cfg.ControllerURL, strings.TrimSpace(string(key)), newID(), r.table, r.cfg.Log)
	r.saver = newSaver(dir, r.table, r.cfg.Log)
	// A file that cannot be read must not keep the router from being told.
	if err := r.saver.load(); err != nil {
		r.cfg.Log.Error("the saved routing table cannot be used", "error", err)
	}
	return nil
}

// run serves until ctx ends and closes the listeners.
func (r *router) run(ctx context.Context, plain, secure net.Listener) error {
	// What supports the requests ends after them.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var supporting errgroup.Group
	background := func(f func(context.Context)) {
		supporting.Go(func() error { f(support); return nil })
	}
	background(func(ctx context.Context) { r.ownCA.maintain(ctx, r.table, r.cfg.Domain, r.cfg.Log) })
	if r.access != nil {
		background(func(ctx context.Context) { r.access.run(ctx, r.cfg.AccessLog) })
	}
	if r.follower != nil {
		background(r.follower.run)
		background(r.follower.report)
		background(r.saver.run)
	}

	serving, ctx := errgroup.WithContext(ctx)
	serving.Go(func() error { return r.serve(ctx, idleListener{plain, idleLimit}) })
	serving.Go(func() error {
		config := tlsConfig(r.table, r.ownCA)
		return r.serve(ctx, tls.NewListener(idleListener{secure, idleLimit}, config))
	})
	if r.cfg.Admin != nil {
		serving.Go(func() error { return r.cfg.Admin(ctx, r.health) })
	}
	err := serving.Wait()
	stopSupport()
	return errors.Join(err, supporting.Wait())
}

// serve serves one listener until ctx ends, then lets the requests under way
// finish for the grace and ends what remains.
func (r *router) serve(ctx context.Context, l net.Listener) error {
	alive, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	srv := &http.Server{
		Handler:                      r.proxy,
		ReadHeaderTimeout:            headTimeout,
		IdleTimeout:                  idleLimit,
		MaxHeaderBytes:               maxHead,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the app's, too
		ErrorLog:                     slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return alive },
	}
	return daemon.ServeHTTP(ctx, srv, l, shutdownGrace)
}

// health is bad until there is a table to serve.
func (r *router) health() error {
	if !r.table.loaded.Load() {
		return errors.New("no routing table yet: the controller has not answered")
	}
	return nil
}
