package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// assumedMemory is what an instance is taken to need, in bytes, that has no limit and no
	// predecessor: a small app of a language with a virtual machine.
	assumedMemory = 256 << 20
	// reserveShare is the part of the machine's memory, one in so many, that batches leave
	// free for what the estimates do not know: page cache, builds, growth.
	reserveShare = 20
	// goneTime is how long an instance may take to go once it has drained: its grace, and the
	// engine's work on a busy machine.
	goneTime = engine.StopGrace + 30*time.Second
)

// batch takes from todo what may start beside what runs, at least one instance.
// rest says that more is to come, once the old instances in these places are gone. The memory is
// claimed from other apps' batches until unclaim is called. What replaces nothing is never put off: that frees no
// memory.
func (w *work) batch(ctx context.Context, todo, live []paas.Set) (batch []paas.Set, rest bool, unclaim func()) {
	nothing := func() {}
	if !slices.ContainsFunc(todo, func(set paas.Set) bool { return len(within(numsOf(live, set.Type), set.Nums)) > 0 }) {
		return todo, false, nothing
	}
	room, err := w.m.opt.Engine.Room(ctx, w.r.App)
	if err != nil || room.Total == 0 {
		if err != nil && ctx.Err() == nil {
			w.m.opt.Log.Warn("ask for the room", "app", w.r.App, "error", err.Error())
		}
		return todo, false, nothing
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	free := room.Available - room.Total/reserveShare - w.m.claimed
	batch, need := fit(todo, free, func(set paas.Set) int64 { return w.estimate(set, room) })
	w.m.claimed += need
	unclaim = func() {
		w.m.mu.Lock()
		defer w.m.mu.Unlock()
		w.m.claimed -= need
	}
	return batch, total(batch) < total(todo), unclaim
}

// fit takes instances in order while they fit into free bytes, and the first in any case.
func fit(todo []paas.Set, free int64, estimate func(paas.Set) int64) (batch []paas.Set, need int64) {
	for _, set := range todo {
		each, nums := estimate(set), 0
		for nums < len(set.Nums) && (need == 0 || need+each <= free) {
			need += each
			nums++
		}
		if set.Nums = set.Nums[:nums]; nums > 0 {
			batch = append(batch, set)
		}
	}
	return batch, need
}

// estimate is what an instance is likely to use, in bytes: its limit, else a quarter more than those
// of its type that run.
func (w *work) estimate(set paas.Set, room engine.Room) int64 {
	if limit, err := paas.ParseMemory(w.in.config.Memory[set.Type]); err == nil && limit > 0 {
		return limit
	}
	if use := room.Use[set.Type]; use > 0 {
		return use + use/4
	}
	return assumedMemory
}

func total(sets []paas.Set) (n int) {
	for _, set := range sets {
		n += len(set.Nums)
	}
	return n
}

// awaitGone waits until no such instance is left. The reconciler removes them.
func (w *work) awaitGone(ctx context.Context, such func(engine.Instance) bool) error {
	limit := time.Now().Add(w.m.opt.DrainLimit + goneTime)
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		instances, err := w.m.instances(ctx, w.a.uuid)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(instances, such)
		if i < 0 {
			return nil
		}
		if time.Now().After(limit) {
			return &paas.Error{
				Code: paas.Unavailable, Message: msgDestroy,
				Details: fmt.Sprintf("%s of v%d is still there", name(instances[i]), instances[i].Version),
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-w.a.news:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}
