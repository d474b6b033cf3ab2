// Package build makes images of pushed commits on BuildKit, and the base images
// that they start from.
package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

const (
	maxDockerfile = 1 << 20

	// contextName is that of the pushed files; one for both strategies, so that BuildKit keeps them once.
	contextName = "context"

	// BuildKit may restart under us: a build waits for it so long before it starts.
	connectWait  = 20 * time.Second
	connectRetry = 100 * time.Millisecond
)

// Builder builds on one BuildKit. It keeps one connection, which mends itself.
// Its methods may be called concurrently; two builds of one app at a time are
// correct but slower than one after the other.
type Builder struct {
	opts   Options
	client *client.Client
	images *imagestore.Store

	balance balancer
}

// Options of a Builder. Address, ContainerdAddress and Namespace are required.
type Options struct {
	// Address is BuildKit's: a socket's path or a URL ("unix://...", "tcp://...").
	Address string
	// ContainerdAddress is the path of the socket of the containerd that BuildKit exports to, Namespace its.
	ContainerdAddress, Namespace string
	// CgroupParent is BuildKit's own (buildkitd.Config): each build's cgroup is below it. It is not below that of the
	// apps, whose part of the CPU builds would use up. Empty where BuildKit is on another machine: then only
	// Limits.Silence holds.
	CgroupParent string
	// Limits bound every build. An app's config may lower them, not raise them.
	Limits Limits
	// CAFile holds certificates (PEM) that builds trust besides those of their image; may be empty.
	CAFile string
	// Secret keys what BuildKit's cache keys say of config values.
	Secret []byte
}

// New returns a Builder. It does not connect yet.
func New(ctx context.Context, opts Options) (*Builder, error) {
	address := opts.Address
	if strings.HasPrefix(address, "/") {
		address = "unix://" + address
	}
	if _, err := readCertificates(opts.CAFile); err != nil {
		return nil, err
	}
	quick := backoff.Config{BaseDelay: connectRetry, Multiplier: 1.5, MaxDelay: 5 * connectRetry}
	c, err := client.New(ctx, address, client.WithGRPCDialOption(
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: connectWait})))
	if err != nil {
		return nil, fmt.Errorf("BuildKit at %s: %w", address, err)
	}
	images, err := imagestore.Open(opts.ContainerdAddress, opts.Namespace)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := openGroups(opts); err != nil {
		return nil, errors.Join(err, c.Close(), images.Close())
	}
	return &Builder{opts: opts, client: c, images: images}, nil
}

// Close ends the connections.
func (b *Builder) Close() error {
	closeGroups(b.opts)
	return errors.Join(b.client.Close(), b.images.Close())
}

// Ready waits until BuildKit answers, at most for as long as a restart takes.
// Its error has code paas.Unavailable.
func (b *Builder) Ready(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for {
		_, err := b.client.Info(limit)
		if err == nil {
			return nil
		}
		select {
		case <-limit.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &paas.Error{Code: paas.Unavailable, Message: "the build service does not answer; try again later", Err: err}
		case <-time.After(connectRetry):
		}
	}
}

// Request is one build.
type Request struct {
	// App is the app's UUID.
	App string
	// Tree is the commit. Build does not close it.
	Tree *Tree
	// Config is the app's environment, which is secret. Buildpacks get it as platform environment
	// (contract 9.3), Dockerfiles do not. Some of its values steer the build.
	Config map[string]string
	// Cache names the app's cache: another number is another, empty, cache.
	Cache int64
	// Chosen, if set, is told the strategy as soon as it is known.
	Chosen func(paas.Strategy)
	// Log gets the lines for the pusher as they come, indented by seven blanks, without newline
	// and without control characters. Calls never overlap. It must not block for long.
	Log func(line string)
}

