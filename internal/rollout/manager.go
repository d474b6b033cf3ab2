package rollout

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// sweepInterval is how often everything is looked at without being told.
	sweepInterval = 30 * time.Second
	// sweepSpread is the time over which that is spread, so that many apps are
	// not looked at all at once.
	sweepSpread = sweepInterval / 2
	// minRetry and maxRetry bound the back-off after an error of store or engine;
	// maxRetry is short, since both are on this machine or should be.
	minRetry = 250 * time.Millisecond
	maxRetry = 5 * time.Second
)

// errDestroyed ends what is under way for an app that is destroyed.
var errDestroyed = paas.Errorf(paas.Conflict, "The app is being destroyed.")

// errStopping is the answer to callers when the manager ends.
var errStopping = paas.Errorf(paas.Unavailable,
	"The controller is stopping. What is under way is carried on when it is back.")

// Manager runs rollouts and reconciles the engine with the store. Its methods
// may be called concurrently.
type Manager struct {
	opt     Options
	ready   chan struct{}
	metrics *metrics
	work    sync.WaitGroup // all goroutines

	mu      sync.Mutex
	ctx     context.Context // Run's; nil before
	closed  bool            // Run is ending
	apps    map[string]*app
	claimed int64 // bytes of memory that batches under way are to use
}

// app is what the manager knows of one app.
type app struct {
	uuid   string
	ctx    context.Context // ends with Run's or with errDestroyed
	cancel context.CancelCauseFunc
	look   chan struct{}  // holds a token when the reconciler should look
	news   chan struct{}  // holds a token when the rollout under way should look
	work   sync.WaitGroup // its goroutines

	// Guarded by Manager.mu.
	destroyed bool
	busy      bool         // a rollout has the turn
	current   paas.Rollout // which one
	queue     []*waiter    // and who comes next

	// mu makes looking at engine and store and acting on it one step.
	mu       sync.Mutex
	starting map[engine.SetKey][]int // what the rollout under way starts
	unrouted map[engine.SetKey]bool
	repairs  map[slot]*repair
	// repairing has the sets that the reconciler is about to start again.
	repairing map[engine.SetKey]bool
	retiring  map[engine.SetKey]bool
	stuck     map[engine.SetKey]*stuck
	// adopted says that what ran when this controller came is in ready.
	adopted bool
	// ready are the instances that may have requests, by ID. Of those that were and do not pass their health check any more
	// unhealthy has the reason. checks end the checks of those that are up.
	ready     map[string]bool
	unhealthy map[string]string
	noted     map[string]time.Time // when users were told last, by type and number
	checks    map[string]context.CancelFunc
	saved     []paas.Instance
	known     bool // saved is what the store has
}

// New returns a manager that does nothing before Run.
func New(opt Options) *Manager {
	opt.StartTimeout = cmp.Or(opt.StartTimeout, DefaultStartTimeout)
	opt.DrainLimit = cmp.Or(opt.DrainLimit, DefaultDrainLimit)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{opt: opt, ready: make(chan struct{}), apps: map[string]*app{}}
	m.metrics = newMetrics(opt.Metrics, m.load)
	return m
}

// Ready is closed when the manager knows the instances of all apps and has
// published their targets. Do and Destroy wait for it.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run adopts what runs, carries on unfinished rollouts and reconciles until ctx
// ends. It leaves all instances running. It must be called once.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	defer m.close()
	changes := m.opt.Engine.Watch(ctx)
	if !m.retry(ctx, "adopt what runs", func() error { return m.adopt(ctx) }) {
		return ctx.Err()
	}
	close(m.ready)
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sweep.C:
			m.sweep(ctx, sweepSpread)
		case uuid, ok := <-changes:
			switch {
			case !ok:
				changes = nil
			case uuid == "":
				m.sweep(ctx, 0)
			default:
				m.wake(uuid)
			}
		}
	}
}

// close waits for all goroutines; ctx has ended.
func (m *Manager) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.work.Wait()
}

