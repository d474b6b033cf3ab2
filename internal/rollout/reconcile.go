package rollout

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// An instance that crashes is started again after firstRepair, then after
// twice as long each time up to lastRepair, and as at first after it ran for stableAfter.
const (
	firstRepair = time.Second
	lastRepair  = 5 * time.Minute
	stableAfter = time.Minute
)

// slot is where a live instance belongs.
type slot struct {
	engine.SetKey
	num int
}

// repair is the state of a slot whose instance did not run as it should.
type repair struct {
	delay time.Duration // before the next attempt; 0 when the last one held
	until time.Time     // when to try again; zero when no attempt is due
	last  time.Time     // end of the last attempt
}

// stuck is the state of instances whose removal has failed. A change of the app
// tries it again at once, the reconciler when it is due.
type stuck struct {
	delay time.Duration
	until time.Time
	err   error // of the last attempt
}

// retirement is the removal of instances that nobody wants any more.
type retirement struct {
	tried chan struct{} // closed after the attempt, when the API knows its outcome
	err   error         // read it after tried is closed
}

// reconcile looks at engine and store and acts on the difference: it publishes
// and saves what is up, and starts what is missing and removes what is too much
// in goroutines of their own.
func (m *Manager) reconcile(a *app) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	began := time.Now()
	defer func() { m.metrics.looked(began, err) }()
	instances, err := m.opt.Engine.Instances(a.ctx, a.uuid)
	if err != nil {
		return fmt.Errorf("list the instances of app %s: %w", a.uuid, err)
	}
	live, err := m.opt.Store.LiveSets(a.ctx, a.uuid)
	if err != nil {
		return fmt.Errorf("read the live sets of app %s: %w", a.uuid, err)
	}
	m.publish(a, instances, live, false)
	return m.save(a, instances, live)
}

// publish makes the routes follow what is live and up, and then starts and
// removes what is not as it should be. It returns the generation of the routes and the removals; urgent says
// that a change waits for these. a.mu is held.
func (m *Manager) publish(a *app, instances []engine.Instance, live []paas.Set, urgent bool) (uint64, []*retirement) {
	generation := m.opt.Router.SetTargets(a.uuid, m.targets(a, instances, live))
	m.repairAll(a, instances, live)
	return generation, m.retireAll(a, instances, live, generation, urgent)
}

// starts reports whether the rollout under way starts an instance, and not the reconciler. a.mu is held.
func (a *app) starts(inst engine.Instance) bool {
	return slices.Contains(a.starting[inst.SetKey], inst.Num)
}

func wanted(inst engine.Instance, live []paas.Set) bool {
	return slices.ContainsFunc(live, func(set paas.Set) bool {
		return keyOf(set) == inst.SetKey && slices.Contains(set.Nums, inst.Num)
	})
}

// save keeps the API's view of the instances: those that are live, running or
// not, those of rollouts under way, and those that could not be removed. What is
// only being removed is not in it. a.mu is held.
func (m *Manager) save(a *app, instances []engine.Instance, live []paas.Set) error {
	rows := a.rows(instances, live)
	m.metrics.instances(a.uuid, rows)
	if a.known && slices.Equal(rows, a.saved) {
		return nil
	}
	a.known = false
	if err := m.opt.Store.SaveInstances(a.ctx, a.uuid, rows); err != nil {
		return fmt.Errorf("save the instances of app %s: %w", a.uuid, err)
	}
	a.saved, a.known = rows, true
	return nil
}

// settled reports whether reconcile would do nothing about what was seen. While it is not known it is false.
func (a *app) settled(s seen) bool {
	if !a.mu.TryLock() {
		return false
	}
	defer a.mu.Unlock()
	unwanted := func(inst engine.Instance) bool { return !wanted(inst, s.live) && !a.starts(inst) }
	lacking := func(set paas.Set) bool {
		crashed, missing := broken(set, s.instances)
		return len(crashed)+len(missing) > 0
	}
	return a.known && !slices.ContainsFunc(s.instances, unwanted) && !slices.ContainsFunc(s.live, lacking) &&
		slices.Equal(a.rows(s.instances, s.live), a.saved)
}

// rows is what save keeps. a.mu is held.
func (a *app) rows(instances []engine.Instance, live []paas.Set) []paas.Instance {
	var rows []paas.Instance
	there := map[engine.SetKey][]int{}
	for _, inst := range instances {
		if !wanted(inst, live) && !a.starts(inst) {
			left := a.stuck[inst.SetKey]
			if left == nil {
				continue
			}
			inst.State, inst.Reason = paas.StateError, userText(left.err)
		}
		if inst.State == paas.StateUp {
			inst.Reason = a.unhealthy[inst.ID]
		}
		there[inst.SetKey] = append(there[inst.SetKey], inst.Num)
		rows = append(rows, paas.Instance{
			App: a.uuid, Version: inst.Version, Type: inst.Type, Num: inst.Num,
			Generation: inst.Generation, State: inst.State, Reason: inst.Reason, Container: inst.ID,
		})
	}
	for _, set := range live {
		for _, num := range without(set.Nums, there[keyOf(set)]) {
			rows = append(rows, paas.Instance{
				App: a.uuid, Version: set.Version, Type: set.Type, Num: num,
				Generation: set.Generation, State: paas.StateInitialized,
			})
		}
	}
	slices.SortFunc(rows, func(a, b paas.Instance) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Num, b.Num), cmp.Compare(a.Generation, b.Generation))
	})
	return rows
}