// Result is a finished build. The image is in containerd's store, unpacked.
type Result struct {
	// Image is the reference in the store, Digest ("sha256:...") its manifest.
	Image, Digest string
	Strategy      paas.Strategy
	// Procfile is the process types that the commit declares; never nil.
	Procfile map[string]string
	// SBOM and Provenance are those of api.BuildHook.
	SBOM, Provenance json.RawMessage
	// Log is all lines that Request.Log got, or the last api.MaxBuildLog bytes of them.
	Log      string
	Duration time.Duration
}

// ImageName is where the image of a commit is kept.
func ImageName(app, commit string) string {
	return "deis.internal/apps/" + app + ":git-" + commit[:12]
}

// Build makes the image of a commit. Errors that the pusher can mend are
// paas.Error with a text of one or more lines; the lines given to Log before
// hold the failing program's output. The end of ctx cancels the build.
//
// The image has GIT_SHA in its environment (contract 9.3) and the commit in the
// label org.opencontainers.image.revision. Config values are never part of it.
func (b *Builder) Build(ctx context.Context, req Request) (*Result, error) {
	start := time.Now()
	log := &tail{limit: api.MaxBuildLog - len(leftOut)}
	var mu sync.Mutex // BuildKit's output and ours come from goroutines of their own
	var distrust bool
	say := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		log.add(line)
		distrust = distrust || distrusts(line)
		req.Log(line)
	}
	for _, note := range req.Tree.Notes {
		say(indent + note)
	}
	p, err := choose(req, func(line string) { say(indent + line) })
	if err != nil {
		return nil, err
	}
	if req.Chosen != nil {
		req.Chosen(p.strategy)
	}
	if err := b.Ready(ctx); err != nil {
		return nil, err
	}
	var res *Result
	err = b.guarded(ctx, req.App, req.Config, func(ctx context.Context, g *guard) error {
		j := job{Builder: b, Request: req, plan: p, guard: g, say: say}
		if res, err = j.run(ctx); err != nil {
			return err
		}
		res.Provenance, err = j.provenance(res.Digest, start)
		return err
	})
	if err != nil {
		err = explain(ctx, err)
		mu.Lock()
		defer mu.Unlock()
		if distrust {
			err = withTrustAdvice(err)
		}
		return nil, err
	}
	res.Image, res.Strategy = ImageName(req.App, req.Tree.Commit), p.strategy
	res.Log, res.Duration = log.String(), time.Since(start)
	return res, nil
}

// job is one build under way.
type job struct {
	*Builder
	Request
	plan  plan
	guard *guard
	say   func(line string)
	// origin is for the provenance.
	origin origin
}

func (j *job) run(ctx context.Context) (*Result, error) {
	if j.plan.strategy == paas.StrategyDockerfile {
		j.say("-----> Building with the Dockerfile")
		return j.dockerfile(ctx)
	}
	j.say("-----> Building with buildpacks")
	return j.buildpacks(ctx)
}

// solve has BuildKit run a build and shows its progress. All that strangers wrote runs below it.
func (j *job) solve(ctx context.Context, opt client.SolveOpt, build gateway.BuildFunc) (*client.SolveResponse, error) {
	opt.SharedKey = cacheScope(j.App, j.Cache) // BuildKit keeps the last context of each key, and fetches what changed
	events := make(chan *client.SolveStatus)
	var answer *client.SolveResponse
	var own error // BuildKit hands on only the text of what build returns
	var group errgroup.Group
	group.Go(func() (err error) {
		answer, err = j.client.Build(ctx, opt, "deis", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			res, err := build(ctx, c)
			own = err
			return res, err
		}, events)
		return err
	})
	show(events, j.say, func(status *client.SolveStatus) {
		j.guard.output()
		j.origin.observe(status)
	})
	err := group.Wait()
	if known, ok := errors.AsType[*paas.Error](own); ok {
		return nil, known
	}
	return answer, err
}

