package rollout

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/routerconf"
)

// memory is a Store in memory, with the rules of the real one.
type memory struct {
	mu        sync.Mutex
	apps      map[string]paas.App
	builds    map[string]paas.Build
	configs   map[string]paas.Config
	releases  map[string][]paas.Release
	rollouts  []paas.Rollout
	live      map[string][]paas.Set
	instances map[string][]paas.Instance
	notes     []string
	broken    error // what every method answers, if set
}

func newMemory() *memory {
	return &memory{
		apps: map[string]paas.App{}, builds: map[string]paas.Build{}, configs: map[string]paas.Config{},
		releases: map[string][]paas.Release{}, live: map[string][]paas.Set{}, instances: map[string][]paas.Instance{},
	}
}

var errNotFound = paas.Errorf(paas.NotFound, "Not found.")

func (s *memory) BeginRollout(_ context.Context, r *paas.Rollout) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.apps[r.App]; !ok {
		return errNotFound
	}
	r.ID, r.State, r.Created = int64(len(s.rollouts)+1), paas.RolloutPending, time.Now()
	r.Before = cloneSets(s.live[r.App])
	s.rollouts = append(s.rollouts, *r)
	return s.broken
}

// cloneSets is never nil.
func cloneSets(sets []paas.Set) []paas.Set {
	list := []paas.Set{}
	for _, set := range sets {
		set.Nums = slices.Clone(set.Nums)
		list = append(list, set)
	}
	return list
}

func isOver(s paas.RolloutState) bool { return s == paas.RolloutSucceeded || s == paas.RolloutFailed }

func (s *memory) unfinished(id int64) (*paas.Rollout, error) {
	for i := range s.rollouts {
		if r := &s.rollouts[i]; r.ID == id && !isOver(r.State) {
			return r, s.broken
		}
	}
	return nil, errNotFound
}

func (s *memory) AdvanceRollout(_ context.Context, r paas.Rollout) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	row, err := s.unfinished(r.ID)
	if err != nil {
		return err
	}
	row.State, row.Step, row.Reason = r.State, r.Step, r.Reason
	return nil
}

func (s *memory) SwitchSets(ctx context.Context, r paas.Rollout, live []paas.Set) error {
	if err := s.AdvanceRollout(ctx, r); err != nil {
		return err
	}
	s.set(func() { s.live[r.App] = cloneSets(live) })
	return nil
}

func (s *memory) FailRollout(_ context.Context, id int64, reason string, live []paas.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.unfinished(id)
	if err != nil {
		return err
	}
	r.State, r.Reason = paas.RolloutFailed, reason
	if live != nil {
		s.live[r.App] = cloneSets(live)
	}
	return nil
}

func (s *memory) FinishRollout(_ context.Context, r paas.Rollout, live []paas.Set) (paas.Release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	row, err := s.unfinished(r.ID)
	if err != nil {
		return paas.Release{}, err
	}
	app, ok := s.apps[r.App]
	if !ok {
		return paas.Release{}, errNotFound
	}
	row.State = paas.RolloutSucceeded
	app.Structure = r.Formation
	s.apps[r.App] = app
	s.live[r.App] = live
	releases := s.releases[r.App]
	if r.Kind.MakesRelease() {
		releases = append(releases, paas.Release{App: r.App, Version: r.Version, Build: r.Build, Config: r.Config, Summary: r.Summary})
		s.releases[r.App] = releases
	}
	return releases[len(releases)-1], nil
}

func (s *memory) UnfinishedRollouts(context.Context) (list []paas.Rollout, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rollouts {
		if !isOver(r.State) {
			list = append(list, r)
		}
	}
	return list, s.broken
}

func (s *memory) LiveSets(_ context.Context, app string) (list []paas.Set, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uuid, sets := range s.live {
		for _, set := range sets {
			if app == "" || app == uuid {
				set.Nums = slices.Clone(set.Nums)
				list = append(list, set)
			}
		}
	}
	return list, s.broken
}

