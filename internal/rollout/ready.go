package rollout

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/routerconf"
)

const (
	// watchPause is the time between two health checks of an instance that serves, and watchFailures how many of them must
	// fail one after the other. What Deis v1 publishes is renewed every 10 s and lives for 20 (contract 10.5).
	watchPause    = 10 * time.Second
	watchFailures = 2
	// notePause is how long nothing more is noted of an instance, by its type and number: the notes of a check that comes and
	// goes must not drive those of what was done to the app out of what is kept.
	notePause = time.Hour
)

// targets are the instances of live sets of routed types that are up and ready: a rollout or a check of the
// reconciler saw them serve, and they have passed their health check since. While none is ready all that are up are
// targets. What these answer may be an error, but without them every answer is one, and an app whose check never passes would
// be gone for good. What runs when a controller comes is taken as ready: to check it all first would take apps away that serve.
// a.mu is held.
func (m *Manager) targets(a *app, instances []engine.Instance, live []paas.Set) []routerconf.Target {
	all, ready := []routerconf.Target{}, []routerconf.Target{}
	up := map[string]bool{}
	for _, inst := range instances {
		if inst.State != paas.StateUp || inst.Address == "" || !paas.Routed(inst.Type) || !wanted(inst, live) {
			continue
		}
		up[inst.ID] = true
		if !a.adopted {
			a.ready[inst.ID] = true
		}
		target := routerconf.Target{ID: inst.ID, Address: inst.Address}
		all = append(all, target)
		if a.ready[inst.ID] {
			ready = append(ready, target)
		}
		if a.checks[inst.ID] == nil {
			m.startChecks(a, inst, live)
		}
	}
	a.adopted = true
	there := func(id string) bool {
		return slices.ContainsFunc(instances, func(inst engine.Instance) bool { return inst.ID == id })
	}
	maps.DeleteFunc(a.ready, func(id string, _ bool) bool { return !there(id) })
	maps.DeleteFunc(a.unhealthy, func(id, _ string) bool { return !there(id) })
	for id, cancel := range a.checks {
		if !up[id] {
			cancel()
			delete(a.checks, id)
		}
	}
	if len(ready) == 0 {
		return all
	}
	return ready
}

// startChecks begins to check an instance. a.mu is held.
func (m *Manager) startChecks(a *app, inst engine.Instance, live []paas.Set) {
	set := live[slices.IndexFunc(live, func(set paas.Set) bool { return keyOf(set) == inst.SetKey })]
	ctx, cancel := context.WithCancel(a.ctx)
	a.checks[inst.ID] = cancel
	m.spawn(a, func() {
		defer cancel()
		m.retry(ctx, "check an instance", func() error { return m.check(ctx, a, inst, set.Config) })
	})
}

// check makes an instance ready once it passes the check that a start makes, which it asks for less and less often, about each
// time that a third of what has gone by has gone by again. One with a health check of its own is not ready any more when it
// fails that, and ready when it passes it again, until ctx ends.
func (m *Manager) check(ctx context.Context, a *app, inst engine.Instance, config string) error {
	c, err := m.opt.Store.ConfigByUUID(ctx, config)
	if err != nil {
		return fmt.Errorf("read config %s: %w", config, err)
	}
	h, err := healthOf(c)
	if err != nil {
		return err
	}
	s := &starter{m: m, app: a, health: h, redact: redactor(c), say: func(string) {}, slowest: maxRetry}
	for {
		if !a.isReady(inst.ID) {
			if err := s.awaitHealthy(ctx, inst); err != nil {
				return fmt.Errorf("app %s: %w", a.uuid, err)
			}
			a.admit(ctx, inst.ID)
			poke(a.look)
		}
		if h.check.Path == "" {
			return nil
		}
		err := m.awaitUnhealthy(ctx, inst, h.check)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		reason := "does not pass its health check any more: " + s.redact(probeText(err))
		m.opt.Log.Warn("an instance gets no more requests while others of its app serve", "app", a.uuid, "instance", name(inst), "reason", reason)
		m.metrics.unhealthy.Inc()
		a.dismiss(ctx, inst.ID, reason)
		poke(a.look)
		m.note(ctx, a, name(inst), reason)
	}
}

// note tells the app's users why an instance gets no requests, once in notePause.
func (m *Manager) note(ctx context.Context, a *app, name, reason string) {
	a.mu.Lock()
	due := time.Since(a.noted[name]) > notePause
	if due {
		a.noted[name] = time.Now()
	}
	a.mu.Unlock()
	if !due {
		return
	}
	err := m.opt.Store.Note(ctx, a.uuid, fmt.Sprintf("%s %s; it gets no requests while another instance does", name, reason))
	if err != nil && ctx.Err() == nil {
		m.opt.Log.Warn("a line is not in an app's log", "app", a.uuid, "error", err.Error())
	}
}

// awaitUnhealthy returns why an instance does not pass its health check any more, or ctx's error.
func (m *Manager) awaitUnhealthy(ctx context.Context, inst engine.Instance, check engine.Check) error {
	pause := watchPause/2 + rand.N(watchPause) // those of many apps began together
	for failed := 0; ; pause = watchPause {
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
		err := m.opt.Engine.Probe(ctx, inst, check)
		switch {
		case err == nil:
			failed = 0
		case paas.CodeOf(err) == paas.Unavailable: // the engine is, and nothing is known of the instance
		default:
			if failed++; failed == watchFailures {
				return err
			}
		}
	}
}

func (a *app) isReady(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready[id]
}

// admit makes an instance ready unless ctx has ended.
func (a *app) admit(ctx context.Context, id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() == nil {
		a.ready[id] = true
		delete(a.unhealthy, id)
	}
}

// dismiss makes an instance one that is not ready, unless ctx has ended.
func (a *app) dismiss(ctx context.Context, id, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() == nil {
		delete(a.ready, id)
		a.unhealthy[id] = reason
	}
}
