package buildkitd

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
)

// owned is the worker with an owner for what it makes: the shared key of the
// client's session. The description of each record ends with `of "OWNER"`, so that a client can
// prune what is somebody's, and the result of an exec is cached for its owner alone: one may see
// in it what is in his cache mounts, which BuildKit does not count among the inputs.
type owned struct{ *base.Worker }

// ResolveOp is part of worker.Worker.
func (w owned) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sessions *session.Manager, proxy worker.ProxyOpt) (solver.Op, error) {
	op, err := w.Worker.ResolveOp(v, s, sessions, proxy)
	if err != nil {
		return nil, err
	}
	spec, ok := v.Sys().(*pb.Op)
	if !ok || spec.GetBuild() != nil || spec.GetSource() != nil && !strings.HasPrefix(spec.GetSource().GetIdentifier(), "local://") {
		return op, nil // what is fetched is nobody's
	}
	return &ownedOp{Op: op, records: w.CacheManager(), sessions: sessions, exec: spec.GetExec() != nil}, nil
}

// ownedOp is an operation whose results have an owner.
type ownedOp struct {
	solver.Op
	records  cache.MetadataStore
	sessions *session.Manager
	exec     bool
}

// CacheMap is part of solver.Op.
func (o *ownedOp) CacheMap(ctx context.Context, job solver.JobContext, index int) (*solver.CacheMap, bool, error) {
	m, done, err := o.Op.CacheMap(ctx, job, index)
	if owner := o.owner(ctx, job); err == nil && o.exec && owner != "" {
		m.Digest = digest.FromString(owner + " " + m.Digest.String())
	}
	return m, done, err
}

// Exec is part of solver.Op.
func (o *ownedOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	results, err := o.Op.Exec(ctx, job, inputs)
	owner := o.owner(ctx, job)
	if err != nil || owner == "" {
		return results, err
	}
	given := map[string]bool{}
	for _, in := range inputs {
		if ref := refOf(in); ref != nil {
			given[ref.ID()] = true
		}
	}
	for _, r := range results {
		if ref := refOf(r); ref != nil && !given[ref.ID()] {
			o.describe(ctx, ref, owner)
		}
	}
	return results, nil
}

// owner is the first session's shared key, or "".
func (o *ownedOp) owner(ctx context.Context, job solver.JobContext) string {
	for _, id := range session.AllSessionIDs(job.Session()) {
		if caller, err := o.sessions.Get(ctx, id, true); err == nil && caller != nil {
			return caller.SharedKey()
		}
	}
	return ""
}

func refOf(r solver.Result) cache.ImmutableRef {
	if r == nil {
		return nil
	}
	ref, ok := r.Sys().(*worker.WorkerRef)
	if !ok {
		return nil
	}
	return ref.ImmutableRef
}

// describe adds the owner to the description of a record, and to that of the mutable one
// that it may still be the same as. Failures only make the record wait until the cache is full.
func (o *ownedOp) describe(ctx context.Context, ref cache.ImmutableRef, owner string) {
	records := []cache.RefMetadata{ref}
	if mutable, ok := ref.GetEqualMutable(); ok {
		live, err := o.live(ctx, mutable)
		if err != nil {
			bklog.G(ctx).WithError(err).Warn("a record of the build cache is not found again")
		}
		records = append(records, live...)
	}
	suffix := fmt.Sprintf(" of %q", owner)
	for _, r := range records {
		if strings.HasSuffix(r.GetDescription(), suffix) {
			continue
		}
		if err := r.SetDescription(r.GetDescription() + suffix); err != nil {
			bklog.G(ctx).WithError(err).Warn("a record of the build cache has no owner")
		}
	}
}

// live finds the record that BuildKit itself holds by a copy read from its database: it would not see
// what is changed in the copy. Only a search by an index leads there.
func (o *ownedOp) live(ctx context.Context, r cache.RefMetadata) ([]cache.RefMetadata, error) {
	index := "deis.record:" + r.ID()
	if err := r.SetString("deis.record", r.ID(), index); err != nil {
		return nil, err
	}
	return o.records.Search(ctx, index, false)
}
