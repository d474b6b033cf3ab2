package builder

import (
	"context"
	"errors"
	"time"

	"github.com/deis/deis/internal/paas"
)

// tidyInterval is how long the repository of a deleted app may stay.
const tidyInterval = 5 * time.Minute

// tidyUp removes repositories of apps that are gone (contract 9.7) and lets git
// pack the others, at once and then regularly until ctx ends.
func (p *platform) tidyUp(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		if err := p.tidy(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("repositories were not tidied up", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *platform) tidy(ctx context.Context) error {
	// In this order: an app made after the list was read must not look gone.
	uuids, err := p.repositories.List()
	if err != nil || len(uuids) == 0 {
		return err
	}
	exist, err := p.controller.apps(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	pushed := p.pushed
	p.pushed = map[string]bool{}
	p.mu.Unlock()
	var errs []error
	for _, uuid := range uuids {
		switch {
		case !exist[uuid]:
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
