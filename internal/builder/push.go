package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/gitserver"
	"github.com/deis/deis/internal/paas"
)

// platform is the gitserver.Platform on a controller and an image builder.
type platform struct {
	controller   *controller
	images       imageBuilder
	repositories *gitserver.Repositories
	slots        chan struct{} // one for each build that runs
	httpAddr     string
	log          *slog.Logger

	mu     sync.Mutex
	pushed map[string]bool // app UUIDs since the last tidying

	pruned map[string]int64 // what the last pruning was told; only tidyUp uses it

	metrics *metrics
}

func newPlatform(cfg Config, c *controller, images imageBuilder, repositories *gitserver.Repositories) *platform {
	return &platform{
		controller: c, images: images, repositories: repositories,
		slots: make(chan struct{}, cfg.Builds), httpAddr: cfg.HTTPAddr, log: cfg.Log, pushed: map[string]bool{},
		metrics: newMetrics(),
	}
}

// Authenticate implements gitserver.Platform.
func (p *platform) Authenticate(ctx context.Context, key string) (gitserver.User, error) {
	owner, err := p.controller.keyOwner(ctx, key)
	return gitserver.User{Name: owner.Username, Fingerprint: owner.Fingerprint}, err
}

// Authorize implements gitserver.Platform.
func (p *platform) Authorize(ctx context.Context, user, app string) (string, error) {
	return p.controller.access(ctx, user, app)
}

// Receive implements gitserver.Platform.
func (p *platform) Receive(ctx context.Context, push gitserver.Push, out io.Writer) error {
	t := &timing{start: push.Started, last: push.Started}
	sha, result, err := p.receive(ctx, push, out, t)
	if err != nil {
		result = "failed"
		if ctx.Err() != nil {
			err = &paas.Error{Code: paas.Unavailable, Err: err, Message: "The builder is being stopped. Push again in a moment."}
		}
	}
	p.mu.Lock()
	p.pushed[push.UUID] = true
	p.mu.Unlock()
	p.metrics.pushes.WithLabelValues(result).Inc()
	total := time.Since(t.start)
	line := []any{"app", push.App, "uuid", push.UUID, "user", push.User.Name, "sha", sha, "result", result}
	for _, s := range t.stages {
		line = append(line, s.name+"_ms", s.took.Milliseconds())
		if result == "deployed" {
			p.metrics.stages.WithLabelValues(s.name).Observe(s.took.Seconds())
		}
	}
	if result == "deployed" {
		p.metrics.stages.WithLabelValues("total").Observe(total.Seconds())
	}
	p.log.Info("push", append(line, "total_ms", total.Milliseconds())...)
	return err
}

// timing notes how long the stages of a push took.
type timing struct {
	start, last time.Time
	stages      []stage
}

type stage struct {
	name string
	took time.Duration
}

func (t *timing) end(name string) {
	now := time.Now()
	t.stages = append(t.stages, stage{name, now.Sub(t.last)})
	t.last = now
}

func (p *platform) receive(ctx context.Context, push gitserver.Push, out io.Writer, t *timing) (sha, result string, err error) {
	ref, deploys, err := deployed(push.Refs)
	if err != nil {
		return ref.New, "", err
	}
	err = p.controller.recordPush(ctx, api.PushHook{
		RepoHook: repoHook(push), SHA: ref.New, Fingerprint: push.User.Fingerprint,
		SSHConnection: push.Connection, SSHOriginalCommand: push.Command,
	})
	if err != nil {
		return ref.New, "", err
	}
	t.end("receive")
	for _, r := range push.Refs {
		if !deploys || !isDeployRef(r.Name) {
			fmt.Fprintln(out, "       "+stored(r))
		}
	}
	if !deploys {
		return ref.New, "stored", nil
	}
	return ref.New, "deployed", p.deploy(ctx, push, ref.New, out, t)
}

func isDeployRef(name string) bool { return name == "refs/heads/master" || name == "refs/heads/main" }

// deployed picks the ref to deploy, or the first one when there is none. It refuses a push that
// leaves open what shall run.
func deployed(refs []gitserver.Ref) (ref gitserver.Ref, deploys bool, err error) {
	ref = refs[0]
	for _, r := range refs {
		switch {
		case !isDeployRef(r.Name):
		case r.Deletes():
			return r, false, paas.Errorf(paas.Invalid, "%s cannot be deleted: it is what the app was deployed from. 'deis destroy' removes an app.", short(r.Name))
		case deploys && r.New != ref.New:
			return r, false, paas.Errorf(paas.Invalid, "master and main are different commits in one push, and only one can run. Push one of them.")
		default:
			ref, deploys = r, true
		}
	}
	return ref, deploys, nil
}

