package rollout

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/routerconf"
)

// targets are the instances of live sets of routed types that are up and ready: a rollout or a check of the
// reconciler saw them serve. While none is ready all that are up are targets. What these answer may be an
// error, but without them every answer is one, and an app whose check never passes would be gone for good. What runs
// when a controller comes is taken as ready: to check it all would take apps away that serve. a.mu is held.
func (m *Manager) targets(a *app, instances []engine.Instance, live []paas.Set) []routerconf.Target {
	all, ready := []routerconf.Target{}, []routerconf.Target{}
	there, unready := map[string]bool{}, map[string]bool{}
	for _, inst := range instances {
		there[inst.ID] = true
		if inst.State != paas.StateUp || inst.Address == "" || !paas.Routed(inst.Type) || !wanted(inst, live) {
			continue
		}
		if !a.adopted {
			a.ready[inst.ID] = true
		}
		target := routerconf.Target{ID: inst.ID, Address: inst.Address}
		all = append(all, target)
		if a.ready[inst.ID] {
			ready = append(ready, target)
			continue
		}
		unready[inst.ID] = true
		if a.checks[inst.ID] == nil {
			m.startCheck(a, inst, live)
		}
	}
	a.adopted = true
	maps.DeleteFunc(a.ready, func(id string, _ bool) bool { return !there[id] })
	for id, cancel := range a.checks {
		if !unready[id] {
			cancel()
			delete(a.checks, id)
		}
	}
	if len(ready) == 0 {
		return all
	}
	return ready
}

// startCheck begins to check an instance. a.mu is held.
func (m *Manager) startCheck(a *app, inst engine.Instance, live []paas.Set) {
	set := live[slices.IndexFunc(live, func(set paas.Set) bool { return keyOf(set) == inst.SetKey })]
	ctx, cancel := context.WithCancel(a.ctx)
	a.checks[inst.ID] = cancel
	m.spawn(a, func() {
		defer cancel()
		if m.retry(ctx, "check an instance", func() error { return m.check(ctx, a, inst, set.Config) }) {
			a.admit(ctx, inst.ID)
			poke(a.look)
		}
	})
}

// check waits until an instance passes the check that a start makes. It asks less and less often, about each time that
// a third of what has gone by has gone by again.
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
	if err := s.awaitHealthy(ctx, inst); err != nil {
		return fmt.Errorf("app %s: %w", a.uuid, err)
	}
	return nil
}

// admit makes an instance ready unless ctx has ended.
func (a *app) admit(ctx context.Context, id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() == nil {
		a.ready[id] = true
	}
}