// repairAll starts live instances that are not there: those that ended after a
// back-off, those that are missing (after a reboot) at once. The engine starts all that a set lacks: where one is
// due, the others of its set that have ended are tried with it, and their own back-off goes on. a.mu is held.
func (m *Manager) repairAll(a *app, instances []engine.Instance, live []paas.Set) {
	maps.DeleteFunc(a.repairs, func(at slot, _ *repair) bool { return !slices.Contains(numsIn(live, at.SetKey), at.num) })
	for _, set := range live {
		key := keyOf(set)
		if a.starting[key] != nil || a.repairing[key] {
			continue // the rollout under way sees to it, or a goroutine is at work
		}
		crashed, missing := broken(set, instances)
		due := false
		for _, num := range crashed {
			due = m.due(a, slot{key, num}, true) || due
		}
		for _, num := range missing {
			due = m.due(a, slot{key, num}, false) || due
		}
		if due && m.spawn(a, func() { m.repair(a, set, append(crashed, missing...)) }) {
			a.repairing[key] = true
		}
	}
}

// broken returns the numbers of a set whose instances have ended, and those of instances that are not there at all.
func broken(set paas.Set, instances []engine.Instance) (crashed, missing []int) {
	var there []int
	for _, inst := range instances {
		if inst.SetKey != keyOf(set) || !slices.Contains(set.Nums, inst.Num) {
			continue
		}
		there = append(there, inst.Num)
		if hasEnded(inst) {
			crashed = append(crashed, inst.Num)
		}
	}
	return crashed, without(set.Nums, there)
}

func hasEnded(inst engine.Instance) bool {
	switch inst.State {
	case paas.StateCrashed, paas.StateError, paas.StateDown, paas.StateDestroyed:
		return true
	}
	return false
}

// due reports whether to try a slot now; if not, the reconciler is poked in time. a.mu is held.
func (m *Manager) due(a *app, at slot, crashed bool) bool {
	now, r := time.Now(), a.repairs[at]
	if r == nil {
		r = &repair{}
		a.repairs[at] = r
	}
	if r.until.IsZero() {
		if !crashed {
			return true
		}
		if now.Sub(r.last) >= stableAfter {
			r.delay = 0
		}
		m.postpone(a, r, now)
	}
	return !now.Before(r.until)
}

// postpone makes the next attempt due after the next delay.
func (m *Manager) postpone(a *app, r *repair, now time.Time) {
	r.delay = min(max(2*r.delay, firstRepair), lastRepair)
	r.until = now.Add(r.delay)
	m.lookIn(a, r.delay)
}

// lookIn pokes the reconciler of an app after a delay.
func (m *Manager) lookIn(a *app, delay time.Duration) {
	m.spawn(a, func() {
		if sleep(a.ctx, delay) {
			poke(a.look)
		}
	})
}