// retry calls f until it succeeds, with back-off. It is false when ctx ended first.
func (m *Manager) retry(ctx context.Context, what string, f func() error) bool {
	for delay := minRetry; ; delay = min(2*delay, maxRetry) {
		err := f()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		m.opt.Log.Warn("will try again", "action", what, "delay", delay.String(), "error", err.Error())
		if !sleep(ctx, delay) {
			return false
		}
	}
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// appOf returns the state of an app and makes it on first sight.
func (m *Manager) appOf(uuid string) *app {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.apps[uuid]; a != nil {
		return a
	}
	ctx, cancel := context.WithCancelCause(m.ctx)
	a := &app{
		uuid: uuid, ctx: ctx, cancel: cancel,
		look: make(chan struct{}, 1), news: make(chan struct{}, 1),
		unrouted: map[engine.SetKey]bool{},
		repairs:  map[slot]*repair{}, repairing: map[engine.SetKey]bool{},
		retiring: map[engine.SetKey]bool{}, stuck: map[engine.SetKey]*stuck{},
		ready: map[string]bool{}, unhealthy: map[string]string{}, noted: map[string]time.Time{}, checks: map[string]context.CancelFunc{},
	}
	m.apps[uuid] = a
	m.spawnLocked(a, func() { m.follow(a) })
	return a
}

// spawn runs f for an app unless the app or the manager is going.
func (m *Manager) spawn(a *app, f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spawnLocked(a, f)
}

func (m *Manager) spawnLocked(a *app, f func()) bool {
	if m.closed || a.destroyed {
		return false
	}
	a.work.Add(1)
	m.work.Go(func() {
		defer a.work.Done()
		f()
	})
	return true
}

// wake makes reconciler and rollout of an app look.
func (m *Manager) wake(uuid string) {
	a := m.appOf(uuid)
	poke(a.look)
	poke(a.news)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// follow reconciles one app whenever it is poked, and after errors by itself.
func (m *Manager) follow(a *app) {
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	for delay := minRetry; ; {
		select {
		case <-a.ctx.Done():
			return
		case <-a.look:
		case <-again.C:
		}
		began := time.Now()
		err := m.reconcile(a)
		if err == nil {
			delay = minRetry
			sleep(a.ctx, lookRest*time.Since(began))
			continue
		}
		if a.ctx.Err() == nil {
			m.opt.Log.Warn("reconcile", "app", a.uuid, "retry", delay.String(), "error", err.Error())
		}
		again.Reset(delay)
		delay = min(2*delay, maxRetry)
	}
}

// sweep looks at all apps at once and wakes those that are not as they should be, one after the other
// over a time. To look at each by itself would cost as much as all of them each time.
func (m *Manager) sweep(ctx context.Context, over time.Duration) {
	m.bury(ctx)
	began := time.Now()
	apps, err := m.survey(ctx)
	if err != nil {
		m.opt.Log.Warn("sweep", "error", err.Error())
	}
	var restless []string
	for uuid, seen := range apps {
		if err != nil || !m.appOf(uuid).settled(seen) {
			restless = append(restless, uuid)
		}
	}
	m.metrics.sweeps.Observe(time.Since(began).Seconds())
	if len(restless) == 0 {
		return
	}
	m.work.Go(func() {
		for _, uuid := range restless {
			m.wake(uuid)
			if over > 0 && !sleep(ctx, over/time.Duration(len(restless))) {
				return
			}
		}
	})
}

// seen is what engine and store say of one app.
type seen struct {
	instances []engine.Instance
	live      []paas.Set
}

// survey looks at the apps that there are; with an error, some is missing, but each that the manager
// knows is in it.
func (m *Manager) survey(ctx context.Context) (map[string]seen, error) {
	apps := map[string]seen{}
	m.mu.Lock()
	for uuid := range m.apps {
		apps[uuid] = seen{}
	}
	m.mu.Unlock()
	instances, errInstances := m.opt.Engine.Instances(ctx, "")
	live, errLive := m.opt.Store.LiveSets(ctx, "")
	for _, inst := range instances {
		s := apps[inst.App]
		s.instances = append(s.instances, inst)
		apps[inst.App] = s
	}
	for _, set := range live {
		s := apps[set.App]
		s.live = append(s.live, set)
		apps[set.App] = s
	}
	return apps, errors.Join(errInstances, errLive)
}

// adopt takes over what an earlier controller left: it publishes the instances
// of live sets and goes on with unfinished rollouts. Repeating it does no harm.
func (m *Manager) adopt(ctx context.Context) error {
	unfinished, err := m.opt.Store.UnfinishedRollouts(ctx)
	if err != nil {
		return err
	}
	apps, err := m.survey(ctx)
	if err != nil {
		return err
	}
	byApp := map[string][]paas.Rollout{}
	for _, r := range unfinished {
		apps[r.App] = seen{}
		byApp[r.App] = append(byApp[r.App], r)
		if err := m.claimStarts(ctx, r); err != nil {
			return err
		}
	}
	for uuid := range apps {
		if err := m.reconcile(m.appOf(uuid)); err != nil {
			return err
		}
	}
	for uuid, rollouts := range byApp {
		m.carryOn(m.appOf(uuid), rollouts)
	}
	return nil
}

// claimStarts keeps the reconciler from what an unfinished rollout starts.
func (m *Manager) claimStarts(ctx context.Context, r paas.Rollout) (err error) {
	if r.Before == nil {
		if r.Before, err = m.opt.Store.LiveSets(ctx, r.App); err != nil {
			return err
		}
	}
	a := m.appOf(r.App)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.starting = startedBy(r, r.Before)
	return nil
}

// carryOn finishes rollouts of an earlier controller. It has the first turn.
func (m *Manager) carryOn(a *app, rollouts []paas.Rollout) {
	m.mu.Lock()
	a.busy, a.current = true, rollouts[0]
	m.mu.Unlock()
	m.spawn(a, func() {
		defer m.endTurn(a)
		for _, r := range rollouts {
			m.setCurrent(a, r)
			m.opt.Log.Info("carry on a rollout", "app", a.uuid, "rollout", r.ID, "kind", r.Kind, "state", r.State)
			_, err := m.drive(a, r, func(string) {})
			if err != nil {
				m.opt.Log.Warn("a rollout failed", "app", a.uuid, "rollout", r.ID, "error", err.Error())
			}
		}
	})
}
