package rollout

import (
	"context"
	"fmt"
	"slices"

	"github.com/deis/deis/internal/paas"
)

// fetch makes the image ready, before anything else happens. Where a tag names it, the digest that it has
// now is written to the build: whatever becomes of the tag, the build runs this image for good.
func (w *work) fetch(ctx context.Context) error {
	starts := slices.ContainsFunc(w.goal, func(set paas.Set) bool { return set.Generation == w.r.ID })
	if w.in.build.UUID == "" || !starts && w.r.Kind != paas.RolloutDeploy {
		return nil
	}
	if w.in.build.Digest == "" {
		if err := w.journal(ctx, w.r.State, "fetching the image "+w.in.build.Image); err != nil {
			return err
		}
	}
	spec, err := w.in.spec(paas.Set{App: w.r.App, Generation: w.r.ID, Version: w.r.Version})
	if err != nil {
		return err
	}
	digest, err := w.m.opt.Engine.Fetch(ctx, w.r.App, spec.Process, w.say)
	if err != nil {
		failed := &paas.Error{Code: paas.CodeOf(err), Message: w.redact(userText(err)), Err: err}
		if failed.Code == paas.Internal {
			failed.Code = paas.Unavailable
		}
		return failed
	}
	if w.in.build.Digest != "" {
		return nil
	}
	if err := w.m.opt.Store.PinBuild(ctx, w.in.build.UUID, digest); err != nil {
		return fmt.Errorf("write the digest of image %s: %w", w.in.build.Image, err)
	}
	w.in.build.Digest = digest
	return nil
}
