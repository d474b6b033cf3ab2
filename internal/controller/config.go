package controller

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
)

const (
	// configWait is that of contract 5.2.
	configWait = 5 * time.Second
	// msgBusy begins the answer to a change that came during another one.
	msgBusy = "Config changes already in progress."
)

func apiConfig(app paas.App, cfg paas.Config) api.Config {
	return api.Config{
		UUID: cfg.UUID, App: app.ID, Owner: cfg.Owner,
		Values: anyMap(cfg.Values), Memory: anyMap(cfg.Memory), CPU: anyMap(cfg.CPU), Tags: anyMap(cfg.Tags),
		Created: date(cfg.Created), Updated: date(cfg.Updated),
	}
}

func anyMap[V any](m map[string]V) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// liveConfig is that of the latest release.
func (s *server) liveConfig(ctx context.Context, app paas.App) (paas.Config, error) {
	latest, err := s.store.LatestRelease(ctx, app.UUID)
	if err != nil {
		return paas.Config{}, err
	}
	return s.store.ConfigByUUID(ctx, latest.Config)
}

func (c *call) getConfig() error {
	cfg, err := c.s.liveConfig(c.ctx, c.app)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiConfig(c.app, cfg))
}

// changeConfig is contract 5.2. The change is merged onto the config of the
// release that is the latest when the app's turn has come: a rollout that an earlier controller began may make another.
func (c *call) changeConfig() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	change := paas.ConfigChange{Values: f.object("values"), Memory: f.object("memory"), CPU: f.object("cpu"), Tags: f.object("tags")}
	if err := f.err(); err != nil {
		return err
	}
	release, err := c.s.changes.acquire(c.ctx, c.app.UUID, c.s.configWait)
	if err != nil {
		return err
	}
	defer release()
	// Once now, so that who asks for what cannot be is told before he waits.
	live, err := c.s.liveConfig(c.ctx, c.app)
	if err != nil {
		return err
	}
	next, err := mergeConfig(live, change)
	if err != nil {
		return err
	}
	_, rel, err := c.s.rollouts.Do(c.lasting(), rollout.Request{
		Kind: paas.RolloutConfig, App: c.app, Owner: c.user.Username,
		Resolve: func(ctx context.Context, latest paas.Release, r *rollout.Request) error {
			prev, err := c.s.store.ConfigByUUID(ctx, latest.Config)
			if err != nil {
				return fmt.Errorf("read config %s: %w", latest.Config, err)
			}
			if next, err = mergeConfig(prev, change); err != nil {
				return err
			}
			next.Owner = c.user.Username
			r.Summary = paas.ConfigSummary(prev, next)
			err = c.s.store.CreateConfig(ctx, &next)
			r.Config = next.UUID
			return err
		},
	})
	if err != nil {
		return err
	}
	answer := apiConfig(c.app, next)
	if rel.Build != "" {
		answer.Values["DEIS_APP"] = c.app.ID
		answer.Values["DEIS_RELEASE"] = fmt.Sprintf("v%d", rel.Version)
	}
	c.releaseHeaders(rel)
	return c.reply(http.StatusCreated, answer)
}

// mergeConfig is what a change makes of a config, if that may be.
func mergeConfig(prev paas.Config, change paas.ConfigChange) (paas.Config, error) {
	next, err := prev.With(change)
	if err != nil {
		return paas.Config{}, err
	}
	return next, checkDrains(next)
}

// releaseHeaders tells the number of a new release (contract 1).
func (c *call) releaseHeaders(r paas.Release) {
	number := []string{strconv.Itoa(r.Version)}
	c.w.Header()[api.HeaderRelease] = number
	c.w.Header()[api.HeaderReleaseOld] = number
}

// appLocks lets one change of config or rollback at a time wait for the turn of an app. The zero value is
// ready to use. A lock lives no longer than its holder's request.
type appLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// acquire waits for an app's lock, at most for limit; then it is a Conflict.
func (l *appLocks) acquire(ctx context.Context, app string, limit time.Duration) (release func(), err error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		l.mu.Lock()
		busy := l.held[app]
		if busy == nil {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			done := make(chan struct{})
			l.held[app] = done
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, app)
				close(done)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-timer.C:
			return nil, paas.Errorf(paas.Conflict, "%s\nanother change is under way.", msgBusy)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
