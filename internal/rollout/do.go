package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// changeWait is how long a change waits for the one under way (contract 5.2).
	changeWait = 5 * time.Second
	// deployWait is how long a deploy does: nobody wants to push again (contract 16, controller request).
	deployWait = 20 * time.Minute
	// sayEvery is the time between two lines of progress for who waits.
	sayEvery = 10 * time.Second
	// removalWait is how long a scale waits for what it takes away: TERM and
	// KILL of idle instances. Those that drain for longer go in the background.
	removalWait = engine.StopGrace + 5*time.Second
	// routeWait is how long a change that is live waits until the routers say that they serve it: longer than one
	// takes to find a controller that was started again.
	routeWait = 5 * time.Second
)

// Texts that clients compare (contract 19).
const (
	msgBusy    = "Config changes already in progress."
	msgCreate  = "aborting, failed to create some containers"
	msgStart   = "warning, some containers failed to start"
	msgHealth  = "aborting, app containers failed to respond to health check"
	msgDestroy = "aborting, failed to destroy some containers"
	msgNoBuild = "No build associated with this release"
)

// outcome is the end of a rollout.
type outcome struct {
	rollout paas.Rollout
	release paas.Release
	routes  uint64        // generation of the routing table that has it
	retired []*retirement // what it took away
	err     error
}

// Do brings a change live, and to the routers, and returns the rollout and the release that is then
// the latest. One change of an app is made at a time, in the order of the calls: others than deploys
// get paas.Conflict after 5 seconds of waiting (contract 5.2), a deploy at once when a newer one
// comes to wait as well.
//
// Once its turn has come the work goes on in the manager's own context: when
// ctx ends, Do returns, and the rollout ends without it. On failure the new
// instances go, the old ones are there as before, and the error, mostly
// paas.Unavailable, says for the user what failed. A restart that matches no
// instance and a scale of nothing return a zero Rollout and do nothing.
func (m *Manager) Do(ctx context.Context, req Request) (paas.Rollout, paas.Release, error) {
	select {
	case <-m.ready:
	case <-ctx.Done():
		return paas.Rollout{}, paas.Release{}, ctx.Err()
	}
	say, hush := progress(req.Progress)
	defer hush()
	a := m.appOf(req.App.UUID)
	if err := m.takeTurn(ctx, a, req, say); err != nil {
		return paas.Rollout{}, paas.Release{}, err
	}
	done := make(chan outcome, 1)
	ok := m.spawn(a, func() {
		o := m.perform(a, req, say)
		m.endTurn(a) // before the caller can ask for the next
		done <- o
	})
	if !ok {
		m.endTurn(a)
		return paas.Rollout{}, paas.Release{}, m.gone(a)
	}
	select {
	case o := <-done:
		if o.err == nil && o.routes > 0 {
			m.opt.Router.Applied(ctx, o.routes, routeWait)
		}
		if o.err == nil && req.Kind == paas.RolloutScale {
			o.err = m.awaitRetired(ctx, o.retired)
		}
		return o.rollout, o.release, o.err
	case <-ctx.Done():
		return paas.Rollout{}, paas.Release{}, ctx.Err()
	}
}

// progress makes calls of f come one at a time, and never after hush.
func progress(f func(string)) (say func(string), hush func()) {
	var mu sync.Mutex
	say = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if f != nil {
			f(line)
		}
	}
	hush = func() {
		mu.Lock()
		defer mu.Unlock()
		f = nil
	}
	return say, hush
}

// gone says why nothing can be started for an app.
func (m *Manager) gone(a *app) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.destroyed {
		return errDestroyed
	}
	return errStopping
}

// perform is one rollout from request to end. It has the app's turn.
func (m *Manager) perform(a *app, req Request, say func(string)) outcome {
	r, latest, err := m.freeze(a.ctx, req)
	if err != nil || r.Kind == "" {
		return outcome{release: latest, err: m.interrupted(a, err)}
	}
	if err := m.begin(a, &r); err != nil {
		return outcome{err: m.interrupted(a, err)}
	}
	o, err := m.drive(a, r, say)
	o.err = err
	return o
}

// interrupted is what the caller is told instead of an error that only comes
// from the end of the app's or the manager's context.
func (m *Manager) interrupted(a *app, err error) error {
	if err != nil && a.ctx.Err() != nil {
		return m.gone(a)
	}
	return err
}

// begin writes the journal's first entry.
func (m *Manager) begin(a *app, r *paas.Rollout) error {
	if err := m.opt.Store.BeginRollout(a.ctx, r); err != nil {
		return fmt.Errorf("begin a rollout: %w", err)
	}
	m.setCurrent(a, *r)
	return nil
}

