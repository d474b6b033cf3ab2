package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

// crashCase is one kind of rollout on an app with web=3 worker=1, of which the last one of worker came
// with a scale.
type crashCase struct {
	name    string
	req     Request
	prepare func(*world)
	// steps are those that it must come to.
	steps string
	// web is how many instances serve at any moment.
	web int
	// alone says that workers of two generations must never meet.
	alone bool
}

// scarce is room for one instance more.
func scarce(w *world) {
	w.engine.SetRoom(engine.Room{Total: 1000 << 20, Available: 350 << 20})
}

// illFrom makes instances of v3 ill from a number on.
func illFrom(w *world, processType string, num int) {
	w.engine.SetProbe(func(i engine.Instance, _ engine.Check) error {
		if i.Version == 3 && i.Type == processType && i.Num >= num {
			return errors.New("it is ill")
		}
		return nil
	})
}

// endsAtOnce makes the processes of b2 that run a command end at once, and release processes succeed.
func endsAtOnce(w *world, word string) {
	w.engine.SetPrograms(func(p engine.Process) (fake.Program, error) {
		release := slices.ContainsFunc(p.Command, func(arg string) bool { return arg == "migrate" })
		ends := p.Image == "image-b2" && slices.ContainsFunc(p.Command, func(arg string) bool { return arg == word })
		code := 0
		if ends {
			code = 1
		}
		return fake.Program{Ends: ends || release, After: time.Millisecond, Code: code}, nil
	})
}

var crashCases = []crashCase{
	{
		name: "deploy", req: Request{Kind: paas.RolloutDeploy, Build: "b2"}, web: 3,
		steps: "pending starting started healthy succeeded",
	},
	{
		name: "deploy with a release process", req: Request{Kind: paas.RolloutDeploy, Build: "b3"}, web: 3,
		prepare: func(w *world) { endsAtOnce(w, "") },
		steps:   "pending releasing released starting started healthy succeeded",
	},
	{
		name: "deploy in batches", req: Request{Kind: paas.RolloutDeploy, Build: "b2"}, prepare: scarce, web: 3,
		steps: "pending starting started healthy switched replaced succeeded",
	},
	{
		name: "deploy that stops first", req: Request{Kind: paas.RolloutDeploy, Build: "b2", Config: "first"}, web: 3, alone: true,
		steps: "pending starting started healthy stopping stopped succeeded",
	},
	{
		name: "deploy that fails", req: Request{Kind: paas.RolloutDeploy, Build: "b2"}, web: 3,
		prepare: func(w *world) { endsAtOnce(w, "serve") },
		steps:   "pending starting started failed",
	},
	{
		name: "deploy in batches that fails", req: Request{Kind: paas.RolloutDeploy, Build: "b2"}, web: 3,
		prepare: func(w *world) { scarce(w); illFrom(w, "web", 3) },
		steps:   "pending starting started healthy switched replaced undoing undone failed",
	},
	{
		name: "deploy that stops first and fails", req: Request{Kind: paas.RolloutDeploy, Build: "b2", Config: "first"}, web: 3,
		prepare: func(w *world) { endsAtOnce(w, "work") }, alone: true,
		steps: "pending starting started healthy stopping stopped undoing undone failed",
	},
	{
		name: "config", req: Request{Kind: paas.RolloutConfig, Config: "c2"}, web: 3,
		steps: "pending starting started healthy succeeded",
	},
	{
		name: "rollback", req: Request{Kind: paas.RolloutRollback, Build: "b1", Config: "blog-c1"}, web: 3,
		steps: "pending starting started healthy succeeded",
	},
	{
		name: "scale up", req: Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 5}}, web: 3,
		steps: "pending starting started healthy succeeded",
	},
	{
		name: "scale down", req: Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 2, "worker": 0}}, web: 2,
		steps: "pending succeeded",
	},
	{
		name: "restart", req: Request{Kind: paas.RolloutRestart}, web: 3,
		steps: "pending starting started healthy succeeded",
	},
	{
		name: "restart of one in batches", req: Request{Kind: paas.RolloutRestart, RestartType: "web"}, prepare: scarce, web: 3,
		steps: "pending starting started healthy switched replaced succeeded",
	},
}

