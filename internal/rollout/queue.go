package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/deis/deis/internal/paas"
)

// waiter is a change that waits for its turn.
type waiter struct {
	rollout paas.Rollout // kind and owner
	// ready is closed when its turn has come or, with err set, never will.
	ready chan struct{}
	err   error
}

// takeTurn waits until no other rollout of the app is under way, behind those
// that came first. A deploy takes the place of the deploys that wait: theirs would only be replaced by it.
func (m *Manager) takeTurn(ctx context.Context, a *app, req Request, say func(string)) error {
	label, err := m.label(ctx, req)
	if err != nil {
		return err
	}
	wait := changeWait
	if req.Kind == paas.RolloutDeploy {
		wait = deployWait
	}
	w := m.enqueue(a, paas.Rollout{Kind: req.Kind, Owner: req.Owner}, label)
	limit := time.NewTimer(wait)
	defer limit.Stop()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select { // a free turn comes before a word about waiting
		case <-w.ready:
			return w.err
		default:
		}
		select {
		case <-w.ready:
			return w.err
		case <-tick.C:
			tick.Reset(sayEvery)
			say("Waiting: " + m.busy(a))
		case <-limit.C:
			err := paas.Errorf(paas.Conflict, "%s\n%s", msgBusy, m.busy(a))
			m.leave(a, w)
			return err
		case <-a.ctx.Done():
			m.leave(a, w)
			return m.gone(a)
		case <-ctx.Done():
			m.leave(a, w)
			return ctx.Err()
		}
	}
}

// label names what a deploy brings; other kinds have none.
func (m *Manager) label(ctx context.Context, req Request) (string, error) {
	if req.Kind != paas.RolloutDeploy {
		return "", nil
	}
	b, err := m.build(ctx, req.Build)
	return b.Label(), err
}

func (m *Manager) enqueue(a *app, r paas.Rollout, label string) *waiter {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &waiter{rollout: r, ready: make(chan struct{})}
	if !a.busy {
		a.give(w)
		return w
	}
	if r.Kind == paas.RolloutDeploy {
		a.queue = slices.DeleteFunc(a.queue, func(older *waiter) bool {
			if older.rollout.Kind != paas.RolloutDeploy {
				return false
			}
			older.err = paas.Errorf(paas.Conflict, "superseded by a newer push of %s (%s)", r.Owner, label)
			close(older.ready)
			return true
		})
	}
	a.queue = append(a.queue, w)
	return w
}

// leave takes a waiter out of the queue; if it was given the turn at this
// moment, the next one gets it.
func (m *Manager) leave(a *app, w *waiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(a.queue, w); i >= 0 {
		a.queue = slices.Delete(a.queue, i, i+1)
	} else if w.err == nil {
		m.passTurn(a)
	}
}

func (m *Manager) endTurn(a *app) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passTurn(a)
}

// passTurn gives the turn to who waits longest. m.mu is held.
func (m *Manager) passTurn(a *app) {
	a.busy, a.current = false, paas.Rollout{}
	if len(a.queue) == 0 {
		return
	}
	w := a.queue[0]
	a.queue = slices.Delete(a.queue, 0, 1)
	a.give(w)
}

// give lets a waiter have the turn. Manager.mu is held.
func (a *app) give(w *waiter) {
	a.busy, a.current = true, w.rollout
	a.current.Created = time.Now() // until it is on record
	close(w.ready)
}

func (m *Manager) setCurrent(a *app, r paas.Rollout) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a.current = r
}

// busy says what is under way for an app.
func (m *Manager) busy(a *app) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	what := "change"
	switch kind := a.current.Kind; kind {
	case paas.RolloutConfig, paas.RolloutScale:
		what = string(kind) + " change"
	case paas.RolloutDeploy, paas.RolloutRollback, paas.RolloutRestart:
		what = string(kind)
	}
	if a.current.Owner == "" {
		return "a " + what + " is under way."
	}
	return fmt.Sprintf("a %s by %s is under way.", what, a.current.Owner)
}

// load is what is under way and what waits.
type load struct {
	running, waiting int64
	oldest           time.Time // start of the oldest rollout under way
}

func (m *Manager) load() (l load) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.apps {
		l.waiting += int64(len(a.queue))
		if !a.busy {
			continue
		}
		l.running++
		if began := a.current.Created; l.oldest.IsZero() || began.Before(l.oldest) {
			l.oldest = began
		}
	}
	return l
}
