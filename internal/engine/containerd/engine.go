// Package containerd is the engine of one machine: instances are containers of
// a containerd (1.6 to 2.x) that this process does not own.
//
// Everything that must outlive this process is kept by others: an instance is a
// container record in containerd, whose labels say what it is, a task under
// its own shim, a log written by a process of that shim, a network namespace
// held by a mount. The record is made before and removed after all the rest, so
// that whatever was interrupted is found again by it and finished by the next call.
package containerd

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/hostnet"
	"github.com/deis/deis/internal/paas"
)

const (
	snapshotter = "overlayfs"
	runcRuntime = "io.containerd.runc.v2"

	// connectWait is how long a call waits for a containerd that is being
	// started again, which takes it half a second.
	connectWait = 5 * time.Second
	// cleanupTime bounds tidying up after a call that failed or was cancelled.
	cleanupTime = 30 * time.Second
)

// Options say where things are. Address, Root, PlatformID, ShimLog and Log are required.
type Options struct {
	// Address is the path of containerd's socket.
	Address string
	// Root is the platform's directory; the engine uses run/, cni/ and logs/ below it.
	Root string
	// PlatformID is the platform's short id: up to 8 of a-z and 0-9. It names
	// the containerd namespace, the bridge and the parent of the control groups.
	PlatformID string
	// Namespace is containerd's; default deis-<PlatformID>. It belongs to one
	// platform and to the BuildKit that builds for it.
	Namespace string
	// ShimLog is the path of the program deis-shimlog.
	ShimLog string
	// CNIPluginDirs defaults to hostnet.DefaultPluginDirs.
	CNIPluginDirs []string
	// Deny lists what instances must not reach, besides hostnet.Metadata.
	Deny []netip.Prefix
	// Public lists the TCP ports of this host that instances reach: those of the router. An unspecified
	// address means all of this host's. Allow lists addresses of this host of which they reach every port.
	Public []netip.AddrPort
	Allow  []netip.Prefix
	// Processes bounds the processes of an instance, threads included; 0 is paas.DefaultProcesses.
	Processes int64
	// InsecureRegistries lists registries, as in image references, that are asked without TLS if
	// they do not speak it. Those on loopback always are.
	InsecureRegistries []string
	// RegistryCAs are the authorities for registries' certificates; the machine's if nil.
	RegistryCAs *x509.CertPool
	Log         *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Engine implements engine.Engine. There must be one at a time for a platform:
// it removes what it finds unfinished.
type Engine struct {
	opts    Options
	ns      string // containerd's namespace
	client  *ctd.Client
	network *hostnet.Network
	metrics *metrics
	images  imageCache
	// layerSizes and written are for Usage.
	layerSizes layerSizes
	written    writtenSizes
	sets       locks
	preparing  sync.Mutex // for makeSnapshot
	// untidy has something when tidy has to look.
	untidy chan struct{}
	watch  watchers
	// logWatch is for those who follow logs.
	logWatch logWatch
	// creating bounds how many instances are created at once: more only wait for each other.
	creating chan struct{}

	mu    sync.Mutex
	notes map[string]*note // by container id

	life context.Context // of the engine's own work
	stop context.CancelFunc
	done sync.WaitGroup
}

var _ engine.Engine = (*Engine)(nil)

var validPlatform = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// New prepares the network and starts to follow containerd, which need not be
// up yet. Close must be called at the end; it leaves the instances running.
func New(opts Options) (*Engine, error) {
	switch {
	case !validPlatform.MatchString(opts.PlatformID):
		return nil, fmt.Errorf("containerd engine: bad platform id %q", opts.PlatformID)
	case !filepath.IsAbs(opts.Address), !filepath.IsAbs(opts.Root), !filepath.IsAbs(opts.ShimLog):
		return nil, fmt.Errorf("containerd engine: address %q, root %q and log program %q must be absolute paths",
			opts.Address, opts.Root, opts.ShimLog)
	}
	if _, err := os.Stat(opts.ShimLog); err != nil {
		return nil, fmt.Errorf("containerd engine: log program: %w", err)
	}
	e := &Engine{
		opts:     opts,
		ns:       cmp.Or(opts.Namespace, "deis-"+opts.PlatformID),
		notes:    map[string]*note{},
		untidy:   make(chan struct{}, 1),
		creating: make(chan struct{}, 2*runtime.NumCPU()),
		metrics:  newMetrics(),
	}
	for _, dir := range []string{e.netnsDir(), e.instancesDir(), e.logsDir()} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("containerd engine: %w", err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	if err := e.open(ctx); err != nil {
		stop()
		return nil, fmt.Errorf("containerd engine: %w", err)
	}
	e.life, e.stop = ctx, stop
	e.done.Go(func() { e.network.Keep(ctx, opts.Log) })
	e.done.Go(func() { e.follow(e.in(ctx)) })
	e.done.Go(func() { e.tidy(e.in(ctx)) })
	return e, nil
}

func (e *Engine) open(ctx context.Context) (err error) {
	e.network, err = hostnet.Open(hostnet.Options{
		Name:       "deis" + e.opts.PlatformID,
		Dir:        filepath.Join(e.opts.Root, "cni"),
		PluginDirs: e.opts.CNIPluginDirs,
		Deny:       slices.Concat(hostnet.Metadata, e.opts.Deny),
		Closed:     true,
		Ports:      e.opts.Public,
		Allow:      e.opts.Allow,
	})
	if err != nil {
		return err
	}
	if err := e.network.Ensure(ctx); err != nil {
		return err
	}
	if err := e.metrics.register(e.opts.Metrics); err != nil {
		return err
	}
	e.client, err = dial(e.opts.Address)
	return err
}

// dial opens a client that connects when it is used, and again by itself.
func dial(address string) (*ctd.Client, error) {
	params := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond},
		MinConnectTimeout: connectWait,
	}
	return ctd.New(address,
		ctd.WithDefaultRuntime(runcRuntime),
		ctd.WithDialOpts([]grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket
			grpc.WithConnectParams(params),
			grpc.WithContextDialer(dialer.ContextDialer),
			grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				awaitReady(ctx, cc)
				return invoke(ctx, method, req, reply, cc, opts...)
			}),
			grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				awaitReady(ctx, cc)
				return streamer(ctx, desc, cc, method, opts...)
			}),
		}))
}