// Procfile returns the process types that the commit declares; never nil
// without an error.
func (t *Tree) Procfile() (map[string]string, error) {
	data, err := t.ReadFile("Procfile", maxProcfile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseProcfile(data)
}

// dockerfile runs the Dockerfile frontend and exports the image.
func (j *job) dockerfile(ctx context.Context) (*Result, error) {
	opt := client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{contextName: j.plan.tree, "dockerfile": j.plan.tree},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			string(exptypes.OptKeyName):             ImageName(j.App, j.Tree.Commit),
			string(exptypes.OptKeyUnpack):           "true",
			string(exptypes.OptKeyPush):             "false",
			string(exptypes.OptKeyLayerCompression): "uncompressed",
			string(exptypes.OptKeyOCITypes):         "true",
		}}},
	}
	frontend := gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: map[string]string{
		"image-resolve-mode": "local",
		// The frontend takes this as a sign that it was chosen by a "# syntax=" line already, so it
		// does not fetch another one.
		"cmdline": "dockerfile.v0",
		// Cache mounts with equal ids are shared within an app, not between apps.
		"build-arg:BUILDKIT_CACHE_MOUNT_NS": cacheScope(j.App, j.Cache),
		// Image and history are of this time; steps see it if the Dockerfile declares it (ARG).
		"build-arg:SOURCE_DATE_EPOCH": strconv.FormatInt(epoch.Unix(), 10),
		"cgroup-parent":               j.guard.cgroupParent(),
	}}
	answer, err := j.solve(ctx, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := c.Solve(ctx, frontend)
		if err != nil {
			return nil, err
		}
		return res, j.finishDockerfile(res)
	})
	if err != nil {
		return nil, err
	}
	digest := answer.ExporterResponse[exptypes.ExporterImageDigestKey]
	if digest == "" {
		return nil, errors.New("BuildKit reported no digest of the image")
	}
	return &Result{Digest: digest, Procfile: j.plan.procfile}, nil
}

// show renders events until BuildKit closes the channel. It calls seen at each: a line that says that a step
// still runs is no sign of life.
func show(events <-chan *client.SolveStatus, say func(string), seen func(*client.SolveStatus)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	p := newProgress(say, time.Now())
	for {
		select {
		case status, ok := <-events:
			if !ok {
				return
			}
			seen(status)
			p.update(status, time.Now())
		case now := <-tick.C:
			p.tick(now)
		}
	}
}

// finishDockerfile adds the commit to the image's configuration. The steps of the
// Dockerfile do not see it, so it spoils no cache.
func (j *job) finishDockerfile(res *gateway.Result) error {
	var image dockerspec.DockerOCIImage
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterImageConfigKey], &image); err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	if len(image.Config.Cmd) == 0 && len(image.Config.Entrypoint) == 0 && len(j.plan.procfile) == 0 {
		return userErrorf("the image has no command to run: add CMD to the Dockerfile, or a Procfile with a line \"web: command\"")
	}
	j.mark(&image.Config.ImageConfig)
	data, err := json.Marshal(image)
	if err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	res.AddMeta(exptypes.ExporterImageConfigKey, data)
	return nil
}

// mark adds the commit and the app to an image's configuration.
func (j *job) mark(c *ocispec.ImageConfig) {
	c.Env = slices.DeleteFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, "GIT_SHA=") })
	c.Env = append(c.Env, "GIT_SHA="+j.Tree.Commit)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	c.Labels[ocispec.AnnotationRevision] = j.Tree.Commit
	c.Labels["deis.app"] = j.App
}

const leftOut = indent + "[the beginning is left out]\n"

// tail keeps the last lines of a log.
type tail struct {
	limit int
	size  int
	lines []string
	lost  bool
}

func (t *tail) add(line string) {
	t.lines = append(t.lines, line)
	t.size += len(line) + 1
	n := 0
	for t.size > t.limit {
		t.size -= len(t.lines[n]) + 1
		n++
		t.lost = true
	}
	t.lines = t.lines[n:]
}

func (t *tail) String() string {
	var b strings.Builder
	if t.lost {
		b.WriteString(leftOut)
	}
	for _, line := range t.lines {
		b.WriteString(line + "\n")
	}
	return b.String()
}