func (s *memory) LatestRelease(_ context.Context, app string) (paas.Release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	releases := s.releases[app]
	if len(releases) == 0 {
		return paas.Release{}, errNotFound
	}
	return releases[len(releases)-1], s.broken
}

func get[V any](s *memory, m map[string]V, uuid string) (V, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := m[uuid]
	if !ok {
		return v, errNotFound
	}
	return v, s.broken
}

func (s *memory) AppByUUID(_ context.Context, uuid string) (paas.App, error) {
	return get(s, s.apps, uuid)
}

func (s *memory) BuildByUUID(_ context.Context, uuid string) (paas.Build, error) {
	return get(s, s.builds, uuid)
}

func (s *memory) PinBuild(_ context.Context, uuid, digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.builds[uuid]
	if !ok {
		return errNotFound
	}
	if b.Digest == "" {
		b.Digest = digest
		s.builds[uuid] = b
	}
	return s.broken
}

func (s *memory) ConfigByUUID(_ context.Context, uuid string) (paas.Config, error) {
	return get(s, s.configs, uuid)
}

func (s *memory) SaveInstances(_ context.Context, app string, instances []paas.Instance) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[app] = slices.Clone(instances)
	return s.broken
}

func (s *memory) Note(_ context.Context, _, text string) error {
	s.set(func() { s.notes = append(s.notes, text) })
	return s.broken
}

func (s *memory) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// rollout is the newest one.
func (s *memory) rollout() paas.Rollout {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rollouts[len(s.rollouts)-1]
}

// world is a manager on a fake engine, a store in memory and a router that only
// takes notes. Everything that happens is an event.
type world struct {
	*testing.T
	store   *memory
	engine  *fake.Engine
	metrics *prometheus.Registry
	m       *Manager
	stop    func()

	logsFrom  time.Time // when logs appear, but for the engine's own line
	skipWaits bool
	deaf      bool // no event of the engine is heard

	mu       sync.Mutex
	events   []string
	targets  map[string][]string // app to sorted IDs
	table    uint64
	drain    time.Duration // how long Drained takes; over the limit it is false
	down     bool          // the engine answers nothing
	steps    []string      // those that rollouts came to
	dieAt    string        // the step at which the manager is killed, once
	died     chan struct{} // closed then
	least    int           // the fewest targets that a table had
	stopping time.Duration // how long Remove takes
	met      []string      // generations of workers that ran at the same time
}

// stepped kills the manager at a step: what it was doing ends in the middle, and nothing more
// comes of the rest.
func (w *world) stepped(kind paas.RolloutKind, step string, cancel func()) {
	w.mu.Lock()
	w.steps = append(w.steps, step)
	die := w.dieAt == step
	if die {
		w.dieAt = ""
		close(w.died)
		cancel()
	}
	w.mu.Unlock()
	if die {
		runtime.Goexit()
	}
}

const uuid = "11111111-2222-3333-4444-555555555555"

// newWorld is a world with the app blog, which has release v1 without build.
func newWorld(t *testing.T) *world {
	w := &world{T: t, store: newMemory(), engine: fake.New(), targets: map[string][]string{}}
	w.addApp(uuid, "blog")
	t.Cleanup(func() {
		if w.stop != nil {
			w.stop()
		}
	})
	return w
}

func (w *world) addApp(uuid, id string) {
	w.store.set(func() {
		w.store.apps[uuid] = paas.App{UUID: uuid, ID: id, Owner: "alice", Structure: map[string]int{}}
		w.store.configs[id+"-c1"] = paas.Config{UUID: id + "-c1", App: uuid}
		w.store.releases[uuid] = []paas.Release{{App: uuid, Version: 1, Config: id + "-c1"}}
	})
}

func (w *world) addBuild(name string, procfile map[string]string) {
	w.store.set(func() {
		w.store.builds[name] = paas.Build{
			UUID: name, App: uuid, Image: "image-" + name, Digest: "sha256:" + name,
			SHA: "abc", Procfile: procfile, Strategy: paas.StrategyDockerfile,
		}
	})
}

