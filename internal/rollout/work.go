package rollout

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// Steps are the points at which Options.Step is called, in the order of a rollout. What the journal
// says is written at each of them. Not every rollout comes to each.
var Steps = []string{
	"pending",   // the rollout is on record
	"releasing", // the release process is about to run
	"released",  // it has succeeded, which is not on record
	"starting",  // new instances are about to start
	"started",   // they have been started
	"healthy",   // and serve, and the old ones too
	"switched",  // a part of the new is live, on record and nowhere else
	"replaced",  // and the old instances in its place are gone
	"stopping",  // old instances that go first are not live, on record and nowhere else
	"stopped",   // and gone
	"succeeded", // the end, on record and nowhere else
	"undoing",   // what was replaced is about to be brought back
	"undone",    // it is back, which is not on record
	"failed",    // the end, on record and nowhere else
}

// KindDestroy stands for Destroy where Options.Step is called. Its steps are DestroySteps.
const KindDestroy paas.RolloutKind = "destroy"

// DestroySteps are those of Destroy.
var DestroySteps = []string{
	"destroying", // nothing is under way for the app any more
	"forgotten",  // the engine has nothing of it
}

// work is one rollout on its way. The journal holds where it comes from
// (Before) and where it goes (plan); the live sets are how far it is.
type work struct {
	m      *Manager
	a      *app
	r      paas.Rollout
	say    func(string)
	in     inputs
	health health
	goal   []paas.Set
	redact func(string) string
	// at is the last step, since when it came to it.
	at    string
	since time.Time
	// stopFirst says that instances of types that are not routed make room for their successors.
	stopFirst bool
}

// drive takes a rollout from its journaled state to its end. Its error is the
// reason for the user; when the manager stops, the journal is left as it is.
func (m *Manager) drive(a *app, r paas.Rollout, say func(string)) (outcome, error) {
	w := &work{m: m, a: a, r: r, say: say, since: time.Now()}
	o, err := w.run()
	m.metrics.ended(r.Kind, w.at, err, time.Since(r.Created))
	return o, err
}

func (w *work) run() (outcome, error) {
	a, r := w.a, w.r
	if r.State == paas.RolloutUndoing {
		if err := w.prepare(a.ctx); err != nil && a.ctx.Err() == nil {
			w.m.opt.Log.Warn("undo a rollout", "app", a.uuid, "rollout", r.ID, "error", err.Error())
		}
		return w.giveUp(&paas.Error{Code: paas.Unavailable, Message: r.Reason})
	}
	o, err := w.forward(a.ctx)
	if err != nil {
		return w.giveUp(err)
	}
	return o, nil
}

func (w *work) forward(ctx context.Context) (outcome, error) {
	if err := w.prepare(ctx); err != nil {
		return outcome{}, err
	}
	w.step("pending")
	if err := w.fetch(ctx); err != nil {
		return outcome{}, err
	}
	if err := w.release(ctx); err != nil {
		return outcome{}, err
	}
	warning, err := w.shift(ctx, paas.RolloutStarting, w.goal)
	if err != nil {
		return outcome{}, err
	}
	w.r.Reason = warning
	return w.finish(ctx)
}

func (w *work) step(name string) {
	now := time.Now()
	w.m.metrics.stepped(name, now.Sub(w.since))
	w.since = now
	if w.r.State != paas.RolloutUndoing && w.r.State != paas.RolloutFailed {
		w.at = name
	}
	w.m.step(w.r.Kind, name)
}

func (m *Manager) step(kind paas.RolloutKind, name string) {
	if m.opt.Step != nil {
		m.opt.Step(kind, name)
	}
}

// prepare reads what the journal refers to. From here on the reconciler leaves
// the new instances alone.
func (w *work) prepare(ctx context.Context) (err error) {
	if w.in, err = w.m.inputs(ctx, w.r.App, w.r.Build, w.r.Config); err != nil {
		return err
	}
	w.redact = redactor(w.in.config)
	if w.health, err = healthOf(w.in.config); err != nil {
		return err
	}
	if w.stopFirst, err = stopsFirst(w.in.config); err != nil {
		return err
	}
	if w.r.Before == nil { // begun by a controller that did not keep them, and switched nothing
		if w.r.Before, err = w.m.opt.Store.LiveSets(ctx, w.r.App); err != nil {
			return fmt.Errorf("read the live sets: %w", err)
		}
	}
	w.goal = plan(w.r, w.r.Before)
	for _, set := range w.goal {
		if set.Generation == w.r.ID {
			if _, err := w.in.spec(set); err != nil {
				return err
			}
		}
	}
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	w.a.starting = startedBy(w.r, w.r.Before)
	return nil
}