// repair starts a set again of which these numbers are broken.
func (m *Manager) repair(a *app, set paas.Set, nums []int) {
	err := m.applyLive(a.ctx, a, keyOf(set))
	if err != nil && a.ctx.Err() == nil {
		m.opt.Log.Warn("start instances again", "app", a.uuid, "type", set.Type, "generation", set.Generation,
			"error", err.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.repairing, keyOf(set))
	now := time.Now()
	for _, num := range nums {
		r := a.repairs[slot{keyOf(set), num}]
		if r == nil {
			continue // it is not live any more
		}
		if r.until, r.last = (time.Time{}), now; err != nil {
			m.postpone(a, r, now)
		}
	}
	poke(a.look)
}

// applyLive starts what a set lacks, if it is still live. It removes nothing:
// instances that are not live any more may still drain.
func (m *Manager) applyLive(ctx context.Context, a *app, key engine.SetKey) error {
	set, there, err := m.setNow(ctx, a, key)
	if err != nil || len(set.Nums) == 0 {
		return err
	}
	if err := m.apply(ctx, set, append(set.Nums, without(there, set.Nums)...)); err != nil {
		return err
	}
	m.metrics.restarts.Add(float64(len(without(set.Nums, there))))
	return nil
}

// setNow reads a live set, without numbers if it is none, and the numbers that
// run in the engine.
func (m *Manager) setNow(ctx context.Context, a *app, key engine.SetKey) (set paas.Set, there []int, err error) {
	instances, err := m.opt.Engine.Instances(ctx, a.uuid)
	if err != nil {
		return set, nil, fmt.Errorf("list the instances: %w", err)
	}
	for _, inst := range instances {
		if inst.SetKey == key && !hasEnded(inst) {
			there = append(there, inst.Num)
		}
	}
	live, err := m.opt.Store.LiveSets(ctx, a.uuid)
	if err != nil {
		return set, nil, fmt.Errorf("read the live sets: %w", err)
	}
	for _, s := range live {
		if keyOf(s) == key {
			set = s
		}
	}
	return set, there, nil
}

func (m *Manager) apply(ctx context.Context, set paas.Set, nums []int) error {
	set.Nums = slices.Sorted(slices.Values(nums))
	spec, err := m.specOf(ctx, set)
	if err != nil {
		return err
	}
	return m.opt.Engine.Apply(ctx, spec)
}

// retireAll removes what is neither live nor being started, and returns the
// removals that this call began. generation is that of the routing table
// without it. What is stuck waits until it is due, unless it is urgent. a.mu is held.
func (m *Manager) retireAll(a *app, instances []engine.Instance, live []paas.Set, generation uint64, urgent bool) []*retirement {
	surplus := map[engine.SetKey][]int{}
	for _, inst := range instances {
		if !wanted(inst, live) && !a.starts(inst) {
			surplus[inst.SetKey] = append(surplus[inst.SetKey], inst.Num)
		}
	}
	var begun []*retirement
	for key, nums := range surplus {
		if a.retiring[key] {
			continue // and then the reconciler looks again
		}
		if left := a.stuck[key]; left != nil && !urgent && time.Now().Before(left.until) {
			continue
		}
		r := &retirement{tried: make(chan struct{})}
		routed := paas.Routed(key.Type) && !a.unrouted[key]
		if m.spawn(a, func() { m.retire(a, key, nums, generation, routed, r) }) {
			a.retiring[key] = true
			begun = append(begun, r)
		}
	}
	for key := range a.stuck {
		if surplus[key] == nil {
			delete(a.stuck, key)
		}
	}
	for key := range a.unrouted {
		if surplus[key] == nil && a.starting[key] == nil {
			delete(a.unrouted, key)
		}
	}
	return begun
}

// retire removes instances of a set once no router sends them requests and
// those under way have ended, or DrainLimit has passed.
func (m *Manager) retire(a *app, key engine.SetKey, nums []int, generation uint64, routed bool, r *retirement) {
	if routed && !m.opt.Router.Drained(a.ctx, generation, m.opt.DrainLimit) && a.ctx.Err() == nil {
		m.opt.Log.Info("requests were still under way", "app", a.uuid, "type", key.Type, "generation", key.Generation)
	}
	if a.ctx.Err() != nil { // what was not drained stays for the next controller
		close(r.tried)
		return
	}
	r.err = m.drop(a.ctx, a, key, nums)
	a.mu.Lock()
	delete(a.retiring, key)
	known := m.removed(a, key, r.err)
	a.mu.Unlock()
	if known || m.reconcile(a) != nil {
		poke(a.look)
	}
	close(r.tried)
}

// removed notes how the removal of a set's instances went. It is false when what the API says of
// them changes with it. a.mu is held.
func (m *Manager) removed(a *app, key engine.SetKey, err error) (known bool) {
	left := a.stuck[key]
	switch {
	case err == nil:
		delete(a.stuck, key)
		return left == nil
	case a.ctx.Err() != nil:
		return true
	case left == nil:
		left = &stuck{}
		a.stuck[key] = left
	}
	left.delay = min(max(2*left.delay, minRetry), maxRetry)
	left.until, left.err = time.Now().Add(left.delay), err
	m.lookIn(a, left.delay)
	m.opt.Log.Warn("instances could not be removed", "app", a.uuid, "type", key.Type, "generation", key.Generation,
		"retry", left.delay.String(), "error", err.Error())
	return false
}

// drop removes these numbers of a set and no others: more may have become
// unwanted meanwhile, but are not drained yet. What a rollout that undoes wants again stays.
func (m *Manager) drop(ctx context.Context, a *app, key engine.SetKey, nums []int) error {
	a.mu.Lock()
	nums = without(nums, a.starting[key])
	a.mu.Unlock()
	if len(nums) == 0 {
		return nil
	}
	set, there, err := m.setNow(ctx, a, key)
	if err != nil {
		return err
	}
	switch rest := without(there, nums); {
	case len(rest) == 0 && len(set.Nums) == 0:
		return m.opt.Engine.Remove(ctx, key)
	case len(set.Nums) == 0:
		return nil // the whole set is unwanted now, and drains
	default:
		return m.apply(ctx, set, append(rest, without(set.Nums, rest)...))
	}
}