func stored(r gitserver.Ref) string {
	if r.Deletes() {
		return short(r.Name) + " is deleted; nothing is deployed"
	}
	return short(r.Name) + " is stored and not deployed: only master and main are"
}

// short is a ref's name as git shows it.
func short(name string) string {
	return strings.TrimPrefix(strings.TrimPrefix(name, "refs/heads/"), "refs/tags/")
}

func repoHook(push gitserver.Push) api.RepoHook {
	return api.RepoHook{ReceiveUser: push.User.Name, ReceiveRepo: push.App}
}

// deploy builds a commit and brings it live.
func (p *platform) deploy(ctx context.Context, push gitserver.Push, sha string, out io.Writer, t *timing) error {
	release, err := p.waitForSlot(ctx, out)
	if err != nil {
		return err
	}
	t.end("wait")
	result, err := p.build(ctx, push, sha, out)
	release()
	t.end("build")
	if err != nil {
		return buildFailed(err)
	}
	fmt.Fprintln(out, "-----> Launching...")
	answer, err := p.controller.launch(ctx, buildHook(push, sha, result), func(line string) {
		fmt.Fprintln(out, "       "+line)
	})
	t.end("rollout")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "       done, %s:v%d deployed to Deis\n\n", push.App, answer.Release.Version)
	for _, domain := range answer.Domains {
		fmt.Fprintln(out, "       "+publicURL(domain, p.httpAddr))
	}
	fmt.Fprint(out, "\n       To learn more, use `deis help` or visit http://deis.io\n")
	return nil
}

// waitForSlot waits until a build may run; release gives the slot back.
func (p *platform) waitForSlot(ctx context.Context, out io.Writer) (release func(), err error) {
	release = func() { <-p.slots }
	select {
	case p.slots <- struct{}{}:
		return release, nil
	default:
	}
	fmt.Fprintf(out, "-----> Waiting for other builds to end (%d run, which is the limit)\n", cap(p.slots))
	p.metrics.waiting.Inc()
	defer p.metrics.waiting.Dec()
	select {
	case p.slots <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// build builds a commit that is still in quarantine.
func (p *platform) build(ctx context.Context, push gitserver.Push, sha string, out io.Writer) (*build.Result, error) {
	tree, err := build.OpenTree(ctx, build.TreeOptions{
		GitDir: push.Dir,
		Env: []string{
			"GIT_OBJECT_DIRECTORY=" + push.Quarantine,
			"GIT_ALTERNATE_OBJECT_DIRECTORIES=" + push.Dir + "/objects",
		},
		Commit: sha,
	})
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	config, cache, err := p.controller.config(ctx, repoHook(push))
	if err != nil {
		return nil, err
	}
	p.metrics.running.Inc()
	defer p.metrics.running.Dec()
	var strategy paas.Strategy
	began := time.Now()
	result, err := p.images.Build(ctx, build.Request{
		App: push.UUID, Tree: tree, Config: config, Cache: cache,
		Chosen: func(s paas.Strategy) { strategy = s },
		Log:    func(line string) { fmt.Fprintln(out, line) },
	})
	p.metrics.built(strategy, err, time.Since(began))
	return result, err
}

func buildHook(push gitserver.Push, sha string, r *build.Result) api.BuildHook {
	hook := api.BuildHook{
		RepoHook: repoHook(push), Image: r.Image, SHA: sha, Procfile: r.Procfile,
		Digest: r.Digest, Strategy: string(r.Strategy), Log: r.Log, SBOM: r.SBOM, Provenance: r.Provenance,
	}
	if r.Strategy == paas.StrategyDockerfile {
		hook.Dockerfile = "true"
	}
	return hook
}

// buildFailed adds to a reason what became of the app and what to do.
func buildFailed(err error) error {
	known, ok := errors.AsType[*paas.Error](err)
	switch {
	case !ok || known.Code == paas.Internal:
		return err
	case known.Code == paas.Invalid:
		return &paas.Error{Code: known.Code, Err: err, Message: "ERROR: The build failed: " + known.Message + "\n" + oldStays}
	}
	return &paas.Error{Code: known.Code, Err: err, Message: "ERROR: The build failed: " + known.Message + "\n" +
		"Nothing was changed: what ran before runs on."}
}
