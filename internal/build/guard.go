package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deis/deis/internal/paas"
)

const (
	guardTick = 100 * time.Millisecond
	// crowdTime is how long a build may be at its limit of processes. Large builds touch the limit, since
	// the tools that they run wait and try again; a fork bomb stays there.
	crowdTime = 2 * time.Second
	// busyRetry is how often a build looks whether the one before it of the same app is gone.
	busyRetry = 50 * time.Millisecond
	// failTime is how long BuildKit may take to see that a step's processes were killed. A build between two steps takes all of it.
	failTime = 3 * time.Second
)

// guard holds one build to its limits. Its steps run in a control group of its
// own; what the kernel does not limit is watched. When a limit is exceeded, all
// processes of the build are killed and the error says which limit.
type guard struct {
	limits  Limits
	config  map[string]string
	started time.Time
	// group and snapshots are what is watched; nil and "" where BuildKit is on another machine.
	group     *cgroup
	snapshots string
	heard     atomic.Int64 // when the build showed something last, as time since started
}

// cgroupParent is where the build's steps run: the parent of BuildKit's cgroups for
// them. It is part of the key of each step in BuildKit's cache. So it is the same for all
// builds of an app, and no app is given what another app's step left.
func (g *guard) cgroupParent() string {
	if g.group == nil {
		return ""
	}
	return g.group.path
}

// output notes that the build showed something.
func (g *guard) output() { g.heard.Store(int64(time.Since(g.started))) }

// guarded calls build, which must end soon after its context, within the limits of an app with
// this config. Another build of the app that is under way is waited for.
func (b *Builder) guarded(ctx context.Context, app string, config map[string]string, build func(context.Context, *guard) error) error {
	limits, err := b.opts.Limits.lowered(config)
	if err != nil {
		return err
	}
	g := &guard{limits: limits, config: config}
	if b.opts.CgroupParent != "" {
		if g.snapshots, err = b.snapshotDir(ctx); err != nil {
			return unavailable(ctx, err, "the container engine does not answer; push again in a moment")
		}
		if g.snapshots != "" {
			if _, err := space(g.snapshots); err != nil {
				return err
			}
		}
		if g.group, err = newGroup(ctx, b.opts, app, limits); err != nil {
			return unavailable(ctx, fmt.Errorf("limit the build: %w", err), "the build machine cannot run builds now: tell the platform's operator")
		}
	}
	g.started = time.Now()
	if g.group != nil {
		defer b.balance.join(path.Dir(g.group.path))()
	}
	err = g.run(ctx, build)
	if g.group != nil {
		if left := g.group.release(context.WithoutCancel(ctx)); left != nil {
			// The next build of the app, or the next start, tries again.
			slog.Warn("a build left something behind", "app", app, "error", left.Error())
		}
	}
	return err
}

// unavailable is the end of a build that the machine is at fault for, unless the build was cancelled.
func unavailable(ctx context.Context, err error, message string) error {
	if ctx.Err() != nil {
		return err
	}
	return &paas.Error{Code: paas.Unavailable, Message: message, Err: err}
}

// newGroup makes the group of an app's builds anew.
func newGroup(ctx context.Context, opts Options, app string, limits Limits) (*cgroup, error) {
	for {
		parent, err := parentGroup(opts)
		if err != nil {
			return nil, err
		}
		c := &cgroup{path: path.Join(parent.path, app), oom: -1}
		if err := c.make(); err != nil {
			return nil, err
		}
		owned, err := c.own()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if owned {
			return c.prepare(ctx, limits)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(busyRetry):
		}
	}
}

