package builder

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/deis/deis/internal/paas"
)

// tidyInterval is how long the repository and the images of a deleted app, or a build cache that was
// cleared, may stay. When there is nothing to do, tidying costs two questions.
const tidyInterval = time.Minute

// tidyUp removes repositories (contract 9.7), images and caches of apps that are gone and caches that
// were cleared, and lets git pack what was pushed to, at once and then regularly until ctx ends.
func (p *platform) tidyUp(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		if err := p.tidy(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("not all is tidied up", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *platform) tidy(ctx context.Context) error {
	p.mu.Lock()
	pushed := p.pushed
	p.pushed = map[string]bool{}
	p.mu.Unlock()
	return errors.Join(p.tidyCaches(ctx, pushed), p.tidyRepositories(ctx, pushed))
}

// tidyCaches prunes unless it would find what it found the last time: BuildKit takes milliseconds for each image to
// list its cache.
func (p *platform) tidyCaches(ctx context.Context, pushed map[string]bool) error {
	if len(pushed) > 0 { // a build may have outlived its app
		p.pruned = nil
	}
	caches, err := p.controller.caches(ctx)
	if err != nil {
		return err
	}
	if p.pruned != nil && maps.Equal(caches, p.pruned) {
		return nil
	}
	p.pruned = nil // until it is done
	freed, err := p.images.Prune(ctx, func(ctx context.Context) (_ map[string]int64, err error) {
		caches, err = p.controller.caches(ctx)
		return caches, err
	})
	if err != nil {
		return err
	}
	p.pruned = caches
	if freed > 0 {
		p.log.Info("build caches removed", "bytes", freed)
	}
	return nil
}

func (p *platform) tidyRepositories(ctx context.Context, pushed map[string]bool) error {
	// In this order: an app made after the list was read must not look gone.
	uuids, err := p.repositories.List()
	if err != nil || len(uuids) == 0 {
		return err
	}
	apps, err := p.controller.caches(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, uuid := range uuids {
		_, exists := apps[uuid]
		switch {
		case !exists:
			// One with a push under way goes the next time.
			if err := p.repositories.Remove(uuid); paas.CodeOf(err) != paas.Conflict {
				errs = append(errs, err)
			}
		case pushed[uuid]:
			errs = append(errs, p.repositories.Pack(ctx, uuid))
		}
	}
	return errors.Join(errs...)
}