// awaitReady waits for a connection, for a while.
func awaitReady(ctx context.Context, cc *grpc.ClientConn) {
	state := cc.GetState()
	if state == connectivity.Ready {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for state != connectivity.Ready {
		cc.Connect()
		if !cc.WaitForStateChange(ctx, state) {
			return
		}
		state = cc.GetState()
	}
}

// Close ends the engine's own work. Instances go on.
func (e *Engine) Close() error {
	e.stop()
	e.done.Wait()
	e.logWatch.close()
	return e.client.Close()
}

// Leave takes away what the engine has on the host itself: bridge, addresses, firewall
// rules and control groups. No instance may be left. It ends the engine's
// own work, so that nothing can be done but Close afterwards.
func (e *Engine) Leave(ctx context.Context) error {
	e.stop()
	e.done.Wait()
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + e.cgroups()) // version 1; the pattern is valid
	for _, dir := range append(groups, "/sys/fs/cgroup"+e.cgroups()) {
		_ = os.Remove(dir) // one that is empty does no harm
	}
	return e.network.Remove(ctx)
}

// Ready is nil when containerd answers, and says what is wrong otherwise.
func (e *Engine) Ready(ctx context.Context) error {
	if _, err := e.client.Version(e.in(ctx)); err != nil {
		return fmt.Errorf("containerd at %s: %w", e.opts.Address, err)
	}
	return nil
}

// in is the context for calls of containerd, and for nothing else: a namespace
// in a context travels with every gRPC call that is made with it.
func (e *Engine) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, e.ns)
}

// cleanup is a context for tidying up, whatever happened to ctx.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

func (e *Engine) netnsDir() string             { return filepath.Join(e.opts.Root, "run", "netns") }
func (e *Engine) netns(id string) string       { return filepath.Join(e.netnsDir(), id) }
func (e *Engine) instancesDir() string         { return filepath.Join(e.opts.Root, "run", "instances") }
func (e *Engine) instanceDir(id string) string { return filepath.Join(e.instancesDir(), id) }
func (e *Engine) logsDir() string              { return filepath.Join(e.opts.Root, "logs") }
func (e *Engine) logDir(app string) string     { return filepath.Join(e.logsDir(), app) }

// cgroup is the control group of a container, below every controller's root; cgroups is that of all.
func (e *Engine) cgroup(id string) string { return e.cgroups() + "/" + id }
func (e *Engine) cgroups() string         { return "/deis-" + e.opts.PlatformID }

func newID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

var (
	validApp = regexp.MustCompile(`^[0-9a-zA-Z][0-9a-zA-Z-]{0,63}$`)
	validID  = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// checkApp guards file names and filters: an app's UUID is a part of both.
func checkApp(app string) error {
	if !validApp.MatchString(app) {
		return fmt.Errorf("%q is no app UUID", app)
	}
	return nil
}

// native turns an error of a raw gRPC service into one of package errdefs.
func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// unlessGone is nil when a thing that should go is not there.
func unlessGone(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// wrap says what was tried. That containerd is away concerns the user, who can
// only wait.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf(format+": %w", append(args, err)...)
	if errdefs.IsUnavailable(err) && paas.CodeOf(err) == paas.Internal {
		return &paas.Error{Code: paas.Unavailable, Message: "the container engine does not answer, please try again", Err: err}
	}
	return err
}

// locks are one mutex a set, whose waiting can be cancelled. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[engine.SetKey]chan struct{}
}

func (l *locks) lock(ctx context.Context, key engine.SetKey) (unlock func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l.mu.Lock()
		busy, ok := l.held[key]
		if !ok {
			mine := make(chan struct{})
			if l.held == nil {
				l.held = map[engine.SetKey]chan struct{}{}
			}
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
		}
	}
}

// metrics of the engine. Labels: how an instance ended.
type metrics struct {
	start prometheus.Histogram
	ends  *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		start: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "deis_engine_start_seconds",
			Help:    "Time from the wish for an instance until its process runs.",
			Buckets: []float64{.05, .1, .15, .2, .3, .5, 1, 2, 5, 15},
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_engine_instance_ends_total",
			Help: "Instances whose process ended though nobody stopped it: by itself (exit), killed for want of memory (oom).",
		}, []string{"how"}),
	}
	for _, how := range []string{"exit", "oom"} { // what is zero and not missing can be seen to begin
		m.ends.WithLabelValues(how)
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	return cmp.Or(r.Register(m.start), r.Register(m.ends))
}