// freeze turns a request into a rollout: all that it depends on is fixed here,
// and what cannot be is refused. Kind is empty when there is nothing to do.
func (m *Manager) freeze(ctx context.Context, req Request) (r paas.Rollout, latest paas.Release, err error) {
	if latest, err = m.opt.Store.LatestRelease(ctx, req.App.UUID); err != nil {
		return r, latest, fmt.Errorf("read the latest release: %w", err)
	}
	if req.Resolve != nil {
		if err := req.Resolve(ctx, latest, &req); err != nil {
			return r, latest, err
		}
	}
	r = paas.Rollout{
		App: req.App.UUID, Owner: req.Owner, Kind: req.Kind, State: paas.RolloutPending,
		Build: req.Build, Config: req.Config, Version: latest.Version, Summary: req.Summary,
	}
	// A rollback may go to a release from before the first build: nothing runs then.
	if r.Build == "" && r.Kind != paas.RolloutRollback {
		r.Build = latest.Build
	}
	if r.Config == "" {
		r.Config = latest.Config
	}
	if r.Kind.MakesRelease() {
		r.Version++
	}
	in, err := m.inputs(ctx, r.App, r.Build, r.Config)
	if err != nil {
		return r, latest, err
	}
	if _, err := healthOf(in.config); err != nil {
		return r, latest, err
	}
	if _, err := stopsFirst(in.config); err != nil {
		return r, latest, err
	}
	r.Formation = in.app.Structure
	switch r.Kind {
	case paas.RolloutScale:
		if len(req.Formation) == 0 {
			return paas.Rollout{}, latest, nil
		}
		err = scaled(&r, in, req.Formation)
	case paas.RolloutRestart:
		err = m.restarted(ctx, &r, req)
	default:
		var previous paas.Build
		if previous, err = m.build(ctx, latest.Build); err == nil {
			r.Formation = nextFormation(in.app.Structure, previous, in.build)
		}
	}
	return r, latest, err
}

// scaled overlays the formation with a request (contract 5.5).
func scaled(r *paas.Rollout, in inputs, request map[string]int) error {
	if in.build.UUID == "" {
		return paas.Errorf(paas.Invalid, msgNoBuild)
	}
	if err := paas.CheckScale(in.build, request); err != nil {
		return err
	}
	formation := map[string]int{}
	for processType, count := range in.app.Structure {
		formation[processType] = count
	}
	for processType, count := range request {
		if count < 0 {
			return paas.Errorf(paas.Invalid, "Must be greater than or equal to zero")
		}
		formation[processType] = count
	}
	r.Formation = formation
	return nil
}

func (m *Manager) restarted(ctx context.Context, r *paas.Rollout, req Request) error {
	live, err := m.opt.Store.LiveSets(ctx, r.App)
	if err != nil {
		return fmt.Errorf("read the live sets: %w", err)
	}
	if r.Restart = restartNums(live, req.RestartType, req.RestartNum); len(r.Restart) == 0 {
		*r = paas.Rollout{}
	}
	return nil
}

// inputs reads what instances of an app run with.
func (m *Manager) inputs(ctx context.Context, app, build, config string) (in inputs, err error) {
	if in.app, err = m.opt.Store.AppByUUID(ctx, app); err != nil {
		return in, fmt.Errorf("read app %s: %w", app, err)
	}
	if in.build, err = m.build(ctx, build); err != nil {
		return in, err
	}
	if in.config, err = m.opt.Store.ConfigByUUID(ctx, config); err != nil {
		return in, fmt.Errorf("read config %s: %w", config, err)
	}
	return in, nil
}

// specOf is what the engine is told of a set.
func (m *Manager) specOf(ctx context.Context, set paas.Set) (engine.SetSpec, error) {
	in, err := m.inputs(ctx, set.App, set.Build, set.Config)
	if err != nil {
		return engine.SetSpec{}, err
	}
	return in.spec(set)
}

// build is the zero Build for "", that of a release before the first push.
func (m *Manager) build(ctx context.Context, uuid string) (paas.Build, error) {
	if uuid == "" {
		return paas.Build{}, nil
	}
	b, err := m.opt.Store.BuildByUUID(ctx, uuid)
	if err != nil {
		return b, fmt.Errorf("read build %s: %w", uuid, err)
	}
	return b, nil
}

// userText is an error in words for the user; what is not for him stays in the log.
func userText(err error) string {
	var e *paas.Error
	switch {
	case !errors.As(err, &e):
		return "an internal error; the controller's log has more"
	case e.Message == "":
		var faults []string
		for _, texts := range e.Fields {
			faults = append(faults, texts...)
		}
		return strings.Join(faults, "; ")
	}
	return e.Text()
}

// awaitRetired waits until what a scale took away is gone, for a bounded time.
// A removal that fails is tried again in the background (contract 5.5).
func (m *Manager) awaitRetired(ctx context.Context, retired []*retirement) error {
	limit := time.NewTimer(removalWait)
	defer limit.Stop()
	var failed error
	for _, r := range retired {
		select {
		case <-r.tried:
			if r.err != nil {
				failed = &paas.Error{Code: paas.Unavailable, Message: msgDestroy, Err: r.err}
			}
		case <-limit.C:
			return failed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return failed
}