// crashWorld is where every case begins.
func crashWorld(t *testing.T, c crashCase) *world {
	w := newWorld(t)
	for _, name := range []string{"b1", "b2"} {
		w.addBuild(name, map[string]string{"web": "serve", "worker": "work"})
	}
	w.addBuild("b3", map[string]string{"web": "serve", "worker": "work", "release": "migrate"})
	w.addConfig("c2", paas.Config{Values: map[string]string{"A": "b"}})
	w.addConfig("first", paas.Config{Values: map[string]string{paas.ConfigDeployStrategy: paas.DeployStopFirst}})
	w.start()
	w.deploy("b1")
	w.scale(map[string]int{"web": 3, "worker": 1})
	w.set(func() {
		w.drain, w.stopping = 3*time.Second, 2*time.Second
		w.least, w.steps, w.died = 3, nil, make(chan struct{})
	})
	if c.prepare != nil {
		c.prepare(w)
	}
	return w
}

// endState is all that a crash must not change.
func (w *world) endState() string {
	w.Helper()
	w.store.mu.Lock()
	var text strings.Builder
	for _, r := range w.store.rollouts {
		fmt.Fprintf(&text, "rollout %d %s %s\n", r.ID, r.Kind, r.State)
	}
	for _, r := range w.store.releases[uuid] {
		fmt.Fprintf(&text, "release v%d %s %s\n", r.Version, r.Build, r.Config)
	}
	fmt.Fprintf(&text, "structure %v\nlive %v\n", w.store.apps[uuid].Structure, byKey(w.store.live[uuid]))
	w.store.mu.Unlock()
	fmt.Fprintf(&text, "instances %q\nrows %q\n", w.list(), w.rows())
	var served []string
	for who, id := range w.ids() {
		if slices.Contains(w.routed(), id) {
			served = append(served, who)
		}
	}
	slices.Sort(served)
	fmt.Fprintf(&text, "served %q of %d\n", served, len(w.routed()))
	return text.String()
}

// request makes the case's change and kills the manager at a step ("" for never); it is false
// when the rollout does not come to it.
func (c crashCase) request(w *world, dieAt string) (died bool) {
	w.set(func() { w.dieAt = dieAt })
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		req := c.req
		req.App, req.Owner = paas.App{UUID: uuid}, "alice"
		_, _, _ = w.m.Do(ctx, req) // the end is what counts
	}()
	select {
	case <-returned:
	case <-w.died:
	}
	select {
	case <-w.died:
		cancel()
		<-returned
		w.stop()
		return true
	default:
		return false
	}
}

// TestCrashMatrix kills the manager at every step of every kind of rollout: the next one comes to the
// same end, nothing is left over, and the app has served all the while.
func TestCrashMatrix(t *testing.T) {
	for _, c := range crashCases {
		t.Run(c.name, func(t *testing.T) {
			var want string
			synctest.Test(t, func(t *testing.T) {
				w := crashWorld(t, c)
				c.request(w, "")
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				want = w.endState()
				w.check(c)
				var seen []string
				for _, step := range w.steps {
					if !slices.Contains(seen, step) {
						seen = append(seen, step)
					}
				}
				if got := strings.Join(seen, " "); got != c.steps {
					t.Fatalf("steps %q, want %q", got, c.steps)
				}
			})
			for step := range strings.FieldsSeq(c.steps) {
				t.Run(step, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := crashWorld(t, c)
						if !c.request(w, step) {
							t.Fatal("it was not killed")
						}
						w.start()
						time.Sleep(20 * time.Minute)
						synctest.Wait()
						if got := w.endState(); got != want {
							t.Errorf("the end is\n%s\nwithout a crash\n%s", got, want)
						}
						w.check(c)
						w.m.mu.Lock()
						if w.m.claimed != 0 {
							t.Errorf("%d bytes are claimed for ever", w.m.claimed)
						}
						w.m.mu.Unlock()
						w.engine.SetProbe(nil)
						w.engine.SetPrograms(nil)
						w.deploy("b1") // and it goes on
					})
				})
			}
		})
	}
}