// startedBy returns what a rollout starts itself, if it is not there: its own instances, or the
// former ones once it undoes.
func startedBy(r paas.Rollout, before []paas.Set) map[engine.SetKey][]int {
	if r.State == paas.RolloutUndoing {
		return byKey(before)
	}
	return byKey(slices.DeleteFunc(plan(r, before), func(set paas.Set) bool { return set.Generation != r.ID }))
}

// journal writes what is going to be done.
func (w *work) journal(ctx context.Context, state paas.RolloutState, step string) error {
	w.r.State, w.r.Step = state, step
	if err := w.m.opt.Store.AdvanceRollout(ctx, w.r); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// shift brings the app from the sets that are live to those of the goal, but for the last part: its new
// instances serve when shift returns, and the caller makes the goal live. It can be repeated at any point.
func (w *work) shift(ctx context.Context, state paas.RolloutState, goal []paas.Set) (warning string, err error) {
	s := &starter{
		m: w.m, app: w.a, health: w.health, redact: w.redact, say: w.say,
		healthy: map[string]bool{}, replaced: map[string]bool{},
		again: w.r.State == paas.RolloutStarting || w.r.State == paas.RolloutUndoing,
		step:  func() { w.step("started") },
	}
	for {
		live, err := w.m.opt.Store.LiveSets(ctx, w.r.App)
		if err != nil {
			return "", fmt.Errorf("read the live sets: %w", err)
		}
		fallen, err := w.fallen(ctx, goal, live)
		if err != nil {
			return "", err
		}
		s.again = s.again || len(fallen) > 0
		rolling, stopFirst := w.split(append(lacking(goal, live), fallen...))
		batch, rest, unclaim := w.batch(ctx, rolling, live)
		err = w.startBatch(ctx, s, state, live, batch)
		unclaim()
		switch {
		case err != nil:
			return "", err
		case rest:
			if err := w.replace(ctx, state, live, batch); err != nil {
				return "", err
			}
			continue
		case len(stopFirst) > 0:
			if live, err = w.stopOld(ctx, state, live, goal, stopFirst); err == nil {
				err = w.startBatch(ctx, s, state, live, stopFirst)
			}
		}
		return s.warning, err
	}
}

// lacking returns what of the goal is not live.
func lacking(goal, live []paas.Set) []paas.Set {
	var todo []paas.Set
	for _, set := range goal {
		set.Nums = without(set.Nums, numsIn(live, keyOf(set)))
		if len(set.Nums) > 0 {
			todo = append(todo, set)
		}
	}
	return todo
}

// fallen returns what a scale keeps of a routed type and does not serve, where all that serves would go: it has to
// serve before.
func (w *work) fallen(ctx context.Context, goal, live []paas.Set) ([]paas.Set, error) {
	if w.r.Kind != paas.RolloutScale {
		return nil, nil
	}
	instances, err := w.m.instances(ctx, w.r.App)
	if err != nil {
		return nil, err
	}
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	serves := func(sets []paas.Set, processType string) bool {
		return slices.ContainsFunc(instances, func(inst engine.Instance) bool {
			return inst.Type == processType && inst.State == paas.StateUp && w.a.ready[inst.ID] && wanted(inst, sets)
		})
	}
	var fallen []paas.Set
	for _, set := range goal {
		grows := slices.ContainsFunc(goal, func(s paas.Set) bool { return s.Type == set.Type && s.Generation == w.r.ID })
		if paas.Routed(set.Type) && !grows && serves(live, set.Type) && !serves(goal, set.Type) {
			fallen = append(fallen, set)
		}
	}
	return fallen, nil
}

// numsIn returns the numbers of one set in a list.
func numsIn(sets []paas.Set, key engine.SetKey) []int {
	for _, set := range sets {
		if keyOf(set) == key {
			return set.Nums
		}
	}
	return nil
}

// split parts the types whose old instances stay until the new ones serve from those whose old ones go
// first.
func (w *work) split(todo []paas.Set) (rolling, stopFirst []paas.Set) {
	for _, set := range todo {
		if w.r.Kind != paas.RolloutScale && w.stopFirst && !paas.Routed(set.Type) {
			stopFirst = append(stopFirst, set)
		} else {
			rolling = append(rolling, set)
		}
	}
	return rolling, stopFirst
}

// startBatch starts instances and waits until they, and those of earlier batches, serve.
func (w *work) startBatch(ctx context.Context, s *starter, state paas.RolloutState, live, batch []paas.Set) error {
	if len(batch) == 0 {
		return nil
	}
	var fresh []engine.SetSpec
	for _, set := range batch {
		set.Nums = union(numsIn(live, keyOf(set)), set.Nums)
		spec, err := w.m.specOf(ctx, set)
		if err != nil {
			return err
		}
		fresh = append(fresh, spec)
	}
	if err := w.journal(ctx, state, "starting "+counts(batch)); err != nil {
		return err
	}
	if state == paas.RolloutStarting {
		w.step("starting")
	}
	w.say("Starting " + counts(batch))
	if err := s.run(ctx, fresh); err != nil {
		return err
	}
	w.step("healthy")
	return nil
}

// counts is like "web=2 worker=1".
func counts(sets []paas.Set) string {
	words := make([]string, len(sets))
	for i, set := range sets {
		words[i] = fmt.Sprintf("%s=%d", set.Type, len(set.Nums))
	}
	return strings.Join(words, " ")
}

// replace makes a batch live and waits until what it replaces is gone.
func (w *work) replace(ctx context.Context, state paas.RolloutState, live, batch []paas.Set) error {
	next := overlaid(live, batch)
	if err := w.switchTo(ctx, state, "replacing "+counts(batch), next, "switched"); err != nil {
		return err
	}
	gone := func(inst engine.Instance) bool { return !wanted(inst, next) && numbered(inst, batch) }
	if err := w.awaitGone(ctx, gone); err != nil {
		return err
	}
	w.step("replaced")
	return nil
}

// overlaid is what is live once a batch has taken the places of the instances with the same types and
// numbers.
func overlaid(live, batch []paas.Set) []paas.Set {
	next := vacated(live, batch)
	for _, set := range batch {
		i := slices.IndexFunc(next, func(s paas.Set) bool { return keyOf(s) == keyOf(set) })
		if i < 0 {
			next = append(next, set)
			continue
		}
		next[i].Nums = union(next[i].Nums, set.Nums)
	}
	return next
}

// vacated is what is live without the instances whose places others take.
func vacated(live, batch []paas.Set) []paas.Set {
	var next []paas.Set
	for _, set := range live {
		set.Nums = without(set.Nums, numsOf(batch, set.Type))
		if len(set.Nums) > 0 {
			next = append(next, set)
		}
	}
	return next
}

// numbered reports whether an instance has a type and number of a batch.
func numbered(inst engine.Instance, batch []paas.Set) bool {
	return slices.Contains(numsOf(batch, inst.Type), inst.Num)
}

// stopOld ends the old instances in whose places others start, and waits until nothing of their type is
// left that is not wanted.
func (w *work) stopOld(ctx context.Context, state paas.RolloutState, live, goal, todo []paas.Set) ([]paas.Set, error) {
	next := vacated(live, todo)
	if err := w.switchTo(ctx, state, "stopping the former "+counts(todo), next, "stopping"); err != nil {
		return nil, err
	}
	stray := func(inst engine.Instance) bool {
		ofType := slices.ContainsFunc(todo, func(set paas.Set) bool { return set.Type == inst.Type })
		return ofType && !wanted(inst, next) && !wanted(inst, goal)
	}
	if err := w.awaitGone(ctx, stray); err != nil {
		return nil, err
	}
	w.step("stopped")
	return next, nil
}

// switchTo makes other sets live, and the routes follow, in one step for the reconciler.
func (w *work) switchTo(ctx context.Context, state paas.RolloutState, text string, live []paas.Set, step string) error {
	a := w.a
	a.mu.Lock()
	defer a.mu.Unlock()
	instances, err := w.m.instances(ctx, a.uuid)
	if err != nil {
		return err
	}
	w.r.State, w.r.Step = state, text
	if err := w.m.opt.Store.SwitchSets(ctx, w.r, live); err != nil {
		return fmt.Errorf("switch sets: %w", err)
	}
	w.step(step)
	w.m.publish(a, instances, live, true)
	if err := w.m.save(a, instances, live); err != nil {
		poke(a.look)
	}
	return nil
}

// finish makes the new sets the live ones and the routes follow, in one step for
// the reconciler. Between the two there is nothing that can fail.
func (w *work) finish(ctx context.Context) (outcome, error) {
	a := w.a
	a.mu.Lock()
	defer a.mu.Unlock()
	instances, err := w.m.instances(ctx, a.uuid)
	if err != nil {
		return outcome{}, err
	}
	release, err := w.m.opt.Store.FinishRollout(ctx, w.r, w.goal)
	if err != nil {
		return outcome{}, fmt.Errorf("finish the rollout: %w", err)
	}
	w.r.State, w.r.Step = paas.RolloutSucceeded, ""
	w.step("succeeded")
	a.starting = nil
	o := outcome{rollout: w.r, release: release}
	o.routes, o.retired = w.m.publish(a, instances, w.goal, true)
	if err := w.m.save(a, instances, w.goal); err != nil {
		poke(a.look)
	}
	return o, nil
}

// giveUp ends a rollout that failed: what it has replaced comes back, then the journal
// says so, then the reconciler removes what it started.
func (w *work) giveUp(cause error) (outcome, error) {
	a, ctx := w.a, w.a.ctx
	if ctx.Err() != nil {
		if cause = w.m.gone(a); !errors.Is(cause, errDestroyed) {
			return outcome{rollout: w.r}, cause
		}
		ctx = w.m.ctx
	}
	if paas.CodeOf(cause) == paas.Internal {
		w.m.opt.Log.Error("a rollout failed", "app", a.uuid, "rollout", w.r.ID, "error", cause.Error())
	}
	w.r.Reason = userText(cause)
	var before []paas.Set
	if !errors.Is(cause, errDestroyed) {
		moved, err := w.undo(ctx)
		if err != nil {
			return outcome{rollout: w.r}, w.m.gone(a)
		}
		if moved {
			before = w.r.Before
		}
	}
	w.r.State, w.r.Step = paas.RolloutFailed, ""
	if !w.m.retry(ctx, "write the journal", func() error { return w.m.fail(ctx, w.r, before) }) {
		return outcome{rollout: w.r}, w.m.gone(a)
	}
	w.step("failed")
	w.abandon(before == nil)
	return outcome{rollout: w.r}, cause
}

func (m *Manager) fail(ctx context.Context, r paas.Rollout, live []paas.Set) error {
	return unlessEnded(m.opt.Store.FailRollout(ctx, r.ID, r.Reason, live))
}

// unlessEnded is nil when the app is gone, or the rollout has ended after all.
func unlessEnded(err error) error {
	if code := paas.CodeOf(err); code == paas.NotFound || code == paas.Conflict {
		return nil
	}
	return err
}

// undo brings the instances back that the rollout has replaced, as it brought up its own: step
// by step, while its own serve. It reports whether there are any. Its error means that the manager or the app is going.
func (w *work) undo(ctx context.Context) (moved bool, err error) {
	var live []paas.Set
	ok := w.m.retry(ctx, "read the live sets", func() (err error) {
		live, err = w.m.opt.Store.LiveSets(ctx, w.r.App)
		return err
	})
	if !ok {
		return false, ctx.Err()
	}
	if w.r.Before == nil || sameSets(live, w.r.Before) {
		return false, nil
	}
	again := w.r.State == paas.RolloutUndoing
	w.r.State, w.r.Step = paas.RolloutUndoing, "bringing the former instances back"
	if !w.m.retry(ctx, "write the journal", func() error { return unlessEnded(w.m.opt.Store.AdvanceRollout(ctx, w.r)) }) {
		return true, ctx.Err()
	}
	w.step("undoing")
	w.a.mu.Lock()
	w.a.starting = startedBy(w.r, w.r.Before)
	w.a.mu.Unlock()
	poke(w.a.look) // what was started and is not live goes at once
	if !again {
		w.say("It failed: bringing the former instances back")
	}
	err = w.restore(ctx)
	if ctx.Err() != nil {
		return true, ctx.Err()
	}
	if err != nil {
		w.m.opt.Log.Warn("former instances did not come back in time; the reconciler goes on with it",
			"app", w.a.uuid, "rollout", w.r.ID, "error", err.Error())
	}
	w.step("undone")
	return true, nil
}

// restore is shift back to what was live before.
func (w *work) restore(ctx context.Context) error {
	if len(w.r.Before) == 0 {
		return nil
	}
	config, err := w.m.opt.Store.ConfigByUUID(ctx, w.r.Before[0].Config)
	if err != nil {
		return fmt.Errorf("read config %s: %w", w.r.Before[0].Config, err)
	}
	if w.health, err = healthOf(config); err != nil {
		return err
	}
	stopFirst, err := stopsFirst(config)
	if err != nil {
		return err
	}
	w.stopFirst = w.stopFirst || stopFirst // who must not meet those, must not be met by them
	w.redact = redactor(config)
	_, err = w.shift(ctx, paas.RolloutUndoing, w.r.Before)
	return err
}

// sameSets compares what two lists make live.
func sameSets(a, b []paas.Set) bool {
	return reflect.DeepEqual(byKey(a), byKey(b))
}

func byKey(sets []paas.Set) map[engine.SetKey][]int {
	m := map[engine.SetKey][]int{}
	for _, set := range sets {
		m[keyOf(set)] = set.Nums
	}
	return m
}

// abandon leaves the new sets of a failed rollout to the reconciler, which removes them. If none
// was ever live, no router has heard of them and they have nothing to drain.
func (w *work) abandon(unrouted bool) {
	a := w.a
	a.mu.Lock()
	a.starting = nil
	for _, set := range w.goal {
		if unrouted && set.Generation == w.r.ID {
			a.unrouted[keyOf(set)] = true
		}
	}
	a.mu.Unlock()
	if err := w.m.reconcile(a); err != nil {
		poke(a.look)
	}
}