func (w *world) addConfig(name string, c paas.Config) {
	c.UUID, c.App = name, uuid
	w.store.set(func() { w.store.configs[name] = c })
}

// start runs a manager, as after a start of the controller.
func (w *world) start() *world {
	w.Helper()
	w.run()
	<-w.m.Ready()
	return w
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	w.metrics = prometheus.NewRegistry()
	w.m = New(Options{
		Store: w.store, Engine: spy{w.engine, w}, Router: w, Metrics: w.metrics, SkipWaits: w.skipWaits,
		Step: func(kind paas.RolloutKind, step string) { w.stepped(kind, step, cancel) },
	})
	ended := make(chan error, 1)
	go func() { ended <- w.m.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			w.Errorf("Run: %v", err)
		}
		w.stop = nil
	}
}

func (w *world) event(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf(format, args...))
}

// SetTargets is part of Router.
func (w *world) SetTargets(app string, targets []routerconf.Target) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []string
	for _, t := range targets {
		ids = append(ids, t.ID)
	}
	slices.Sort(ids)
	if app == uuid {
		w.least = min(w.least, len(ids))
	}
	if !slices.Equal(ids, w.targets[app]) {
		w.table++
		w.targets[app] = ids
		w.events = append(w.events, fmt.Sprintf("targets %d", len(ids)))
	}
	return w.table
}

// Applied is part of Router.
func (w *world) Applied(context.Context, uint64, time.Duration) {}

// Drained is part of Router.
func (w *world) Drained(ctx context.Context, generation uint64, limit time.Duration) bool {
	w.mu.Lock()
	need := w.drain
	w.events = append(w.events, "drain")
	w.mu.Unlock()
	sleep(ctx, min(need, limit))
	w.event("drained")
	return need <= limit
}

func (w *world) routed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.targets[uuid]
}

// history returns the events and starts anew.
func (w *world) history() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// leastServed is the smallest number of instances that were routed to at once since w.least was set.
func (w *world) leastServed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.least
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// spy is the world's engine with its events.
type spy struct {
	*fake.Engine
	w *world
}

var errDown = errors.New("connection refused")

func (s spy) isDown() bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.down
}

func (s spy) Apply(ctx context.Context, spec engine.SetSpec) error {
	s.w.event("apply %s@%d %v", spec.Type, spec.Generation, spec.Nums)
	if s.isDown() {
		return errDown
	}
	defer s.w.noteWorkers()
	return s.Engine.Apply(ctx, spec)
}

// noteWorkers notes when workers of two generations run.
func (w *world) noteWorkers() {
	instances, err := w.engine.Instances(context.Background(), uuid)
	if err != nil {
		w.Error(err)
	}
	seen := map[int64]bool{}
	for _, inst := range instances {
		if inst.Type == "worker" && inst.State == paas.StateUp {
			seen[inst.Generation] = true
		}
	}
	if len(seen) > 1 {
		w.set(func() { w.met = append(w.met, fmt.Sprint(seen)) })
	}
}

func (s spy) Remove(ctx context.Context, key engine.SetKey) error {
	s.w.event("remove %s@%d", key.Type, key.Generation)
	s.w.mu.Lock()
	takes := s.w.stopping
	s.w.mu.Unlock()
	if !sleep(ctx, takes) {
		return ctx.Err()
	}
	return s.Engine.Remove(ctx, key)
}

func (s spy) Forget(ctx context.Context, app string) error {
	s.w.event("forget")
	if s.isDown() {
		return errDown
	}
	return s.Engine.Forget(ctx, app)
}

func (s spy) Instances(ctx context.Context, app string) ([]engine.Instance, error) {
	if s.isDown() {
		return nil, errDown
	}
	return s.Engine.Instances(ctx, app)
}

