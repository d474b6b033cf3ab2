// Package rollout brings releases live: it owns the journaled state machine of
// one rollout, the reconciler that keeps the engine at what the store says, and
// what the routing table hears of instances.
package rollout

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/routerconf"
)

// Store is what rollouts need of the store. Each method is one transaction.
type Store interface {
	// BeginRollout writes a new rollout in state pending, gives it an ID and fills in
	// Before: the sets that are live.
	BeginRollout(ctx context.Context, r *paas.Rollout) error
	// AdvanceRollout writes the next entry of the journal: state, step and reason. This one and the
	// next two are paas.NotFound or paas.Conflict when the rollout has ended or went with its app.
	AdvanceRollout(ctx context.Context, r paas.Rollout) error
	// SwitchSets is AdvanceRollout that also makes these the app's live sets.
	SwitchSets(ctx context.Context, r paas.Rollout, live []paas.Set) error
	// FailRollout ends a rollout in state failed with its reason, with an activity row.
	// Unless live is nil, these are the app's live sets then.
	FailRollout(ctx context.Context, id int64, reason string, live []paas.Set) error
	// FinishRollout ends a rollout in state succeeded, all in one transaction:
	// the release (when the kind makes one), the app's live sets and structure,
	// and the activity row. It returns the release that is now the latest.
	FinishRollout(ctx context.Context, r paas.Rollout, live []paas.Set) (paas.Release, error)
	// UnfinishedRollouts lists those that have neither succeeded nor failed, oldest first.
	UnfinishedRollouts(ctx context.Context) ([]paas.Rollout, error)

	// LiveSets lists the sets that should run, of one app or (app "") of all.
	LiveSets(ctx context.Context, app string) ([]paas.Set, error)
	// LatestRelease is the newest one. Every app has one.
	LatestRelease(ctx context.Context, app string) (paas.Release, error)

	// AppByUUID is paas.NotFound once the app is gone for good. The Image of a build is the
	// reference that the engine knows.
	AppByUUID(ctx context.Context, uuid string) (paas.App, error)
	BuildByUUID(ctx context.Context, uuid string) (paas.Build, error)
	ConfigByUUID(ctx context.Context, uuid string) (paas.Config, error)
	// PinBuild writes the digest of a build's image. One that has a digest keeps it.
	PinBuild(ctx context.Context, uuid, digest string) error

	// SaveInstances replaces the rows of an app's instances; it is a cache of what the
	// engine said, for the API. Instances keep UUID and Created where generation, type and number are equal.
	SaveInstances(ctx context.Context, app string, instances []paas.Instance) error
	// Note writes a line about an app for its users, among the lines of what was done to it.
	Note(ctx context.Context, app, text string) error
}

// Router is the controller's side of the routing table.
type Router interface {
	// SetTargets makes these the instances behind an app, at once, and returns the
	// generation that says so. Equal targets change nothing.
	SetTargets(app string, targets []routerconf.Target) (generation uint64)
	// Applied waits until every connected router serves by a generation, or for limit. With no router connected it
	// returns at once.
	Applied(ctx context.Context, generation uint64, limit time.Duration)
	// Drained waits until every connected router has applied a generation and
	// finished the requests on the targets that went with it, or for limit. With no router connected it returns at
	// once. It is false when requests were still under way.
	Drained(ctx context.Context, generation uint64, limit time.Duration) bool
}

// Options of a Manager. Zero durations get the defaults below.
type Options struct {
	Store  Store
	Engine engine.Engine
	Router Router
	Log    *slog.Logger
	// StartTimeout bounds how long a new instance may take to serve while it shows no progress.
	StartTimeout time.Duration
	// SkipWaits makes the pauses of a start take no time: those between probes, the initial
	// delay of a health check, the moment that a process must run. They count as if they had gone by. It is for
	// engines whose instances need no time either.
	SkipWaits bool
	// DrainLimit bounds how long old instances are kept for requests under way.
	DrainLimit time.Duration
	// Metrics, if set, gets the manager's metrics.
	Metrics prometheus.Registerer
	// Step, if set, is called at each step (see Steps and DestroySteps), before anything more is
	// done. It is for tests, which stop the process there.
	Step func(kind paas.RolloutKind, step string)
}

// The defaults.
const (
	// DefaultStartTimeout is generous: slow frameworks need a minute on a busy machine.
	DefaultStartTimeout = 2 * time.Minute
	// DefaultDrainLimit is what most load balancers and Heroku give.
	DefaultDrainLimit = 30 * time.Second
)

// Request asks for a rollout.
type Request struct {
	Kind paas.RolloutKind
	App  paas.App
	// Owner is the username of who asks.
	Owner string
	// Build and Config are UUIDs of what shall run; "" keeps that of the latest release;
	// for rollbacks, an empty Build is that of a release without one.
	Build, Config string
	// Formation changes counts (scale). Types that it does not name keep theirs.
	Formation map[string]int
	// RestartType and RestartNum narrow a restart; "" and 0 mean all.
	RestartType string
	RestartNum  int
	// Summary is that of the release.
	Summary string
	// Resolve, if set, fills in what follows from the release that is the latest when the app's turn has come:
	// what was read before may be of another one. Its error is Do's.
	Resolve func(ctx context.Context, latest paas.Release, r *Request) error
	// Progress, if set, gets lines for the user, without newline, one call at a time and none
	// after Do has returned. It must not block for long.
	Progress func(string)
}