// check looks at what must hold at any moment.
func (w *world) check(c crashCase) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.least != c.web {
		w.Errorf("at one moment %d instances served, want %d", w.least, c.web)
	}
	if c.alone && len(w.met) > 0 {
		w.Errorf("workers of two generations met: %q", w.met)
	}
}

// Every step is in the matrix.
func TestCrashMatrixIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range crashCases {
		for step := range strings.FieldsSeq(c.steps) {
			seen[step] = true
		}
	}
	for _, step := range Steps {
		if !seen[step] {
			t.Errorf("no case comes to step %s", step)
		}
		delete(seen, step)
	}
	if len(seen) > 0 {
		t.Errorf("unknown steps %v", slices.Collect(maps.Keys(seen)))
	}
}

// A destruction that was cut off is finished by the next attempt.
func TestDestroyCrash(t *testing.T) {
	for _, step := range DestroySteps {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := crashWorld(t, crashCase{})
				w.store.set(func() { delete(w.store.live, uuid) }) // as for an app that is marked
				w.set(func() { w.dieAt = step })
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					<-w.died
					cancel()
				}()
				if err := w.m.Destroy(ctx, paas.App{UUID: uuid}); err == nil && step == "destroying" {
					t.Fatal("it was not killed")
				}
				<-w.died
				w.stop()
				w.start()
				if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); err != nil {
					t.Errorf("Destroy: %v", err)
				}
				w.want("instances", w.list(), nil)
				w.want("routed", w.routed(), nil)
			})
		})
	}
}

// A request that builds on the latest release is resolved when its turn has come, behind what a new controller carries on.
func TestResolveAfterACrash(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		merge := func(name, key string) Request {
			return Request{Kind: paas.RolloutConfig, Resolve: func(_ context.Context, latest paas.Release, r *Request) error {
				values := map[string]string{key: "1"}
				before, err := w.store.ConfigByUUID(t.Context(), latest.Config)
				for k, v := range before.Values {
					values[k] = v
				}
				w.addConfig(name, paas.Config{Values: values})
				r.Config, r.Summary = name, "added "+key
				return err
			}}
		}
		w.set(func() { w.dieAt, w.died = "starting", make(chan struct{}) })
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-w.died
			cancel()
		}()
		req := merge("a", "A")
		req.App = paas.App{UUID: uuid}
		if _, _, err := w.m.Do(ctx, req); !errors.Is(err, context.Canceled) {
			t.Fatalf("it was not killed: %v", err)
		}
		w.stop()
		var well atomic.Bool
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			if !well.Load() {
				return errors.New("not yet")
			}
			return nil
		})
		w.start()
		go func() {
			time.Sleep(time.Second)
			well.Store(true)
		}()
		release := w.mustDo(merge("b", "B"))
		c, err := w.store.ConfigByUUID(t.Context(), release.Config)
		if err != nil || release.Version != 4 || release.Summary != "added B" || len(c.Values) != 2 {
			t.Errorf("release %+v with %v (%v), want v4 with A and B", release, c.Values, err)
		}
		refused := errors.New("no")
		if _, _, err := w.do(Request{Kind: paas.RolloutConfig, Resolve: func(context.Context, paas.Release, *Request) error { return refused }}); !errors.Is(err, refused) {
			t.Errorf("refused: %v", err)
		}
		if r := w.store.rollout(); r.State != paas.RolloutSucceeded {
			t.Errorf("what was refused is on record: %+v", r)
		}
	})
}