// prepare sets the limits of a group that is owned.
func (c *cgroup) prepare(ctx context.Context, limits Limits) (*cgroup, error) {
	err := c.kill(ctx) // what a killed builder left; it also forbids processes
	if err == nil {
		err = c.reset(limits)
	}
	if err != nil {
		return nil, errors.Join(err, c.release(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// run calls build and watches it. A build that is to end has its processes killed before BuildKit hears of it: what a cancelled
// step has written and read, BuildKit keeps until it is started again; of one that failed it lets go.
func (g *guard) run(ctx context.Context, build func(context.Context, *guard) error) error {
	watched, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	ended := make(chan struct{})
	var verdict atomic.Pointer[error]
	end := func(err error) {
		if err == nil || !verdict.CompareAndSwap(nil, &err) {
			return
		}
		if g.group != nil {
			_ = g.group.kill(context.WithoutCancel(ctx)) // release tries again, and says so
			select {
			case <-ended:
			case <-time.After(failTime):
			}
		}
		cancel(err)
	}
	watching, stop := context.WithCancel(watched)
	var watches sync.WaitGroup
	watches.Go(func() { end(g.watch(watching)) })
	watches.Go(func() { end(g.watchDisk(watching)) })
	watches.Go(func() {
		select {
		case <-ctx.Done():
			end(context.Cause(ctx))
		case <-watching.Done():
		}
	})
	err := build(watched, g)
	close(ended)
	stop()
	watches.Wait()
	if v := verdict.Load(); v != nil {
		return *v
	}
	if err != nil {
		if why := g.cause(); why != nil {
			return why
		}
	}
	return err
}

// cause is the limit that a build that failed by itself had met, if any.
func (g *guard) cause() error {
	switch {
	case g.group == nil:
		return nil
	case g.group.oomKilled():
		return g.tooMuchMemory()
	case g.limits.Processes > 0 && g.group.processes("pids.peak") >= g.limits.Processes:
		return g.tooManyProcesses()
	default:
		return nil
	}
}

// watch returns the limit that the build exceeds, or nil at the end of ctx.
func (g *guard) watch(ctx context.Context) error {
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	var crowded time.Time // since when the processes are at their limit
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		if g.limits.Silence > 0 && now.Sub(g.started)-time.Duration(g.heard.Load()) > g.limits.Silence {
			return g.tooSilent()
		}
		if g.group == nil {
			continue
		}
		if g.group.oomKilled() {
			return g.tooMuchMemory()
		}
		switch {
		case g.limits.Processes == 0 || g.group.processes("pids.current") < g.limits.Processes*9/10:
			crowded = time.Time{}
		case crowded.IsZero():
			crowded = now
		case now.Sub(crowded) > crowdTime:
			return g.tooManyProcesses()
		}
	}
}

func (g *guard) tooMuchMemory() error {
	return exceeded("it used more memory than it may", formatSize(g.limits.Memory), memoryName,
		"Let it do less at a time, for example with fewer parallel jobs", g.config)
}

func (g *guard) tooManyProcesses() error {
	return exceeded("it started more processes and threads than it may", fmt.Sprint(g.limits.Processes), processesName,
		"Let it start fewer at a time, for example with fewer parallel jobs", nil) // apps do not set it
}

func (g *guard) tooSilent() error {
	return exceeded("it showed nothing for too long", g.limits.Silence.String(), silenceName,
		"Look for what waits, or let it show that it goes on", nil)
}

// parentGroup makes the group of all builds: together they get no more of the CPU
// than one may have, and give way to the apps.
func parentGroup(opts Options) (*cgroup, error) {
	c := &cgroup{path: path.Join("/", opts.CgroupParent), oom: -1}
	if err := c.make(); err != nil {
		return nil, err
	}
	c.yield()
	return c, c.limit(Limits{CPU: opts.Limits.CPU})
}

// openGroups makes the group of all builds, and removes those of builds whose
// builder was killed.
func openGroups(opts Options) error {
	if opts.CgroupParent == "" {
		return nil
	}
	parent, err := parentGroup(opts)
	if err != nil {
		return fmt.Errorf("cgroup of the builds: %w", err)
	}
	entries, err := os.ReadDir(parent.dir("memory"))
	if err != nil {
		return fmt.Errorf("cgroup of the builds: %w", err)
	}
	for _, e := range entries {
		c := &cgroup{path: path.Join(parent.path, e.Name()), oom: -1}
		if !e.IsDir() || e.Name() == buildkitGroup {
			continue
		}
		if owned, err := c.own(); err != nil || !owned {
			continue // in use by another builder, or just gone
		}
		if err := c.release(context.Background()); err != nil {
			slog.Warn("an interrupted build left something behind", "cgroup", c.path, "error", err.Error())
		}
	}
	return nil
}

// buildkitGroup is what BuildKit puts below a parent: the groups of its steps are in there.
const buildkitGroup = "buildkit"

// closeGroups removes the group of all builds when nothing is in it.
func closeGroups(opts Options) {
	if opts.CgroupParent == "" {
		return
	}
	for _, hierarchy := range cgroupHierarchies() {
		// It fails while another builder builds, which removes it later.
		_ = os.Remove(filepath.Join(hierarchy, opts.CgroupParent))
	}
}
