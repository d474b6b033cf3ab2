package rollout

import (
	"context"
	"fmt"

	"github.com/deis/deis/internal/paas"
)

// Destroy ends all that is under way for an app and removes all that the engine keeps
// for it: instances, logs, images. It goes on in the manager's own context
// when ctx ends. When it fails the caller tries again; nothing of the app is started any more from
// the first attempt on. The store forgets it before or after. If the process ends in between, the store
// decides: an app that it still has is brought up again, of one that it has not the
// instances are removed.
func (m *Manager) Destroy(ctx context.Context, app paas.App) error {
	select {
	case <-m.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	a := m.appOf(app.UUID)
	erased := make(chan error, 1)
	if !m.condemn(a, func() { erased <- m.erase(a) }) {
		return errStopping
	}
	select {
	case err := <-erased:
		if err != nil {
			return &paas.Error{Code: paas.Unavailable, Message: msgDestroy, Err: err}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// condemn ends the app's goroutines and runs f.
func (m *Manager) condemn(a *app, f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	a.destroyed = true
	a.cancel(errDestroyed)
	m.work.Go(f)
	return true
}

func (m *Manager) erase(a *app) error {
	a.work.Wait()
	m.step(KindDestroy, "destroying")
	m.opt.Router.SetTargets(a.uuid, nil)
	m.metrics.instances(a.uuid, nil)
	if err := m.opt.Engine.Forget(m.ctx, a.uuid); err != nil {
		return fmt.Errorf("forget app %s: %w", a.uuid, err)
	}
	m.step(KindDestroy, "forgotten")
	return nil
}

// bury drops the state of destroyed apps that the store has forgotten. Until
// then it keeps the reconciler from bringing them up again.
func (m *Manager) bury(ctx context.Context) {
	m.mu.Lock()
	var dead []string
	for uuid, a := range m.apps {
		if a.destroyed {
			dead = append(dead, uuid)
		}
	}
	m.mu.Unlock()
	for _, uuid := range dead {
		if _, err := m.opt.Store.AppByUUID(ctx, uuid); paas.CodeOf(err) != paas.NotFound {
			continue
		}
		m.mu.Lock()
		delete(m.apps, uuid)
		m.mu.Unlock()
	}
}