func (s spy) Watch(ctx context.Context) <-chan string {
	if s.w.deaf {
		return make(chan string)
	}
	return s.Engine.Watch(ctx)
}

func (s spy) Logs(ctx context.Context, app string, q engine.LogQuery, yield func(engine.LogLine) error) error {
	if !time.Now().Before(s.w.logsFrom) {
		return s.Engine.Logs(ctx, app, q, yield)
	}
	told := false
	return s.Engine.Logs(ctx, app, q, func(l engine.LogLine) error {
		if told {
			return nil
		}
		told, l.Text = true, "deis: ended"
		return yield(l)
	})
}

// list writes the engine's instances as "web.1@3 up".
func (w *world) list() []string {
	w.Helper()
	instances, err := w.engine.Instances(context.Background(), "")
	if err != nil {
		w.Fatal(err)
	}
	var list []string
	for _, i := range instances {
		list = append(list, fmt.Sprintf("%s.%d@%d %s", i.Type, i.Num, i.Generation, i.State))
	}
	return list
}

// rows writes the API's view of the instances in the same form.
func (w *world) rows() []string {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	var list []string
	for _, i := range w.store.instances[uuid] {
		list = append(list, fmt.Sprintf("%s.%d@%d %s", i.Type, i.Num, i.Generation, i.State))
	}
	return list
}

// ids maps "web.1" to the IDs of its instances that are up.
func (w *world) ids() map[string]string {
	w.Helper()
	instances, err := w.engine.Instances(context.Background(), uuid)
	if err != nil {
		w.Fatal(err)
	}
	ids := map[string]string{}
	for _, i := range instances {
		if i.State == paas.StateUp {
			ids[name(i)] += i.ID
		}
	}
	return ids
}

// metric reads a counter or gauge by the values of its labels.
func (w *world) metric(name, labels string) float64 {
	w.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if family.GetName() == name && strings.Join(values, " ") == labels {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func (w *world) do(req Request) (paas.Rollout, paas.Release, error) {
	req.App, req.Owner = paas.App{UUID: uuid}, "alice"
	return w.m.Do(w.Context(), req)
}

func (w *world) mustDo(req Request) paas.Release {
	w.Helper()
	r, release, err := w.do(req)
	if err != nil {
		w.Fatalf("%s: %v", req.Kind, err)
	}
	if r.State != paas.RolloutSucceeded || r.ID == 0 {
		w.Fatalf("%s: rollout %+v", req.Kind, r)
	}
	return release
}

func (w *world) deploy(build string) paas.Release {
	w.Helper()
	return w.mustDo(Request{Kind: paas.RolloutDeploy, Build: build})
}

func (w *world) scale(formation map[string]int) {
	w.Helper()
	w.mustDo(Request{Kind: paas.RolloutScale, Formation: formation})
}

func (w *world) want(what string, got, want []string) {
	w.Helper()
	if !slices.Equal(got, want) {
		w.Errorf("%s:\n  got  %q\n  want %q", what, got, want)
	}
}

// wantFailure checks that a change was refused for the user, that the journal
// says the same, and that neither release nor live sets changed.
func (w *world) wantFailure(err error, texts ...string) {
	w.Helper()
	if paas.CodeOf(err) != paas.Unavailable {
		w.Fatalf("error %v with code %q, want one that is unavailable", err, paas.CodeOf(err))
	}
	var e *paas.Error
	errors.As(err, &e)
	for _, text := range texts {
		if !strings.Contains(e.Text(), text) {
			w.Errorf("text %q lacks %q", e.Text(), text)
		}
	}
	if r := w.store.rollout(); r.State != paas.RolloutFailed || r.Reason != e.Text() {
		w.Errorf("the journal has %s with reason %q, want failed with %q", r.State, r.Reason, e.Text())
	}
}

// inBubble runs a test with a fake clock.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func webApp(w *world) *world {
	w.addBuild("b1", map[string]string{"web": "serve", "worker": "work"})
	w.start()
	w.deploy("b1")
	return w
}
